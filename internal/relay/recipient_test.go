package relay

import "testing"

func testRules() *Rules {
	return &Rules{
		PostfixMailers: DefaultMailers(Postfix), SendmailMailers: DefaultMailers(Sendmail),
		Domains: NewDomains(map[string]Match{"local.test": DomainWritten, "virtual.test": DomainFound,
			"+sub.test": DomainFound, "gone.test": DomainVanished, "xn--bcher-kva.test": DomainWritten, "bücher.test": DomainWritten}),
	}
}

func TestWhose(t *testing.T) {
	r := testRules()
	p := func(mailer, host, addr string) Resolution { return Resolution{Postfix, mailer, host, addr} }
	s := func(mailer, host, addr string) Resolution { return Resolution{Sendmail, mailer, host, addr} }
	none := Resolution{}
	for _, tt := range []struct {
		name string
		rcpt string
		res  Resolution
		want Recipient
	}{
		{"Postfix local", "alice@local.test", p("local", "local.test", "alice@local.test"), Local},
		{"Postfix virtual mailbox", "alice@virtual.test", p("virtual", "virtual.test", "alice@virtual.test"), Local},
		{"Postfix virtual alias domain", "a@alias.test", p("error", "5.1.1 User unknown in virtual alias table", "a@alias.test"), Local},
		{"sendmail's mailer error is no virtual alias domain", "a@alias.test", s("error", "5.1.1 User unknown in virtual alias table", "a@alias.test"), Unsure},
		{"an unknown MTA's mailer error neither", "a@alias.test", Resolution{MTAUnknown, "error", "5.1.1 User unknown in virtual alias table", "a@alias.test"}, Unsure},
		{"virtual alias domain with a tagged user", "a+b=c@alias.test", p("error", "5.1.1 User unknown in virtual alias table", "a+b=c@alias.test"), Local},
		{"quoted blank in a local user", `"al ice"@local.test`, p("local", "local.test", `"al ice"@local.test`), Local},
		{"bounce address of SRS", "SRS0=Hh=Tt=remote.test=x@local.test", p("local", "local.test", "SRS0=Hh=Tt=remote.test=x@local.test"), Local},
		{"Postfix error transport for a stranger", "a@remote.test", p("error", "5.1.1 go away", "a@remote.test"), Unsure},
		{"Postfix remote", "x@remote.test", p("smtp", "remote.test", "x@remote.test"), Foreign},
		{"Postfix relay proves nothing", "x@remote.test", p("relay", "host", "x@remote.test"), Unsure},
		{"Postfix relay_domains domain", "x@virtual.test", p("relay", "virtual.test", "x@virtual.test"), Local},
		{"Postfix relay_domains domain routed by smtp", "x@virtual.test", p("smtp", "gw.test", "x@virtual.test"), Local},
		{"virtual_transport = dovecot, domain known", "x@virtual.test", p("dovecot", "virtual.test", "x@virtual.test"), Local},
		{"virtual_transport = dovecot, domain unknown", "x@unknown.test", p("dovecot", "unknown.test", "x@unknown.test"), Unsure},
		{"sendmail local user", "alice@local.test", s("local", "", "alice"), Local},
		{"sendmail user with the domain left on (Cyrus)", "alice@virtual.test", s("cyrusv2", "", "alice@virtual.test"), Local},
		{"sendmail's address not told", "alice@local.test", s("local", "", ""), Local},
		{"sendmail virtusertable names an odd user", "alice@local.test", s("local", "", "al%ice"), Local},
		{"sendmail smart host", "x@remote.test", s("relay", "gw", "x@remote.test"), Foreign},
		{"sendmail remote", "x@remote.test", s("esmtp", "remote.test.", "x@remote.test"), Foreign},
		{"virtusertable forward of a domain only found", "fwd@virtual.test", s("relay", "gw", "out@remote.test"), Unsure},
		{"virtusertable forward of a domain written", "fwd@local.test", s("relay", "gw", "out@remote.test"), Local},
		{"mailertable domain with a percent hack", "u%remote.test@virtual.test", s("gw", "gw", "u%remote.test@virtual.test"), Unsure},
		{"mailertable domain with a UUCP path", "remote.test!u@virtual.test", s("esmtp", "gw", "remote.test!u@virtual.test"), Foreign},
		{"mailertable domain with a quoted address", `"u@remote.test"@virtual.test`, s("esmtp", "gw", `"u@remote.test"@virtual.test`), Foreign},
		{"an apostrophe is no relay shape", "o'brien@virtual.test", s("relay", "gw", "o'brien@elsewhere.test"), Unsure},
		{"Postfix's local is not sendmail's virtual", "x@remote.test", s("virtual", "", "x@remote.test"), Unsure},
		{"sendmail's cyrus is not Postfix's", "x@remote.test", p("cyrus", "", "x@remote.test"), Unsure},
		{"unknown MTA, mailer local", "x@remote.test", Resolution{MTAUnknown, "local", "", "x"}, Local},
		{"unknown MTA, mailer smtp", "x@remote.test", Resolution{MTAUnknown, "smtp", "", "x@remote.test"}, Unsure},
		{"no macros, own domain", "x@LOCAL.test", none, Local},
		{"no macros, foreign", "x@remote.test", none, Foreign},
		{"no macros, subdomain", "x@a.b.sub.test", none, Local},
		{"no macros, not a subdomain", "x@notsub.test", none, Foreign},
		{"no macros, own domain with a trailing dot", "x@local.test.", none, Unsure},
		{"no macros, vanished domain", "x@gone.test", none, Unsure},
		{"vanished domain with a remote mailer", "x@gone.test", p("smtp", "gone.test", "x@gone.test"), Unsure},
		{"no macros, bare name is not qualified by us", "alice", none, Unsure},
		{"bare postmaster", "PostMaster", none, Local},
		{"domain in U-label form", "x@bücher.test", none, Local},
		{"domain in A-label form", "x@xn--bcher-kva.test", none, Local},
		{"domain in another Unicode spelling", "x@BÜCHER.test", none, Unsure},
		{"empty recipient", "", none, Unsure},
		{"two recipients in one", "x@remote.test>,<alice@local.test", none, Unsure},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := r.Whose(tt.rcpt, &tt.res); got != tt.want {
				t.Errorf("Whose(%q, %+v) = %v, want %v", tt.rcpt, tt.res, got, tt.want)
			}
		})
	}
}

// Shapes that reach remote.test through an MTA although their last domain, or
// none, is local: none may ever be local by its text.
func TestRelayShapesAreNeverLocal(t *testing.T) {
	r := testRules()
	for _, shape := range []string{
		"x%remote.test@local.test", "x%remote.test", "x%remote.test%local.test@local.test", `"x%remote.test"@local.test`,
		`"x%remote.test"`, `"x@remote.test"@local.test`, `"x@remote.test"`, `@local.test:"x@remote.test"@local.test`,
		"@local.test:x%remote.test", "@local.test:x@remote.test", "remote.test!x", "remote.test!x@local.test", `"remote.test!x"@local.test`,
		"local.test!remote.test!x", "local.test!x%remote.test", "x@remote.test@local.test", `x\@remote.test@local.test`,
		"x@remote.test\t@local.test", "remote.test!x%local.test@local.test", "x@local.test@remote.test", "x(@remote.test)@local.test",
		"x@remote.test@a.sub.test", "x@[127.0.0.1]@local.test", "x;remote.test@local.test", "x,y@local.test", "x\x00@local.test", "x @local.test", "é%remote.test@local.test",
	} {
		for _, mailer := range []string{"", "smtp", "relay", "esmtp", "gw", "error"} {
			for _, mta := range []MTA{MTAUnknown, Postfix, Sendmail} {
				for _, addr := range []string{"", "x@remote.test", shape} {
					if got := r.Whose(shape, &Resolution{MTA: mta, Mailer: mailer, Addr: addr}); got == Local {
						t.Errorf("%q through %v mailer %q addr %q is local", shape, mta, mailer, addr)
					}
				}
			}
		}
	}
}

// A wildcard alias carries the local part on as it is, so a mailer that delivers
// here proves nothing for one that names a way.
func TestRelayShapesAreNotLocalByTheirMailer(t *testing.T) {
	r := testRules()
	for _, shape := range []string{
		"x%remote.test@alias.test", `"x@remote.test"@alias.test`, "remote.test!x@alias.test", "x@remote.test@alias.test", `"x%remote.test"@alias.test`,
		`x\@remote.test@alias.test`, "local.test!remote.test!x@alias.test", "x+%remote.test@alias.test", `"@remote.test:x"@alias.test`,
		`@alias.test:"x@remote.test"@alias.test`, "x%remote.test", "remote.test!x",
	} {
		for _, res := range []Resolution{
			{Postfix, "local", "alias.test", shape}, {Postfix, "virtual", "alias.test", shape}, {Postfix, "error", virtualAliasHost, shape},
			{MTAUnknown, "local", "alias.test", shape}, {Sendmail, "local", "", shape}, {Sendmail, "procmail", "/etc/procmailrc", shape},
			{Postfix, "local", "alias.test", ""}, {Sendmail, "local", "", ""},
		} {
			if got := r.Whose(shape, &res); got != Unsure {
				t.Errorf("Whose(%q, %+v) = %v, want unsure", shape, res, got)
			}
		}
	}
}

func TestStrict(t *testing.T) {
	for address, want := range map[string]string{
		"alice@local.test": "local.test", "a.b+c=d@LOCAL.test": "LOCAL.test", "x@bücher.test": "bücher.test", "x@localhost": "localhost",
		"": "", "alice": "", "@local.test": "", "alice@": "", "x@local.test.": "", "x@remote.test@local.test": "", "x@@local.test": "",
		"x@remote.test@": "", "x y@local.test": "", "x@local test": "", "é@local.test": "", "x@local.test\x7f": "", "x\x00@local.test": "",
		"x%y@local.test": "", "y!x@local.test": "", `"x"@local.test`: "", `x\y@local.test`: "", "x,y@local.test": "", "x;y@local.test": "",
		"x:y@local.test": "", "x(y)@local.test": "", "<x@local.test>": "", "x/y@local.test": "", "x|y@local.test": "", "o'b@local.test": "",
		"x^y@local.test": "", "$x@local.test": "", "x@[127.0.0.1]": "", "x@local.test:25": "", "x@local.test%remote.test": "",
	} {
		if got, ok := Strict(address); got != want || ok != (want != "") {
			t.Errorf("Strict(%q) = %q, %v, want %q", address, got, ok, want)
		}
	}
}

func TestDetectMTA(t *testing.T) {
	for v, want := range map[string]MTA{"Postfix 3.7.11": Postfix, "8.17.1.9": Sendmail, "8.18.1": Sendmail, "": MTAUnknown,
		"Acme 3.7.11": MTAUnknown, "8.x.1": MTAUnknown, "8.17": MTAUnknown, "8..1": MTAUnknown, "Postfix": MTAUnknown, "9.17.1": MTAUnknown} {
		if got := DetectMTA(v); got != want {
			t.Errorf("DetectMTA(%q) = %v, want %v", v, got, want)
		}
	}
}

func TestReplyTellsStrangersNothing(t *testing.T) {
	r := &Rules{Reject: DefaultReject}
	a := r.Reply(Decision{Refuse, ReasonNoGrant}, alice)
	b := r.Reply(Decision{Refuse, ReasonExpired}, alice)
	if a != b {
		t.Errorf("an expired grant reads %q, none reads %q", b, a)
	}
	if want := "550 5.7.1 Relaying denied for 192.0.2.7: fetch your mail (POP or IMAP) first, then send again"; a.String() != want {
		t.Errorf("reply %q, want %q", a, want)
	}
	if d := r.Reply(Decision{Defer, ReasonUnsure}, alice); d.Code != 451 || d.Enhanced != "4.7.1" {
		t.Errorf("a defer reads %q", d)
	}
}

func BenchmarkDecideAndWhose(b *testing.B) {
	r := testRules()
	g := aliceGrant()
	b.ReportAllocs()
	for b.Loop() {
		res := Resolution{Postfix, "smtp", "remote.test", "user@remote.test"}
		f := Facts{Recipient: r.Whose("user@remote.test", &res), Client: alice, Grant: g, Allowed: true, Now: at(0)}
		if Decide(&f).Verdict != Pass {
			b.Fatal("not passed")
		}
	}
}
