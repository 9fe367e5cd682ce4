package ledger

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"popgate/internal/relay"
)

func seeded(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 7))
}

var crowd = []netip.Addr{
	netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("203.0.113.66"), netip.MustParseAddr("2001:db8::1"),
	netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2002:c000:207::1"),
}

// randomChanges makes changes as they could come from this ledger or another
// one: every kind, few clients, users and sessions, so that they meet.
func randomChanges(r *rand.Rand, bits, n int) []relay.Change {
	users := []string{"bob", "Bob@example.org", "eve"}
	at := func() time.Time { return noon.Add(-time.Duration(r.IntN(20*60)) * time.Second) }
	var out []relay.Change
	for range n {
		switch r.IntN(8) {
		default:
			login := at()
			client := crowd[r.IntN(len(crowd))]
			c := relay.Change{Kind: relay.ChangeGrant, Grant: relay.Grant{
				Client: client, Prefix: uint8(relay.PrefixFor(client, bits)), User: users[r.IntN(len(users))], Service: relay.IMAP,
				Source: "file:a", Format: "dovecot", Login: login, Expires: login.Add(30 * time.Minute),
			}}
			if r.IntN(2) == 0 {
				c.Grant.Session = fmt.Sprint("s", r.IntN(6))
				c.Ceiling = login.Add(12 * time.Hour)
			}
			if r.IntN(10) == 0 {
				c.Grant.Operator, c.Grant.Source, c.Grant.Session = true, operatorSource, ""
				c.Grant.Expires = login.Add(5 * time.Hour)
				c.Ceiling = c.Grant.Expires
			}
			out = append(out, c)
		case 0:
			out = append(out, relay.Change{Kind: relay.ChangeClose, Source: "file:a", Session: fmt.Sprint("s", r.IntN(6)),
				At: at(), Until: noon.Add(time.Hour)})
		case 1:
			v := relay.Revocation{Time: at(), Until: noon.Add(24 * time.Hour)}
			switch r.IntN(6) {
			case 0:
				v.User = "bob"
			case 1:
				v.All = true
				v.Time = v.Time.Add(-10 * time.Minute)
			default:
				c := crowd[r.IntN(len(crowd))]
				v.Network = netip.PrefixFrom(c, c.BitLen())
			}
			if r.IntN(4) == 0 {
				v.Block = v.Time.Add(3 * time.Minute)
			}
			out = append(out, relay.Change{Kind: relay.ChangeRevoke, Revocation: v})
		}
	}
	return out
}

// picture is everything that can be seen of a ledger from outside.
func (b *bench) picture() string {
	var out []string
	for g := range b.Live(goOn) {
		out = append(out, fmt.Sprintf("%s/%d %s %v until %v open %v", g.Client, g.Prefix, g.User, g.Login.Sub(noon), g.Expires.Sub(noon), g.Open))
	}
	slices.Sort(out)
	return fmt.Sprint(out, len(b.revocations.list))
}

func TestChangesInAnyOrderRepeatedAtWillEndInTheSameState(t *testing.T) {
	r := seeded(t)
	granted, revoked := 0, 0
	for round := range 3000 {
		bits := []int{128, 64}[round%2]
		changes := randomChanges(r, bits, 2+r.IntN(14))
		var first string
		for try := range 4 {
			b := newBench(t)
			b.rules.IPv6Prefix = bits
			order := slices.Clone(changes)
			for range try {
				order = append(order, changes[r.IntN(len(changes))])
			}
			if try > 0 {
				r.Shuffle(len(order), func(i, j int) { order[i], order[j] = order[j], order[i] })
			}
			for i := range order {
				b.apply(&order[i], b.now)
			}
			got := b.picture()
			if try == 0 {
				first = got
				granted += len(slices.Collect(b.Live(goOn)))
				revoked += len(b.revocations.list)
			} else if got != first {
				t.Fatalf("round %d: in the order given\n%s\nshuffled and repeated\n%s\nchanges %+v\norder %+v", round, first, got, changes, order)
			}
		}
	}
	if granted == 0 || revoked == 0 {
		t.Fatal("the property was not exercised")
	}
}

// A saved and restored state shows the same as the one that was saved.
func TestRestoreGivesWhatSnapshotHad(t *testing.T) {
	r := seeded(t)
	for range 1500 {
		b := newBench(t)
		changes := randomChanges(r, 128, 2+r.IntN(14))
		for i := range changes {
			b.apply(&changes[i], b.now)
		}
		c := newBench(t)
		c.now = b.now
		c.Restore(b.Snapshot())
		if b.picture() != c.picture() {
			t.Fatalf("saved\n%s\nrestored\n%s\nchanges %+v", b.picture(), c.picture(), changes)
		}
	}
}

// truth is what really happened, told by a clock nobody can set.
type truth struct {
	client  netip.Addr
	user    string
	at      time.Duration // of the login
	session string
	held    bool          // the session could hold
	ended   time.Duration // of the session; 0: open
}

// Whatever logins, logouts, replays, revocations and steps of the wall clock
// come in whatever order: a grant in force goes back to a login that is less
// than a ttl old by the clock nobody can set, or to a session that is open or
// ended less than a ttl ago and not beyond its ceiling; and that login was made
// after the last revocation of its client or user.
func TestNoSequenceOutlivesItsTTLOrBringsARevokedClientBack(t *testing.T) {
	r := seeded(t)
	lived := 0
	for range 400 {
		b := newBench(t)
		if r.IntN(2) == 0 {
			b.pair()
		}
		lived += runSequence(t, r, b)
	}
	if lived < 1000 {
		t.Fatalf("the property was hardly exercised: %d live looks", lived)
	}
}

// The other half: on a clock nobody sets, a login that is younger than its ttl
// and was not revoked since is in force, whatever else happens.
func TestNoSequenceTakesAGrantBeforeItsTime(t *testing.T) {
	r := seeded(t)
	looks := 0
	for range 300 {
		b := newBench(t)
		logins, revoked := map[netip.Addr]time.Duration{}, map[netip.Addr]time.Duration{}
		var log []relay.Event
		var steps []string
		for i := range 80 {
			b.pass(time.Second)
			c := crowd[r.IntN(4)]
			steps = append(steps, fmt.Sprint(b.now.Mono-time.Hour, " ", c))
			step := func(s string) { steps[len(steps)-1] += " " + s }
			switch r.IntN(12) {
			case 0, 1, 2:
				ev := b.event(relay.Login, c, fmt.Sprint("x", i))
				log = append(log, ev)
				b.Event(ev)
				logins[c] = b.now.Mono
				step("login " + ev.Session)
			case 3:
				ev := b.event(relay.Logout, netip.Addr{}, fmt.Sprint("x", r.IntN(i+1)))
				log = append(log, ev)
				b.Event(ev)
				step("logout " + ev.Session)
			case 4:
				ev := b.event(relay.Restart, netip.Addr{}, "")
				log = append(log, ev)
				b.Event(ev)
				step("restart")
			case 5:
				b.Gap("file:/var/log/mail.log", b.now.Wall)
				step("gap")
			case 6:
				b.Grant(c, time.Duration(1+r.IntN(3000))*time.Second, "op", "", false, nil)
				step("grant")
			case 7:
				b.Revoke(relay.Revocation{Network: netip.PrefixFrom(c, c.BitLen())}, 0, nil)
				revoked[c] = b.now.Mono
				step("revoke")
			case 8:
				for _, ev := range log[r.IntN(len(log)+1):] {
					ev.Live = false
					b.Event(ev)
				}
				step("replay")
			case 9:
				rules := *b.rules
				b.rules = &rules
				b.SetRules(&rules)
				step("rules")
			case 10:
				b.Tick()
				for k, g := range b.store {
					if g.Deadline+keepExpired < b.now.Mono {
						delete(b.store, k)
						b.Gone(g)
					}
				}
			default:
				b.pass(time.Duration(r.IntN(600)) * time.Second)
			}
			for c, at := range logins {
				if at > revoked[c] && b.now.Mono-at < b.rules.GrantTTL {
					looks++
					if !b.live(c) {
						t.Fatalf("%s logged in %v ago and is not live\n%v", c, b.now.Mono-at, steps)
					}
				}
			}
		}
	}
	if looks < 1000 {
		t.Fatalf("the property was hardly exercised: %d looks", looks)
	}
}

func runSequence(t *testing.T, r *rand.Rand, b *bench) (lived int) {
	var (
		logins  []truth
		log     []relay.Event // what a replay reads again
		revoked = map[netip.Addr]time.Duration{}
		steps   []string
	)
	note := func(format string, a ...any) {
		steps = append(steps, fmt.Sprintf("%v (%v) ", b.now.Mono-time.Hour, b.now.Wall.Format("15:04:05"))+fmt.Sprintf(format, a...))
	}
	for i := range 60 {
		switch r.IntN(10) {
		case 0, 1, 2:
			c := crowd[r.IntN(3)]
			ev := b.event(relay.Login, c, fmt.Sprint("x", i))
			b.now.Mono++ // nothing happens twice in one instant
			log = append(log, ev)
			b.Event(ev)
			logins = append(logins, truth{client: c, user: ev.User, at: b.now.Mono, session: ev.Session, held: b.sessions[sessionRef{ev.Source, ev.Session}] != nil})
			note("login %s %s", c, ev.Session)
		case 3:
			if len(logins) > 0 {
				l := &logins[r.IntN(len(logins))]
				if l.ended == 0 {
					ev := b.event(relay.Logout, netip.Addr{}, l.session)
					log = append(log, ev)
					b.Event(ev)
					l.ended = b.now.Mono
					note("logout %s", l.session)
				}
			}
		case 4:
			from := r.IntN(len(log) + 1)
			for _, ev := range log[from:] {
				ev.Live = false
				b.Event(ev)
			}
			note("replay from %d", from)
		case 5:
			c := crowd[r.IntN(3)]
			b.Revoke(relay.Revocation{Network: netip.PrefixFrom(c, c.BitLen())}, 0, nil)
			revoked[c] = b.now.Mono
			note("revoke %s", c)
		case 6:
			d := time.Duration(r.IntN(7200)-3600) * time.Second
			if r.IntN(8) == 0 { // far ahead and back again, with housekeeping in between
				b.step(96 * time.Hour)
				b.Tick()
				b.step(-96 * time.Hour)
			}
			b.step(d)
			note("step %v", d)
		case 7:
			b.Tick()
			for k, g := range b.store { // as the store's housekeeping does
				if g.Deadline+keepExpired < b.now.Mono {
					delete(b.store, k)
					b.Gone(g)
				}
			}
		default:
			b.pass(time.Duration(r.IntN(900)) * time.Second)
		}
		b.pass(time.Second)
		for _, c := range crowd[:3] {
			if b.live(c) {
				lived++
				if !accounted(b, logins, revoked, c) {
					g, _ := b.store.Get(relay.KeyOf(c, 128))
					t.Fatalf("%s is live without a login that accounts for it, at %v: %+v\n%v", c, b.now.Mono-time.Hour, g, steps)
				}
			}
		}
	}
	return lived
}

// accounted says whether a login really made accounts for a live grant.
func accounted(b *bench, logins []truth, revoked map[netip.Addr]time.Duration, c netip.Addr) bool {
	for _, l := range logins {
		since, wasRevoked := revoked[c]
		if l.client != c || wasRevoked && l.at <= since {
			continue
		}
		age := b.now.Mono - l.at
		switch {
		case age < b.rules.GrantTTL:
			return true
		case age >= b.rules.HoldOpenLogins:
		case l.ended == 0 || b.now.Mono-l.ended < b.rules.GrantTTL:
			return true
		}
	}
	return false
}
