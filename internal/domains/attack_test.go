package domains

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

// A stranger writes as many labels as he likes. None of them may make a
// recipient foreign whose domain stands in a table that can only be asked.
func TestAttackOwnDomainBelowManyLabelsIsNotForeign(t *testing.T) {
	for _, tt := range []struct {
		name, parents, key string
		match              map[string]relay.Match
	}{
		{"parents", "relay_domains", "backup.test", map[string]relay.Match{
			"backup.test": relay.DomainFound, "a.backup.test": relay.DomainFound, "e.d.c.b.a.backup.test": relay.DomainFound,
			strings.Repeat("x.", 100) + "backup.test": relay.DomainFound, "e.d.c.other.test": relay.DomainOther,
			"g.f.e.d.c.other.test": relay.DomainUnsure}},
		{"with dots", "", ".backup.test", map[string]relay.Match{
			"backup.test": relay.DomainOther, "a.backup.test": relay.DomainFound, "e.d.c.b.a.backup.test": relay.DomainFound}},
		{"a key deeper than is asked for", "relay_domains", "4.3.2.1.backup.test", map[string]relay.Match{
			"4.3.2.1.backup.test": relay.DomainFound, "5.4.3.2.1.backup.test": relay.DomainUnsure, "6.5.4.3.2.1.backup.test": relay.DomainUnsure}},
		{"a top-level domain", "relay_domains", "com", map[string]relay.Match{
			"com": relay.DomainFound, "stranger.com": relay.DomainUnsure}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, m := postfixSite(t, site{t, t.TempDir()}, map[string]string{
				"postconf":                         "mydestination = local.test\nrelay_domains = ldap:x\nparent_domain_matches_subdomains = " + tt.parents + "\n",
				"postmap -q " + tt.key + " ldap:x": "OK\n"})
			s := loaded(t, o)
			for domain, want := range tt.match {
				if got := s.Ask(t.Context(), domain, nil); got != want {
					t.Errorf("%s is %v, want %v", domain, got, want)
				}
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if n := len(m.calls); n > 1+len(tt.match)*(maxParents+2) {
				t.Errorf("%d questions", n)
			}
		})
	}
}

// A stranger asks for thousands of domains, so that a domain of ours that was
// just taken out of its table would be refused for good.
func TestAttackFloodOfDomainsDoesNotEraseWhatWasOurs(t *testing.T) {
	const conf = "mydestination = local.test mysql:y\nrelay_domains = !no.backup.test ldap:x\nparent_domain_matches_subdomains = relay_domains\n"
	const exact, wide = "postmap -q exact.test mysql:y", "postmap -q backup.test ldap:x"
	for _, tt := range []struct {
		name   string
		change func(t *testing.T, s *Set, m *mta, o Options) *Set
	}{
		{"the key is gone", func(t *testing.T, s *Set, m *mta, o Options) *Set {
			m.mu.Lock()
			defer m.mu.Unlock()
			delete(m.says, exact)
			delete(m.says, wide)
			return s
		}},
		{"the tables are gone", func(t *testing.T, s *Set, m *mta, o Options) *Set {
			m.say("postconf", "mydestination = local.test\nrelay_domains =\n")
			go s.Run(t.Context())
			time.Sleep(2 * reread)
			synctest.Wait()
			return s
		}},
		{"the tables are gone at a reload", func(t *testing.T, s *Set, m *mta, o Options) *Set {
			m.say("postconf", "mydestination = local.test\nrelay_domains =\n")
			o.Before = s
			next := loaded(t, o)
			go next.Run(t.Context())
			time.Sleep(3 * settle)
			synctest.Wait()
			return next
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				o, m := postfixSite(t, site{t, t.TempDir()}, map[string]string{"postconf": conf, exact: "1\n", wide: "1\n"})
				s := loaded(t, o)
				check := func(when string, all map[relay.Match]string) {
					t.Helper()
					for want, domains := range all {
						for d := range strings.FieldsSeq(domains) {
							if got := s.Ask(t.Context(), d, nil); got != want {
								t.Errorf("%s, %s is %v, want %v", when, d, got, want)
							}
						}
					}
				}
				check("at first", map[relay.Match]string{
					relay.DomainFound: "exact.test a.backup.test", relay.DomainOther: "a.exact.test remote.test"})
				for i := range maxAnswers + 100 {
					time.Sleep(time.Millisecond)
					s.Ask(t.Context(), fmt.Sprintf("d%d.stranger.test", i), nil)
					if i%8 == 0 {
						s.Ask(t.Context(), fmt.Sprintf("d%d.backup.test", i), nil) // says yes
					}
				}
				if n, ours := len(s.answers.of), len(s.answers.ours); n > maxAnswers || ours != 3 {
					t.Errorf("%d answers and %d keys kept", n, ours)
				}
				s = tt.change(t, s, m, o)
				time.Sleep(answerLife + time.Second)
				check("afterwards", map[relay.Match]string{
					relay.DomainVanished: "exact.test a.backup.test backup.test", relay.DomainOther: "a.exact.test remote.test"})
				time.Sleep(vanish)
				check("ten minutes later", map[relay.Match]string{
					relay.DomainOther: "exact.test a.backup.test backup.test no.backup.test"})
			})
		})
	}
}

// What a table says of a domain doesn't touch those that are shut out of it.
func TestDomainShutOutOfATableHasNotVanished(t *testing.T) {
	o, _ := postfixSite(t, site{t, t.TempDir()}, map[string]string{
		"postconf":                      "mydestination = local.test\nrelay_domains = !no.backup.test ldap:x\nparent_domain_matches_subdomains = relay_domains\n",
		"postmap -q backup.test ldap:x": "1\n"})
	s := loaded(t, o)
	for _, tt := range []struct {
		domain string
		want   relay.Match
	}{{"backup.test", relay.DomainFound}, {"no.backup.test", relay.DomainOther}, {"yes.backup.test", relay.DomainFound}} {
		if got := s.Ask(t.Context(), tt.domain, nil); got != tt.want {
			t.Errorf("%s is %v, want %v", tt.domain, got, tt.want)
		}
	}
}

// Postfix becomes an open relay by its configuration while popgate runs: then
// the transport by which it did proves nothing, until a reading that saw all
// of it finds no danger.
func TestAttackPostfixBecomesAnOpenRelayWhilePopgateRuns(t *testing.T) {
	const (
		well  = "mydestination = local.test ldap:own\nrelay_domains =\ndefault_transport = smtp\ntransport_maps = hash:TABLE\n"
		open  = "mydestination = local.test ldap:own\nrelay_domains =\ndefault_transport = gw:[192.0.2.1]\ntransport_maps = hash:TABLE\n"
		asked = "postmap -q remote.test ldap:own"
	)
	type running struct {
		site
		*mta
		s       *Set
		o       Options
		table   string // the command that lists the transport table
		changes int
	}
	conf := func(r *running, text string) {
		r.say("postconf", strings.ReplaceAll(text, "TABLE", r.path("transport")))
	}
	fail := func(r *running, line string, err error) {
		r.mta.mu.Lock()
		defer r.mta.mu.Unlock()
		if r.fails[line] = err; err == nil {
			delete(r.fails, line)
		}
	}
	remote := func(r *running) { r.say(r.table, "local.test\tgw:\nremote.test\tgw:[192.0.2.1]\n") }
	for _, tt := range []struct {
		name   string
		change func(r *running)
		after  time.Duration
		safe   bool // the mailer still proves a recipient local
	}{
		{"a file that says the same", func(r *running) { r.write("main.cf", "again\n") }, 2 * settle, true},
		{"main.cf", func(r *running) { conf(r, open); r.write("main.cf", "changed\n") }, 2 * settle, false},
		{"master.cf", func(r *running) {
			r.say("postconf -Px", "rewrite/unix/default_transport = gw:\n")
			r.write("master.cf", "changed\n")
		}, 2 * settle, false},
		{"something no file shows", func(r *running) { conf(r, open) }, reread + 2*settle, false},
		{"the transport table", func(r *running) { remote(r); r.write("transport.db", "changed") }, 2 * settle, false},
		{"a domain that is no longer ours", func(r *running) {
			conf(r, strings.Replace(well, "local.test", "localhost", 1))
			r.write("main.cf", "changed\n")
		}, vanish + reread, false},
		{"and is mended", func(r *running) {
			conf(r, open)
			time.Sleep(2 * reread)
			conf(r, well)
		}, 2 * reread, true},
		{"then postconf fails", func(r *running) {
			conf(r, open)
			time.Sleep(2 * reread)
			fail(r, "postconf", errBroken)
		}, 2 * reread, false},
		{"then main.cf is gone", func(r *running) {
			conf(r, open)
			time.Sleep(2 * reread)
			fail(r, "postconf", errBroken)
			os.Remove(r.path("main.cf"))
		}, 2 * reread, false},
		{"then the table can't be listed", func(r *running) {
			remote(r)
			time.Sleep(2 * reread)
			fail(r, r.table, errBroken)
		}, 2 * reread, false},
		{"then it can be, and is well", func(r *running) {
			remote(r)
			time.Sleep(2 * reread)
			fail(r, r.table, errBroken)
			time.Sleep(2 * reread)
			r.say(r.table, "local.test\tgw:\n")
			fail(r, r.table, nil)
		}, 2 * reread, true},
		{"then nobody can tell whose the domain is", func(r *running) {
			remote(r)
			time.Sleep(2 * reread)
			fail(r, asked, errBroken)
		}, 2 * reread, false},
		{"then popgate is reloaded while postconf fails", func(r *running) {
			conf(r, open)
			time.Sleep(2 * reread)
			fail(r, "postconf", errBroken)
			r.o.Before = r.s
			r.s = New(r.o)
			r.s.Load(r.t.Context())
		}, 0, false},
		{"then it is taken out of local_mailers", func(r *running) {
			conf(r, open)
			time.Sleep(2 * reread)
			r.o.Before, r.o.LocalMailers = r.s, []string{"local"}
			r.s = New(r.o)
			r.s.Load(r.t.Context())
		}, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := &running{site: site{t, t.TempDir()}}
				r.o, r.mta = postfixSite(t, r.site, map[string]string{"postconf -Px": ""})
				r.table = "postmap -s hash:" + r.path("transport")
				r.say(r.table, "local.test\tgw:\nremote.test\tsmtp:\n")
				conf(r, well)
				r.o.LocalMailers = []string{"local", "gw"}
				r.o.OnChange = func(*relay.Domains) { r.changes++ }
				r.s = loaded(t, r.o)
				if f := r.s.Findings(); len(f) > 0 {
					t.Fatalf("findings at first: %+v", f)
				}
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				go r.s.Run(ctx)
				time.Sleep(3 * settle)
				r.changes = 0
				tt.change(r)
				time.Sleep(tt.after)
				synctest.Wait()
				told := slices.ContainsFunc(r.s.Problems(), func(p string) bool { return strings.Contains(p, `goes through "gw"`) })
				if got := r.s.Tainted(); slices.Equal(got, []string{"gw"}) == tt.safe || told == tt.safe {
					t.Errorf("tainted %q, problems %q", got, r.s.Problems())
				}
				if !tt.safe && r.changes == 0 {
					t.Error("nobody was told of it")
				}
			})
		})
	}
}

// sendmail's access map lets mail through to destinations that are in no class.
// Whoever writes to one of them must not be refused for good.
func TestAttackDestinationOfTheAccessMapIsNotForeign(t *testing.T) {
	const (
		hosts  = "R<NO> $* < @ $=R >\t\t$: <RELAY> $1 < @ $2 >\n"
		below  = "R<NO> $* < @ $* $=R >\t\t$: <RELAY> $1 < @ $2 $3 >\n"
		hash   = "Kaccess hash -T<TMPF> DIR/access\n"
		text   = "to:backup.test\tRELAY\nboth.test\tRELAY\n"
		listed = "makemap -u hash DIR/access"
	)
	for _, tt := range []struct {
		name, cf              string
		says                  string // by makemap; empty: it fails
		files                 map[string]string
		found, foreign, maybe string
		problem               string
	}{
		{name: "a database", cf: hash + below, says: text, found: "backup.test a.backup.test both.test b.a.both.test", foreign: "remote.test"},
		{name: "relay_hosts_only", cf: hash + hosts, says: text, found: "backup.test both.test", foreign: "a.backup.test remote.test"},
		{name: "a text", cf: "Kaccess text -k0 -v1 -z\\t DIR/access\n" + below, files: map[string]string{"access": "# ours\nTo:Backup.test\tRELAY\n"},
			found: "backup.test a.backup.test", foreign: "remote.test"},
		{name: "a text with columns of its own", cf: "Kaccess text -k2 -v0 -z: DIR/access\n" + below, files: map[string]string{"access": "relay::backup.test\n"},
			found: "backup.test", foreign: "relay remote.test"},
		{name: "other values let nothing through", cf: hash + below,
			says:    "to:rejected.test\tREJECT\nspam.test\tERROR:5.7.1:550 no\nsender.test\tOK\nfrom:f.test\tRELAY\nconnect:c.test\tRELAY\nto:meant.test\tOK\nto:bob@user.test\tRELAY\n",
			foreign: "rejected.test spam.test sender.test f.test c.test", maybe: "meant.test user.test"},
		{name: "To: goes before what has no tag", cf: hash + below, says: "a.test\tRELAY\nto:a.test\tREJECT\nto:b.test\tRELAY\nb.test\tREJECT\n",
			found: "b.test", foreign: "a.test"},
		{name: "a subdomain with another value", cf: hash + below, says: "to:backup.test\tRELAY\nno.backup.test\tREJECT\n",
			found: "backup.test", maybe: "no.backup.test a.backup.test", foreign: "remote.test"},
		{name: "addresses are clients", cf: hash + below, says: "192.0.2\tRELAY\n192.0.2.1\tRELAY\nipv6:2001:db8\tRELAY\n[192.0.2.2]\tRELAY\nlocalhost\tRELAY\n",
			found: "localhost", foreign: "192.0.2.1 192.0.2 remote.test"},
		{name: "a whole top-level domain", cf: hash + below, says: "to:com\tRELAY\n", found: "com", maybe: "stranger.com", foreign: "remote.test", problem: `"com" with RELAY`},
		{name: "a database nobody may read, beside its text", cf: hash + below, files: map[string]string{"access": text},
			maybe: "backup.test a.backup.test both.test", foreign: "remote.test", problem: "DIR/access allows is put off"},
		{name: "a database nobody may read, without one", cf: hash + below, maybe: "backup.test remote.test", problem: "nobody knows which destinations it allows"},
		{name: "one that need not be there", cf: "Kaccess hash -o DIR/access\n" + below, foreign: "backup.test"},
		{name: "one that need not be, and is", cf: "Kaccess hash -o DIR/access\n" + below, says: text, files: map[string]string{"access.db": "x"}, found: "backup.test", foreign: "remote.test"},
		{name: "an LDAP map", cf: "Kaccess ldap -1 -k (x=%0)\n" + below, maybe: "backup.test remote.test", problem: `"Kaccess ldap -1 -k (x=%0)" can't be followed`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := site{t, t.TempDir()}
			in := func(s string) string { return strings.ReplaceAll(s, "DIR", d.dir) }
			d.write("sendmail.cf", in("Cwlocal.test\n"+tt.cf))
			d.age("sendmail.cf", time.Hour)
			for name, text := range tt.files {
				d.write(name, text)
				d.age(name, time.Hour)
			}
			m := &mta{says: map[string]string{}}
			if tt.says != "" {
				m.says[in(listed)] = tt.says
			}
			o := d.options()
			o.From, o.Run = FromSendmail, m.run
			s := loaded(t, o)
			for want, domains := range map[relay.Match]string{relay.DomainFound: tt.found + " local.test", relay.DomainOther: tt.foreign, relay.DomainUnsure: tt.maybe} {
				for domain := range strings.FieldsSeq(domains) {
					if got := s.Ask(t.Context(), domain, nil); got != want {
						t.Errorf("%s is %v, want %v", domain, got, want)
					}
				}
			}
			problems := strings.Join(s.Problems(), "\n")
			if (tt.problem == "") != (problems == "") || !strings.Contains(problems, in(tt.problem)) {
				t.Errorf("problems %q, want %q", problems, in(tt.problem))
			}
		})
	}
}
