package cache

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func address(i int) netip.Addr {
	if i%5 == 0 {
		return netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 1, 2, 3, 4, byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i), 15: 1})
	}
	return netip.AddrFrom4([4]byte{byte(11 + i>>24), byte(i >> 16), byte(i >> 8), byte(i)})
}

// clocks are two that a test moves by hand.
type clocks struct {
	mu  sync.Mutex
	now relay.Now
}

func (c *clocks) read() relay.Now {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clocks) pass(d time.Duration) {
	c.mu.Lock()
	c.now.Wall, c.now.Mono = c.now.Wall.Add(d), c.now.Mono+d
	c.mu.Unlock()
}
func (c *clocks) step(d time.Duration) { c.mu.Lock(); c.now.Wall = c.now.Wall.Add(d); c.mu.Unlock() }

func (c *clocks) grant(client netip.Addr, life time.Duration) relay.Grant {
	now := c.read()
	return relay.Grant{Client: client, Prefix: uint8(client.BitLen()), User: "alice@example.org", Session: "session",
		Source: "file:/var/log/mail.log", Format: "dovecot", Service: relay.IMAP,
		Login: now.Wall, Expires: now.Wall.Add(life), Deadline: now.Mono + life}
}

func sweepAll(s *Store) {
	w := sweeper{s: s}
	for i := range s.shard {
		w.visit(i)
	}
}

func TestWhatIsPutIsGiven(t *testing.T) {
	full := relay.Grant{Client: netip.MustParseAddr("2001:db8::77"), Prefix: 64, Service: relay.POP3, Operator: true, Forced: true,
		Open: true, User: "alice", Source: "control", Format: "none", Session: "<s>", Note: "a note", Login: start,
		Expires: start.Add(time.Hour + 1), Deadline: 12345}
	for _, tt := range []struct {
		name string
		g    relay.Grant
	}{
		{"every field, prefix shorter than the address", full},
		{"IPv4", relay.Grant{Client: netip.MustParseAddr("192.0.2.1"), Prefix: 32, User: "bob", Login: start, Expires: start}},
		{"no text at all", relay.Grant{Client: netip.MustParseAddr("192.0.2.1"), Prefix: 32}},
		{"the zero grant", relay.Grant{}},
		{"long texts", relay.Grant{Client: netip.MustParseAddr("::2"), Prefix: 128, User: strings.Repeat("u", 70_000),
			Session: strings.Repeat("s", 300), Note: strings.Repeat("n", 20_000), Deadline: -5}},
		{"bytes that are no UTF-8", relay.Grant{Client: netip.MustParseAddr("192.0.2.1"), User: "\xff\x00\x80", Source: "\xfe", Format: "\x00"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := New(Options{})
			k := tt.g.Key()
			s.Put(k, tt.g)
			if got, ok := s.Get(k); !ok || got != tt.g {
				t.Errorf("Get = %+v, %v, want %+v", got, ok, tt.g)
			}
			for key, got := range s.All() {
				if key != k || got != tt.g {
					t.Errorf("All gave %v %+v, want %v %+v", key, got, k, tt.g)
				}
			}
		})
	}
}

func TestSomeGivesWhatAllGives(t *testing.T) {
	s := New(Options{})
	for i := range 1000 {
		g := relay.Grant{Client: address(i), Prefix: 32, User: fmt.Sprint("user ", i), Source: "s", Format: "dovecot", Login: start, Expires: start}
		s.Put(g.Key(), g)
	}
	for _, n := range []int{1, 7, 16, 1000, 2000} {
		got := map[relay.Key]relay.Grant{}
		for grants := range s.Some(n) {
			if len(grants) == 0 || len(grants) > n {
				t.Fatalf("Some(%d) gave %d", n, len(grants))
			}
			for _, g := range grants {
				got[g.Key()] = g
			}
		}
		if want := maps.Collect(s.All()); !maps.Equal(got, want) {
			t.Errorf("Some(%d) gave %d grants that are not the %d of All", n, len(got), len(want))
		}
	}
	for range s.Some(16) {
		break // and no more is given
	}
}

func TestTimesOutsideTheRangeNeverGrowALife(t *testing.T) {
	s := New(Options{})
	g := relay.Grant{Client: address(1), Prefix: 32, Login: time.Date(1200, 1, 1, 0, 0, 0, 0, time.UTC), Expires: time.Date(3000, 1, 1, 0, 0, 0, 0, time.UTC)}
	s.Put(g.Key(), g)
	got, _ := s.Get(g.Key())
	if got.Login.Year() != 1677 || got.Expires.Year() != 2262 {
		t.Errorf("login %v, expires %v; want the ends of the range, 1677 and 2262", got.Login, got.Expires)
	}
}

func TestMoreWordsThanTheTableHolds(t *testing.T) {
	s := New(Options{})
	for i := range maxWords + 100 {
		g := relay.Grant{Client: address(i), Prefix: 32, User: "u", Source: fmt.Sprint("source ", i), Format: "dovecot"}
		s.Put(g.Key(), g)
		if got, ok := s.Get(g.Key()); !ok || got != g {
			t.Fatalf("grant %d: source %q came back as %q", i, g.Source, got.Source)
		}
	}
	if n := len(*s.words.list.Load()); n != maxWords {
		t.Errorf("%d words in the table, want the bound %d", n, maxWords)
	}
}

// Any sequence of Put, Delete and sweeps leaves what a plain map would hold.
func TestStoreAgreesWithAMap(t *testing.T) {
	c := &clocks{now: relay.Now{Wall: start}}
	var gone []relay.Grant
	s := New(Options{Now: c.read, Gone: func(g relay.Grant) { gone = append(gone, g) }})
	want := map[relay.Key]relay.Grant{}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 60_000 {
		client := address(r.IntN(5000))
		k := relay.KeyOf(client, 128)
		switch n := r.IntN(1000); {
		case n < 600:
			g := c.grant(client, time.Duration(r.IntN(3600))*time.Second)
			s.Put(k, g)
			want[k] = g
		case n < 998:
			s.Delete(k)
			delete(want, k)
		default:
			c.pass(time.Duration(r.IntN(1200)) * time.Second)
			gone = gone[:0]
			sweepAll(s)
			removed := 0
			for k, g := range want {
				if now := c.read(); now.Mono-g.Deadline >= Keep {
					delete(want, k)
					removed++
				}
			}
			if len(gone) != removed {
				t.Fatalf("step %d: Gone told of %d grants, want %d", i, len(gone), removed)
			}
		}
		if s.Len() != len(want) {
			t.Fatalf("step %d: Len = %d, want %d", i, s.Len(), len(want))
		}
	}
	seen := 0
	for k, g := range s.All() {
		if seen++; want[k] != g {
			t.Errorf("All gave %v %+v, want %+v", k, g, want[k])
		}
	}
	if seen != len(want) {
		t.Errorf("All gave %d grants, want %d", seen, len(want))
	}
	for k, g := range want {
		if got, ok := s.Get(k); !ok || got != g {
			t.Errorf("Get(%v) = %+v, %v, want %+v", k, got, ok, g)
		}
	}
}

func TestSweepTakesOutOnlyWhatCanNeverCountAgain(t *testing.T) {
	const life = 30 * time.Minute
	for _, tt := range []struct {
		name string
		move func(*clocks)
		kept bool
	}{
		{"live", func(c *clocks) { c.pass(life - 1) }, true},
		{"ended, but expired must still be told from no grant", func(c *clocks) { c.pass(life + Keep - 1) }, true},
		{"ended ten minutes ago", func(c *clocks) { c.pass(life + Keep) }, false},
		{"wall clock a day ahead, the grant lives on by the other", func(c *clocks) { c.step(24 * time.Hour) }, true},
		{"wall clock ahead until just before the deadline", func(c *clocks) { c.step(24 * time.Hour); c.pass(life - 1) }, true},
		{"wall clock ahead and past the deadline: dead by both", func(c *clocks) { c.step(24 * time.Hour); c.pass(life) }, false},
		{"wall clock set back a day does not keep the dead", func(c *clocks) { c.step(-24 * time.Hour); c.pass(life + Keep) }, false},
		{"wall clock set back, ended nine minutes ago", func(c *clocks) { c.step(-24 * time.Hour); c.pass(life + Keep - time.Minute) }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := &clocks{now: relay.Now{Wall: start, Mono: time.Hour}}
			s := New(Options{Now: c.read})
			g := c.grant(address(1), life)
			s.Put(g.Key(), g)
			tt.move(c)
			sweepAll(s)
			if _, ok := s.Get(g.Key()); ok != tt.kept {
				t.Errorf("kept = %v, want %v", ok, tt.kept)
			}
		})
	}
}

func TestGrantSurvivesAStepForwardAndBack(t *testing.T) {
	c := &clocks{now: relay.Now{Wall: start}}
	s := New(Options{Now: c.read})
	g := c.grant(address(1), 30*time.Minute)
	s.Put(g.Key(), g)
	c.step(3 * time.Hour)
	sweepAll(s)
	c.pass(time.Minute)
	c.step(-3 * time.Hour)
	got, ok := s.Get(g.Key())
	if !ok || !got.Live(c.read()) {
		t.Errorf("after the wall clock was three hours ahead for a minute: grant %+v found %v, live %v; want it live", got, ok, got.Live(c.read()))
	}
}

func TestSweepRoundTakesAMinuteAndEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gone := 0
		s := New(Options{Gone: func(relay.Grant) { gone++ }})
		for i := range 10_000 {
			g := relay.Grant{Client: address(i), Prefix: uint8(address(i).BitLen()), Expires: time.Now().Add(time.Minute), Deadline: time.Minute}
			s.Put(g.Key(), g)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Sweep(ctx) }()
		time.Sleep(time.Minute + Keep - time.Second)
		synctest.Wait()
		if n := s.Len(); n != 10_000 {
			t.Errorf("%d grants kept nine minutes after their end, want all", n)
		}
		time.Sleep(round + time.Second)
		synctest.Wait()
		if n := s.Len(); n != 0 || gone != 10_000 {
			t.Errorf("%d grants kept a round after ten minutes, Gone told of %d; want 0 and 10000", n, gone)
		}
		if st := s.SweepStats(); st.Rounds < 11 || st.Removed != 10_000 {
			t.Errorf("SweepStats = %+v, want 11 rounds and 10000 removed", st)
		}
		stop()
		if err := <-done; err != nil {
			t.Errorf("Sweep = %v when its context ends, want nil", err)
		}
	})
}

// The store is written by the ledger and swept while connections look up; a
// revoked grant is never seen after Delete has returned.
func TestRacesOfLookUpChangeAndSweep(t *testing.T) {
	c := &clocks{now: relay.Now{Wall: start}}
	s := New(Options{Now: c.read, Gone: func(relay.Grant) {}})
	stop := make(chan struct{})
	var group sync.WaitGroup
	spin := func(f func(i int)) {
		group.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
					f(i)
				}
			}
		})
	}
	spin(func(i int) {
		g := c.grant(address(i%1000), time.Minute)
		s.Put(g.Key(), g)
		if i%3 == 0 {
			s.Delete(g.Key())
			if _, ok := s.Get(g.Key()); ok {
				t.Error("a grant was found after its Delete")
			}
		}
	})
	for range 2 {
		spin(func(i int) {
			client := address(i % 1000)
			if g, ok := s.Get(relay.KeyOf(client, 128)); ok && g.Client != client {
				t.Errorf("asked for %v, got the grant of %v", client, g.Client)
			}
		})
	}
	spin(func(int) {
		for k, g := range s.All() {
			if g.Key() != k {
				t.Errorf("key %v has the grant of %v", k, g.Client)
			}
		}
	})
	for range 10 {
		c.pass(3 * time.Minute)
		sweepAll(s)
	}
	close(stop)
	group.Wait()
}

func TestLookUpDoesNotAllocate(t *testing.T) {
	s := New(Options{})
	wide := relay.Grant{Client: netip.MustParseAddr("2001:db8::1:2:3"), Prefix: 64, User: "alice", Source: "a", Format: "b", Expires: start}
	s.Put(wide.Key(), wide)
	hit, miss := wide.Key(), relay.Key{1, 2, 3}
	var sink relay.Grant
	if n := testing.AllocsPerRun(1000, func() {
		sink, _ = s.Get(hit)
		s.Get(miss)
	}); n != 0 {
		t.Errorf("%v allocations in two look-ups, want 0 (last %v)", n, sink.Client)
	}
}

// Between the two steps of a visit the ledger may renew what was found dead,
// or delete it.
func TestRenewedWhileTheSweeperLooksElsewhere(t *testing.T) {
	c := &clocks{now: relay.Now{Wall: start}}
	s := New(Options{Now: c.read})
	var h *shard
	var same []relay.Grant // of one shard
	for i := 1; len(same) < 3; i++ {
		g := c.grant(address(i), time.Minute)
		k := g.Key()
		if at := s.at(&k); h == nil || h == at {
			h = at
			same = append(same, g)
			s.Put(k, g)
		}
	}
	c.pass(time.Minute + Keep)
	now := c.read()
	for _, step := range []struct {
		name string
		do   func(w *sweeper)
	}{
		{"removing one by one", func(w *sweeper) { w.remove(h) }},
		{"rebuilding the shard", func(w *sweeper) { w.rebuild(h, 0, now) }},
	} {
		w := &sweeper{s: s}
		for _, g := range same {
			s.Put(g.Key(), g)
			k := g.Key()
			w.dead = append(w.dead, s.pack(&k, &g))
		}
		renewed := c.grant(same[0].Client, time.Minute)
		s.Put(renewed.Key(), renewed)
		s.Delete(same[1].Key())
		step.do(w)
		if got, ok := s.Get(renewed.Key()); !ok || got != renewed {
			t.Errorf("%s: the renewed grant is %+v, %v; want it kept", step.name, got, ok)
		}
		if len(w.dead) != 1 || s.Len() != 1 {
			t.Errorf("%s: told of %d grants, %d are left; want 1 and 1", step.name, len(w.dead), s.Len())
		}
	}
}
