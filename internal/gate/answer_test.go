package gate

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

// asker counts what a door's connection is told.
type asker struct {
	blocks, passes atomic.Int32
	passing        func() // called by Passes; nil: nothing
}

func (a *asker) Blocks() { a.blocks.Add(1) }

func (a *asker) Passes() {
	a.passes.Add(1)
	if a.passing != nil {
		a.passing()
	}
}

func (a *asker) waits() *relay.Waits { return &relay.Waits{Asker: a} }

// Whoever brings the login has answered when he goes on, not only woken.
func TestALoginAnswersWhoWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		var a asker
		var wg sync.WaitGroup
		wg.Go(func() {
			want(t, "who waits", g.Judge(t.Context(), foreign(bob, a.waits())), relay.Pass, relay.ReasonGrant)
		})
		synctest.Wait()
		if a.blocks.Load() != 1 || a.passes.Load() != 0 {
			t.Errorf("told %d times that it waits and %d that it passes", a.blocks.Load(), a.passes.Load())
		}
		f.grant(g, bob)
		if a.passes.Load() != 1 {
			t.Error("the login was followed, and the client has no answer")
		}
		f.grant(g, bob) // once more, before or after he has noticed
		wg.Wait()
		if a.passes.Load() != 1 {
			t.Errorf("answered %d times", a.passes.Load())
		}
		if n := g.Counts()[relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonGrant}]; n != 1 || g.Waiting() != 0 {
			t.Errorf("counted %d times, %d still wait", n, g.Waiting())
		}
	})
}

// A login answers no one whom a look-up would not let through.
func TestAttackALoginPassesNobodyElseWhoWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, spoil := range map[string]func(g *Gate, f *facts){
			"another's login":               func(g *Gate, f *facts) { f.grant(g, bob) },
			"an address that may hold none": func(g *Gate, f *facts) { f.barred = true; f.grant(g, eve) },
			"a grant that has ended": func(g *Gate, f *facts) {
				now := g.now()
				f.give(g, relay.Grant{Client: eve, Prefix: 32, Login: now.Wall.Add(-time.Hour), Expires: now.Wall, Deadline: now.Mono})
			},
			"a grant that was taken away at once": func(g *Gate, f *facts) {
				now := g.now()
				gr := relay.Grant{Client: eve, Prefix: 32, Login: now.Wall, Expires: now.Wall.Add(time.Hour), Deadline: now.Mono + time.Hour}
				g.Follow(relay.Batch{Changes: []relay.Change{{Kind: relay.ChangeGrant, Grant: gr}}})
				g.Answer()
			},
		} {
			g, f, _ := setup()
			var a asker
			var wg sync.WaitGroup
			wg.Go(func() {
				if d := g.Judge(t.Context(), foreign(eve, a.waits())); d.Verdict == relay.Pass {
					t.Errorf("%s: passed for %s", name, d.Reason)
				}
			})
			synctest.Wait()
			spoil(g, f)
			wg.Wait()
			if a.passes.Load() != 0 {
				t.Errorf("%s: the stranger was answered", name)
			}
		}
	})
}

// Where many share a key, as in an IPv6 /64, only one is answered by the reader of
// the log: he is to read on.
func TestALoginAnswersOneAndWakesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, r := setup()
		r.IPv6Prefix = 64
		clients := []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::3")}
		askers := make([]asker, len(clients))
		var wg sync.WaitGroup
		for i, c := range clients {
			wg.Go(func() {
				want(t, "who waits", g.Judge(t.Context(), foreign(c, askers[i].waits())), relay.Pass, relay.ReasonGrant)
			})
			synctest.Wait()
		}
		now := g.now()
		f.give(g, relay.Grant{Client: clients[2], Prefix: 64, Login: now.Wall, Expires: now.Wall.Add(time.Hour), Deadline: now.Mono + time.Hour})
		wg.Wait()
		for i := range askers {
			if told := askers[i].passes.Load(); (told == 1) != (i == 0) {
				t.Errorf("client %d was answered %d times", i, told)
			}
		}
	})
}

// While the ledger is locked nobody is answered, and while one is answered no other
// question waits.
func TestAnAnswerHoldsUpNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		sending := make(chan struct{})
		a := asker{passing: func() { <-sending }}
		var wg sync.WaitGroup
		wg.Go(func() {
			want(t, "who waits", g.Judge(t.Context(), foreign(bob, a.waits())), relay.Pass, relay.ReasonGrant)
		})
		synctest.Wait()
		now := g.now()
		gr := relay.Grant{Client: bob, Prefix: 32, Login: now.Wall, Expires: now.Wall.Add(time.Hour), Deadline: now.Mono + time.Hour}
		f.mu.Lock()
		f.grants[gr.Key()] = gr
		f.mu.Unlock()
		if !g.Follow(relay.Batch{Changes: []relay.Change{{Kind: relay.ChangeGrant, Grant: gr}}}) || a.passes.Load() != 0 {
			t.Error("answered by Follow")
		}
		wg.Go(g.Answer)
		synctest.Wait()
		if a.passes.Load() != 1 {
			t.Error("not answered by Answer")
		}
		var other asker
		wg.Go(func() {
			want(t, "another who waits", g.Judge(t.Context(), foreign(eve, other.waits())), relay.Pass, relay.ReasonGrant)
		})
		synctest.Wait()
		f.grant(g, eve)
		if other.passes.Load() != 1 || g.Waiting() != 2 {
			t.Errorf("another was answered %d times, %d wait", other.passes.Load(), g.Waiting())
		}
		close(sending)
		wg.Wait()
	})
}

// Rules that came while a client waited are those he is judged by.
func TestAttackRulesThatCameWhileAClientWaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, r := setup()
		r.IPv6Prefix = 64
		client, neighbour := netip.MustParseAddr("2001:db8::bad"), netip.MustParseAddr("2001:db8::1")
		f.allows = func(r *relay.Rules, client netip.Addr) bool { return r.MayHold(client, nil) }
		var a asker
		var wg sync.WaitGroup
		wg.Go(func() {
			want(t, "who may hold none now", g.Judge(t.Context(), foreign(client, a.waits())), relay.Refuse, relay.ReasonExpired)
		})
		synctest.Wait()
		fresh := *r
		fresh.NeverGrant = []netip.Prefix{netip.PrefixFrom(client, 128)}
		g.SetRules(&fresh)
		now := g.now()
		f.give(g, relay.Grant{Client: neighbour, Prefix: 64, Login: now.Wall, Expires: now.Wall.Add(time.Hour), Deadline: now.Mono + time.Hour})
		wg.Wait()
		if a.passes.Load() != 0 {
			t.Error("answered by the old rules")
		}
	})
}

// A client who passes is told so at most once, and one who was told passes,
// however login, end of the patience and end of the connection meet.
func TestAttackNoAnswerAheadOfAnotherVerdict(t *testing.T) {
	g, f, r := setup()
	r.WaitForLogin, r.MaxWaiting = 200*time.Microsecond, 1000
	for i := range 2000 {
		client := netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)})
		ctx, stop := context.WithCancel(t.Context())
		var a asker
		var wg sync.WaitGroup
		var d relay.Decision
		wg.Go(func() { d = g.Judge(ctx, foreign(client, a.waits())) })
		pause := time.Duration(i%40) * 10 * time.Microsecond
		wg.Go(func() {
			time.Sleep(pause)
			f.grant(g, client)
			f.mu.Lock()
			clear(f.grants) // so that it matters who was answered before
			f.mu.Unlock()
		})
		wg.Go(func() { time.Sleep(200 * time.Microsecond); stop() })
		wg.Wait()
		if n := a.passes.Load(); n > 1 || n == 1 && d.Verdict != relay.Pass {
			t.Fatalf("told %d times that it passes, and the verdict is %v for %v", n, d.Verdict, d.Reason)
		}
	}
	if g.Waiting() != 0 {
		t.Errorf("%d still wait", g.Waiting())
	}
}

// A fault in the door's way of answering is not the log reader's.
func TestAPanicInAnsweringLeavesTheLogReaderAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		a := asker{passing: func() { panic("a fault of ours") }}
		var wg sync.WaitGroup
		wg.Go(func() {
			want(t, "who waits", g.Judge(t.Context(), foreign(bob, a.waits())), relay.Pass, relay.ReasonGrant)
		})
		synctest.Wait()
		f.grant(g, bob)
		wg.Wait()
		if a.passes.Load() != 1 || g.Waiting() != 0 {
			t.Errorf("told %d times, %d still wait", a.passes.Load(), g.Waiting())
		}
	})
}

// A place to wait is given back even by a question that ends in a panic.
func TestAPanicWhileWaitingLeavesNoPlaceTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		var wg sync.WaitGroup
		wg.Go(func() {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			g.Judge(t.Context(), foreign(bob, &relay.Waits{}))
		})
		synctest.Wait()
		f.mu.Lock()
		f.fault = true
		f.mu.Unlock()
		wg.Wait() // its time ends, and it looks again
		if g.Waiting() != 0 {
			t.Errorf("%d still wait", g.Waiting())
		}
	})
}
