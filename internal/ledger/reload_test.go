package ledger

import (
	"fmt"
	"iter"
	"net/netip"
	"testing"
	"time"

	"popgate/internal/relay"
)

// looked is a store in which something happens right after all of it was looked
// through, as SetRules does without a lock. bob comes first.
type looked struct {
	plainStore
	after func() // once
}

func (s *looked) All() iter.Seq2[relay.Key, relay.Grant] {
	return func(yield func(relay.Key, relay.Grant) bool) {
		first := relay.KeyOf(bob, 128)
		if g, ok := s.plainStore[first]; ok && !yield(first, g) {
			return
		}
		for k, g := range s.plainStore.All() {
			if k != first && !yield(k, g) {
				return
			}
		}
		if do := s.after; do != nil {
			s.after = nil
			do()
		}
	}
}

func lookedBench(t *testing.T) (*bench, *looked) {
	b := newBench(t)
	s := &looked{plainStore: b.store}
	b.Ledger = New(Options{Store: s, Rules: b.rules, Now: func() relay.Now { return b.now }})
	return b, s
}

// What a held address would fall back to is under the new rules as well, also
// when it falls back while they are being made to hold.
func TestAttackNoGrantSlipsPastNewRulesBehindASession(t *testing.T) {
	for what, change := range map[string]func(*relay.Rules){
		"ignore_users": func(r *relay.Rules) { r.IgnoreUsers = []string{"mallory"} },
		"services":     func(r *relay.Rules) { r.Services = []relay.Service{relay.IMAP} },
		"grant_ttl":    func(r *relay.Rules) { r.GrantTTL = 10 * time.Minute },
	} {
		for when, meanwhile := range map[string]func(*bench){
			"nothing":            nil,
			"its session is old": func(b *bench) { b.Tick() },
			"its id is another's": func(b *bench) {
				b.login(eve, "s1")
			},
		} {
			t.Run(what+", "+when, func(t *testing.T) {
				b, store := lookedBench(t)
				b.pair()
				b.login(bob, "s1")
				b.pass(time.Minute)
				b.logout("s1")
				b.pass(25 * time.Minute)
				ev := b.event(relay.Login, bob, "")
				ev.User, ev.Service = "mallory", relay.POP3
				b.Event(ev)
				others := func(yield func(netip.Addr) bool) {
					for i := range 2 * piece { // so that bob's turn is over when the last was looked at
						if !yield(netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})) {
							return
						}
					}
				}
				for ev.Client = range others {
					b.Event(ev)
				}
				b.pass(16 * time.Minute)
				b.wantLive(bob, true, "before")
				fresh := *b.rules
				change(&fresh)
				if meanwhile != nil {
					store.after = func() { meanwhile(b) }
				}
				b.SetRules(&fresh)
				b.rules = &fresh
				b.wantLive(bob, false, "after")
				for c := range others {
					b.wantLive(c, false, "another whom the rules don't fit")
				}
			})
		}
	}
}

// The same where the session hides what it would fall back to.
func TestAttackNoGrantSlipsPastNewRulesHiddenByASession(t *testing.T) {
	b, store := lookedBench(t)
	b.pair()
	b.login(bob, "s1")
	b.pass(time.Minute)
	ev := b.event(relay.Login, bob, "")
	ev.User = "mallory"
	b.Event(ev)
	fresh := *b.rules
	fresh.IgnoreUsers = []string{"mallory"}
	store.after = func() { b.login(eve, "s1") } // the id is used anew: bob's session is over
	b.SetRules(&fresh)
	b.rules = &fresh
	b.wantLive(bob, false, "by the login of one who is ignored now")
	b.wantLive(eve, true, "who has the session now")
}

// A login counts though one that is just being taken away would displace it.
func TestALoginDuringAReloadIsNotLost(t *testing.T) {
	b, store := lookedBench(t)
	mallory := b.event(relay.Login, bob, "")
	mallory.User = "mallory"
	b.Event(mallory)
	fresh := *b.rules
	fresh.IgnoreUsers = []string{"mallory"}
	store.after = func() { b.want(b.login(bob, ""), Granted, "in the same second") }
	b.SetRules(&fresh)
	b.rules = &fresh
	b.wantLive(bob, true, "who logged in meanwhile")
}

// Each event of an address looks at all its sessions, so one that logs in for ever
// must not have many. What its grant lasts for doesn't suffer.
func TestAttackManySessionsOfOneAddress(t *testing.T) {
	b := newBench(t)
	b.pair()
	key := relay.KeyOf(bob, 128)
	check := func(want int) {
		t.Helper()
		if n := len(b.held[key].sessions); n != want {
			t.Fatalf("%d sessions of one address, want %d", n, want)
		}
		b.wantLive(bob, true, "who is logged in")
	}
	n := 0
	login := func() {
		n++
		b.login(bob, fmt.Sprint("s", n))
		b.pass(time.Second)
	}
	for range 10 * MaxPerKey { // and out at once
		login()
		b.logout(fmt.Sprint("s", n))
	}
	check(MaxPerKey)
	for range 10 * MaxPerKey { // and never out
		login()
	}
	check(MaxPerKey)
	open := 0
	for _, s := range b.held[key].sessions {
		if !s.ended {
			open++
		}
	}
	if open != MaxPerKey {
		t.Errorf("%d of %d places are of open sessions", open, MaxPerKey)
	}
	b.pass(6 * time.Hour)
	b.wantLive(bob, true, "held by the open ones")
	b.Gap("file:/var/log/mail.log", b.now.Wall)
	b.pass(31 * time.Minute)
	b.wantLive(bob, false, "a ttl after the gap")
	b.pass(keepExpired)
	b.Tick()
	if len(b.sessions) != 0 || len(b.held) != 0 {
		t.Errorf("%d sessions and %d addresses are kept", len(b.sessions), len(b.held))
	}
}

// A session that makes place has ended, and no other has ended before it.
func TestTheSessionThatEndsFirstMakesPlace(t *testing.T) {
	b := newBench(t)
	b.pair()
	for i := range MaxPerKey {
		b.login(bob, fmt.Sprint("s", i))
	}
	b.pass(time.Hour)
	b.logout("s9")
	b.pass(time.Minute)
	b.logout("s3")
	b.login(bob, "new")
	sessions := b.held[relay.KeyOf(bob, 128)].sessions
	has := func(id string) bool { return sessions[sessionRef{"file:/var/log/mail.log", id}] != nil }
	if len(sessions) != MaxPerKey || has("s9") || !has("s3") || !has("new") {
		t.Errorf("%d sessions; s9 %v, s3 %v, new %v", len(sessions), has("s9"), has("s3"), has("new"))
	}
}
