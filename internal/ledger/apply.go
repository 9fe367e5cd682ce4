package ledger

import (
	"encoding/hex"
	"slices"
	"time"

	"popgate/internal/relay"
)

// operatorSource is the source of an operator's grants. No configured source
// can have this name: theirs carry a type and a colon.
const operatorSource = "operator"

// sessionRef names a session: ids are only unique inside one source.
type sessionRef struct{ source, id string }

// holds are the facts about one key beyond its last login: the store keeps
// only what follows from all of them.
type holds struct {
	last     relay.Grant // the key's last login, revoked or not; Expires is the login's own
	sessions map[sessionRef]*session
}

// session is a login that may hold its grant until it ends. An operator's
// grant is kept as one too, so that a later, shorter login can't displace it.
type session struct {
	grant    relay.Grant
	ceiling  time.Time
	deadline time.Duration // the ceiling on the clock that only runs forward
	ended    bool
	end      time.Time     // meaningful when ended
	endMono  time.Duration // the same
}

func (s *session) endDeadline() time.Duration {
	if s.ended {
		return s.endMono
	}
	return s.deadline
}

func (s *session) over(now relay.Now) bool { return now.Mono > s.endDeadline()+keepExpired }

// closing is a session's end that is remembered, so that its login, read again
// or read late, doesn't open it anew.
type closing struct {
	at, until time.Time
	forget    time.Duration // until on the clock that only runs forward
}

// apply makes a change part of the state and gives back the grants a
// revocation took away. It is the one place where state changes; it is
// idempotent, and the order of changes doesn't matter.
func (l *Ledger) apply(c *relay.Change, now relay.Now) []relay.Grant {
	switch c.Kind {
	case relay.ChangeGrant:
		l.applyGrant(c, now)
	case relay.ChangeClose:
		l.applyClose(c, now)
	case relay.ChangeRevoke:
		return l.applyRevoke(c, now)
	}
	return nil
}

func (l *Ledger) applyGrant(c *relay.Change, now relay.Now) {
	g := c.Grant
	g.Deadline = deadline(&g, now)
	key := g.Key()
	h := l.held[key]
	if !c.Ceiling.IsZero() {
		h = l.addSession(key, h, c, &g, now)
	}
	if g.Operator {
		l.settle(key, now) // kept apart: it shortens no login, and no login it
		return
	}
	if last, known := l.last(key, h); !known || displaces(&g, &last, now) {
		l.setLast(key, h, g, now)
	}
	l.settle(key, now)
}

// displaces says whether a login takes the place of the last one known. One that
// has ended by the clock that only runs forward makes place even for an earlier
// stamp: the wall clock was set back.
func displaces(g, last *relay.Grant, now relay.Now) bool {
	return g.Newer(last) || last.Deadline <= now.Mono
}

// deadline gives a grant's end on the clock that only runs forward.
func deadline(g *relay.Grant, now relay.Now) time.Duration {
	return now.Mono + remaining(g.Expires, g.Login, now)
}

// remaining is how much life is left until end: never more than from the login
// on, so that a clock that is behind gives nothing away.
func remaining(end, login time.Time, now relay.Now) time.Duration {
	return max(0, min(end.Sub(now.Wall), end.Sub(login)))
}

// last gives the key's last login, which may be one that was revoked.
func (l *Ledger) last(key relay.Key, h *holds) (relay.Grant, bool) {
	if h != nil {
		return h.last, h.last.Prefix != 0
	}
	if d, ok := l.dead[key]; ok {
		return d.grant, true
	}
	return l.store.Get(key)
}

func (l *Ledger) setLast(key relay.Key, h *holds, g relay.Grant, now relay.Now) {
	delete(l.dead, key)
	switch {
	case h != nil:
		h.last = g
	case l.revocations.covers(&g):
		l.bury(key, g, now)
	default:
		l.put(key, g)
	}
}

// bury remembers a last login whose user was revoked, so that an older one of
// another user that arrives later stays displaced by it. Where the address was
// revoked the older one is covered as well, and nothing needs to be remembered.
func (l *Ledger) bury(key relay.Key, g relay.Grant, now relay.Now) {
	l.remove(key)
	nameless := g
	nameless.User = ""
	if len(l.dead) < l.rules.MaxGrants && !l.revocations.covers(&nameless) {
		l.dead[key] = deadGrant{g, max(now.Mono, g.Deadline) + keepExpired}
	}
}

func (l *Ledger) addSession(key relay.Key, h *holds, c *relay.Change, g *relay.Grant, now relay.Now) *holds {
	ref := refOf(g, key)
	if s, ok := l.sessions[ref]; ok {
		if !g.Newer(&s.grant) {
			return h
		}
		// The id is used anew, perhaps from another address: the later wins.
		l.dropSession(ref, s, now)
		h = l.held[key]
	}
	if !g.Operator && (!l.roomFor(h) || len(l.sessions) >= MaxSessions) {
		return h // holds nothing: it grants less
	}
	s := &session{grant: *g, ceiling: c.Ceiling}
	s.deadline = now.Mono + remaining(c.Ceiling, g.Login, now)
	l.witnessed(g)
	if h == nil {
		h = &holds{sessions: map[sessionRef]*session{}}
		if last, ok := l.last(key, nil); ok {
			h.last = last
		}
		delete(l.dead, key)
		l.held[key] = h
	}
	h.sessions[ref] = s
	l.sessions[ref] = s
	l.closeIfKnown(ref, s, now)
	return h
}

// roomFor says whether a key may have one session more. Of those that have ended
// the one that ends first makes room: what it granted, another grants for longer, or
// one that is still open does.
func (l *Ledger) roomFor(h *holds) bool {
	if h == nil || len(h.sessions) < MaxPerKey {
		return true
	}
	var first *session
	var its sessionRef
	for ref, s := range h.sessions {
		if s.ended && !s.grant.Operator && (first == nil || s.end.Before(first.end)) {
			first, its = s, ref
		}
	}
	if first == nil {
		return false
	}
	delete(h.sessions, its)
	delete(l.sessions, its)
	return true
}

func refOf(g *relay.Grant, key relay.Key) sessionRef {
	if g.Operator {
		return sessionRef{operatorSource, hex.EncodeToString(key[:])}
	}
	return sessionRef{g.Source, g.Session}
}

func (l *Ledger) applyClose(c *relay.Change, now relay.Now) {
	if s := l.noteClose(c, now); s != nil {
		l.settle(s.grant.Key(), now)
	}
}

// noteClose is applyClose without settling. It gives the session, if it is held.
func (l *Ledger) noteClose(c *relay.Change, now relay.Now) *session {
	ref := sessionRef{c.Source, c.Session}
	was, known := l.closed[ref]
	forget := now.Mono + max(0, min(c.Until.Sub(c.At), c.Until.Sub(now.Wall)))
	switch {
	case known:
		l.closed[ref] = closing{earlier(c.At, was.at), later(c.Until, was.until), max(forget, was.forget)}
	case len(l.closed) < MaxClosed:
		l.closed[ref] = closing{c.At, c.Until, forget}
	default:
		// An end that can't be remembered could be undone by its login's
		// return: until the source has shown itself again nothing holds.
		clear(l.paired)
	}
	s := l.sessions[ref]
	if s != nil {
		l.closeAt(s, c.At, now)
	}
	return s
}

func (l *Ledger) closeIfKnown(ref sessionRef, s *session, now relay.Now) {
	if c, ok := l.closed[ref]; ok {
		l.closeAt(s, c.at, now)
	}
}

// closeAt ends a session: the grant ends one ttl after the login or the end of
// the session, whichever is later, but not after the ceiling. An earlier end
// wins over a later one.
func (l *Ledger) closeAt(s *session, at time.Time, now relay.Now) {
	ttl := s.grant.Expires.Sub(s.grant.Login)
	end := earlier(s.ceiling, later(s.grant.Expires, at.Add(ttl)))
	if s.ended && !end.Before(s.end) {
		return
	}
	since := max(0, now.Wall.Sub(at))
	endMono := min(s.deadline, max(s.grant.Deadline, now.Mono-since+ttl))
	if s.ended {
		endMono = min(endMono, s.endMono)
	}
	s.ended, s.end, s.endMono = true, end, endMono
}

func (l *Ledger) applyRevoke(c *relay.Change, now relay.Now) []relay.Grant {
	r := c.Revocation
	keep := r.Until.Sub(r.Time)
	if l.restoring {
		// How old it is only the wall clock can tell, which may be wrong just
		// now: long enough for it to be set right.
		keep = min(keep, max(time.Hour, l.rules.GrantTTL))
	}
	if !l.revocations.add(r, now.Mono+keep) || l.restoring {
		return nil
	}
	l.revocations.build()
	var taken []relay.Grant
	l.take(func(key relay.Key, g *relay.Grant) {
		if g.Live(now) {
			taken = append(taken, *g)
		}
	}, &r, now)
	return taken
}

// take removes what a revocation covers, telling each effective grant first.
func (l *Ledger) take(tell func(relay.Key, *relay.Grant), r *relay.Revocation, now relay.Now) {
	var keys []relay.Key
	l.eachReached(r, func(k relay.Key, g *relay.Grant) {
		if r.Covers(g) {
			keys = append(keys, k)
			tell(k, g)
		}
	})
	// A key whose effective grant is another's may hold a covered fact.
	for k, h := range l.held {
		if r.Covers(&h.last) || h.anyCovered(r) {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		if l.held[k] != nil {
			l.settle(k, now)
		} else if g, ok := l.store.Get(k); ok && r.Covers(&g) {
			l.bury(k, g, now)
		}
	}
}

// eachReached gives the effective grants a revocation may cover: that of the
// one key it is for, or all.
func (l *Ledger) eachReached(r *relay.Revocation, do func(relay.Key, *relay.Grant)) {
	if n := r.Network; r.User == "" && !r.All && n.IsValid() && n.IsSingleIP() {
		k := relay.KeyOf(n.Addr(), l.rules.IPv6Prefix)
		if g, ok := l.store.Get(k); ok {
			do(k, &g)
		}
		return
	}
	for k, g := range l.store.All() {
		do(k, &g)
	}
}

func (h *holds) anyCovered(r *relay.Revocation) bool {
	for _, s := range h.sessions {
		if r.Covers(&s.grant) {
			return true
		}
	}
	return false
}

// settle writes into the store what follows from all facts of a key that has
// more than its last login: of those no revocation covers, the one that ends
// last.
func (l *Ledger) settle(key relay.Key, now relay.Now) {
	h := l.held[key]
	if h == nil || l.restoring && len(h.sessions) > 0 {
		return // or not yet
	}
	var best relay.Grant
	consider := func(g relay.Grant) {
		if best.Prefix == 0 || g.Expires.After(best.Expires) || g.Expires.Equal(best.Expires) && g.Newer(&best) {
			best = g
		}
	}
	if g := h.last; g.Prefix != 0 && !l.revocations.covers(&g) {
		consider(g)
	}
	for _, s := range h.sessions {
		g := s.grant
		if l.revocations.covers(&g) {
			continue
		}
		switch {
		case s.ended:
			g.Expires, g.Deadline = s.end, s.endMono
		default:
			g.Expires, g.Deadline, g.Open = s.ceiling, s.deadline, !g.Operator
		}
		consider(g)
	}
	if best.Prefix == 0 {
		l.remove(key)
		return
	}
	l.put(key, best)
}

// dropSession forgets a session that no longer holds anything.
func (l *Ledger) dropSession(ref sessionRef, s *session, now relay.Now) {
	delete(l.sessions, ref)
	key := s.grant.Key()
	h := l.held[key]
	if h == nil {
		return
	}
	delete(h.sessions, ref)
	l.settle(key, now)
	l.release(key, h, now)
}

// release lets go of a key that has no fact left but its last login.
func (l *Ledger) release(key relay.Key, h *holds, now relay.Now) {
	if len(h.sessions) > 0 {
		return
	}
	delete(l.held, key)
	if g := h.last; g.Prefix != 0 && l.revocations.covers(&g) {
		l.bury(key, g, now)
	}
}

// logout ends a session. Once the source has shown that it logs both, an end is
// remembered even when no login of it is held: the login may be read after it,
// or once more.
func (l *Ledger) logout(ev *relay.Event, now relay.Now) Outcome {
	if ev.Session == "" || l.rules.HoldOpenLogins <= 0 || !l.rules.Serves(ev.Service) {
		return Ignored
	}
	ref := sessionRef{ev.Source, ev.Session}
	by := pairing{ev.Source, ev.Format, ev.Service}
	if _, shown := l.paired[by]; !shown {
		l.unpaired(ref, by, now)
	}
	_, held := l.sessions[ref]
	if _, shown := l.paired[by]; !held && !shown {
		return Ignored
	}
	l.closeSession(ref, earlier(ev.Time, now.Wall), now)
	if held {
		return Closed
	}
	return Ignored
}

// closeSession makes and applies the change that ends a session.
func (l *Ledger) closeSession(ref sessionRef, at time.Time, now relay.Now) {
	c := l.ending(ref, at, now)
	l.apply(&c, now)
	l.feed(relay.Batch{Changes: []relay.Change{c}})
}

// ending makes the change that ends a session. It needs no longer memory than a
// ttl: an older login opens no session anyway.
func (l *Ledger) ending(ref sessionRef, at time.Time, now relay.Now) relay.Change {
	at = wall(at)
	return relay.Change{Kind: relay.ChangeClose, Source: ref.source, Session: ref.id, At: at,
		Until: later(at, wall(now.Wall)).Add(l.rules.GrantTTL + keepExpired)}
}

// endHolds ends the open sessions of a source: its logouts may have been missed,
// or the server that held them is gone. With older, only those whose login is no
// later than at.
func (l *Ledger) endHolds(source string, at time.Time, older bool, now relay.Now) {
	var all []relay.Change
	touched := map[relay.Key]struct{}{} // and settled once, however many sessions of theirs end
	for ref, s := range l.sessions {
		if ref.source != source || s.ended || older && s.grant.Login.After(at) {
			continue
		}
		c := l.ending(ref, at, now)
		l.noteClose(&c, now)
		touched[s.grant.Key()] = struct{}{}
		all = append(all, c)
	}
	for key := range touched {
		l.settle(key, now)
	}
	for changes := range slices.Chunk(all, piece) {
		l.feed(relay.Batch{Changes: changes})
	}
	l.unheld.forget(func(ref sessionRef) bool { return ref.source == source })
}

// put, remove and forget keep the store and the indexes of the bounds together.
func (l *Ledger) put(key relay.Key, g relay.Grant) {
	before, had := l.store.Put(key, g)
	if had && before.Operator == g.Operator && before.User == g.User {
		return
	}
	if had {
		l.unindex(&before)
	}
	l.index(key, &g)
}

func (l *Ledger) remove(key relay.Key) (before relay.Grant, had bool) {
	before, had = l.store.Delete(key)
	if had {
		l.unindex(&before)
	}
	return before, had
}

// forget removes a key with all its facts.
func (l *Ledger) forget(key relay.Key) {
	l.remove(key)
	if h := l.held[key]; h != nil {
		for ref := range h.sessions {
			delete(l.sessions, ref)
		}
		delete(l.held, key)
	}
}

// shorten fits a grant made under longer times to the present rules.
func (l *Ledger) shorten(key relay.Key, now relay.Now) {
	cut := func(g *relay.Grant) {
		if g.Operator {
			return
		}
		if end := g.Login.Add(l.rules.GrantTTL); end.Before(g.Expires) {
			g.Deadline -= g.Expires.Sub(end)
			g.Expires = end
		}
	}
	h := l.held[key]
	if h == nil {
		if g, ok := l.store.Get(key); ok {
			cut(&g)
			l.put(key, g)
		}
		return
	}
	cut(&h.last)
	for _, s := range h.sessions {
		if s.grant.Operator {
			continue
		}
		cut(&s.grant)
		if end := s.grant.Login.Add(max(l.rules.HoldOpenLogins, l.rules.GrantTTL)); end.Before(s.ceiling) {
			s.deadline -= s.ceiling.Sub(end)
			s.ceiling = end
		}
		if s.ended && s.ceiling.Before(s.end) {
			s.end, s.endMono = s.ceiling, min(s.endMono, s.deadline)
		}
	}
	l.settle(key, now)
}
