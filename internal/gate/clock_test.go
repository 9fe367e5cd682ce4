package gate

import (
	"testing"
	"time"

	"popgate/internal/relay"
)

func TestAfterTheClockWasSetAheadNobodyIsRefusedForOneTTL(t *testing.T) {
	f := &facts{grants: map[relay.Key]relay.Grant{}}
	r := &relay.Rules{PostfixMailers: relay.DefaultMailers(relay.Postfix), GrantTTL: 30 * time.Minute, IPv6Prefix: 128,
		Domains: relay.NewDomains(map[string]relay.Match{"local.test": relay.DomainWritten}), Reject: relay.DefaultReject}
	now := relay.Now{Wall: time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC), Mono: time.Hour}
	pass := func(d time.Duration) { now.Wall, now.Mono = now.Wall.Add(d), now.Mono+d }
	step := func(d time.Duration) { now.Wall = now.Wall.Add(d) }
	var told []time.Duration
	g := New(Options{Store: f, Ledger: f, Rules: r, Now: func() relay.Now { return now }, ClockSet: func(d time.Duration) { told = append(told, d) }})
	asks := func(what string, v relay.Verdict, reason relay.Reason) {
		t.Helper()
		want(t, what, g.Judge(t.Context(), foreign(bob, nil)), v, reason)
	}

	f.grant(g, bob)
	pass(10 * time.Minute)
	asks("before", relay.Pass, relay.ReasonGrant)
	step(30 * time.Second)
	pass(20*time.Minute - 30*time.Second)
	asks("a grant that has come to its end, the clock set right by seconds", relay.Refuse, relay.ReasonExpired)

	f.grant(g, bob)
	pass(time.Minute)
	step(24 * time.Hour)
	asks("a grant that the clock has ended", relay.Defer, relay.ReasonNotReady)
	pass(30*time.Minute - 1)
	asks("just before one ttl has passed", relay.Defer, relay.ReasonNotReady)
	pass(1)
	asks("one ttl later", relay.Refuse, relay.ReasonExpired)

	f.grant(g, bob)
	step(-24 * time.Hour)
	pass(time.Hour)
	asks("set back", relay.Refuse, relay.ReasonExpired)
	step(2 * time.Hour)
	asks("set ahead once more", relay.Defer, relay.ReasonNotReady)
	if len(told) != 2 {
		t.Errorf("told of %v, want two times", told)
	}
}
