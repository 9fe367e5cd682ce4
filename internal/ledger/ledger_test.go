package ledger

import (
	"fmt"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"time"

	"popgate/internal/relay"
)

var (
	noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	bob  = netip.MustParseAddr("192.0.2.7")
	eve  = netip.MustParseAddr("203.0.113.66")
)

// plainStore is the store without its sharding: what it keeps is all the tests
// of this package are about.
type plainStore map[relay.Key]relay.Grant

func (s plainStore) Get(k relay.Key) (relay.Grant, bool) { g, ok := s[k]; return g, ok }

func (s plainStore) Put(k relay.Key, g relay.Grant) (relay.Grant, bool) {
	before, had := s[k]
	s[k] = g
	return before, had
}

func (s plainStore) Delete(k relay.Key) (relay.Grant, bool) {
	before, had := s[k]
	delete(s, k)
	return before, had
}

func (s plainStore) Fill(grants iter.Seq[relay.Grant], wins func(g, before *relay.Grant) bool, kept func(relay.Key, *relay.Grant)) {
	for _, g := range slices.Collect(grants) {
		if before, ok := s[g.Key()]; !ok || wins(&g, &before) {
			s[g.Key()] = g
		}
	}
	for k, g := range s {
		kept(k, &g)
	}
}

func (s plainStore) Len() int                               { return len(s) }
func (s plainStore) All() iter.Seq2[relay.Key, relay.Grant] { return maps.All(maps.Clone(s)) }

func (s plainStore) Some(n int) iter.Seq[[]relay.Grant] {
	return slices.Chunk(slices.Collect(maps.Values(s)), n)
}

// bench is a ledger with clocks in the test's hand.
type bench struct {
	*Ledger
	t     *testing.T
	store plainStore
	now   relay.Now
	fed   []relay.Batch
	rules *relay.Rules
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, store: plainStore{}, now: relay.Now{Wall: noon, Mono: time.Hour}}
	b.rules = &relay.Rules{
		GrantTTL: 30 * time.Minute, HoldOpenLogins: 12 * time.Hour, IPv6Prefix: 128, MaxGrants: 1000,
		Services: []relay.Service{relay.POP3, relay.IMAP},
	}
	b.Ledger = New(Options{Store: b.store, Rules: b.rules, Now: func() relay.Now { return b.now },
		Feed: func(batch relay.Batch) { b.fed = append(b.fed, batch) }})
	return b
}

// pass lets time go by on both clocks; step moves the wall clock alone.
func (b *bench) pass(d time.Duration) { b.now.Wall = b.now.Wall.Add(d); b.now.Mono += d }
func (b *bench) step(d time.Duration) { b.now.Wall = b.now.Wall.Add(d) }

func (b *bench) event(kind relay.EventKind, client netip.Addr, session string) relay.Event {
	return relay.Event{Kind: kind, Client: client, User: "bob", Service: relay.IMAP, Session: session,
		Time: b.now.Wall, Live: true, Source: "file:/var/log/mail.log", Format: "dovecot"}
}

func (b *bench) login(client netip.Addr, session string) Outcome {
	o, _ := b.Event(b.event(relay.Login, client, session))
	return o
}

func (b *bench) logout(session string) Outcome {
	o, _ := b.Event(b.event(relay.Logout, netip.Addr{}, session))
	return o
}

// pair shows the ledger that this source logs logouts.
func (b *bench) pair() {
	b.login(netip.MustParseAddr("192.0.2.200"), "pairing")
	b.logout("pairing")
}

func (b *bench) live(client netip.Addr) bool {
	g, ok := b.store.Get(relay.KeyOf(client, b.rules.IPv6Prefix))
	return ok && g.Covers(client) && g.Live(b.now) && b.Allows(b.rules, g, client)
}

func (b *bench) wantLive(client netip.Addr, want bool, what string) {
	b.t.Helper()
	if got := b.live(client); got != want {
		b.t.Errorf("%s: live is %v, want %v", what, got, want)
	}
}

func (b *bench) want(got, want Outcome, what string) {
	b.t.Helper()
	if got != want {
		b.t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func TestLoginGrantsForOneTTLFromItsOwnTime(t *testing.T) {
	b := newBench(t)
	ev := b.event(relay.Login, bob, "")
	ev.Time = b.now.Wall.Add(-20 * time.Minute)
	o, g := b.Event(ev)
	b.want(o, Granted, "a login twenty minutes ago")
	if want := ev.Time.Add(30 * time.Minute); !g.Expires.Equal(want) {
		t.Errorf("expires %v, want %v", g.Expires, want)
	}
	b.pass(10*time.Minute - 1)
	b.wantLive(bob, true, "just before its end")
	b.pass(1)
	b.wantLive(bob, false, "at its end")
}

func TestLaterLoginRenewsAndOlderNeverShortens(t *testing.T) {
	b := newBench(t)
	b.want(b.login(bob, ""), Granted, "first")
	b.pass(10 * time.Minute)
	b.want(b.login(bob, ""), Renewed, "second")
	old := b.event(relay.Login, bob, "")
	old.Time = noon
	o, _ := b.Event(old)
	b.want(o, Older, "the first once more")
	b.pass(29 * time.Minute)
	b.wantLive(bob, true, "29 minutes after the second")
}

func TestWhatNeverGrants(t *testing.T) {
	b := newBench(t)
	b.rules.NeverGrant = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	b.rules.IgnoreUsers = []string{"scanner"}
	own := netip.MustParseAddr("192.0.2.1")
	b.own = func(a netip.Addr) bool { return a == own }
	for _, tt := range []struct {
		name   string
		change func(*relay.Event)
		want   Outcome
	}{
		{"stale", func(e *relay.Event) { e.Time = noon.Add(-30 * time.Minute) }, Stale},
		{"from the future", func(e *relay.Event) { e.Time = noon.Add(time.Minute + 1) }, Future},
		{"loopback", func(e *relay.Event) { e.Client = netip.MustParseAddr("127.0.0.1") }, Never},
		{"no address", func(e *relay.Event) { e.Client = netip.Addr{} }, Never},
		{"own address", func(e *relay.Event) { e.Client = own }, Never},
		{"own address in its mapped form", func(e *relay.Event) { e.Client = netip.MustParseAddr("::ffff:192.0.2.1") }, Never},
		{"never_grant", func(e *relay.Event) { e.Client = netip.MustParseAddr("198.51.100.200") }, Never},
		{"ignore_users", func(e *relay.Event) { e.User = "Scanner@example.org" }, User},
		{"another service", func(e *relay.Event) { e.Service = relay.Submission }, Service},
		{"unknown service", func(e *relay.Event) { e.Service = relay.ServiceUnknown }, Service},
	} {
		ev := b.event(relay.Login, bob, "")
		tt.change(&ev)
		o, _ := b.Event(ev)
		b.want(o, tt.want, tt.name)
		if len(b.store) != 0 || len(b.fed) != 0 {
			t.Fatalf("%s: left something behind", tt.name)
		}
	}
	slightly := b.event(relay.Login, bob, "")
	slightly.Time = noon.Add(30 * time.Second)
	_, g := b.Event(slightly)
	if !g.Login.Equal(noon) {
		t.Errorf("a login half a minute ahead counts from %v, want from now", g.Login)
	}
}

func TestRevokedClientStaysRevokedWhenItsLogIsReadAgain(t *testing.T) {
	b := newBench(t)
	first := b.event(relay.Login, bob, "")
	b.Event(first)
	b.pass(time.Minute)
	taken, err := b.Revoke(relay.Revocation{Network: netip.PrefixFrom(bob, 32)}, 0, nil)
	if err != nil || len(taken) != 1 {
		t.Fatalf("revoke took %v, %v", taken, err)
	}
	b.wantLive(bob, false, "after the revocation")
	first.Live = false
	o, _ := b.Event(first)
	b.want(o, Revoked, "the login read again")
	b.pass(time.Second)
	b.want(b.login(bob, ""), Granted, "a new login")
	b.wantLive(bob, true, "after a new login")
}

func TestBlockOutlivesItsLogins(t *testing.T) {
	b := newBench(t)
	if _, err := b.Revoke(relay.Revocation{User: "BOB"}, time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	b.pass(55 * time.Minute)
	during := b.event(relay.Login, bob, "")
	o, _ := b.Event(during)
	b.want(o, Revoked, "a login during the block")
	if _, err := b.Grant(bob, time.Hour, "bob", "", false, nil); err != ErrBlocked {
		t.Errorf("an operator's grant during the block: %v, want %v", err, ErrBlocked)
	}
	b.pass(6 * time.Minute)
	o, _ = b.Event(during)
	b.want(o, Revoked, "the same login read again after the block")
	b.want(b.login(bob, ""), Granted, "a login after the block")
}

func TestOperatorsGrant(t *testing.T) {
	b := newBench(t)
	if _, err := b.Grant(netip.MustParseAddr("127.0.0.1"), time.Hour, "", "", false, nil); err != ErrNever {
		t.Errorf("loopback: %v, want %v", err, ErrNever)
	}
	if _, err := b.Grant(bob, 25*time.Hour, "", "", false, nil); err != ErrTTL {
		t.Errorf("25h: %v, want %v", err, ErrTTL)
	}
	if _, err := b.Grant(bob, 4*time.Hour, "", "the copier", false, nil); err != nil {
		t.Fatal(err)
	}
	b.pass(time.Minute)
	b.login(bob, "")
	b.pass(3 * time.Hour)
	b.wantLive(bob, true, "a shorter login does not displace an operator's grant")
	b.pass(time.Hour)
	b.wantLive(bob, false, "after its four hours")
	loop := netip.MustParseAddr("127.0.0.1")
	if _, err := b.Grant(loop, time.Hour, "", "", true, nil); err != nil {
		t.Fatal(err)
	}
	b.wantLive(loop, true, "forced")
}

func TestOperatorGrantsAfterRevokingInTheSameInstant(t *testing.T) {
	b := newBench(t)
	if _, err := b.Revoke(relay.Revocation{All: true}, 0, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Grant(bob, time.Hour, "", "", false, nil); err != nil {
		t.Fatal(err)
	}
	b.wantLive(bob, true, "granted after revoking")
}

func TestOpenSessionHoldsUntilLogoutAndOneTTL(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.login(bob, "s1")
	b.pass(3 * time.Hour)
	b.wantLive(bob, true, "session open for three hours")
	b.want(b.logout("s1"), Closed, "logout")
	b.pass(30*time.Minute - 1)
	b.wantLive(bob, true, "one ttl after the logout")
	b.pass(1)
	b.wantLive(bob, false, "more than one ttl after the logout")
}

func TestSessionHoldsOnlyAfterTheSourceHasShownALogout(t *testing.T) {
	b := newBench(t)
	b.login(bob, "s1")
	b.pass(31 * time.Minute)
	b.wantLive(bob, false, "a server whose logouts were never seen")
}

func TestSessionEndsAtItsCeiling(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.login(bob, "s1")
	b.pass(12*time.Hour - 1)
	b.wantLive(bob, true, "before the ceiling")
	b.pass(1)
	b.wantLive(bob, false, "at the ceiling")
	b.logout("s1")
	b.wantLive(bob, false, "a logout after the ceiling brings nothing back")
}

func TestLogoutNeverGrants(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.store.Delete(relay.KeyOf(netip.MustParseAddr("192.0.2.200"), 128))
	ev := b.event(relay.Logout, bob, "unknown")
	b.Event(ev)
	b.wantLive(bob, false, "a logout of an unknown session")
	if len(b.store) != 0 {
		t.Errorf("store holds %v", b.store)
	}
}

func TestClosedSessionIsNotOpenedByItsLoginReadAgain(t *testing.T) {
	b := newBench(t)
	login := b.event(relay.Login, bob, "s1")
	b.Event(login) // not paired yet: holds nothing
	b.pass(time.Minute)
	b.logout("s1") // shows the pairing
	login.Live = false
	b.Event(login)
	b.pass(31 * time.Minute)
	b.wantLive(bob, false, "an old log copied over the live one")
}

func TestGapAndRestartEndHolds(t *testing.T) {
	for name, end := range map[string]func(*bench){
		"gap":     func(b *bench) { b.Gap("file:/var/log/mail.log", b.now.Wall) },
		"restart": func(b *bench) { b.Event(b.event(relay.Restart, netip.Addr{}, "")) },
	} {
		b := newBench(t)
		b.pair()
		b.login(bob, "s1")
		b.pass(2 * time.Hour)
		end(b)
		b.wantLive(bob, true, name+": just after")
		b.pass(30 * time.Minute)
		b.wantLive(bob, false, name+": one ttl later")
	}
}

func TestSessionsOfARevokedLoginHoldNoLonger(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.login(bob, "s1")
	b.pass(time.Hour)
	b.Revoke(relay.Revocation{User: "bob"}, 0, nil)
	b.wantLive(bob, false, "after the revocation")
	b.logout("s1")
	b.wantLive(bob, false, "its logout brings nothing back")
	b.pass(time.Minute)
	b.login(bob, "s2")
	b.logout("s2")
	b.pass(31 * time.Minute)
	b.wantLive(bob, false, "the old session does not prolong the new login")
}

func TestClockSetBackDoesNotProlong(t *testing.T) {
	b := newBench(t)
	first := b.event(relay.Login, bob, "")
	b.Event(first)
	b.pass(10 * time.Minute)
	b.step(-time.Hour)
	b.pass(20 * time.Minute)
	b.wantLive(bob, false, "half an hour after the login by the clock that only runs forward")
	first.Live = false
	if o, _ := b.Event(first); o == Granted || o == Renewed {
		t.Errorf("the old login read again after the step: %v", o)
	}
	b.wantLive(bob, false, "after the log was read again")
	b.want(b.login(bob, ""), Granted, "a new login after the step")
	b.wantLive(bob, true, "after a new login")
}

func TestRevocationTakesAGrantFromAFasterClock(t *testing.T) {
	b := newBench(t)
	b.step(time.Hour)
	b.login(bob, "")
	b.step(-time.Hour)
	b.pass(time.Minute)
	if taken, _ := b.Revoke(relay.Revocation{Network: netip.PrefixFrom(bob, 32)}, 0, nil); len(taken) != 1 {
		t.Errorf("took %v", taken)
	}
	b.wantLive(bob, false, "after the revocation")
}

func TestUsersOldestGrantGoesFirst(t *testing.T) {
	b := newBench(t)
	b.rules.MaxGrantsPerUser = 3
	for i := range 5 {
		b.login(netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}), "")
		b.pass(time.Second)
	}
	if len(b.store) != 3 {
		t.Fatalf("%d grants, want 3", len(b.store))
	}
	b.wantLive(netip.MustParseAddr("192.0.2.11"), false, "the second oldest")
	b.wantLive(netip.MustParseAddr("192.0.2.12"), true, "the third")
	b.login(netip.MustParseAddr("192.0.2.12"), "") // renewed: no longer the oldest
	b.pass(time.Second)
	b.login(netip.MustParseAddr("192.0.2.20"), "")
	b.wantLive(netip.MustParseAddr("192.0.2.12"), true, "a renewed one")
	b.wantLive(netip.MustParseAddr("192.0.2.13"), false, "the one that is the oldest then")
}

func TestOne64HoldsNoMoreThanItsShare(t *testing.T) {
	b := newBench(t)
	for i := range MaxPer64 + 40 {
		a := netip.MustParseAddr("2001:db8::").As16()
		a[14], a[15] = byte(i>>8), byte(i)
		ev := b.event(relay.Login, netip.AddrFrom16(a), "")
		b.Event(ev)
		b.pass(time.Second)
	}
	if len(b.store) != MaxPer64 {
		t.Errorf("%d grants inside one /64, want %d", len(b.store), MaxPer64)
	}
}

func TestFullTableRefusesNewGrantsAndSaysSo(t *testing.T) {
	b := newBench(t)
	b.rules.MaxGrants = 2
	b.login(netip.MustParseAddr("192.0.2.1"), "")
	b.login(netip.MustParseAddr("192.0.2.2"), "")
	if b.Full(b.now) {
		t.Error("full before anything was turned away")
	}
	b.want(b.login(bob, ""), Full, "the third")
	b.want(b.login(netip.MustParseAddr("192.0.2.1"), ""), Older, "a renewal of the same second")
	if !b.Full(b.now) {
		t.Error("not full after a login was turned away")
	}
	b.pass(30 * time.Minute)
	if b.Full(b.now) {
		t.Error("still full a ttl later")
	}
}

func TestNewRulesPurgeWhatTheyWouldNotHaveMade(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.login(bob, "s1")
	b.login(eve, "")
	b.login(netip.MustParseAddr("192.0.2.8"), "")
	r := *b.rules
	r.NeverGrant = []netip.Prefix{netip.PrefixFrom(eve, 32)}
	r.GrantTTL = 5 * time.Minute
	r.HoldOpenLogins = 10 * time.Minute
	if n := b.SetRules(&r); n != 1 {
		t.Errorf("purged %d, want 1", n)
	}
	b.rules = &r
	b.wantLive(eve, false, "in never_grant now")
	b.pass(5 * time.Minute)
	b.wantLive(netip.MustParseAddr("192.0.2.8"), false, "under the shorter ttl")
	b.wantLive(bob, true, "held by its session")
	b.pass(5 * time.Minute)
	b.wantLive(bob, false, "beyond the shorter ceiling")
}

func TestSnapshotRestoresEverything(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.login(bob, "s1")
	b.login(eve, "")
	b.Grant(netip.MustParseAddr("192.0.2.50"), 5*time.Hour, "", "note", false, nil)
	b.pass(time.Minute)
	b.Revoke(relay.Revocation{Network: netip.PrefixFrom(eve, 32)}, 0, nil)
	c := newBench(t)
	c.now = b.now
	c.now.Mono = 0
	out := c.Restore(b.Snapshot())
	if out.Grants != 3 || out.Revoked != 1 {
		t.Errorf("restored %+v, want 3 grants and 1 revocation", out)
	}
	c.wantLive(eve, false, "revoked before the restart")
	c.pass(2 * time.Hour)
	c.wantLive(bob, true, "its session is still open")
	c.logout("s1")
	c.pass(31 * time.Minute)
	c.wantLive(bob, false, "its logout was read after the restart")
	c.wantLive(netip.MustParseAddr("192.0.2.50"), true, "the operator's grant")
	c.pass(2 * time.Hour)
	c.wantLive(netip.MustParseAddr("192.0.2.50"), true, "the operator's grant 4h32m on")
	c.pass(30 * time.Minute)
	c.wantLive(netip.MustParseAddr("192.0.2.50"), false, "the operator's grant after five hours")
}

func TestRestoreNeverAdds(t *testing.T) {
	g := relay.Grant{Client: bob, Prefix: 32, User: "bob", Service: relay.IMAP, Source: "s", Login: noon, Expires: noon.Add(30 * time.Minute)}
	for _, tt := range []struct {
		name   string
		change func(*relay.Change)
		ends   time.Duration // from noon; 0: nothing is granted
	}{
		{"as saved", func(*relay.Change) {}, 30 * time.Minute},
		{"longer than the ttl", func(c *relay.Change) { c.Grant.Expires = noon.Add(20 * time.Hour) }, 30 * time.Minute},
		{"ceiling beyond the ceiling", func(c *relay.Change) { c.Grant.Session = "x"; c.Ceiling = noon.Add(90 * time.Hour) }, 12 * time.Hour},
		{"from the future", func(c *relay.Change) {
			c.Grant.Login = noon.Add(time.Hour)
			c.Grant.Expires = noon.Add(90 * time.Minute)
		}, 0},
		{"prefix 0", func(c *relay.Change) { c.Grant.Prefix = 0 }, 0},
		{"prefix of another configuration", func(c *relay.Change) { c.Grant.Prefix = 24 }, 0},
		{"a service no longer served", func(c *relay.Change) { c.Grant.Service = relay.Sieve }, 0},
		{"loopback", func(c *relay.Change) { c.Grant.Client = netip.MustParseAddr("127.0.0.1") }, 0},
		{"operator's for a year", func(c *relay.Change) { c.Grant.Operator = true; c.Grant.Expires = noon.Add(9000 * time.Hour) }, 24 * time.Hour},
	} {
		b := newBench(t)
		c := relay.Change{Kind: relay.ChangeGrant, Grant: g}
		tt.change(&c)
		b.Restore(slices.Values([]relay.Change{c}))
		if tt.ends == 0 {
			if got := slices.Collect(b.Live(goOn)); len(got) != 0 {
				t.Errorf("%s: granted %+v", tt.name, got)
			}
			continue
		}
		b.pass(tt.ends - 1)
		b.wantLive(c.Grant.Client, true, tt.name+": just before its end")
		b.pass(1)
		b.wantLive(c.Grant.Client, false, tt.name+": at its end")
	}
}

func TestRestartReadAgainEndsNoLaterSession(t *testing.T) {
	b := newBench(t)
	restart := b.event(relay.Restart, netip.Addr{}, "")
	b.pass(time.Minute)
	b.pair()
	b.login(bob, "s1")
	b.pass(10 * time.Minute)
	restart.Live = false
	b.Event(restart)
	b.pass(time.Hour)
	b.wantLive(bob, true, "its session was opened after the restart")
}

func TestOperatorsGrantShortensNoLogin(t *testing.T) {
	b := newBench(t)
	b.login(bob, "")
	if _, err := b.Grant(bob, time.Minute, "", "", false, nil); err != nil {
		t.Fatal(err)
	}
	b.pass(20 * time.Minute)
	b.wantLive(bob, true, "twenty minutes after the login")
	b.pass(10 * time.Minute)
	b.wantLive(bob, false, "a ttl after the login")
}

func TestLoginOfTheSecondOfAnOperatorsGrantCounts(t *testing.T) {
	b := newBench(t)
	b.pass(900 * time.Millisecond)
	if _, err := b.Grant(bob, time.Minute, "", "", false, nil); err != nil {
		t.Fatal(err)
	}
	ev := b.event(relay.Login, bob, "")
	ev.Time = noon // stamps are cut to the second
	b.Event(ev)
	b.pass(20 * time.Minute)
	b.wantLive(bob, true, "by its login")
}

// Dovecot may log the end of a short session before its login.
func TestEndReadBeforeItsLoginHoldsNothing(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.logout("s1")
	b.login(bob, "s1")
	b.pass(29 * time.Minute)
	b.wantLive(bob, true, "the login counts")
	b.pass(time.Minute)
	b.wantLive(bob, false, "its session does not hold")
}

func TestLogoutsThatPairWithNothingLeaveNothing(t *testing.T) {
	b := newBench(t)
	for i := range 100 {
		ev := b.event(relay.Logout, netip.Addr{}, fmt.Sprint("x", i))
		if i%2 == 0 {
			ev.Service = relay.Submission
		}
		b.Event(ev)
	}
	if n := len(b.fed) + len(b.closed); n != 0 {
		t.Errorf("%d ends are kept", n)
	}
}

func TestCountsFollowTheStore(t *testing.T) {
	b := newBench(t)
	b.login(bob, "")
	b.pass(41 * time.Minute)
	g, _ := b.store.Delete(relay.KeyOf(bob, 128)) // the sweeper
	b.login(bob, "")                              // and a login before it tells
	b.Gone(g)
	bobs, _ := ownerUser(&g)
	if n := b.users.count(bobs); n != 1 {
		t.Errorf("bob has %d grants, want 1", n)
	}
	b.Revoke(relay.Revocation{All: true}, 0, nil)
	if n := b.users.len(); n != 0 {
		t.Errorf("%d users have grants, want none", n)
	}
}

func TestRestoreTellsOfGrantsFromTheFuture(t *testing.T) {
	g := relay.Grant{Client: bob, Prefix: 32, User: "bob", Service: relay.IMAP, Source: "s", Login: noon, Expires: noon.Add(30 * time.Minute)}
	soon, ended := g, g
	soon.Login, soon.Expires = noon.Add(time.Hour), noon.Add(90*time.Minute)
	ended.Login, ended.Expires = noon.Add(-5*time.Hour), noon.Add(-4*time.Hour)
	b := newBench(t)
	out := b.Restore(func(yield func(relay.Change) bool) {
		for _, g := range []relay.Grant{g, soon, ended} {
			yield(relay.Change{Kind: relay.ChangeGrant, Grant: g})
		}
	})
	if want := (Restored{Grants: 1, Dropped: 2, Future: 1}); out != want {
		t.Errorf("%+v, want %+v", out, want)
	}
}

func TestManyRevocationsAreRestoredAtOnce(t *testing.T) {
	var changes []relay.Change
	for i := range 20000 {
		a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		changes = append(changes, relay.Change{Kind: relay.ChangeGrant, Grant: relay.Grant{Client: a, Prefix: 32, User: "u", Service: relay.IMAP,
			Login: noon.Add(-time.Minute), Expires: noon.Add(29 * time.Minute)}},
			relay.Change{Kind: relay.ChangeRevoke, Revocation: relay.Revocation{Network: netip.PrefixFrom(a, 32), Time: noon.Add(-time.Second), Until: noon.Add(time.Hour)}})
	}
	b := newBench(t)
	b.rules.MaxGrants = 1 << 20
	if out := b.Restore(slices.Values(changes)); out.Grants != 0 || out.Revoked != 20000 {
		t.Errorf("restored %+v", out)
	}
}

func TestClockThatJumpsAheadAndBackBringsNobodyBack(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.login(eve, "held")
	b.pass(time.Minute)
	if _, err := b.Revoke(relay.Revocation{Network: netip.PrefixFrom(eve, 32)}, 48*time.Hour, nil); err != nil {
		t.Fatal(err)
	}
	b.step(96 * time.Hour)
	b.Tick()
	b.step(-96 * time.Hour)
	b.SetRules(b.rules)
	b.wantLive(eve, false, "its session, after the clock went astray")
	b.pass(time.Hour)
	b.want(b.login(eve, ""), Revoked, "a login during the block")
	b.pass(48 * time.Hour)
	b.want(b.login(eve, ""), Granted, "a login after the block")
}

func TestRestoreUnderAClockThatIsAheadForgetsNoRevocation(t *testing.T) {
	b := newBench(t)
	b.login(eve, "")
	b.pass(time.Minute)
	b.Revoke(relay.Revocation{User: "bob"}, 0, nil)
	saved := slices.Collect(b.Snapshot())
	c := newBench(t)
	c.now = relay.Now{Wall: b.now.Wall.Add(72 * time.Hour)}
	c.Restore(slices.Values(saved))
	c.pass(time.Minute)
	c.Tick()
	c.step(-72 * time.Hour)
	ev := c.event(relay.Login, eve, "")
	ev.Time, ev.Live = noon, false
	if o, _ := c.Event(ev); o == Granted || len(c.revocations.list) != 1 {
		t.Errorf("the revoked login read again after the clock was set right: %v, %d revocations in force", o, len(c.revocations.list))
	}
}

func TestOldLineReadAgainAfterTheClockWasSetBackIsStale(t *testing.T) {
	b := newBench(t)
	ev := b.event(relay.Login, bob, "")
	b.Event(ev)
	b.pass(40 * time.Minute)
	b.wantLive(bob, false, "expired")
	b.step(-20 * time.Minute)
	b.pass(time.Second)
	ev.Live = false
	o, _ := b.Event(ev)
	b.want(o, Stale, "a line of 40 minutes ago, read again by a clock set back 20")
}

func TestNeverGrantHoldsInsideAGrantedPrefix(t *testing.T) {
	b := newBench(t)
	b.rules.IPv6Prefix = 64
	never := netip.MustParseAddr("2001:db8::66")
	b.rules.NeverGrant = []netip.Prefix{netip.PrefixFrom(never, 128)}
	b.login(netip.MustParseAddr("2001:db8::7"), "")
	b.wantLive(netip.MustParseAddr("2001:db8::8"), true, "a neighbour")
	b.wantLive(never, false, "never_grant inside the prefix")
}

func TestRevocationBetweenLookUpAndAnswerCounts(t *testing.T) {
	b := newBench(t)
	b.login(bob, "")
	g, _ := b.store.Get(relay.KeyOf(bob, 128)) // a look-up under way
	b.Revoke(relay.Revocation{All: true}, 0, nil)
	if b.Allows(b.rules, g, bob) {
		t.Error("a revoked grant is allowed")
	}
}

func TestNobodyCrowdsOutAnotherInTheSame64(t *testing.T) {
	b := newBench(t)
	alice := netip.MustParseAddr("2001:db8::a:1")
	ev := b.event(relay.Login, alice, "")
	ev.User = "alice"
	b.Event(ev)
	b.pass(time.Second)
	for i := range MaxPer64 + 8 {
		ev := b.event(relay.Login, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)}), "")
		ev.User = "mallory"
		b.Event(ev)
	}
	b.wantLive(alice, true, "alice")
	if len(b.store) != MaxPer64+1 {
		t.Errorf("%d grants, want mallory's %d and alice's", len(b.store), MaxPer64)
	}
}

func TestRestoreKeepsTheBounds(t *testing.T) {
	grant := func(client netip.Addr, user string, age time.Duration) relay.Change {
		return relay.Change{Kind: relay.ChangeGrant, Grant: relay.Grant{Client: client, Prefix: uint8(client.BitLen()), User: user,
			Service: relay.IMAP, Source: "s", Login: noon.Add(-age), Expires: noon.Add(30*time.Minute - age)}}
	}
	v4 := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}) }
	v6 := func(i int) netip.Addr {
		return netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 14: byte(i >> 8), 15: byte(i)})
	}
	for _, tt := range []struct {
		name    string
		rules   func(*relay.Rules)
		n       int
		saved   func(i int) relay.Change // the higher the older
		kept    int
		dropped int
		full    bool
	}{
		{"max_grants leaves the latest, and says that some are missing", func(r *relay.Rules) { r.MaxGrants = 10 },
			30, func(i int) relay.Change { return grant(v4(i), fmt.Sprint("u", i), time.Duration(i)*time.Second) }, 10, 20, true},
		{"max_grants_per_user leaves the user's latest", func(r *relay.Rules) { r.MaxGrantsPerUser = 5 },
			30, func(i int) relay.Change { return grant(v4(i), "Bob", time.Duration(i)*time.Second) }, 5, 0, false},
		{"one /64 holds no more of a user than it would have been given", func(*relay.Rules) {},
			MaxPer64 + 44, func(i int) relay.Change { return grant(v6(i), "bob", time.Duration(i)*time.Second) }, MaxPer64, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			tt.rules(b.rules)
			var saved []relay.Change
			for i := range tt.n {
				saved = append(saved, tt.saved((i*7)%tt.n)) // in no order
			}
			saved = append(saved, saved...)
			out := b.Restore(slices.Values(saved))
			if want := (Restored{Grants: tt.kept, Dropped: tt.dropped}); out != want || b.store.Len() != tt.kept {
				t.Errorf("restored %+v, %d kept, want %+v", out, b.store.Len(), want)
			}
			for i := range tt.n {
				g := tt.saved(i).Grant
				if _, ok := b.store.Get(g.Key()); ok != (i < tt.kept) {
					t.Errorf("the login of %d s ago is kept: %v, want %v", i, ok, i < tt.kept)
				}
			}
			if b.Full(b.now) != tt.full {
				t.Errorf("Full = %v, want %v", b.Full(b.now), tt.full)
			}
		})
	}
}

// A key's grant and a session that holds it are saved apart, in either order.
func TestRestoreOfASessionAndOfTheLoginBeforeIt(t *testing.T) {
	held := relay.Change{Kind: relay.ChangeGrant, Ceiling: noon.Add(11 * time.Hour), Grant: relay.Grant{Client: bob, Prefix: 32, User: "bob",
		Service: relay.IMAP, Source: "s", Session: "1", Login: noon.Add(-time.Hour), Expires: noon.Add(-30 * time.Minute)}}
	last := relay.Change{Kind: relay.ChangeGrant, Grant: relay.Grant{Client: bob, Prefix: 32, User: "carol",
		Service: relay.POP3, Source: "s", Login: noon.Add(-time.Minute), Expires: noon.Add(29 * time.Minute)}}
	for _, saved := range [][]relay.Change{{held, last}, {last, held}, {last, held, last, held}} {
		b := newBench(t)
		if out := b.Restore(slices.Values(saved)); out.Grants != 1 {
			t.Errorf("%+v, want one grant", out)
		}
		g, _ := b.store.Get(last.Grant.Key())
		if !g.Expires.Equal(held.Ceiling) || !g.Open {
			t.Errorf("grant until %v, open %v; want it held until %v", g.Expires, g.Open, held.Ceiling)
		}
		if h := b.held[g.Key()]; h == nil || h.last.User != "carol" {
			t.Errorf("the last login is not carol's: %+v", h)
		}
		for user, want := range map[string]int{"bob": 1, "carol": 0} {
			o, _ := ownerUser(&relay.Grant{User: user})
			if n := b.users.count(o); n != want {
				t.Errorf("%s has %d grants, want %d", user, n, want)
			}
		}
	}
}

func goOn() bool { return true }

// However many grants there are, whoever looks at all of them can make way after
// few; what is not in force is not among them.
func TestLiveRestsAfterFewGrants(t *testing.T) {
	b := newBench(t)
	const grants = 1000
	for i := range grants {
		g := relay.Grant{Client: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), Prefix: 32, Login: noon, Expires: noon.Add(time.Hour), Deadline: 2 * time.Hour}
		if i%10 == 0 {
			g.Expires, g.Deadline = noon.Add(-time.Second), 0
		}
		b.store.Put(g.Key(), g)
	}
	seen, since, rests := map[netip.Addr]bool{}, 0, 0
	for g := range b.Live(func() bool { since, rests = 0, rests+1; return true }) {
		if since++; since > 16 {
			t.Fatalf("%d grants without a rest", since)
		}
		if seen[g.Client] || !g.Live(b.now) {
			t.Errorf("%+v", g)
		}
		seen[g.Client] = true
	}
	if len(seen) != grants*9/10 || rests < grants/16 {
		t.Errorf("%d grants, %d rests", len(seen), rests)
	}
	n := 0
	for range b.Live(goOn) {
		if n++; n == 20 {
			break
		}
	}
	if n != 20 {
		t.Errorf("%d grants, then stopped", n)
	}
	n, rests = 0, 0
	for range b.Live(func() bool { rests++; return rests < 2 }) {
		n++
	}
	if n == 0 || n > 32 || rests != 2 {
		t.Errorf("%d grants and %d rests, though no more was wanted after the second", n, rests)
	}
}

// A grant that is revoked while a list is made is not in what comes of it.
func TestARevokedGrantIsNotListedByAListThatHadBegun(t *testing.T) {
	b := newBench(t)
	for i := range 100 {
		g := relay.Grant{Client: netip.AddrFrom4([4]byte{198, 51, 100, byte(i)}), Prefix: 32, User: "bob", Login: noon, Expires: noon.Add(time.Hour), Deadline: 2 * time.Hour}
		b.store.Put(g.Key(), g)
	}
	n := 0
	for range b.Live(goOn) {
		if n++; n == 1 {
			b.revocations.add(relay.Revocation{User: "bob", Time: noon.Add(time.Minute)}, time.Hour)
			b.revocations.build()
		}
	}
	if n != 1 { // though it is still in the store, or in what was read of it
		t.Errorf("%d of 100 grants, want the one before the revocation", n)
	}
}
