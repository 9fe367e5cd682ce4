package gate

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

var (
	bob = netip.MustParseAddr("192.0.2.7")
	eve = netip.MustParseAddr("203.0.113.66")
)

// facts is a store and a ledger in the test's hand.
type facts struct {
	mu     sync.Mutex
	grants map[relay.Key]relay.Grant
	err    error
	full   bool
	barred bool
	fault  bool                                // the next look-up panics
	allows func(*relay.Rules, netip.Addr) bool // nil: all but barred
}

func (f *facts) Lookup(k relay.Key) (relay.Grant, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fault {
		panic("a fault of ours")
	}
	return f.grants[k], f.err
}

func (f *facts) Allows(r *relay.Rules, _ relay.Grant, client netip.Addr) bool {
	if f.allows != nil {
		return f.allows(r, client)
	}
	return !f.barred
}
func (f *facts) Full(relay.Now) bool { return f.full }

// setup runs a gate on the bubble's clock.
func setup() (*Gate, *facts, *relay.Rules) {
	f := &facts{grants: map[relay.Key]relay.Grant{}}
	r := &relay.Rules{
		PostfixMailers: relay.DefaultMailers(relay.Postfix), SendmailMailers: relay.DefaultMailers(relay.Sendmail),
		Domains: relay.NewDomains(map[string]relay.Match{"local.test": relay.DomainWritten}), GrantTTL: 30 * time.Minute,
		IPv6Prefix: 128, TrustAuthenticated: true, WaitForLogin: 500 * time.Millisecond, MaxWaiting: 3, Reject: relay.DefaultReject,
	}
	start := time.Now()
	g := New(Options{Store: f, Ledger: f, Rules: r, Now: func() relay.Now {
		t := time.Now()
		return relay.Now{Wall: t, Mono: t.Sub(start)}
	}})
	return g, f, r
}

func (f *facts) grant(g *Gate, client netip.Addr) {
	now := g.now()
	f.give(g, relay.Grant{Client: client, Prefix: 32, Login: now.Wall, Expires: now.Wall.Add(30 * time.Minute), Deadline: now.Mono + 30*time.Minute})
}

func (f *facts) give(g *Gate, gr relay.Grant) {
	f.mu.Lock()
	f.grants[gr.Key()] = gr
	f.mu.Unlock()
	if g.Follow(relay.Batch{Changes: []relay.Change{{Kind: relay.ChangeGrant, Grant: gr}}}) {
		g.Answer()
	}
}

func foreign(client netip.Addr, w *relay.Waits) *relay.Query {
	return &relay.Query{Door: "milter", Client: client, Rcpt: "x@remote.test", Version: "Postfix 3.7.11", Mailer: "smtp",
		Host: "remote.test", Addr: "x@remote.test", Waits: w}
}

func want(t *testing.T, what string, got relay.Decision, v relay.Verdict, r relay.Reason) {
	t.Helper()
	if got != (relay.Decision{Verdict: v, Reason: r}) {
		t.Errorf("%s: %v %v, want %v %v", what, got.Verdict, got.Reason, v, r)
	}
}

func TestJudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		ctx := t.Context()
		want(t, "stranger", g.Judge(ctx, foreign(eve, nil)), relay.Refuse, relay.ReasonNoGrant)
		f.grant(g, bob)
		want(t, "granted", g.Judge(ctx, foreign(bob, nil)), relay.Pass, relay.ReasonGrant)
		f.barred = true
		want(t, "granted, then barred", g.Judge(ctx, foreign(bob, nil)), relay.Refuse, relay.ReasonExpired)
		f.barred = false
		time.Sleep(30 * time.Minute)
		want(t, "expired", g.Judge(ctx, foreign(bob, nil)), relay.Refuse, relay.ReasonExpired)
		q := foreign(eve, nil)
		q.AuthType, q.AuthUser = "PLAIN", "alice"
		want(t, "authenticated", g.Judge(ctx, q), relay.Pass, relay.ReasonAuthenticated)
		f.err = errors.New("stale")
		want(t, "copy stale", g.Judge(ctx, foreign(eve, nil)), relay.Defer, relay.ReasonStoreError)
		local := foreign(eve, nil)
		local.Rcpt, local.Mailer = "a@local.test", "local"
		want(t, "local with a stale copy", g.Judge(ctx, local), relay.Pass, relay.ReasonLocal)
		f.err, f.full = nil, true
		want(t, "full", g.Judge(ctx, foreign(eve, nil)), relay.Defer, relay.ReasonFull)
		if n := g.Counts()[relay.Decision{Verdict: relay.Refuse, Reason: relay.ReasonExpired}]; n != 2 {
			t.Errorf("counted %d refusals as expired, want 2", n)
		}
	})
}

func TestExplainUsesUpNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, _ := setup()
		w := &relay.Waits{}
		start := time.Now()
		e := g.Explain(t.Context(), foreign(eve, w))
		want(t, "ask", e.Decision, relay.Refuse, relay.ReasonNoGrant)
		if time.Since(start) != 0 || w.Count != 0 || len(g.Counts()) != 0 {
			t.Errorf("ask waited %v, used %d waits, counted %v", time.Since(start), w.Count, g.Counts())
		}
		if e.Reply.Code != 550 {
			t.Errorf("reply %v", e.Reply)
		}
	})
}

func TestWaitIsWokenByTheLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		go func() {
			time.Sleep(20 * time.Millisecond)
			f.grant(g, eve) // somebody else's login doesn't wake him
			time.Sleep(20 * time.Millisecond)
			f.grant(g, bob)
		}()
		start := time.Now()
		want(t, "login 40 ms late", g.Judge(t.Context(), foreign(bob, &relay.Waits{})), relay.Pass, relay.ReasonGrant)
		if d := time.Since(start); d != 40*time.Millisecond {
			t.Errorf("waited %v, want 40ms", d)
		}
		if g.Waiting() != 0 {
			t.Errorf("%d still wait", g.Waiting())
		}
	})
}

func TestWaitEndsAfterItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, _ := setup()
		waited := func(w *relay.Waits) time.Duration {
			start := time.Now()
			want(t, "no login", g.Judge(t.Context(), foreign(eve, w)), relay.Refuse, relay.ReasonNoGrant)
			return time.Since(start)
		}
		w := &relay.Waits{}
		if d := waited(w); d != 500*time.Millisecond {
			t.Errorf("first wait %v, want 500ms", d)
		}
		if d := waited(w); d != 0 {
			t.Errorf("second recipient of the transaction waited %v", d)
		}
		w.Begin()
		if d := waited(w); d != 100*time.Millisecond {
			t.Errorf("wait after a failed one %v, want 100ms", d)
		}
		time.Sleep(6 * time.Second)
		for i := range 3 {
			w.Begin()
			waited(w)
			time.Sleep(6 * time.Second)
			if w.Count != uint8(i+3) {
				t.Fatalf("count %d", w.Count)
			}
		}
		w.Begin()
		if d := waited(w); d != 0 {
			t.Errorf("sixth wait of a connection %v, want none", d)
		}
	})
}

func TestWaitCutShortIsNeverARefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, _ := setup()
		ctx, stop := context.WithTimeout(t.Context(), 30*time.Millisecond)
		defer stop()
		start := time.Now()
		want(t, "cut short", g.Judge(ctx, foreign(eve, &relay.Waits{})), relay.Defer, relay.ReasonBusy)
		if d := time.Since(start); d != 30*time.Millisecond {
			t.Errorf("waited %v after the connection had gone", d)
		}
	})
}

func TestStrangersWaitingHoldUpOnlyThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		f.grant(g, bob)
		var wg sync.WaitGroup
		for i := range 3 {
			wg.Go(func() {
				c := netip.AddrFrom4([4]byte{203, 0, 113, byte(i)})
				want(t, "a waiting stranger", g.Judge(t.Context(), foreign(c, &relay.Waits{})), relay.Refuse, relay.ReasonNoGrant)
			})
		}
		synctest.Wait()
		start := time.Now()
		want(t, "granted client", g.Judge(t.Context(), foreign(bob, &relay.Waits{})), relay.Pass, relay.ReasonGrant)
		want(t, "no place left to wait", g.Judge(t.Context(), foreign(eve, &relay.Waits{})), relay.Defer, relay.ReasonBusy)
		want(t, "second connection of a client that waits", g.Judge(t.Context(), foreign(netip.AddrFrom4([4]byte{203, 0, 113, 1}), &relay.Waits{})),
			relay.Defer, relay.ReasonBusy)
		if d := time.Since(start); d != 0 {
			t.Errorf("they took %v", d)
		}
		wg.Wait()
	})
}

func TestReadiness(t *testing.T) {
	report := func(g *Gate, name string, s relay.SourceStatus) {
		g.SourceChanged(relay.SourceState{Name: name, Status: s})
	}
	for _, tt := range []struct {
		name string
		run  func(g *Gate, blind func(string, bool))
	}{
		{"no source at all misses nothing", func(g *Gate, blind func(string, bool)) { blind("start", false) }},
		{"start-up replay", func(g *Gate, blind func(string, bool)) {
			g.Sources([]string{"a"})
			blind("unfinished", true)
			report(g, "a", relay.SourceUp)
			blind("finished", false)
		}},
		{"the only source never comes up", func(g *Gate, blind func(string, bool)) {
			g.Sources([]string{"a"})
			report(g, "a", relay.SourceDown)
			time.Sleep(24 * time.Hour)
			blind("a day later", true)
		}},
		{"a long replay beside a source that is up", func(g *Gate, blind func(string, bool)) {
			g.Sources([]string{"a", "b"})
			report(g, "a", relay.SourceUp)
			time.Sleep(59 * time.Second)
			blind("within a minute", true)
			time.Sleep(time.Second)
			blind("after a minute", false)
		}},
		{"a source dies, another is up", func(g *Gate, blind func(string, bool)) {
			g.Sources([]string{"a", "b"})
			report(g, "a", relay.SourceUp)
			report(g, "b", relay.SourceUp)
			time.Sleep(time.Hour)
			report(g, "b", relay.SourceDown)
			time.Sleep(30*time.Minute - 1)
			blind("within a ttl", true)
			time.Sleep(time.Nanosecond)
			blind("after a ttl", false)
			report(g, "a", relay.SourceDown)
			blind("both down", true)
			report(g, "b", relay.SourceUp)
			blind("the other is back", true)
			time.Sleep(30 * time.Minute)
			blind("a ttl later", false)
		}},
		{"a source dies and comes back", func(g *Gate, blind func(string, bool)) {
			g.Sources([]string{"a"})
			report(g, "a", relay.SourceUp)
			report(g, "a", relay.SourceDown)
			blind("down", true)
			report(g, "a", relay.SourceUp)
			blind("read up to the present again", false)
		}},
		{"logins that may never be read", func(g *Gate, blind func(string, bool)) {
			g.Missed()
			time.Sleep(30*time.Minute - time.Nanosecond)
			blind("within a ttl", true)
			time.Sleep(time.Nanosecond)
			blind("after a ttl", false)
		}},
		{"a source passed over lines unread", func(g *Gate, blind func(string, bool)) {
			missed := func(status relay.SourceStatus, n uint64) {
				g.SourceChanged(relay.SourceState{Name: "a", Status: status, Missed: n})
			}
			g.Sources([]string{"a", "b"})
			report(g, "b", relay.SourceUp)
			missed(relay.SourceUp, 0)
			time.Sleep(time.Hour)
			blind("nothing missed", false)
			missed(relay.SourceUp, 1)
			time.Sleep(30*time.Minute - time.Nanosecond)
			missed(relay.SourceUp, 1)
			blind("within a ttl", true)
			time.Sleep(time.Nanosecond)
			blind("after a ttl, told of the same", false)
			missed(relay.SourceDown, 1)
			missed(relay.SourceUp, 3)
			blind("more of it, with a change of status", true)
			missed(relay.SourceStarting, 0)
			missed(relay.SourceUp, 0)
			blind("it is read anew, which brings nothing back", true)
			time.Sleep(30 * time.Minute)
			blind("a ttl later", false)
			missed(relay.SourceUp, 1)
			blind("missed in the new reading", true)
		}},
		{"a source that is read anew", func(g *Gate, blind func(string, bool)) {
			g.Sources([]string{"a", "b"})
			report(g, "a", relay.SourceUp)
			report(g, "b", relay.SourceUp)
			time.Sleep(time.Hour)
			blind("both up", false)
			report(g, "b", relay.SourceStarting)
			blind("its replay is unfinished", true)
			report(g, "b", relay.SourceUp)
			blind("read up to the present", false)
		}},
		{"a source that is no longer configured", func(g *Gate, blind func(string, bool)) {
			g.Sources([]string{"a", "b"})
			report(g, "a", relay.SourceUp)
			report(g, "b", relay.SourceDown)
			g.Sources([]string{"a"})
			report(g, "b", relay.SourceDown)
			blind("it is forgotten", false)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, _, _ := setup()
				tt.run(g, func(what string, want bool) {
					t.Helper()
					d := g.Judge(t.Context(), foreign(eve, nil))
					if got := d.Reason == relay.ReasonNotReady; got != want || (d.Verdict == relay.Defer) != want {
						t.Errorf("%s: %v %v, want not_ready %v", what, d.Verdict, d.Reason, want)
					}
					until, off := g.PutOff()
					if off != want || off && !until.IsZero() && !until.After(time.Now()) {
						t.Errorf("%s: put off %v until %v, want %v", what, off, until, want)
					}
				})
			})
		})
	}
}

func TestRulesSwapUnderEveryQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, r := setup()
		n := g.Generation()
		next := *r
		next.Reject = relay.Reject{Code: 451, Enhanced: "4.7.1", Text: "no"}
		next.TrustedNetworks = []netip.Prefix{netip.PrefixFrom(eve, 32)}
		g.SetRules(&next)
		if g.Generation() == n {
			t.Error("the generation stayed")
		}
		want(t, "trusted now", g.Judge(t.Context(), foreign(eve, nil)), relay.Pass, relay.ReasonTrusted)
		if reply := g.Reply(relay.Decision{Verdict: relay.Refuse}, bob); reply.Code != 451 {
			t.Errorf("reply %v", reply)
		}
	})
}

// slow is a table that takes its time.
type slow struct{ d time.Duration }

func (s slow) Ask(context.Context, string, *relay.Waits) relay.Match {
	time.Sleep(s.d)
	return relay.DomainOther
}

func TestGrantThatEndsWhileATableIsAskedIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		f.grant(g, bob)
		g.domains = slow{time.Hour}
		start := time.Now()
		want(t, "a live grant needs no table", g.Judge(t.Context(), foreign(bob, nil)), relay.Pass, relay.ReasonGrant)
		if d := time.Since(start); d != 0 {
			t.Errorf("a table was asked for %v", d)
		}
		go func() {
			time.Sleep(10 * time.Minute)
			f.grant(g, eve)
		}()
		want(t, "its grant came and went meanwhile", g.Judge(t.Context(), foreign(eve, nil)), relay.Refuse, relay.ReasonExpired)
	})
}

type table map[string]relay.Match

func (tb table) Ask(_ context.Context, domain string, _ *relay.Waits) relay.Match {
	return tb[domain]
}

func TestTablesThatCanOnlyBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, _ := setup()
		g.domains = table{"ldap.test": relay.DomainFound, "slow.test": relay.DomainUnsure}
		for rcpt, w := range map[string]relay.Decision{
			"a@ldap.test":             {Verdict: relay.Pass, Reason: relay.ReasonLocal},
			"a@slow.test":             {Verdict: relay.Defer, Reason: relay.ReasonUnsure},
			"a@remote.test":           {Verdict: relay.Refuse, Reason: relay.ReasonNoGrant},
			"x%remote.test@ldap.test": {Verdict: relay.Defer, Reason: relay.ReasonUnsure},
			"o'brien@ldap.test":       {Verdict: relay.Defer, Reason: relay.ReasonUnsure},
		} {
			q := &relay.Query{Client: eve, Rcpt: rcpt}
			want(t, rcpt, g.Judge(t.Context(), q), w.Verdict, w.Reason)
		}
		q := foreign(eve, nil)
		q.Rcpt = "fwd@ldap.test"
		want(t, "one of ours that the MTA forwards elsewhere", g.Judge(t.Context(), q), relay.Defer, relay.ReasonUnsure)
	})
}

func BenchmarkJudge(b *testing.B) {
	ours := foreign(eve, &relay.Waits{})
	ours.Rcpt, ours.Addr, ours.Host, ours.Mailer = "x@local.test", "x@local.test", "local.test", "local"
	for _, bb := range []struct {
		name string
		q    *relay.Query
		want relay.Verdict
	}{
		{"granted", foreign(bob, &relay.Waits{}), relay.Pass},
		{"stranger who has waited", foreign(eve, &relay.Waits{Transaction: true}), relay.Refuse},
		{"local recipient", ours, relay.Pass},
	} {
		b.Run(bb.name, func(b *testing.B) {
			g, f, _ := setup()
			f.grant(g, bob)
			b.ReportAllocs()
			for b.Loop() {
				if got := g.Judge(b.Context(), bb.q).Verdict; got != bb.want {
					b.Fatalf("%v, want %v", got, bb.want)
				}
			}
		})
	}
}
