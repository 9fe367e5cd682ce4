package ledger

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"popgate/internal/relay"
)

func TestWhoIsLoggedInAtTheFirstLogoutSeenHoldsFromThenOn(t *testing.T) {
	for _, tt := range []struct {
		name  string
		what  func(b *bench)
		holds bool
	}{
		{"a session still open", func(b *bench) {}, true},
		{"one whose logout came first", func(b *bench) { b.logout("s2"); b.login(bob, "s2") }, false},
		{"one that a gap may have ended", func(b *bench) { b.Gap("file:/var/log/mail.log", b.now.Wall) }, false},
		{"one that a restart has ended", func(b *bench) { b.Event(b.event(relay.Restart, netip.Addr{}, "")) }, false},
		{"one that was revoked", func(b *bench) { b.Revoke(relay.Revocation{User: "bob"}, 0, nil) }, false},
		{"one that is older than a ttl", func(b *bench) { b.pass(30 * time.Minute) }, false},
		{"one from before the clock was set back", func(b *bench) { b.pass(10 * time.Minute); b.step(-10 * time.Minute) }, false},
		{"one that a later login without session has displaced", func(b *bench) { b.pass(time.Second); b.login(bob, "") }, false},
	} {
		b := newBench(t)
		b.login(bob, "s1")
		tt.what(b)
		b.pass(time.Second)
		ev := b.event(relay.Login, eve, "pairing")
		ev.User = "eve"
		b.Event(ev)
		b.logout("pairing")
		b.pass(time.Hour)
		b.wantLive(bob, tt.holds, tt.name)
		b.wantLive(eve, false, tt.name+": who logged out")
	}
}

func TestALogoutSpeaksForItsOwnSourceFormatAndService(t *testing.T) {
	for name, other := range map[string]func(*relay.Event){
		"source":  func(ev *relay.Event) { ev.Source = "file:/var/log/other.log" },
		"format":  func(ev *relay.Event) { ev.Format = "courier" },
		"service": func(ev *relay.Event) { ev.Service = relay.POP3 },
	} {
		b := newBench(t)
		ev := b.event(relay.Login, bob, "s1")
		other(&ev)
		b.Event(ev)
		b.pair()
		b.Event(ev)
		b.pass(time.Hour)
		b.wantLive(bob, false, "another "+name+", logged in before and after")

		// Nor does a logout pair with a login of the same id that is another's.
		b = newBench(t)
		ev = b.event(relay.Login, eve, "x")
		other(&ev)
		b.Event(ev)
		b.logout("x")
		b.login(bob, "s1")
		b.pass(time.Hour)
		b.wantLive(bob, false, "after a logout whose login was of another "+name)
	}
}

func TestWhatASourceHasShownOutlivesARestartForAWeek(t *testing.T) {
	for _, tt := range []struct {
		name  string
		down  time.Duration
		holds bool
	}{
		{"at once", 0, true},
		{"after a weekend", 62 * time.Hour, true},
		{"after a holiday", 8 * 24 * time.Hour, false},
	} {
		b := newBench(t)
		b.pair()
		b.pass(24 * time.Hour)
		b.Tick()
		b.login(eve, "last")
		b.logout("last")
		b.pass(11 * time.Hour)
		b.Tick()
		saved := slices.Collect(b.Snapshot())
		c := newBench(t)
		c.now.Wall = b.now.Wall.Add(tt.down)
		out := c.Restore(slices.Values(saved))
		if out.Grants != 0 || len(c.sessions) != 0 {
			t.Errorf("%s: %d grants and %d sessions came back", tt.name, out.Grants, len(c.sessions))
		}
		c.login(bob, "s1")
		c.pass(time.Hour)
		c.wantLive(bob, tt.holds, tt.name)
		c.wantLive(eve, false, tt.name+": the witness")
	}
}

// What proves that logouts are seen must not bring back the session it was.
func TestTheWitnessOfAPairingIsNotHeldAfterARestart(t *testing.T) {
	b := newBench(t)
	b.pair()
	b.login(bob, "s1")
	b.logout("s1")
	b.pass(2 * time.Hour) // its end has been forgotten, its ceiling has not come
	b.Tick()
	c := newBench(t)
	c.now.Wall = b.now.Wall
	c.Restore(b.Snapshot())
	c.wantLive(bob, false, "its session ended two hours before the restart")
}
