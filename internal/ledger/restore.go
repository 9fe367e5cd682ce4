package ledger

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"

	"popgate/internal/relay"
)

// Restored counts what became of saved changes.
type Restored struct {
	Grants  int // live grants after loading
	Dropped int // saved grants that the present rules or clock don't allow
	Future  int // of these, from a time to come: the clock has been set back, and who has logged in can't be told
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
	out.Grants = l.fill(now, func(yield func(relay.Grant) bool) {
		for c := range changes {
			switch {
			case l.recall(&c, now):
			case c.Kind != relay.ChangeGrant:
				l.apply(&c, now)
			case !l.admit(&c, now):
				out.Dropped++
				if l.ahead(&c.Grant, now) {
					out.Future++
				}
			case !c.Ceiling.IsZero() || c.Grant.Operator || l.held[c.Grant.Key()] != nil:
				l.apply(&c, now)
			default:
				yield(c.Grant) // fill takes them all
			}
		}
	})
	filled := l.store.Len()
	l.revocations.build()
	for key, h := range l.held {
		if g, had := l.remove(key); had && (h.last.Prefix == 0 || displaces(&g, &h.last, now)) {
			h.last = g
		}
		l.settle(key, now)
	}
	l.takeRevoked(now)
	out.Dropped += l.bound(now)
	out.Revoked = len(l.revocations.list)
	if len(l.held) > 0 || l.store.Len() != filled {
		out.Grants = 0
		for _, g := range l.store.All() {
			if g.Live(now) {
				out.Grants++
			}
		}
	}
	return out
}

// fill puts those grants in the store that nothing else is known of, which are
// nearly all, and gives back how many live. It does so in one go: one by one,
// each would look at places of three tables that are in no processor's cache.
func (l *Ledger) fill(now relay.Now, grants iter.Seq[relay.Grant]) (live int) {
	l.restoring = true
	var users, nets gathered
	var someUsers, someNets sample
	l.store.Fill(func(yield func(relay.Grant) bool) {
		for g := range grants {
			g.Deadline = deadline(&g, now)
			someUsers.take(l.users, &g)
			someNets.take(l.nets, &g)
			yield(g) // the store takes them all
		}
	}, func(g, before *relay.Grant) bool {
		return displaces(g, before, now)
	}, func(key relay.Key, g *relay.Grant) {
		l.users.gather(&users, key, g)
		l.nets.gather(&nets, key, g)
		if g.Live(now) {
			live++
		}
	})
	l.users, l.nets = newBounded(l.store, ownerUser), newBounded(l.store, ownerNet)
	l.users.fill(&users, &someUsers)
	l.nets.fill(&nets, &someNets)
	l.restoring = false
	return live
}

// bound takes out what goes beyond the bounds, and gives back for how many
// max_grants left no room.
func (l *Ledger) bound(now relay.Now) int {
	if m := l.rules.MaxGrantsPerUser; m > 0 {
		for _, o := range l.users.beyond(m) {
			l.keep(l.users, o, m)
		}
	}
	for _, o := range l.nets.beyond(MaxPer64) {
		l.keep(l.nets, o, MaxPer64)
	}
	excess := l.store.Len() - l.rules.MaxGrants
	if excess <= 0 {
		return 0
	}
	// What ends first goes first.
	type ending struct {
		key relay.Key
		end time.Duration
	}
	var all []ending
	for key, g := range l.store.All() {
		all = append(all, ending{key, g.Deadline})
	}
	slices.SortFunc(all, func(a, b ending) int { return cmp.Compare(a.end, b.end) })
	for _, e := range all[:excess] {
		l.forget(e.key)
	}
	l.fullEnds.Store(int64(now.Mono + l.rules.GrantTTL))
	return excess
}

// takeRevoked applies every revocation at once: one look at each key, however
// many revocations there are.
func (l *Ledger) takeRevoked(now relay.Now) {
	if len(l.revocations.list) == 0 {
		return
	}
	for k, g := range l.store.All() {
		if l.held[k] == nil && l.revocations.covers(&g) {
			l.bury(k, g, now)
		}
	}
}

// admit fits a saved grant to the present rules and clock, or answers false.
func (l *Ledger) admit(c *relay.Change, now relay.Now) bool {
	g := &c.Grant
	if l.ahead(g, now) || g.Prefix == 0 || !g.Client.IsValid() ||
		g.Client != relay.Canonical(g.Client) || !l.wouldGrant(l.rules, g) {
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
	return !now.Wall.After(later(g.Expires, c.Ceiling).Add(keepExpired))
}

// ahead says whether a saved grant is of a login that is yet to come.
func (l *Ledger) ahead(g *relay.Grant, now relay.Now) bool {
	return g.Login.After(now.Wall.Add(maxFuture))
}

// Snapshot yields changes that lead an empty ledger to the present state. It
// may run while changes go on: one that is applied meanwhile may be in it or
// not, and does no harm when it is applied to the result once more. The lock is
// never held for more than a short while, however large the tables are.
func (l *Ledger) Snapshot() iter.Seq[relay.Change] {
	return func(yield func(relay.Change) bool) {
		for _, part := range []iter.Seq[relay.Change]{l.savedRevocations(), l.savedPairings, l.savedEnds(), l.savedHolds(), l.savedDead()} {
			for c := range part {
				if !yield(c) {
					return
				}
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

const lockedAtOnce = 1024 // entries copied under one hold of the lock

// saved walks a table that others change meanwhile: its keys are taken first,
// then the entries that are still there, some at a time.
func saved[K comparable, V any](l *Ledger, table map[K]V, make func(K, V) []relay.Change) iter.Seq[relay.Change] {
	return func(yield func(relay.Change) bool) {
		l.mu.Lock()
		keys := slices.Collect(maps.Keys(table))
		l.mu.Unlock()
		for some := range slices.Chunk(keys, lockedAtOnce) {
			var out []relay.Change
			l.mu.Lock()
			for _, k := range some {
				if v, ok := table[k]; ok {
					out = append(out, make(k, v)...)
				}
			}
			l.mu.Unlock()
			for _, c := range out {
				if !yield(c) {
					return
				}
			}
		}
	}
}

func (l *Ledger) savedRevocations() iter.Seq[relay.Change] {
	return saved(l, l.revocations.list, func(r relay.Revocation, _ time.Duration) []relay.Change {
		return []relay.Change{{Kind: relay.ChangeRevoke, Revocation: r}}
	})
}

func (l *Ledger) savedEnds() iter.Seq[relay.Change] {
	return saved(l, l.closed, func(ref sessionRef, c closing) []relay.Change {
		return []relay.Change{{Kind: relay.ChangeClose, Source: ref.source, Session: ref.id, At: c.at, Until: c.until}}
	})
}

func (l *Ledger) savedHolds() iter.Seq[relay.Change] {
	return saved(l, l.held, func(_ relay.Key, h *holds) (out []relay.Change) {
		if h.last.Prefix != 0 {
			out = append(out, relay.Change{Kind: relay.ChangeGrant, Grant: h.last})
		}
		for ref, s := range h.sessions {
			out = append(out, relay.Change{Kind: relay.ChangeGrant, Grant: s.grant, Ceiling: s.ceiling})
			if _, ok := l.closed[ref]; s.ended && !ok {
				ttl := s.grant.Expires.Sub(s.grant.Login)
				out = append(out, relay.Change{Kind: relay.ChangeClose, Source: ref.source, Session: ref.id, At: s.end.Add(-ttl), Until: s.end})
			}
		}
		return out
	})
}

func (l *Ledger) savedDead() iter.Seq[relay.Change] {
	return saved(l, l.dead, func(_ relay.Key, d deadGrant) []relay.Change {
		return []relay.Change{{Kind: relay.ChangeGrant, Grant: d.grant}}
	})
}

// Find gives the grant in force under a key, if any.
func (l *Ledger) Find(key relay.Key) (relay.Grant, bool) {
	g, ok := l.store.Get(key)
	return g, ok && g.Live(l.now()) && !l.revocations.covers(&g)
}

// Revoked tells when logins from this client were last revoked by its address,
// or with all others, and until when a block of it runs; zero times are never.
func (l *Ledger) Revoked(client netip.Addr) (last, block time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	probe := relay.Grant{Client: relay.Canonical(client), Prefix: uint8(relay.PrefixFor(client, l.rules.IPv6Prefix)), Forced: true}
	for v := range l.revocations.list {
		if v.Covers(&probe) {
			last, block = later(last, v.Time), later(block, v.Block)
		}
	}
	return last, block
}

// Sizes gives how full the tables are, for status.
func (l *Ledger) Sizes() map[string]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return map[string]int{"grants": l.store.Len(), "sessions": len(l.sessions), "closed": len(l.closed),
		"revocations": len(l.revocations.list), "users": l.users.len(),
		"dead": len(l.dead), "unpaired": len(l.unheld.in)}
}
