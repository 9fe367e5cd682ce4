package relay

import (
	"net/netip"
	"testing"
	"time"
)

func TestParseClientGivesOneSpelling(t *testing.T) {
	for in, want := range map[string]string{
		"192.0.2.7":                "192.0.2.7",
		"::ffff:192.0.2.7":         "192.0.2.7",
		"IPv6:0:0:0:0:0:0:0:1":     "::1",
		"ipv6:2001:DB8::7":         "2001:db8::7",
		"IPv6:::ffff:192.0.2.7":    "192.0.2.7",
		"fe80::1%eth0":             "fe80::1",
		"2001:0db8:0:0:0:0:0:0007": "2001:db8::7",
	} {
		got, err := ParseClient(in)
		if err != nil || got.String() != want {
			t.Errorf("ParseClient(%q) = %v, %v, want %s", in, got, err, want)
		}
	}
	for _, in := range []string{"", "unknown", "192.0.2", "192.0.2.7:25", "192.0.2.0/24", "192.0.2.007", " 192.0.2.7", "IPv6:", "localhost", "[192.0.2.7]"} {
		if got, err := ParseClient(in); err == nil {
			t.Errorf("ParseClient(%q) = %v, want an error", in, got)
		}
	}
}

func TestKeyKeepsNeighboursApartWhereTheyAreStrangers(t *testing.T) {
	same := func(a, b string, bits int) bool {
		return KeyOf(netip.MustParseAddr(a), bits) == KeyOf(netip.MustParseAddr(b), bits)
	}
	for _, tt := range []struct {
		name string
		a, b string
		bits int
		want bool
	}{
		{"one /64 with prefix 64", "2001:db8::1", "2001:db8::2", 64, true},
		{"one /64 with prefix 128", "2001:db8::1", "2001:db8::2", 128, false},
		{"another /64", "2001:db8::1", "2001:db8:0:1::1", 64, false},
		{"NAT64 hosts", "64:ff9b::c000:207", "64:ff9b::c000:208", 64, false},
		{"local NAT64 hosts", "64:ff9b:1::c000:207", "64:ff9b:1::c000:208", 64, false},
		{"Teredo hosts", "2001:0:1::1", "2001:0:1::2", 48, false},
		{"6to4 hosts", "2002:c000:207::1", "2002:c000:207::2", 64, false},
		{"IPv4-compatible hosts", "::192.0.2.7", "::192.0.2.8", 64, false},
		{"IPv4 neighbours", "192.0.2.7", "192.0.2.8", 64, false},
		{"IPv4 and its mapped form", "192.0.2.7", "::ffff:192.0.2.7", 64, true},
		{"a mapped and a real IPv6 address", "192.0.2.7", "::ffff:0:192.0.2.7", 48, false},
	} {
		if got := same(tt.a, tt.b, tt.bits); got != tt.want {
			t.Errorf("%s: same key is %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Writer and look-up share the key; Covers must agree with it.
func TestCoversAgreesWithKey(t *testing.T) {
	list := []string{"192.0.2.7", "192.0.2.8", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1", "2002:c000:207::1",
		"2002:c000:207::2", "::1.2.3.4", "2001:0:1::1", "64:ff9b::1.2.3.4", "64:ff9b::1.2.3.5", "::ffff:0:1.2.3.4"}
	for _, bits := range []int{48, 56, 64, 96, 128} {
		for _, a := range list {
			c := netip.MustParseAddr(a)
			g := Grant{Client: Canonical(c), Prefix: uint8(PrefixFor(c, bits))}
			if g.Key() != KeyOf(c, bits) {
				t.Errorf("/%d: the grant of %s lies where look-up doesn't find it", bits, a)
			}
			for _, b := range list {
				d := netip.MustParseAddr(b)
				if got, want := g.Covers(d), KeyOf(c, bits) == KeyOf(d, bits); got != want {
					t.Errorf("/%d: grant of %s covers %s: %v, same key: %v", bits, a, b, got, want)
				}
			}
		}
	}
}

func TestNeverClient(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "127.9.9.9", "::1", "0.0.0.0", "0.1.2.3", "::", "169.254.1.1", "fe80::1", "224.0.0.1", "239.255.255.255",
		"ff02::1", "240.0.0.1", "0.255.255.255", "127.255.255.255", "169.254.0.0", "169.254.255.255", "::ffff:169.254.1.1", "255.255.255.255", "::ffff:127.0.0.1"} {
		if !NeverClient(netip.MustParseAddr(a)) {
			t.Errorf("a login from %s may grant", a)
		}
	}
	for _, a := range []string{"192.0.2.7", "10.0.0.1", "2001:db8::7", "fd00::1", "1.0.0.0", "126.255.255.255", "128.0.0.0",
		"169.253.255.255", "169.255.0.0", "168.254.1.1", "223.255.255.255", "::2", "fec0::1"} {
		if NeverClient(netip.MustParseAddr(a)) {
			t.Errorf("a login from %s may not grant", a)
		}
	}
	if !NeverClient(netip.Addr{}) {
		t.Error("no address may hold a grant")
	}
}

func TestClientAddressNeedsOneAnswer(t *testing.T) {
	v4 := netip.MustParseAddr("192.0.2.7")
	for _, tt := range []struct {
		name    string
		connect netip.Addr
		macro   string
		want    netip.Addr
	}{
		{"connect alone", v4, "", v4},
		{"both the same", v4, "192.0.2.7", v4},
		{"both the same in sendmail's spelling", netip.MustParseAddr("2001:db8::7"), "IPv6:2001:db8:0:0:0:0:0:7", netip.MustParseAddr("2001:db8::7")},
		{"macro alone", netip.Addr{}, "192.0.2.7", v4},
		{"two different ones", v4, "192.0.2.8", netip.Addr{}},
		{"macro unreadable", v4, "unknown", netip.Addr{}},
		{"nothing", netip.Addr{}, "", netip.Addr{}},
	} {
		q := Query{Client: tt.connect, ClientAddr: tt.macro}
		if got := q.ClientAddress(); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestAuthenticatedNeedsBothMacros(t *testing.T) {
	for _, tt := range []struct {
		kind, user string
		want       bool
	}{{"PLAIN", "alice", true}, {"", "alice", false}, {"PLAIN", "", false}, {"ANONYMOUS", "x", false}, {"anonymous", "x", false}} {
		q := Query{AuthType: tt.kind, AuthUser: tt.user}
		if q.Authenticated() != tt.want {
			t.Errorf("type %q user %q: %v, want %v", tt.kind, tt.user, !tt.want, tt.want)
		}
	}
}

func TestRevocationCovers(t *testing.T) {
	login := func(d time.Duration) Grant {
		g := aliceGrant()
		g.Login = noon.Add(d)
		g.User = "Alice@example.org"
		return g
	}
	net := func(s string) Revocation { return Revocation{Network: netip.MustParsePrefix(s), Time: noon} }
	for _, tt := range []struct {
		name string
		r    Revocation
		g    Grant
		want bool
	}{
		{"the address, login before", net("192.0.2.7/32"), login(-1), true},
		{"the address, login at the same instant", net("192.0.2.7/32"), login(0), true},
		{"the address, login after", net("192.0.2.7/32"), login(1), false},
		{"a network around it", net("192.0.2.0/24"), login(-1), true},
		{"another network", net("198.51.100.0/24"), login(-1), false},
		{"all", Revocation{All: true, Time: noon}, login(-1), true},
		{"the user in another case", Revocation{User: "alice@example.org", Time: noon}, login(-1), true},
		{"a bare name matches every domain", Revocation{User: "alice", Time: noon}, login(-1), true},
		{"another user", Revocation{User: "bob", Time: noon}, login(-1), false},
		{"a login during a block, asked after it", Revocation{All: true, Time: noon, Block: noon.Add(time.Hour)}, login(time.Minute), true},
		{"a login after a block", Revocation{All: true, Time: noon, Block: noon.Add(time.Hour)}, login(time.Hour + 1), false},
		{"an empty revocation covers nothing", Revocation{Time: noon}, login(-1), false},
	} {
		if got := tt.r.Covers(&tt.g); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	wide := Grant{Client: netip.MustParseAddr("2001:db8::1"), Prefix: 64, Login: noon.Add(-1)}
	neighbour := net("2001:db8::2/128")
	if !neighbour.Covers(&wide) {
		t.Error("revoking one address leaves a grant that covers it")
	}
}
