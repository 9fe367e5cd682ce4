package wiring

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/netip"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
)

func testJudge() *judge {
	return &judge{
		class: func(name string) (string, bool) {
			value, ok := map[string]string{"opened": "permit", "shut": "reject_unauth_destination", "loop": "loop"}[name]
			return value, ok
		},
		resolve: func(spec string) (string, string, bool) { return postfixAddress(spec, "/var/spool/postfix", true) },
		ours:    func(_, _, address string) bool { return strings.Contains(address, "popgate") },
	}
}

func TestARestrictionListIsJudgedForAStrangersForeignRecipient(t *testing.T) {
	for name, tt := range map[string]struct {
		list string
		open bool
	}{
		"Postfix's own default":                   {"permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination", false},
		"an empty list takes all":                 {"", true},
		"a list without a refusal takes all":      {"permit_mynetworks", true},
		"permit before a refusal":                 {"permit, reject", true},
		"commas and blanks are one":               {"permit_mynetworks reject_unauth_destination", false},
		"names are of any case":                   {"Reject_Unauth_Destination", false},
		"a warning refuses nothing":               {"warn_if_reject reject_unauth_destination", true},
		"a warning takes a table with it":         {"warn_if_reject check_client_access static:reject, reject", false},
		"a table that says yes to all":            {"check_recipient_access static:OK, reject", true},
		"a table that says yes in another way":    {"check_client_access static:{permit}, reject", true},
		"a number is a yes":                       {"check_client_access static:250, reject", true},
		"a table that says no to all":             {"check_client_access static:reject", false},
		"a table of the site's own":               {"check_client_access hash:/etc/postfix/access, reject", false},
		"a class that permits":                    {"opened, reject", true},
		"a class that refuses":                    {"shut, permit", false},
		"a class that names itself":               {"loop, reject", false},
		"somebody else's policy service":          {"check_policy_service unix:private/greylist, reject", false},
		"a policy service's words are not a list": {"check_policy_service { unix:popgate/p, default_action=permit } reject", false},
	} {
		if o := testJudge().list(tt.list); o.open != tt.open {
			t.Errorf("%s: %q is open: %v, want %v", name, tt.list, o.open, tt.open)
		}
	}
}

func TestADoorIsFoundInARestrictionList(t *testing.T) {
	for name, tt := range map[string]struct {
		list          string
		kind, address string
		own           bool
	}{
		"policy, in braces":      {"permit_auth_destination, check_policy_service { unix:popgate/policy.sock, timeout=10s } reject", Policy, "/var/spool/postfix/popgate/policy.sock", true},
		"policy, plain":          {"check_policy_service unix:/popgate/policy.sock, reject", Policy, "/var/spool/postfix/popgate/policy.sock", false},
		"policy, over TCP":       {"check_policy_service inet:popgate.example.org:10040", Policy, "popgate.example.org:10040", false},
		"socket map":             {"permit_auth_destination check_client_access socketmap:unix:popgate/s.sock:postfix", SocketMap, "/var/spool/postfix/popgate/s.sock", true},
		"socket map, over TCP":   {"check_client_access socketmap:inet:popgate:10041:postfix", SocketMap, "popgate:10041", false},
		"another's policy":       {"check_policy_service unix:private/greylist, reject", "", "", false},
		"behind what refuses":    {"reject_unauth_destination, check_policy_service unix:popgate/p", "", "", false},
		"braces without content": {"check_policy_service {} reject", "", "", false},
	} {
		o := testJudge().list(tt.list)
		switch {
		case tt.kind == "" && len(o.asked) == 0:
		case len(o.asked) != 1:
			t.Errorf("%s: doors %+v", name, o.asked)
		case o.asked[0].kind != tt.kind || o.asked[0].address != tt.address || o.asked[0].own != tt.own:
			t.Errorf("%s: %+v, want %s at %s, own %v", name, o.asked[0], tt.kind, tt.address, tt.own)
		}
	}
}

func TestAddressesAreWhereTheMTALooks(t *testing.T) {
	for _, tt := range []struct {
		spec    string
		chroot  bool
		address string
	}{
		{"unix:/popgate/m", true, "/q/popgate/m"}, {"unix:popgate/m", true, "/q/popgate/m"},
		{"unix:popgate/m", false, "/q/popgate/m"}, {"unix:/run/m", false, "/run/m"}, {"local:/run/m", false, "/run/m"},
		{"inet:localhost:8891", true, "localhost:8891"}, {"inet:8891@localhost", true, "localhost:8891"}, {"inet:[::1]:8891", true, "[::1]:8891"},
		{"unix:", true, ""}, {"private/x", true, ""},
	} {
		if _, address, _ := postfixAddress(tt.spec, "/q", tt.chroot); address != tt.address {
			t.Errorf("%s, chroot %v: %q, want %q", tt.spec, tt.chroot, address, tt.address)
		}
	}
	for spec, want := range map[string]string{"local:/run/m": "/run/m", "unix:/run/m": "/run/m", "/run/m": "/run/m", "inet:8891@127.0.0.1": "127.0.0.1:8891", "inet6:8891@::1": "[::1]:8891", "": ""} {
		if _, address, _ := sendmailAddress(spec); address != want {
			t.Errorf("%q: %q, want %q", spec, address, want)
		}
	}
}

// Whatever answers at a door, only the one yes of its protocol is a yes.
func TestADoorsAnswerIsReadAsTheMTAReadsIt(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		kind, answer string
		pass         bool
		code         int
		broken       bool
	}{
		{kind: Policy, answer: "action=OK\n\n", pass: true}, {kind: Policy, answer: "action=permit\n\n", pass: true},
		{kind: Policy, answer: "action=DUNNO\n\n"}, {kind: Policy, answer: "action=550 5.7.1 no\n\n", code: 550},
		{kind: Policy, answer: "action=451 4.7.1 later\n\n", code: 451}, {kind: Policy, answer: "action=reject\n\n", code: 554},
		{kind: Policy, answer: "action=defer_if_permit x\n\n", code: 451}, {kind: Policy, answer: "OK\n\n", broken: true}, {kind: Policy, answer: "", broken: true},
		{kind: SocketMap, answer: "5:OK OK,", pass: true}, {kind: SocketMap, answer: "9:NOTFOUND ,"}, {kind: SocketMap, answer: "6:TEMP x,", code: 451},
		{kind: SocketMap, answer: "6:", broken: true}, {kind: SocketMap, answer: "-1:OK,", broken: true}, {kind: SocketMap, answer: "99999:OK,", broken: true},
		{kind: Milter, answer: "", broken: true}, {kind: Milter, answer: "\x00\x00\x00\x01c", broken: true},
	} {
		d := Door{Kind: tt.kind, MTA: "Postfix", Version: "3.7.11", Network: "unix", User: me.Username, Map: "postfix"}
		d.Address = filepath.Join(t.TempDir(), "s")
		l, err := net.Listen("unix", d.Address)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			bufio.NewReader(conn).ReadByte() // hang up on no unread question
			io.WriteString(conn, tt.answer)
		}()
		a, err := d.Ask(context.Background(), Question{Client: netip.MustParseAddr("203.0.113.9"), Rcpt: "x@example.com", Mailer: "smtp"})
		if (err != nil) != tt.broken || a.Pass != tt.pass || a.Code != tt.code {
			t.Errorf("%s %q: %+v, %v", tt.kind, tt.answer, a, err)
		}
		l.Close()
	}
}

func TestPopgateStandsInASitesOwnListWhereItHasToStand(t *testing.T) {
	policy := []string{"permit_mynetworks", "permit_sasl_authenticated", "permit_auth_destination", "check_policy_service", "{ unix:popgate/policy.sock, timeout=10s }", "reject_unauth_destination"}
	milter := []string{"permit_mynetworks", "permit_sasl_authenticated", "${popgate?{x}}", "reject_unauth_destination"}
	const asks = "permit_auth_destination, check_policy_service { unix:popgate/policy.sock, timeout=10s }"
	for name, tt := range map[string]struct {
		words      []string
		list, want string // want empty: an error
	}{
		"Debian's own":                     {policy, "permit_mynetworks permit_sasl_authenticated defer_unauth_destination", "permit_mynetworks, permit_sasl_authenticated, " + asks + ", defer_unauth_destination"},
		"twice is once":                    {policy, "permit_mynetworks, " + asks + ", reject_unauth_destination", "permit_mynetworks, " + asks + ", reject_unauth_destination"},
		"an older form is replaced":        {policy, "permit_mynetworks, check_policy_service unix:/popgate/policy.sock, reject", "permit_mynetworks, " + asks + ", reject"},
		"the socket map is replaced":       {policy, "check_client_access socketmap:unix:popgate/s.sock:postfix, reject", asks + ", reject"},
		"the milter's rule is replaced":    {policy, "permit_mynetworks, ${popgate?{${{a} == {b} ? {c d}}}} reject", "permit_mynetworks, " + asks + ", reject"},
		"the milter in the policy's place": {milter, asks + ", reject_unauth_destination", "permit_auth_destination, ${popgate?{x}}, reject_unauth_destination"},
		"another's policy service stays":   {policy, "check_policy_service unix:private/greylist, reject", "check_policy_service unix:private/greylist, " + asks + ", reject"},
		"tables stay with what asks them":  {policy, "check_client_access hash:/a, reject_unauth_destination, check_sender_access hash:/b", "check_client_access hash:/a, " + asks + ", reject_unauth_destination, check_sender_access hash:/b"},
		"a warning is no refusal":          {policy, "warn_if_reject reject_unauth_destination, reject", "warn_if_reject reject_unauth_destination, " + asks + ", reject"},
		"own mail passes already":          {policy, "permit_auth_destination, reject", "permit_auth_destination, check_policy_service { unix:popgate/policy.sock, timeout=10s }, reject"},
		"nothing refuses":                  {policy, "permit_mynetworks", ""},
		"open in front of what refuses":    {policy, "permit, reject_unauth_destination", ""},
		"made of variables":                {policy, "$mine", ""},
	} {
		got, err := merge(testJudge(), tt.list, tt.words)
		if got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%s: %q becomes\n%q, %v, want\n%q", name, tt.list, got, err, tt.want)
		}
	}
}

// A rule that is shut for strangers is open to all where nobody is one.
func TestANetworkTooWideIsAnOpenRelay(t *testing.T) {
	for text, wide := range map[string]bool{
		"0.0.0.0/0": true, "[::]/0": true, "128.0.0.0/1": true, "192.0.0.0/4": true, "[2000::]/3": true, "static:all": true,
		"127.0.0.0/8": false, "10.0.0.0/8": false, "192.0.2.0/24": false, "[::1]/128": false, "[fc00::]/7": false, "[2001:db8::]/32": false,
		"!192.0.2.1": false, "192.0.2.1": false, "/etc/postfix/networks": false, "cidr:/etc/postfix/networks": false,
	} {
		if got := tooWide([]string{"127.0.0.0/8", text}); (len(got) > 0) != wide {
			t.Errorf("%s: %q", text, got)
		}
	}
}

func TestCheckSeesWhatOpensEveryRuleBuiltOnIt(t *testing.T) {
	for name, tt := range map[string]struct {
		values map[string]string
		milter bool
		fails  int
	}{
		"a site of its own":                              {values: map[string]string{"mynetworks": "127.0.0.0/8 [::1]/128", "relay_domains": "hash:/etc/postfix/relay"}},
		"everybody is trusted":                           {values: map[string]string{"mynetworks": "127.0.0.0/8, 0.0.0.0/0"}, fails: 1},
		"everybody is trusted, and the milter judges":    {values: map[string]string{"mynetworks": "0.0.0.0/0"}, milter: true},
		"every domain is relayed for":                    {values: map[string]string{"relay_domains": "static:all"}, fails: 1},
		"every domain is local, for the milter as well":  {values: map[string]string{"mydestination": "localhost, static:x"}, milter: true, fails: 1},
		"every domain is virtual, and everybody trusted": {values: map[string]string{"virtual_alias_domains": "static:x", "mynetworks": "[::]/0"}, fails: 2},
	} {
		p := &Postfix{}
		p.strangers(&service{name: "smtp/inet"}, tt.values, tt.milter)
		if len(p.Findings) != tt.fails {
			t.Errorf("%s: %+v", name, p.Findings)
		}
		for _, f := range p.Findings {
			if f.Result != Fail || !strings.Contains(f.Text, "OPEN RELAY") {
				t.Errorf("%s: %+v", name, f)
			}
		}
	}
}
