// Package ledger turns what logs and operators say into grants, and is the only
// writer of grants there is. Every alteration is a relay.Change: computed from
// an event under the present rules, applied to the tables here and to the
// store, and then fed to whoever follows (state file, waiters, watch).
//
// What it promises: a login grants for one ttl from its own time, or while its
// session is known to be open up to a ceiling, never longer, whatever is
// replayed, reordered, repeated or done to the clock; what was revoked stays
// revoked until a later login; and every table is bounded. It reads no clock
// and no file of its own.
package ledger

import (
	"errors"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/relay"
)

// Store keeps the effective grant of each key for look-up.
type Store interface {
	Get(relay.Key) (relay.Grant, bool)
	// Put and Delete give back what was under the key, and exactly once: what
	// they give is not also told to Gone.
	Put(relay.Key, relay.Grant) (before relay.Grant, had bool)
	Delete(relay.Key) (before relay.Grant, had bool)
	// Fill puts many. Of two under one key the one given later stays if it wins.
	// Every grant that is in the store then is told to kept. Both functions are
	// called by one goroutine at a time.
	Fill(grants iter.Seq[relay.Grant], wins func(g, before *relay.Grant) bool, kept func(relay.Key, *relay.Grant))
	Len() int
	All() iter.Seq2[relay.Key, relay.Grant]
	// Some is All, up to n at a time; the slice is used again for the next ones.
	Some(n int) iter.Seq[[]relay.Grant]
}

// Bounds of the tables that no configuration key bounds. What would go over
// them is dropped in the direction that grants less: a session beyond the
// bound holds nothing, a revocation beyond it is an error for the operator.
const (
	MaxSessions    = 262144
	MaxPerKey      = 64 // sessions of one address: each event looks at all of them
	MaxClosed      = 262144
	MaxRevocations = 65536
	MaxPer64       = 256 // grants of one user inside one IPv6 /64
)

const (
	maxFuture      = time.Minute      // a zoned stamp may be this far ahead of our clock
	keepExpired    = 10 * time.Minute // how long an ended grant is told from none
	keepRevoked    = 24 * time.Hour
	MaxOperatorTTL = 24 * time.Hour  // of a grant made by the operator
	stepTolerance  = 5 * time.Second // less than this is drift, not a step
	stampGrain     = 2 * time.Second // stamps are cut to the second
)

// Outcome says what became of an event, in the words of log and metric.
type Outcome uint8

const (
	Ignored  Outcome = iota // concerns no grant
	Granted                 // a new grant
	Renewed                 // a grant that was there is longer now
	Older                   // a later login is already known
	Stale                   // older than the ttl
	Future                  // its stamp is ahead of our clock
	Revoked                 // a revocation or block covers it
	Never                   // never_grant, own address or a built-in rule
	User                    // ignore_users
	Service                 // not in services
	Full                    // max_grants reached
	Closed                  // a session's end was noted
	Outcomes                // their number
)

var outcomeNames = [Outcomes]string{"ignored", "granted", "renewed", "older", "stale", "future", "revoked",
	"never_grant", "ignore_users", "services", "full", "closed"}

// String gives the word used in log and metric.
func (o Outcome) String() string {
	if o < Outcomes {
		return outcomeNames[o]
	}
	return "ignored"
}

// Options are what a ledger is made from. All but Feed and Own are needed.
type Options struct {
	Store Store
	Rules *relay.Rules
	Now   func() relay.Now
	Own   func(netip.Addr) bool // whether an address is this host's own; nil: none is known
	// Feed is given every batch in the order of application, after it has been
	// applied. It is called with the ledger locked: it must not block, and may call
	// back only what takes no lock, Allows and Full.
	Feed func(relay.Batch)
}

// Ledger is safe for use by many goroutines.
type Ledger struct {
	store Store
	now   func() relay.Now
	own   func(netip.Addr) bool
	feed  func(relay.Batch)

	ruling sync.Mutex // held while new rules are made to hold for what is there already

	mu       sync.Mutex
	rules    *relay.Rules
	held     map[relay.Key]*holds    // keys whose grant has more facts than its last login
	sessions map[sessionRef]*session // the same facts, by session
	closed   map[sessionRef]closing  // sessions known to have ended
	dead     map[relay.Key]deadGrant // last logins that were revoked: older ones stay displaced
	paired   map[pairing]relay.Grant // what has been shown a paired logout for, and the last login it let hold
	unheld   *recent[sessionRef, unheld]
	strays   *recent[sessionRef, pairing] // logouts read before their login, perhaps
	users    *bounded                     // grants of each user, oldest first
	nets     *bounded                     // grants of each user in one IPv6 /64, oldest first
	step     clockStep
	fullEnds atomic.Int64 // on the clock that only runs forward: until when a client may have logged in for nothing

	revocations revocations // its index is read without the lock
	restoring   bool        // revocations are only noted, and applied all at once
}

type deadGrant struct {
	grant relay.Grant
	until time.Duration
}

// New makes an empty ledger.
func New(o Options) *Ledger {
	if o.Feed == nil {
		o.Feed = func(relay.Batch) {}
	}
	return &Ledger{
		store: o.Store, now: o.Now, own: o.Own, feed: o.Feed, rules: o.Rules,
		held:     map[relay.Key]*holds{},
		sessions: map[sessionRef]*session{},
		closed:   map[sessionRef]closing{},
		dead:     map[relay.Key]deadGrant{},
		paired:   map[pairing]relay.Grant{},
		unheld:   newRecent[sessionRef, unheld](MaxSessions),
		strays:   newRecent[sessionRef, pairing](maxStrays),
		users:    newBounded(o.Store, ownerUser),
		nets:     newBounded(o.Store, ownerNet),

		revocations: revocations{list: map[relay.Revocation]time.Duration{}},
	}
}

// Event judges one event and applies what follows from it. The grant it gives
// back is the effective one of the client's key after a login that counted.
func (l *Ledger) Event(ev relay.Event) (Outcome, relay.Grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	switch ev.Kind {
	case relay.Login:
		return l.login(&ev, now, l.asOf(&ev, now))
	case relay.Logout:
		return l.logout(&ev, l.asOf(&ev, now)), relay.Grant{}
	case relay.Restart:
		// One that is read again says nothing about sessions opened since.
		l.endHolds(ev.Source, earlier(ev.Time, now.Wall), !ev.Live, l.asOf(&ev, now))
		return Closed, relay.Grant{}
	default:
		return Ignored, relay.Grant{}
	}
}

// Gap notes that the source may have missed lines: a logout may be among them,
// so its open sessions hold no longer.
func (l *Ledger) Gap(source string, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	l.endHolds(source, earlier(at, now.Wall), false, now)
}

// Position feeds the place up to which everything the source said has been
// applied.
func (l *Ledger) Position(source string, p relay.Position) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.feed(relay.Batch{Source: source, Position: p})
}

// Judge says what the rules alone make of a login at a time: Granted, or the
// first of them that speaks against it. then is the same time by the clock that
// the login's age is reckoned by. It takes no lock, and what is revoked or full
// it doesn't know.
func Judge(r *relay.Rules, own func(netip.Addr) bool, ev *relay.Event, now, then time.Time) Outcome {
	switch {
	case !r.Serves(ev.Service):
		return Service
	case !r.MayHold(relay.Canonical(ev.Client), own):
		return Never
	case r.Ignores(ev.User):
		return User
	case ev.Time.Sub(now) > maxFuture:
		return Future
	case then.Sub(ev.Time) >= r.GrantTTL:
		return Stale
	}
	return Granted
}

// login judges a login. Then are the clocks by which its age is reckoned.
func (l *Ledger) login(ev *relay.Event, now, then relay.Now) (Outcome, relay.Grant) {
	r := l.rules
	client := relay.Canonical(ev.Client)
	if o := Judge(r, l.own, ev, now.Wall, then.Wall); o != Granted {
		return o, relay.Grant{}
	}
	at := earlier(ev.Time, now.Wall)
	g := relay.Grant{
		Client: client, Prefix: uint8(relay.PrefixFor(client, r.IPv6Prefix)), Service: ev.Service, User: ev.User,
		Source: ev.Source, Format: ev.Format, Session: ev.Session, Login: wall(at), Expires: wall(at.Add(r.GrantTTL)),
	}
	if l.revocations.covers(&g) {
		return Revoked, relay.Grant{}
	}
	key := g.Key()
	before, known := l.store.Get(key)
	if known && !l.wouldGrant(r, &before) { // SetRules is on its way to it
		l.fitKey(key, now)
		before, known = l.store.Get(key)
	}
	if !known && !l.room(&g) {
		l.fullEnds.Store(int64(now.Mono + r.GrantTTL))
		return Full, relay.Grant{}
	}
	c := relay.Change{Kind: relay.ChangeGrant, Grant: g}
	c.Ceiling = l.ceiling(sessionRef{ev.Source, ev.Session}, pairing{ev.Source, ev.Format, ev.Service}, key, at)
	if known && before.Live(now) && !g.Newer(&before) && c.Ceiling.IsZero() && !g.Expires.After(before.Expires) {
		return Older, before
	}
	l.apply(&c, then)
	l.feed(relay.Batch{Changes: []relay.Change{c}})
	after, _ := l.store.Get(key)
	if known && before.Live(now) {
		return Renewed, after
	}
	return Granted, after
}

// asOf gives the clocks as they would read had the wall clock not been set back
// since the line was written. A line older than the last step is older than the
// clock makes it, and a replayed line that may be from before or after the step
// is taken for the older one.
func (l *Ledger) asOf(ev *relay.Event, now relay.Now) relay.Now {
	if l.step.shift <= 0 {
		return now
	}
	before := l.step.from
	if ev.Live {
		before = l.step.to.Add(-stampGrain)
	}
	if ev.Time.Before(before) {
		now.Wall = now.Wall.Add(l.step.shift)
	}
	return now
}

// clockStep remembers how the wall clock was last set back.
type clockStep struct {
	last     relay.Now
	from, to time.Time     // what the clock said before and after
	shift    time.Duration // how far it was set back, over all steps not yet made up for
}

// tick reads the clocks and notices when the wall clock has been set back.
func (l *Ledger) tick() relay.Now {
	now := l.now()
	s := &l.step
	if !s.last.Wall.IsZero() {
		expected := s.last.Wall.Add(now.Mono - s.last.Mono)
		if back := expected.Sub(now.Wall); back > stepTolerance {
			s.shift += back
			s.to = wall(now.Wall)
			s.from = later(s.from, wall(expected))
		}
		if s.shift > 0 && now.Wall.After(s.from.Add(l.rules.GrantTTL)) {
			s.shift, s.from, s.to = 0, time.Time{}, time.Time{}
		}
	}
	s.last = now
	return now
}

// Tick does the ledger's housekeeping; it is called about once a minute.
func (l *Ledger) Tick() {
	l.forgetEnded()
	for refs := range slices.Chunk(l.over(), piece) {
		l.dropOver(refs)
	}
}

// piece is how many keys or sessions are dealt with before whoever waits for the
// lock has it.
const piece = 64

// over gives the sessions that hold nothing any more.
func (l *Ledger) over() (refs []sessionRef) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	for ref, s := range l.sessions {
		if s.over(now) {
			refs = append(refs, ref)
		}
	}
	return refs
}

func (l *Ledger) dropOver(refs []sessionRef) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	for _, ref := range refs {
		if s := l.sessions[ref]; s != nil && s.over(now) {
			l.dropSession(ref, s, now)
		}
	}
}

func (l *Ledger) forgetEnded() {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	for ref, c := range l.closed {
		if now.Wall.After(c.until) && now.Mono > c.forget {
			delete(l.closed, ref)
		}
	}
	for k, d := range l.dead {
		if now.Mono > d.until {
			delete(l.dead, k)
		}
	}
	l.revocations.expire(now)
}

// Gone is told by the store that housekeeping removed an ended grant.
func (l *Ledger) Gone(g relay.Grant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unindex(&g)
}

// Full says whether a new grant was refused for lack of room within the last
// ttl: then a client may have logged in and have nothing to show for it.
func (l *Ledger) Full(now relay.Now) bool { return int64(now.Mono) < l.fullEnds.Load() }

// Errors of the operator's commands.
var (
	ErrNever   = errors.New("this address may hold no grant: it is loopback, link-local, multicast or reserved, one of this host's own, or in never_grant")
	ErrBlocked = errors.New("a block still covers this address or user; --force grants all the same")
	ErrTooMany = errors.New("too many revocations are kept already; those older than their time are forgotten by themselves")
	ErrRoom    = errors.New("max_grants is reached; raise it, or revoke what is not needed")
	ErrTTL     = errors.New("an operator's grant is for more than nothing and at most 24h")
)

// Grant makes an operator's grant and gives back the effective one. It obeys
// the never-grant rules and blocks unless force is set. done, if not nil, is
// told when it is safe on disk.
func (l *Ledger) Grant(client netip.Addr, ttl time.Duration, user, note string, force bool, done chan<- error) (relay.Grant, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	client = relay.Canonical(client)
	if ttl <= 0 || ttl > MaxOperatorTTL {
		return relay.Grant{}, ErrTTL
	}
	if !client.IsValid() || !force && !l.rules.MayHold(client, l.own) {
		return relay.Grant{}, ErrNever
	}
	at := wall(now.Wall)
	g := relay.Grant{
		Client: client, Prefix: uint8(relay.PrefixFor(client, l.rules.IPv6Prefix)), Operator: true, Forced: force,
		User: user, Note: note, Source: operatorSource, Login: at, Expires: wall(at.Add(ttl)),
	}
	// An operator's word is later than every revocation before it, even one
	// that a clock set back has left in the future; a block it obeys.
	if last, blocked := l.revocations.latest(&g, at); blocked && !force {
		return relay.Grant{}, ErrBlocked
	} else if !g.Login.After(last) {
		g.Login = last.Add(time.Nanosecond)
	}
	if _, known := l.store.Get(g.Key()); !known && !l.room(&g) {
		return relay.Grant{}, ErrRoom
	}
	c := relay.Change{Kind: relay.ChangeGrant, Grant: g, Ceiling: g.Expires}
	l.apply(&c, now)
	l.feed(relay.Batch{Changes: []relay.Change{c}, Done: done})
	after, _ := l.store.Get(g.Key())
	return after, nil
}

// Revoke takes away every grant the revocation covers and gives them back. Its
// Time is set here; block is how long no login it covers grants. done, if not
// nil, is told when it is safe on disk.
func (l *Ledger) Revoke(r relay.Revocation, block time.Duration, done chan<- error) ([]relay.Grant, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	r.Time = wall(now.Wall)
	r.User = relay.FoldUser(r.User)
	r.Time = l.lastCovered(r)
	r.Until = r.Time.Add(max(keepRevoked, l.rules.HoldOpenLogins, l.rules.GrantTTL))
	if block > 0 {
		r.Block = r.Time.Add(block)
		r.Until = later(r.Until, r.Block.Add(l.rules.GrantTTL))
	}
	if l.revocations.full() {
		return nil, ErrTooMany
	}
	c := relay.Change{Kind: relay.ChangeRevoke, Revocation: r}
	taken := l.apply(&c, now)
	l.feed(relay.Batch{Changes: []relay.Change{c}, Done: done})
	return taken, nil
}

// lastCovered gives the revocation's time, or that of the last login it is
// meant for if the clock has been set back since: what is in force now must go.
func (l *Ledger) lastCovered(r relay.Revocation) time.Time {
	at := r.Time
	r.Time = at.Add(100 * 365 * 24 * time.Hour)
	look := func(g *relay.Grant) {
		if g.Login.After(at) && r.Covers(g) {
			at = g.Login
		}
	}
	l.eachReached(&r, func(_ relay.Key, g *relay.Grant) { look(g) })
	for _, h := range l.held {
		look(&h.last)
	}
	for _, s := range l.sessions {
		look(&s.grant)
	}
	return at
}

// Allows says whether a grant may be used by this client now: the never-grant
// rules still hold for the full address and no revocation covers it. It takes
// no lock and serves the look-up.
func (l *Ledger) Allows(r *relay.Rules, g relay.Grant, client netip.Addr) bool {
	if !g.Forced && !r.MayHold(client, l.own) {
		return false
	}
	return !l.revocations.covers(&g)
}

// SetRules swaps the rules and purges the grants that the new ones would not
// have made. It gives back how many it purged. A purge is no change and is not
// fed: Restore applies the rules of its own day to everything saved, so after a
// restart under the old rules such a grant is back for the rest of its time.
//
// Logins go on meanwhile and are judged by the new rules. One call ends before
// the next begins.
func (l *Ledger) SetRules(r *relay.Rules) (purged int) {
	l.ruling.Lock()
	defer l.ruling.Unlock()
	l.mu.Lock()
	l.rules = r
	held := slices.Collect(maps.Keys(l.held)) // what they hold beside their effective grant doesn't show in the store
	l.mu.Unlock()
	// From here on nothing is made but by these rules, so what they don't fit is
	// there already, and the store can be looked through without holding up logins.
	unfit := make([]relay.Key, 0, piece)
	for k, g := range l.store.All() {
		if l.wouldGrant(r, &g) && !tooLong(r, &g) {
			continue
		}
		if unfit = append(unfit, k); len(unfit) == piece {
			purged += l.fit(unfit)
			unfit = unfit[:0]
		}
	}
	purged += l.fit(unfit)
	for keys := range slices.Chunk(held, piece) {
		purged += l.fit(keys)
	}
	return purged
}

// fit has the grants of some keys follow the rules, and gives back how many it
// purged.
func (l *Ledger) fit(keys []relay.Key) (purged int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	for _, k := range keys {
		if l.fitKey(k, now) {
			purged++
		}
	}
	return purged
}

func (l *Ledger) fitKey(k relay.Key, now relay.Now) (purged bool) {
	if h := l.held[k]; h != nil {
		return l.fitHeld(k, h, now)
	}
	switch g, there := l.store.Get(k); {
	case !there:
	case !l.wouldGrant(l.rules, &g):
		l.forget(k)
		return true
	case tooLong(l.rules, &g):
		l.shorten(k, now)
	}
	return false
}

func tooLong(r *relay.Rules, g *relay.Grant) bool { return g.Login.Add(r.GrantTTL).Before(g.Expires) }

// fitHeld drops the facts of a held key that the present rules would not have
// made, fits the others to them, and says whether any was dropped.
func (l *Ledger) fitHeld(k relay.Key, h *holds, now relay.Now) (lost bool) {
	if h.last.Prefix != 0 && !l.wouldGrant(l.rules, &h.last) {
		h.last, lost = relay.Grant{}, true
	}
	for ref, s := range h.sessions {
		if !l.wouldGrant(l.rules, &s.grant) {
			delete(h.sessions, ref)
			delete(l.sessions, ref)
			lost = true
		}
	}
	if h.last.Prefix == 0 && len(h.sessions) == 0 {
		l.forget(k)
		return lost
	}
	if len(h.sessions) == 0 {
		l.settle(k, now)
		l.release(k, h, now)
	}
	l.shorten(k, now)
	return lost
}

// wouldGrant says whether the rules would make this grant, its time apart.
func (l *Ledger) wouldGrant(r *relay.Rules, g *relay.Grant) bool {
	if int(g.Prefix) != relay.PrefixFor(g.Client, r.IPv6Prefix) {
		return false
	}
	if !g.Forced && !r.MayHold(g.Client, l.own) {
		return false
	}
	return g.Operator || r.Serves(g.Service) && !r.Ignores(g.User)
}

// wall cuts the monotonic part off a time, so that two readings of one moment
// are the same value, and so that nothing compares by the wrong clock.
func wall(t time.Time) time.Time { return t.Round(0) }

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
