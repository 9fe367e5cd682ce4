package ledger

import (
	"net/netip"
	"testing"
	"time"

	"popgate/internal/relay"
)

// Whoever forges a logout, or has a wrong clock, can end a hold with it and no
// more: on both clocks, for the one that only runs forward is not saved.
func TestAForgedLogoutProlongsNothing(t *testing.T) {
	for _, tt := range []struct {
		name  string
		after time.Duration // the login, when it comes
		stamp time.Duration // its stamp against its arrival
		want  time.Duration // when the grant ends, after the login
	}{
		{"of now", time.Hour, 0, 90 * time.Minute},
		{"stamped ten hours ahead", time.Hour, 10 * time.Hour, 90 * time.Minute},
		{"stamped a year ahead", time.Hour, 365 * 24 * time.Hour, 90 * time.Minute},
		{"stamped before the login", time.Hour, -10 * time.Hour, 30 * time.Minute},
		{"just before the ceiling", 12*time.Hour - time.Minute, 0, 12 * time.Hour},
		{"after the ceiling", 12*time.Hour + time.Minute, 0, 12 * time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			b.pair()
			b.login(bob, "s1")
			key := relay.KeyOf(bob, b.rules.IPv6Prefix)
			began, _ := b.store.Get(key)
			b.pass(tt.after)
			ev := b.event(relay.Logout, bob, "s1")
			ev.Time = b.now.Wall.Add(tt.stamp)
			b.Event(ev)
			g, _ := b.store.Get(key)
			if got := g.Expires.Sub(began.Login); got != tt.want {
				t.Errorf("ends %v after the login, want %v", got, tt.want)
			}
			b.pass(tt.want - tt.after + time.Nanosecond)
			b.wantLive(bob, false, "afterwards")
		})
	}
}

// A logout of somebody else's session lets those hold who have not been revoked.
func TestTheFirstLogoutSeenBringsNobodyBackWhoWasRevoked(t *testing.T) {
	b := newBench(t)
	b.login(bob, "s1")
	b.login(eve, "s2")
	if _, err := b.Revoke(relay.Revocation{Network: netip.PrefixFrom(bob, 32)}, 0, nil); err != nil {
		t.Fatal(err)
	}
	b.logout("s2")
	b.wantLive(bob, false, "a revoked client")
	b.pass(time.Hour)
	b.wantLive(bob, false, "an hour later")
}
