package ledger

import (
	"maps"
	"slices"
	"time"

	"popgate/internal/relay"
)

// A session holds its grant only where its end will be read: after a source has
// shown, for a format and service, a logout of a login it had told before.
// Whoever had logged in until then, and is not known to have left, holds from
// then on.

// keepPaired is for how long a restart believes what a source had shown before
// it: the server may have been configured anew meanwhile. Longer than a weekend.
const keepPaired = 7 * 24 * time.Hour

// maxStrays bounds the logouts that are remembered without a login. Such a
// line is milliseconds ahead of its login.
const maxStrays = 4096

// pairing is what a logout speaks for.
type pairing struct {
	source, format string
	service        relay.Service
}

// unheld is a login that could not hold when it was read.
type unheld struct {
	pairing
	key relay.Key
}

// ceiling gives until when a login's session may hold it; zero if it does not.
func (l *Ledger) ceiling(ref sessionRef, by pairing, key relay.Key, login time.Time) time.Time {
	if ref.id == "" || l.rules.HoldOpenLogins <= 0 {
		return time.Time{}
	}
	if _, shown := l.paired[by]; shown {
		return wall(login.Add(l.rules.HoldOpenLogins))
	}
	if _, over := l.strays.take(ref); !over { // of a short session the end may be logged first
		l.unheld.add(ref, unheld{by, key})
	}
	return time.Time{}
}

// unpaired deals with a logout of which no other has been seen yet to belong to
// a login.
func (l *Ledger) unpaired(ref sessionRef, by pairing, now relay.Now) {
	if u, ok := l.unheld.in[ref]; !ok || u.pairing != by {
		l.strays.add(ref, by)
		return
	}
	l.paired[by] = relay.Grant{}
	for ref, u := range l.unheld.in {
		if u.pairing == by {
			l.unheld.take(ref)
			l.holdLate(ref, u.key, now)
		}
	}
}

// holdLate lets a session hold that was opened when none of its kind could. Only
// a grant that is in force is held, and only by the login it is of.
func (l *Ledger) holdLate(ref sessionRef, key relay.Key, now relay.Now) {
	g, ok := l.last(key, l.held[key])
	if !ok || g.Operator || refOf(&g, key) != ref || !g.Live(now) || l.revocations.covers(&g) {
		return
	}
	if now.Mono+remaining(g.Expires, g.Login, now) > g.Deadline+stampGrain {
		return // the clock was set back since: the login is older than it seems
	}
	c := relay.Change{Kind: relay.ChangeGrant, Grant: g, Ceiling: wall(g.Login.Add(l.rules.HoldOpenLogins))}
	l.apply(&c, now)
	l.feed(relay.Batch{Changes: []relay.Change{c}})
}

// witnessed remembers the last session that was held for what its source had
// shown.
func (l *Ledger) witnessed(g *relay.Grant) {
	if g.Operator || g.Session == "" {
		return
	}
	by := pairing{g.Source, g.Format, g.Service}
	if was := l.paired[by]; was.Prefix == 0 || g.Newer(&was) {
		l.paired[by] = *g
	}
}

// savedPairings gives the witnesses as changes that hold nothing: their ceiling
// is the login itself.
func (l *Ledger) savedPairings(yield func(relay.Change) bool) {
	l.mu.Lock()
	witnesses := slices.Collect(maps.Values(l.paired))
	l.mu.Unlock()
	for _, g := range witnesses {
		if g.Prefix != 0 && !yield(relay.Change{Kind: relay.ChangeGrant, Grant: g, Ceiling: g.Login}) {
			return
		}
	}
}

// recall takes from a saved change what its source had shown, and says whether
// that is all there is to it.
func (l *Ledger) recall(c *relay.Change, now relay.Now) bool {
	if c.Kind != relay.ChangeGrant || c.Ceiling.IsZero() {
		return false
	}
	if !l.ahead(&c.Grant, now) && now.Wall.Sub(c.Grant.Login) < keepPaired {
		l.witnessed(&c.Grant)
	}
	return c.Ceiling.Equal(c.Grant.Login)
}
