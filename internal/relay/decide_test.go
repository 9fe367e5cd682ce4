package relay

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var (
	noon  = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	alice = netip.MustParseAddr("192.0.2.7")
	other = netip.MustParseAddr("198.51.100.9")
)

func aliceGrant() Grant {
	return Grant{Client: alice, Prefix: 32, User: "alice", Login: noon, Expires: noon.Add(30 * time.Minute), Deadline: 30 * time.Minute}
}

func at(d time.Duration) Now { return Now{noon.Add(d), d} }

func TestDecide(t *testing.T) {
	grant := aliceGrant()
	for _, tt := range []struct {
		name string
		f    Facts
		want Decision
	}{
		{"empty facts never pass", Facts{}, Decision{Defer, ReasonNoClient}},
		{"local recipient passes whoever asks", Facts{Recipient: Local}, Decision{Pass, ReasonLocal}},
		{"local recipient passes though nothing is known", Facts{Recipient: Local, Blind: ReasonStoreError, Busy: true}, Decision{Pass, ReasonLocal}},
		{"authenticated without an address passes", Facts{Authenticated: true, Recipient: Foreign}, Decision{Pass, ReasonAuthenticated}},
		{"trusted client passes", Facts{Trusted: true, Client: alice, Recipient: Foreign}, Decision{Pass, ReasonTrusted}},
		{"trusted without an address does not", Facts{Trusted: true, Recipient: Foreign}, Decision{Defer, ReasonNoClient}},
		{"live grant passes", Facts{Client: alice, Recipient: Foreign, Grant: grant, Allowed: true, Now: at(0)}, Decision{Pass, ReasonGrant}},
		{"live grant passes an unsure recipient", Facts{Client: alice, Grant: grant, Allowed: true, Now: at(0)}, Decision{Pass, ReasonGrant}},
		{"live grant passes though the copy may be stale", Facts{Client: alice, Recipient: Foreign, Grant: grant, Allowed: true, Now: at(0), Blind: ReasonStoreError}, Decision{Pass, ReasonGrant}},
		{"grant ends on the second", Facts{Client: alice, Recipient: Foreign, Grant: grant, Allowed: true, Now: at(30 * time.Minute)}, Decision{Refuse, ReasonExpired}},
		{"grant passes on the last nanosecond", Facts{Client: alice, Recipient: Foreign, Grant: grant, Allowed: true, Now: at(30*time.Minute - 1)}, Decision{Pass, ReasonGrant}},
		{"wall clock set back does not prolong a grant", Facts{Client: alice, Recipient: Foreign, Grant: grant, Allowed: true, Now: Now{noon, 30 * time.Minute}}, Decision{Refuse, ReasonExpired}},
		{"another's grant is no grant", Facts{Client: other, Recipient: Foreign, Grant: grant, Allowed: true, Now: at(0)}, Decision{Refuse, ReasonNoGrant}},
		{"a grant that is not allowed is no grant", Facts{Client: alice, Recipient: Foreign, Grant: grant, Now: at(0)}, Decision{Refuse, ReasonExpired}},
		{"unsure recipient is deferred", Facts{Client: alice}, Decision{Defer, ReasonUnsure}},
		{"unsure comes before blind", Facts{Client: alice, Blind: ReasonNotReady}, Decision{Defer, ReasonUnsure}},
		{"blind is deferred", Facts{Client: alice, Recipient: Foreign, Blind: ReasonNotReady}, Decision{Defer, ReasonNotReady}},
		{"busy is deferred", Facts{Client: alice, Recipient: Foreign, Busy: true}, Decision{Defer, ReasonBusy}},
		{"everything known and nothing permits it", Facts{Client: alice, Recipient: Foreign}, Decision{Refuse, ReasonNoGrant}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Decide(&tt.f); got != tt.want {
				t.Errorf("Decide(%+v) = %v %v, want %v %v", tt.f, got.Verdict, got.Reason, tt.want.Verdict, tt.want.Reason)
			}
		})
	}
}

// The two promises of the package, over random facts.
func TestNoStrangerPassesAndNothingUnknownIsRefused(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	clients := []netip.Addr{{}, alice, other, netip.MustParseAddr("2001:db8::7")}
	passed, refused := 0, 0
	for range 300_000 {
		f := Facts{
			Recipient: Recipient(r.IntN(4)), Authenticated: r.IntN(8) == 0, Trusted: r.IntN(8) == 0,
			Client: clients[r.IntN(len(clients))], Allowed: r.IntN(2) == 0, Busy: r.IntN(4) == 0,
			Now: Now{noon.Add(time.Duration(r.IntN(60)) * time.Minute), time.Duration(r.IntN(60)) * time.Minute},
		}
		if r.IntN(2) == 0 {
			f.Grant = aliceGrant()
		}
		if r.IntN(2) == 0 {
			f.Blind = Reason(r.IntN(int(Reasons)))
		}
		d := Decide(&f)
		live := f.Grant.Covers(f.Client) && f.Grant.Live(f.Now) && f.Allowed
		permitted := f.Recipient == Local || f.Authenticated || f.Trusted && f.Client.IsValid() || live
		switch d.Verdict {
		case Pass:
			passed++
			if !permitted {
				t.Fatalf("a stranger passed: %+v gave %v", f, d.Reason)
			}
		case Refuse:
			refused++
			if permitted || f.Recipient != Foreign || f.Blind != ReasonNone || f.Busy || !f.Client.IsValid() {
				t.Fatalf("refused without knowing everything: %+v gave %v", f, d.Reason)
			}
		default:
			if permitted {
				t.Fatalf("deferred what is permitted: %+v gave %v", f, d.Reason)
			}
		}
	}
	if passed == 0 || refused == 0 {
		t.Fatalf("the property was not exercised: %d passed, %d refused", passed, refused)
	}
}

func TestZeroValuesAreSafe(t *testing.T) {
	if (Decision{}).Verdict != Defer {
		t.Error("the zero verdict is not a defer")
	}
	if Recipient(0) != Unsure {
		t.Error("the zero recipient is not unsure")
	}
	if (&Grant{}).Covers(alice) || (&Grant{}).Live(Now{}) {
		t.Error("the zero grant covers somebody or is live")
	}
	if (&Rules{}).Trusts(alice) || (&Rules{}).Serves(POP3) {
		t.Error("zero rules trust or serve somebody")
	}
	if !(&Rules{}).Domains.Empty() {
		t.Error("zero rules know a domain")
	}
	if w := (&Rules{}).Whose("x@remote.test", &Resolution{}); w != Unsure {
		t.Errorf("with no domain known a recipient is %v, want unsure", w)
	}
}
