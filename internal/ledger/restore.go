package ledger

import (
	"cmp"
	"iter"
	"slices"
	"time"

	"popgate/internal/relay"
)

// Restored counts what became of saved changes.
type Restored struct {
	Grants  int // live grants after loading
	Dropped int // saved grants that the present rules or clock don't allow
	Revoked int // revocations in force
}

// Restore applies saved changes to an empty ledger, under the present rules and
// clock: what would not be granted today isn't, no grant gets more than its
// ttl or ceiling from now on, and a login from the future is dropped. Nothing
// is fed: the followers have it already.
func (l *Ledger) Restore(changes iter.Seq[relay.Change]) Restored {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.tick()
	var out Restored
	for c := range changes {
		if c.Kind == relay.ChangeGrant && !l.admit(&c, now) {
			out.Dropped++
			continue
		}
		l.apply(&c, now)
	}
	l.revocations.expire(now.Wall)
	out.Revoked = len(l.revocations.list)
	for _, g := range l.store.All() {
		if g.Live(now) {
			out.Grants++
		}
	}
	return out
}

// admit fits a saved grant to the present rules and clock, or answers false.
func (l *Ledger) admit(c *relay.Change, now relay.Now) bool {
	g := &c.Grant
	if g.Login.After(now.Wall.Add(maxFuture)) || g.Prefix == 0 || !g.Client.IsValid() ||
		g.Client != relay.Canonical(g.Client) || !l.wouldGrant(g) {
		return false
	}
	if g.Operator {
		g.Expires = earlier(g.Expires, g.Login.Add(MaxOperatorTTL))
		c.Ceiling = g.Expires
	} else {
		g.Expires = earlier(g.Expires, g.Login.Add(l.rules.GrantTTL))
		if !c.Ceiling.IsZero() {
			c.Ceiling = earlier(c.Ceiling, g.Login.Add(l.rules.HoldOpenLogins))
		}
		if g.Session == "" || l.rules.HoldOpenLogins <= 0 || !c.Ceiling.After(g.Expires) {
			c.Ceiling = time.Time{}
		}
	}
	if now.Wall.After(later(g.Expires, c.Ceiling).Add(keepExpired)) {
		return false
	}
	if _, known := l.store.Get(g.Key()); !known && l.held[g.Key()] == nil {
		return l.room(g)
	}
	return true
}

// Snapshot yields changes that lead an empty ledger to the present state. It
// may run while changes go on: one that is applied meanwhile may be in it or
// not, and does no harm when it is applied to the result once more.
func (l *Ledger) Snapshot() iter.Seq[relay.Change] {
	return func(yield func(relay.Change) bool) {
		for _, c := range l.snapshotTables() {
			if !yield(c) {
				return
			}
		}
		for _, g := range l.store.All() {
			// A grant that a session holds is among the tables. Its end here is
			// the session's, which admit cuts to the login's own.
			if !yield(relay.Change{Kind: relay.ChangeGrant, Grant: g}) {
				return
			}
		}
	}
}

// snapshotTables copies everything but the store, under the lock.
func (l *Ledger) snapshotTables() []relay.Change {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []relay.Change
	for r := range l.revocations.list {
		out = append(out, relay.Change{Kind: relay.ChangeRevoke, Revocation: r})
	}
	for ref, c := range l.closed {
		out = append(out, relay.Change{Kind: relay.ChangeClose, Source: ref.source, Session: ref.id, At: c.at, Until: c.until})
	}
	for _, h := range l.held {
		if h.last.Prefix != 0 {
			out = append(out, relay.Change{Kind: relay.ChangeGrant, Grant: h.last})
		}
		for ref, s := range h.sessions {
			out = append(out, relay.Change{Kind: relay.ChangeGrant, Grant: s.grant, Ceiling: s.ceiling})
			if c, ok := l.closed[ref]; s.ended && !ok {
				ttl := s.grant.Expires.Sub(s.grant.Login)
				out = append(out, relay.Change{Kind: relay.ChangeClose, Source: ref.source, Session: ref.id,
					At: s.end.Add(-ttl), Until: later(c.until, s.end)})
			}
		}
	}
	for _, d := range l.dead {
		out = append(out, relay.Change{Kind: relay.ChangeGrant, Grant: d.grant})
	}
	return out
}

// Live yields every grant that is in force, in no order.
func (l *Ledger) Live() iter.Seq[relay.Grant] {
	return func(yield func(relay.Grant) bool) {
		now := l.now()
		for _, g := range l.store.All() {
			if g.Live(now) && !l.revocations.covers(&g) && !yield(g) {
				return
			}
		}
	}
}

// Grants gives every grant that is in force, next to expire first.
func (l *Ledger) Grants() []relay.Grant {
	return slices.SortedFunc(l.Live(), func(a, b relay.Grant) int {
		return cmp.Or(a.Expires.Compare(b.Expires), a.Client.Compare(b.Client))
	})
}

// Find gives the grant that covers the client now, if any.
func (l *Ledger) Find(client relay.Key) (relay.Grant, bool) {
	g, ok := l.store.Get(client)
	return g, ok && g.Live(l.now()) && !l.revocations.covers(&g)
}

// Sizes gives how full each bounded table is, for status.
func (l *Ledger) Sizes() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return map[string]int{"grants": l.store.Len(), "sessions": len(l.sessions), "closed": len(l.closed),
		"revocations": len(l.revocations.list), "users": len(l.users.owners)}
}
