package domains

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

// mta is an MTA's programs: what they print for a command line.
type mta struct {
	mu    sync.Mutex
	says  map[string]string // "postmap -q x ldap:y" to output; missing: not found
	fails map[string]error
	calls map[string]int
	block chan struct{} // not nil: every query waits for it
}

func (m *mta) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	line := name + " " + strings.Join(args, " ")
	if name == "postconf" {
		line = "postconf"
		if slices.Contains(args, "-Px") {
			line = "postconf -Px"
		}
	}
	m.mu.Lock()
	if m.calls == nil {
		m.calls = map[string]int{}
	}
	m.calls[line]++
	out, found := m.says[line]
	err := m.fails[line]
	m.mu.Unlock()
	if m.block != nil && strings.HasPrefix(line, "postmap -q") {
		select {
		case <-m.block:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	switch {
	case err != nil:
		return nil, err
	case !found:
		return nil, &Failed{name, 1, ""}
	}
	return []byte(out), nil
}

func (m *mta) say(line, out string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.says[line] = out
}

func (m *mta) called(line string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.calls[line]
}

// site is a directory that holds what the options name.
type site struct {
	t   *testing.T
	dir string
}

func (s site) path(name string) string { return filepath.Join(s.dir, name) }

// write replaces a file. Its time is the test's, which synctest may have taken
// out of the real one.
func (s site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path(name), []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	s.age(name, 0)
}

func (s site) age(name string, d time.Duration) {
	s.t.Helper()
	at := time.Now().Add(-d)
	if err := os.Chtimes(s.path(name), at, at); err != nil {
		s.t.Fatal(err)
	}
}

func (s site) options() Options {
	return Options{From: None, MainCF: s.path("main.cf"), Sendmail: s.path("sendmail.cf"),
		Hostname: func() (string, error) { return "mx1.site.example", nil },
		Run:      (&mta{}).run}
}

func loaded(t *testing.T, o Options) *Set {
	t.Helper()
	s := New(o)
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// want compares what is known about domains; a space-separated list for each.
func want(t *testing.T, s *Set, m relay.Match, domains string) {
	t.Helper()
	for d := range strings.FieldsSeq(domains) {
		if got := s.Current().Match(d); got != m {
			t.Errorf("%s is %v, want %v", d, got, m)
		}
	}
}

func name(t *testing.T, s string) Name {
	t.Helper()
	n, err := ParseName(s)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNames(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want Name
	}{
		{"example.org", Name{true, false, "example.org", "example.org"}},
		{"Example.ORG", Name{true, false, "example.org", "example.org"}},
		{".example.org", Name{false, true, "example.org", "example.org"}},
		{"+example.org", Name{true, true, "example.org", "example.org"}},
		{"müller.example", Name{true, false, "xn--mller-kva.example", "müller.example"}},
		{"xn--mller-kva.example", Name{true, false, "xn--mller-kva.example", "müller.example"}},
		{"MÜLLER.example", Name{true, false, "xn--mller-kva.example", "müller.example"}},
		{"_dmarc.example.org", Name{true, false, "_dmarc.example.org", "_dmarc.example.org"}},
		{"localhost", Name{true, false, "localhost", "localhost"}},
		{"+lan", Name{true, true, "lan", "lan"}},
		{"co.uk", Name{true, false, "co.uk", "co.uk"}},
	} {
		got, err := ParseName(tt.in)
		if err != nil || got != tt.want {
			t.Errorf("ParseName(%q) = %+v, %v, want %+v", tt.in, got, err, tt.want)
		}
	}
	for _, in := range []string{"", ".", "+", "..", "a@b.example", "*.example.org", "+com", ".co.uk", "192.0.2.1", "[192.0.2.1]", "192.0.2", "10", "IPv6:2001:db8",
		"2001:db8::1", "192.0.2.0/24", "-x.example", "x-.example", "a b", "a\x00b", "example.org.", "a..b", strings.Repeat("a", 64) + ".example",
		strings.Repeat("abc.", 70) + "example", "x.exa\u202emple", "xn--\x7f"} {
		if n, err := ParseName(in); err == nil {
			t.Errorf("ParseName(%q) = %+v, want an error", in, n)
		}
	}
}

func TestWrittenDomainsNeedNoLoad(t *testing.T) {
	s := New(Options{Written: []Name{name(t, "+müller.example")}})
	want(t, s, relay.DomainWritten, "xn--mller-kva.example müller.example a.müller.example XN--MLLER-KVA.EXAMPLE")
	want(t, s, relay.DomainOther, "example")
}

func TestFileOfDomains(t *testing.T) {
	for _, tt := range []struct {
		name, text     string
		subdomains     bool
		found, foreign string
		problem        string
	}{
		{"one a line, with comments", "# ours\nexample.org # the first\n\n\texample.net\t\r\n", false,
			"example.org example.net", "a.example.org ours", ""},
		{"no newline at the end", "example.org", false, "example.org", "x", ""},
		{"with subdomains", "example.org\n", true, "example.org a.b.example.org", "xexample.org", ""},
		{"its own dots and plusses", ".example.org\n+example.net\n", false, "a.example.org example.net a.example.net", "example.org", ""},
		{"addresses as in relay-domains are skipped", "192.0.2\n192.0.2.0/24\n[192.0.2.1]\nIPv6:2001:db8\n10\nexample.org\n", true,
			"example.org a.example.org", "192.0.2.1 2.1", ""},
		{"A-labels for U-labels", "müller.example\n", false, "müller.example xn--mller-kva.example", "muller.example", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := site{t, t.TempDir()}
			d.write("list", tt.text)
			d.age("list", time.Hour)
			o := d.options()
			o.Files = []File{{d.path("list"), tt.subdomains}}
			s := loaded(t, o)
			want(t, s, relay.DomainFound, tt.found)
			want(t, s, relay.DomainOther, tt.foreign)
			if p := s.Problems(); len(p) > 0 || s.Asks() {
				t.Errorf("problems %q, asks %v", p, s.Asks())
			}
		})
	}
}

// TestListNeverReadMakesNobodyForeign is about the mail of a site whose list
// can't be read when popgate starts: it must not be refused for good.
func TestListNeverReadMakesNobodyForeign(t *testing.T) {
	for _, tt := range []struct {
		name    string
		prepare func(site)
		problem string
		found   string
	}{
		{"missing", func(site) {}, "no such file or directory", ""},
		{"empty", func(d site) { d.write("list", "# none\n") }, "no domain in it", ""},
		{"a directory", func(d site) { os.Mkdir(d.path("list"), 0o755) }, "not a regular file", ""},
		{"not text", func(d site) { d.write("list", "example.org\n\x00") }, "not a text file", ""},
		{"one line wrong", func(d site) { d.write("list", "example.org\nexample dot net\n") }, `line 2: "example dot net" is not a domain`, "example.org"},
		{"a whole top-level domain", func(d site) { d.write("list", "+com\n") }, `"+com" would take every domain below com`, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := site{t, t.TempDir()}
				tt.prepare(d)
				o := d.options()
				o.Files = []File{{Path: d.path("list")}}
				s := loaded(t, o)
				if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0], tt.problem) || !strings.HasPrefix(p[0], d.path("list")+": ") {
					t.Errorf("problems %q, want one with %q", p, tt.problem)
				}
				want(t, s, relay.DomainFound, tt.found)
				if got := s.Ask(t.Context(), "foreign.example", nil); got != relay.DomainUnsure {
					t.Errorf("foreign.example is %v, want unsure", got)
				}
				os.Remove(d.path("list"))
				d.write("list", "later.example\n")
				go s.Run(t.Context())
				time.Sleep(10 * time.Second)
				synctest.Wait()
				want(t, s, relay.DomainFound, "later.example")
				if got := s.Ask(t.Context(), "foreign.example", nil); got != relay.DomainOther || len(s.Problems()) > 0 {
					t.Errorf("healed, foreign.example is %v, problems %q", got, s.Problems())
				}
			})
		})
	}
}

func TestLastGoodListStays(t *testing.T) {
	for _, tt := range []struct {
		name   string
		damage func(site)
	}{
		{"emptied", func(d site) { d.write("list", "") }},
		{"only comments left", func(d site) { d.write("list", "# example.org\n") }},
		{"deleted", func(d site) { os.Remove(d.path("list")) }},
		{"garbage", func(d site) { d.write("list", "\x00\x01\x02") }},
		{"one line wrong", func(d site) { d.write("list", "example.org\nexample@net\n") }},
		{"a pipe in its place", func(d site) { os.Remove(d.path("list")); mkfifo(d.t, d.path("list")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := site{t, t.TempDir()}
				d.write("list", "example.org\nexample.net\n")
				o := d.options()
				o.Files = []File{{Path: d.path("list")}}
				s := loaded(t, o)
				go s.Run(t.Context())
				tt.damage(d)
				time.Sleep(30 * time.Minute)
				synctest.Wait()
				want(t, s, relay.DomainFound, "example.org example.net")
				if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0], "the last good list counts") {
					t.Errorf("problems %q", p)
				}
			})
		})
	}
}

// TestHalfWrittenFileIsNotBelieved replaces a list in steps, as an editor or a
// slow copy does.
func TestHalfWrittenFileIsNotBelieved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := site{t, t.TempDir()}
		d.write("list", "a.example\nb.example\n")
		o := d.options()
		o.Files = []File{{Path: d.path("list")}}
		var changes []*relay.Domains
		o.OnChange = func(r *relay.Domains) { changes = append(changes, r) }
		s := loaded(t, o)
		go s.Run(t.Context())
		text := ""
		for _, line := range []string{"a.exa", "mple\n", "b.e", "xample\nc.example\n"} {
			text += line
			d.write("list", text)
			time.Sleep(settle)
			synctest.Wait()
			want(t, s, relay.DomainFound, "a.example b.example")
			want(t, s, relay.DomainOther, "a.exa b.e")
		}
		time.Sleep(3 * settle)
		synctest.Wait()
		want(t, s, relay.DomainFound, "a.example b.example c.example")
		if len(changes) != 1 || changes[0] != s.Current() {
			t.Errorf("%d changes told, want the one", len(changes))
		}
	})
}

// Whoever decides by the domains is told of new ones before Postfix's
// configuration is searched for danger, which takes as long as Postfix takes.
func TestADomainThatIsGoneIsToldBeforeDangerIsLookedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := site{t, t.TempDir()}
		o, m := postfixSite(t, d, map[string]string{"postconf": "mydestination = a.example gone.example\nrelay_domains =\n", "postconf -Px": ""})
		o.LocalMailers = []string{"local"}
		hangs := make(chan struct{})
		var readings atomic.Int32
		o.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
			switch {
			case slices.Contains(args, "mydestination"):
				readings.Add(1)
			case readings.Load() >= 2: // both that a change takes
				<-hangs
			}
			return m.run(ctx, name, args...)
		}
		var told *relay.Domains
		o.OnChange = func(r *relay.Domains) { told = r }
		s := loaded(t, o)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go s.Run(ctx)
		time.Sleep(3 * settle)
		told = nil
		readings.Store(0)
		m.say("postconf", "mydestination = a.example\nrelay_domains =\n")
		d.write("main.cf", "changed\n")
		time.Sleep(5 * settle)
		synctest.Wait()
		if told == nil || told.Match("gone.example") != relay.DomainVanished || told != s.Current() {
			t.Errorf("told while Postfix is being asked: %v", told)
		}
		close(hangs)
	})
}

// A domain and its transport are entered at once, as an administrator does. The
// domain counts when it has been read twice; meanwhile its transport must not
// look like one that carries a stranger's mail, or all that goes through it would
// be put off, and the new domain's mail refused for good.
func TestANewDomainWithItsTransportIsNoDanger(t *testing.T) {
	for name, reload := range map[string]bool{"while popgate runs": false, "with a reload at once": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d := site{t, t.TempDir()}
				o, m := postfixSite(t, d, map[string]string{"postconf -Px": ""})
				o.LocalMailers = []string{"local", "gw"}
				conf := func(domains string) {
					m.say("postconf", "mydestination = "+domains+"\nrelay_domains =\ndefault_transport = smtp\ntransport_maps = hash:"+d.path("transport")+"\n")
				}
				conf("a.example")
				m.say("postmap -s hash:"+d.path("transport"), "a.example\tgw:\n")
				var s *Set
				o.OnChange = func(*relay.Domains) {
					if got := s.Tainted(); len(got) > 0 {
						t.Errorf("tainted meanwhile: %q", got)
					}
				}
				s = loaded(t, o)
				ctx, stop := context.WithCancel(t.Context())
				go s.Run(ctx)
				time.Sleep(3*settle + settle/2)
				conf("a.example new.example")
				m.say("postmap -s hash:"+d.path("transport"), "a.example\tgw:\nnew.example\tgw:\n")
				d.write("main.cf", "changed\n")
				d.write("transport.db", "changed\n")
				if reload {
					stop()
					o.Before = s
					s = loaded(t, o)
					ctx, stop = context.WithCancel(t.Context())
					go s.Run(ctx)
				}
				defer func() { stop() }()
				for range 16 {
					if got := s.Tainted(); len(got) > 0 {
						t.Errorf("tainted %q", got)
					}
					time.Sleep(settle / 4)
				}
				want(t, s, relay.DomainFound, "a.example new.example")
			})
		})
	}
}

// gateway is a Postfix host that sends the domains in a list through gw.
type gateway struct {
	site
	mta    *mta
	set    *Set
	search atomic.Pointer[func()] // what happens when the next search for danger begins; nil: nothing
	danger atomic.Bool            // is meant
	log    strings.Builder
}

// startGateway keeps popgate's Set running until the test ends, half a second
// from its next look.
func startGateway(t *testing.T) *gateway {
	g := &gateway{site: site{t, t.TempDir()}}
	o, m := postfixSite(t, g.site, map[string]string{"postconf -Px": ""})
	g.mta = m
	o.LocalMailers = []string{"local", "gw"}
	o.Files = []File{{Path: g.path("list")}}
	o.Log = slog.New(slog.NewTextHandler(&g.log, nil))
	o.OnChange = func(*relay.Domains) { g.safe() }
	o.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
		if slices.Contains(args, "default_transport") {
			if happens := g.search.Swap(nil); happens != nil {
				(*happens)()
			}
		}
		return m.run(ctx, name, args...)
	}
	m.say("postconf", "mydestination =\nrelay_domains =\ndefault_transport = smtp\ntransport_maps = hash:"+g.path("transport")+"\n")
	g.write("list", "a.example\n")
	g.transports("a.example\tgw:\n")
	g.set = loaded(t, o)
	ctx, stop := context.WithCancel(t.Context())
	var run sync.WaitGroup
	run.Go(func() { g.set.Run(ctx) })
	t.Cleanup(func() { stop(); run.Wait() })
	time.Sleep(3*settle + settle/2)
	return g
}

func (g *gateway) transports(text string) {
	g.t.Helper()
	g.mta.say("postmap -s hash:"+g.path("transport"), text)
	g.write("transport.db", text)
}

func (g *gateway) safe() {
	g.t.Helper()
	if got := g.set.Tainted(); len(got) > 0 && !g.danger.Load() {
		g.t.Errorf("tainted %q", got)
	}
}

// staysSafe watches for some quarters of a second.
func (g *gateway) staysSafe(quarters int) {
	g.t.Helper()
	for range quarters {
		time.Sleep(settle / 4)
		synctest.Wait()
		g.safe()
	}
}

// A list is often emptied before it is written anew, and may be read meanwhile.
func TestANewDomainInAListThatIsBeingWrittenIsNoDanger(t *testing.T) {
	for name, empty := range map[string]func(g *gateway){
		"emptied":    func(g *gateway) { g.write("list", "") },
		"taken away": func(g *gateway) { os.Remove(g.path("list")) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := startGateway(t)
				empty(g)
				g.transports("a.example\tgw:\nnew.example\tgw:\n")
				g.staysSafe(3)
				g.write("list", "a.example\nnew.example\n")
				g.staysSafe(20)
				want(t, g.set, relay.DomainFound, "a.example new.example")
			})
		})
	}
}

// What is written once the lists have been read, and before the transports are,
// is seen by halves.
func TestANewDomainWrittenDuringTheSearchIsNoDanger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startGateway(t)
		g.search.Store(new(func() {
			g.write("list", "a.example\nnew.example\n")
			g.transports("a.example\tgw:\nnew.example\tgw:\n")
		}))
		g.transports("a.example\tgw:[192.0.2.1]\n")
		g.staysSafe(20)
		want(t, g.set, relay.DomainFound, "a.example new.example")
		if strings.Contains(g.log.String(), "open relay") {
			t.Errorf("the log says %s", &g.log)
		}
	})
}

// Each new domain may put off what a search finds, however many came before.
func TestNewDomainsOneAfterTheOtherAreNoDanger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := startGateway(t)
		list, table := "a.example\n", "a.example\tgw:\n"
		for _, domain := range []string{"b.example", "c.example", "d.example", "e.example"} {
			list, table = list+domain+"\n", table+domain+"\tgw:\n"
			g.write("list", list)
			g.transports(table)
			g.staysSafe(4 * 7)
			want(t, g.set, relay.DomainFound, domain)
		}
	})
}

// A list that stays broken puts off what a search finds no longer than one that
// is being written, and one that is as it was does not at all.
func TestAttackABrokenListHidesNoDanger(t *testing.T) {
	const both = "a.example\tgw:\nb.example\tgw:\n"
	for name, tt := range map[string]struct {
		do     func(g *gateway)
		passes time.Duration
	}{
		"no list is broken": {func(g *gateway) { g.transports(both) }, 1},
		"a transport comes": {func(g *gateway) {
			g.write("list", "")
			g.staysSafe(4 * 100)
			g.transports(both)
		}, 1 + maxPutOff},
		"a domain is forgotten": {func(g *gateway) {
			g.write("list", "a.example\nb.example\n")
			g.staysSafe(4 * 3)
			g.transports(both)
			g.staysSafe(4 * 3)
			g.write("list", "a.example\n")
			g.staysSafe(4 * 2)
			g.write("list", "")
			g.staysSafe(4 * 30)
			g.transports(both + "a.example\tgw:\n") // the next search by the clock is far away
			g.staysSafe(4*int(vanish/settle) - 4*32)
		}, 2 + maxPutOff},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := startGateway(t)
				tt.do(g)
				g.danger.Store(true)
				time.Sleep(tt.passes * settle)
				synctest.Wait()
				if got := g.set.Tainted(); !slices.Equal(got, []string{"gw"}) {
					t.Errorf("tainted %q, want gw", got)
				}
			})
		})
	}
}

// A list that is another at each reading can't put off the search for ever.
func TestAttackAListThatNeverSettlesHidesNoDanger(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := site{t, t.TempDir()}
		o, m := postfixSite(t, d, map[string]string{"postconf -Px": ""})
		o.LocalMailers = []string{"local", "gw"}
		var n atomic.Int32
		o.Run = func(ctx context.Context, name string, args ...string) ([]byte, error) {
			if slices.Contains(args, "mydestination") && n.Load() > 0 {
				return []byte(fmt.Sprintf("mydestination = a.example b%d.example\nrelay_domains =\n", n.Add(1))), nil
			}
			return m.run(ctx, name, args...)
		}
		m.say("postconf", "mydestination = a.example\nrelay_domains =\ndefault_transport = smtp\ntransport_maps =\n")
		s := loaded(t, o)
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		go s.Run(ctx)
		time.Sleep(3*settle + settle/2)
		n.Store(1)
		m.say("postconf", "mydestination = a.example\nrelay_domains =\ndefault_transport = gw:[192.0.2.1]\ntransport_maps =\n")
		d.write("main.cf", "changed\n")
		time.Sleep(5 * settle)
		if got := s.Tainted(); !slices.Equal(got, []string{"gw"}) {
			t.Errorf("tainted %q, want gw", got)
		}
	})
}

func TestFreshFileIsReadTwiceAtStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := site{t, t.TempDir()}
		d.write("list", "a.example\n")
		o := d.options()
		o.Files = []File{{Path: d.path("list")}}
		start := time.Now()
		s := loaded(t, o)
		if took := time.Since(start); took < settle || took > 3*settle {
			t.Errorf("loaded after %v, want the second that two readings are apart", took)
		}
		want(t, s, relay.DomainFound, "a.example")

		d.age("list", time.Minute)
		start = time.Now()
		loaded(t, o)
		if took := time.Since(start); took != 0 {
			t.Errorf("an old file took %v", took)
		}
	})
}

func TestVanishedDomainIsUncertainForTenMinutes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := site{t, t.TempDir()}
		d.write("list", "a.example\n+b.example\n")
		o := d.options()
		o.Files = []File{{Path: d.path("list")}}
		s := loaded(t, o)
		go s.Run(t.Context())
		d.write("list", "a.example\n")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		want(t, s, relay.DomainFound, "a.example")
		want(t, s, relay.DomainVanished, "b.example x.b.example")
		time.Sleep(9 * time.Minute)
		synctest.Wait()
		want(t, s, relay.DomainVanished, "b.example x.b.example")

		after := New(Options{From: None, Before: s}) // a reload in between
		if err := after.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(t, after, relay.DomainVanished, "a.example b.example")

		time.Sleep(time.Minute)
		synctest.Wait()
		want(t, s, relay.DomainOther, "b.example x.b.example")
		d.write("list", "a.example\nb.example\n")
		time.Sleep(5 * time.Second)
		synctest.Wait()
		want(t, s, relay.DomainFound, "b.example")
		want(t, s, relay.DomainOther, "x.b.example")
	})
}

func TestReloadKeepsTheLastGoodList(t *testing.T) {
	d := site{t, t.TempDir()}
	d.write("list", "a.example\n")
	d.age("list", time.Hour)
	o := d.options()
	o.Files = []File{{Path: d.path("list")}}
	s := loaded(t, o)
	d.write("list", "")
	o.Before = s
	after := loaded(t, o)
	want(t, after, relay.DomainFound, "a.example")
	if len(after.Problems()) != 1 {
		t.Errorf("problems %q, want the emptied list", after.Problems())
	}
}

var errBroken = errors.New("connection refused")

func postfixSite(t *testing.T, d site, says map[string]string) (Options, *mta) {
	t.Helper()
	d.write("main.cf", "# postconf is asked\n")
	d.age("main.cf", time.Hour)
	m := &mta{says: says, fails: map[string]error{}}
	o := d.options()
	o.From, o.Run = Auto, m.run
	return o, m
}

func TestPostfixDomains(t *testing.T) {
	const parents = "parent_domain_matches_subdomains = debug_peer_list,relay_domains,mynetworks\n"
	for _, tt := range []struct {
		name                   string
		conf                   string
		says                   map[string]string
		files                  map[string]string
		found, foreign, unsure string
		problems               int
	}{
		{name: "plain lists", conf: "mydestination = mx1.site.example, localhost.site.example  localhost\nvirtual_alias_domains = alias.example\nvirtual_mailbox_domains = box.example\nrelay_domains =\n",
			found: "mx1.site.example localhost.site.example localhost alias.example box.example", foreign: "site.example a.alias.example smtp"},
		{name: "relay_domains stands for subdomains", conf: "mydestination =\nrelay_domains = up.example\n" + parents,
			found: "up.example a.b.up.example", foreign: "cup.example"},
		{name: "the others don't", conf: "mydestination = up.example\nvirtual_alias_domains = .dot.example\nrelay_domains =\n" + parents,
			found: "up.example", foreign: "a.up.example a.dot.example dot.example"},
		{name: "relay_domains without parent_domain_matches_subdomains", conf: "mydestination =\nrelay_domains = up.example .down.example\nparent_domain_matches_subdomains =\n",
			found: "up.example a.down.example", foreign: "a.up.example down.example"},
		{name: "a list in a file that names another", conf: "mydestination = DIR/one\nrelay_domains =\n",
			files: map[string]string{"one": "# ours\na.example, b.example\nDIR/two\n", "two": "c.example\n"},
			found: "a.example b.example c.example", foreign: "ours"},
		{name: "a file that names itself", conf: "mydestination = DIR/one\nrelay_domains =\n",
			files: map[string]string{"one": "a.example\nDIR/one\n"}, found: "a.example", problems: 1},
		{name: "tables that can be listed", conf: "mydestination = hash:/etc/x inline:{a.example=1, b.example=2}\nvirtual_alias_domains = proxy:texthash:/etc/y\nrelay_domains = btree:/etc/z\n" + parents,
			says: map[string]string{
				"postmap -s hash:/etc/x":                       "h.example\tyes\n",
				"postmap -s inline:{a.example=1, b.example=2}": "a.example\t1\nb.example\t2\n",
				"postmap -s texthash:/etc/y":                   "t.example\tx y\nalice@no.example\tz\n@catch.example\tz\n",
				"postmap -s btree:/etc/z":                      "r.example\tOK\n"},
			found: "h.example a.example b.example t.example r.example s.r.example", foreign: "no.example catch.example s.h.example"},
		{name: "an exclamation mark shuts out", conf: "mydestination = !no.example no.example yes.example\nrelay_domains = !sec.up.example up.example\n" + parents,
			found: "yes.example up.example", foreign: "no.example", unsure: "sec.up.example a.up.example"},
		{name: "a list is shut out", conf: "mydestination = a.example !/etc/list b.example\nrelay_domains =\n",
			found: "a.example", unsure: "b.example", problems: 1},
		{name: "a whole top-level domain", conf: "mydestination =\nrelay_domains = com\n" + parents,
			found: "com", unsure: "somebody.com", problems: 1},
		{name: "what is no domain matches none", conf: "mydestination = [192.0.2.1] a.example user@b.example $unknown\nrelay_domains =\n",
			found: "a.example", foreign: "b.example"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := site{t, t.TempDir()}
			says := map[string]string{"postconf": strings.ReplaceAll(tt.conf, "DIR", d.dir)}
			for k, v := range tt.says {
				says[k] = v
			}
			for name, text := range tt.files {
				d.write(name, strings.ReplaceAll(text, "DIR", d.dir))
				d.age(name, time.Hour)
			}
			o, _ := postfixSite(t, d, says)
			s := loaded(t, o)
			want(t, s, relay.DomainFound, tt.found)
			want(t, s, relay.DomainOther, tt.foreign)
			want(t, s, relay.DomainUnsure, tt.unsure)
			if p := s.Problems(); len(p) != tt.problems {
				t.Errorf("problems %q, want %d", p, tt.problems)
			}
		})
	}
}

func TestPostfixThatCannotBeAsked(t *testing.T) {
	d := site{t, t.TempDir()}
	o, m := postfixSite(t, d, map[string]string{"postconf": "mydestination = a.example hash:/etc/x\nrelay_domains =\n"})
	m.fails["postmap -s hash:/etc/x"] = &Failed{"postmap", 1, "postmap: fatal: open database /etc/x.db: Permission denied"}
	s := loaded(t, o)
	want(t, s, relay.DomainFound, "a.example")
	if got := s.Ask(t.Context(), "in-the-table.example", nil); got != relay.DomainUnsure {
		t.Errorf("a domain that may be in the unread table is %v, want unsure", got)
	}
	if p := s.Problems(); len(p) != 1 || p[0] != "hash:/etc/x: postmap: fatal: open database /etc/x.db: Permission denied" {
		t.Errorf("problems %q", p)
	}
	m.fails["postconf"] = errBroken
	s = loaded(t, o)
	if got := s.Ask(t.Context(), "a.example", nil); got != relay.DomainUnsure || !s.Current().Empty() {
		t.Errorf("without postconf a.example is %v, want unsure", got)
	}
}

func TestTablesThatCanOnlyBeAsked(t *testing.T) {
	conf := "mydestination = a.example ldap:/etc/l\nrelay_domains = mysql:/etc/m\nparent_domain_matches_subdomains = relay_domains\n"
	setup := func(t *testing.T) (*Set, *mta) {
		o, m := postfixSite(t, site{t, t.TempDir()}, map[string]string{"postconf": conf,
			"postmap -q l.example ldap:/etc/l": "1\n", "postmap -q m.example mysql:/etc/m": "1\n"})
		s := loaded(t, o)
		if !s.Asks() {
			t.Error("Asks is false")
		}
		return s, m
	}
	t.Run("says whose", func(t *testing.T) {
		s, _ := setup(t)
		for domain, m := range map[string]relay.Match{"l.example": relay.DomainFound, "L.Example": relay.DomainFound, "sub.l.example": relay.DomainOther,
			"m.example": relay.DomainFound, "sub.m.example": relay.DomainFound, "other.example": relay.DomainOther, "a.example": relay.DomainFound,
			"bad domain": relay.DomainUnsure, "-s": relay.DomainUnsure, "": relay.DomainUnsure} {
			if got := s.Ask(t.Context(), domain, nil); got != m {
				t.Errorf("%q is %v, want %v", domain, got, m)
			}
		}
	})
	t.Run("an answer is kept for a minute", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, m := setup(t)
			for range 59 {
				s.Ask(t.Context(), "l.example", nil)
				time.Sleep(time.Second)
			}
			if n := m.called("postmap -q l.example ldap:/etc/l"); n != 1 {
				t.Errorf("asked %d times within a minute, want once", n)
			}
			time.Sleep(2 * time.Second)
			s.Ask(t.Context(), "l.example", nil)
			if n := m.called("postmap -q l.example ldap:/etc/l"); n != 2 {
				t.Errorf("asked %d times after a minute, want twice", n)
			}
		})
	})
	t.Run("a domain taken out of the table has vanished", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, m := setup(t)
			s.Ask(t.Context(), "l.example", nil)
			m.mu.Lock()
			delete(m.says, "postmap -q l.example ldap:/etc/l")
			m.mu.Unlock()
			time.Sleep(2 * time.Minute)
			if got := s.Ask(t.Context(), "l.example", nil); got != relay.DomainVanished {
				t.Errorf("after two minutes it is %v, want vanished", got)
			}
			time.Sleep(9 * time.Minute)
			if got := s.Ask(t.Context(), "l.example", nil); got != relay.DomainOther {
				t.Errorf("after eleven minutes it is %v, want other", got)
			}
		})
	})
	t.Run("a server that is down makes nobody foreign", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, m := setup(t)
			m.fails["postmap -q x.example ldap:/etc/l"] = &Failed{"postmap", 1, "postmap: warning: dict_ldap_lookup: down\npostmap: fatal: table ldap:/etc/l: query error\n"}
			m.fails["postmap -q z.example ldap:/etc/l"] = &Failed{"postmap", 1, "postmap: warning: main.cf, line 3: overriding earlier entry: x=error\n"}
			if got := s.Ask(t.Context(), "z.example", nil); got != relay.DomainOther {
				t.Errorf("with a warning about main.cf it is %v, want other", got)
			}
			if got := s.Ask(t.Context(), "x.example", nil); got != relay.DomainUnsure {
				t.Errorf("it is %v, want unsure", got)
			}
			m.mu.Lock()
			delete(m.fails, "postmap -q x.example ldap:/etc/l")
			m.mu.Unlock()
			time.Sleep(doubtLife)
			if got := s.Ask(t.Context(), "x.example", nil); got != relay.DomainOther {
				t.Errorf("up again, it is %v, want other", got)
			}
		})
	})
	t.Run("a server that hangs makes nobody foreign", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, m := setup(t)
			m.block = make(chan struct{})
			start := time.Now()
			if got := s.Ask(t.Context(), "x.example", nil); got != relay.DomainUnsure {
				t.Errorf("it is %v, want unsure", got)
			}
			if took := time.Since(start); took != askTime {
				t.Errorf("it took %v, want %v", took, askTime)
			}
			ctx, stop := context.WithTimeout(t.Context(), time.Second)
			defer stop()
			if got := s.Ask(ctx, "y.example", nil); got != relay.DomainUnsure || ctx.Err() == nil {
				t.Errorf("it is %v before the context ended", got)
			}
			close(m.block)
			synctest.Wait()
		})
	})
	t.Run("many who ask at once run few programs", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s, m := setup(t)
			m.block = make(chan struct{})
			var wg sync.WaitGroup
			for i := range 40 {
				wg.Go(func() { s.Ask(t.Context(), fmt.Sprintf("d%d.example", i%20), nil) })
			}
			synctest.Wait()
			m.mu.Lock()
			running := 0
			for line, n := range m.calls {
				if strings.HasPrefix(line, "postmap -q") {
					running += n
				}
			}
			m.mu.Unlock()
			if running != maxAsking {
				t.Errorf("%d programs at a time, want %d", running, maxAsking)
			}
			close(m.block)
			wg.Wait()
		})
	})
	t.Run("a table that says yes to all is not believed", func(t *testing.T) {
		s, m := setup(t)
		m.say("postmap -q "+canaryLabel+" ldap:/etc/l", "1\n")
		if got := s.Ask(t.Context(), "l.example", nil); got != relay.DomainUnsure {
			t.Errorf("it is %v, want unsure", got)
		}
	})
	t.Run("a flood of names keeps few answers", func(t *testing.T) {
		s, _ := setup(t)
		for i := range maxAnswers + 100 {
			s.Ask(t.Context(), fmt.Sprintf("d%d.example", i), nil)
		}
		if n := len(s.answers.of); n > maxAnswers {
			t.Errorf("%d answers kept, want at most %d", n, maxAnswers)
		}
	})
}

const cfText = `# built from mx1.mc
Cwlocalhost first.example
C{w}second.example
	third.example
Dmsite.example
CR relay.example 192.0.2
C{VirtHost}virtual.example
Cx ignored.example
Fw-o DIR/local-host-names %[^\#]
FR-o DIR/relay-domains
F{VirtHost}DIR/virthosts
Cwmail.$m
R$+ < @ $* $=R >		$@ RELAY
`

func TestSendmailDomains(t *testing.T) {
	for _, tt := range []struct {
		name                   string
		cf                     string
		files                  map[string]string
		found, foreign, unsure string
		problem                string
	}{
		{name: "classes and their files", cf: cfText,
			files:   map[string]string{"local-host-names": "# names\nfile.example # mine\n", "relay-domains": "sub.example\n198.51.100\n10\n", "virthosts": "vh.example\n"},
			found:   "localhost first.example second.example third.example relay.example a.relay.example virtual.example file.example sub.example a.sub.example vh.example mail.site.example mx1.site.example",
			foreign: "ignored.example a.first.example a.vh.example site.example mine 192.0.2 198.51.100 10"},
		{name: "optional files may be missing", cf: cfText, files: map[string]string{"virthosts": "vh.example\n"},
			found: "first.example vh.example", foreign: "file.example"},
		{name: "others may not", cf: cfText, found: "first.example", problem: "DIR/virthosts: no such file or directory"},
		{name: "a class in a class", cf: "Cwa.example\nC{VirtHost}v.example\nF{VirtHost}-o DIR/vh\nCR $={VirtHost}\nR$+ < @ $* $=R >\t$@ RELAY\n",
			files: map[string]string{"vh": "w.example\n"}, found: "v.example a.v.example a.w.example", foreign: "b.a.example"},
		{name: "classes in a ring end", cf: "CRa.example $=w\nCwb.example $=R\n", found: "a.example b.example"},
		{name: "an unknown class can't be followed", cf: "Cwa.example $=Q\n", found: "a.example", problem: `"$=Q" in class w can't be followed`},
		{name: "relay_hosts_only", cf: "CR relay.example\nR$+ < @ $=R >\t\t$@ RELAY\n", found: "relay.example", foreign: "a.relay.example"},
		{name: "a map can't be followed", cf: "Cwa.example\nFw@ldap:domains\n", found: "a.example", problem: `DIR/sendmail.cf: "Fw@ldap:domains" can't be followed`},
		{name: "nor can a program", cf: "Cwa.example\nF{w}|/bin/names\n", found: "a.example", problem: `can't be followed`},
		{name: "nor a macro nobody defined", cf: "Cwa.example\nCwx.$Z\n", found: "a.example", problem: `"x.$Z" in class w can't be followed`},
		{name: "a macro that names itself ends", cf: "Cwa.example\nDZ$Z.$Z\nCwx.$Z\n", found: "a.example", problem: `"x.$Z" in class w`},
		{name: "a whole top-level domain", cf: "Cwa.example\nCRcom\nR$+ < @ $* $=R >\t$@ RELAY\n", found: "a.example com", unsure: "somebody.com", problem: `class R has "com"`},
		{name: "an empty file", cf: "", problem: "DIR/sendmail.cf: no domain in it"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := site{t, t.TempDir()}
			d.write("sendmail.cf", strings.ReplaceAll(tt.cf, "DIR", d.dir))
			d.age("sendmail.cf", time.Hour)
			for name, text := range tt.files {
				d.write(name, text)
				d.age(name, time.Hour)
			}
			o := d.options()
			o.From = Auto
			s := loaded(t, o)
			want(t, s, relay.DomainFound, tt.found)
			want(t, s, relay.DomainOther, tt.foreign)
			want(t, s, relay.DomainUnsure, tt.unsure)
			problem := strings.ReplaceAll(tt.problem, "DIR", d.dir)
			switch p := s.Problems(); {
			case problem == "" && len(p) > 0, problem != "" && (len(p) != 1 || !strings.Contains(p[0], problem)):
				t.Errorf("problems %q, want %q", p, problem)
			}
		})
	}
}

func TestTwoMTAsOnOneHostAreTakenForSureOnlyWhereTheyAgree(t *testing.T) {
	d := site{t, t.TempDir()}
	o, _ := postfixSite(t, d, map[string]string{"postconf": "mydestination = both.example postfix.example\nrelay_domains =\n"})
	d.write("sendmail.cf", "Cwboth.example old.example\n")
	d.age("sendmail.cf", time.Hour)
	s := loaded(t, o)
	want(t, s, relay.DomainFound, "both.example")
	want(t, s, relay.DomainUnsure, "postfix.example old.example")
	if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0], "write postfix or sendmail instead of auto") {
		t.Errorf("problems %q", p)
	}
	o.MTA = relay.Sendmail
	want(t, loaded(t, o), relay.DomainFound, "both.example old.example")
	o.From = FromPostfix
	want(t, loaded(t, o), relay.DomainFound, "both.example postfix.example")
}

func TestNoMTAOnThisHost(t *testing.T) {
	d := site{t, t.TempDir()}
	o := d.options()
	o.From = Auto
	s := loaded(t, o)
	if !s.Current().Empty() || s.Asks() || len(s.Problems()) > 0 {
		t.Errorf("%d domains, asks %v, problems %q; want nothing", s.Current().Len(), s.Asks(), s.Problems())
	}
}

func TestEmptiedFileOfTheMTAKeepsItsDomains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := site{t, t.TempDir()}
		d.write("sendmail.cf", "Fw"+d.path("names")+"\nFR-o "+d.path("more")+"\n")
		d.write("names", "a.example\n")
		d.write("more", "")
		o := d.options()
		o.From = FromSendmail
		s := loaded(t, o)
		if p := s.Problems(); len(p) > 0 {
			t.Errorf("a file that was always empty is a problem: %q", p)
		}
		go s.Run(t.Context())
		d.write("names", "")
		time.Sleep(time.Hour)
		synctest.Wait()
		want(t, s, relay.DomainFound, "a.example")
		if p := s.Problems(); len(p) != 1 || !strings.Contains(p[0], "empty all of a sudden") {
			t.Errorf("problems %q", p)
		}
	})
}

func TestReadingsLessThanASecondApartDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := site{t, t.TempDir()}
		d.write("names", "a.example\n")
		l := textFile(d.path("names"))
		for i, known := range []bool{false, false, false, true} {
			if l.step(t.Context(), time.Now()); l.known != known {
				t.Errorf("after %v known is %v", time.Duration(i)*400*time.Millisecond, l.known)
			}
			time.Sleep(400 * time.Millisecond)
		}
	})
}

func TestShutOutDomainsAreNotAskedFor(t *testing.T) {
	o, _ := postfixSite(t, site{t, t.TempDir()}, map[string]string{
		"postconf":                           "mydestination = !no.example ldap:/etc/l !/etc/list mysql:/etc/m\nrelay_domains =\n",
		"postmap -q no.example ldap:/etc/l":  "1\n",
		"postmap -q yes.example ldap:/etc/l": "1\n",
		"postmap -q my.example mysql:/etc/m": "1\n",
	})
	s := loaded(t, o)
	for domain, m := range map[string]relay.Match{"no.example": relay.DomainOther, "yes.example": relay.DomainFound, "my.example": relay.DomainUnsure} {
		if got := s.Ask(t.Context(), domain, nil); got != m {
			t.Errorf("%s is %v, want %v", domain, got, m)
		}
	}
}
