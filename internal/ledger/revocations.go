package ledger

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"popgate/internal/relay"
)

// revocations keeps every revocation in force, and an index of them that
// look-ups read without a lock.
type revocations struct {
	list  map[relay.Revocation]time.Duration // until when each is kept at least, on the clock that only runs forward
	stale bool                               // the index doesn't have all of list
	index atomic.Pointer[revocationIndex]
}

// revocationIndex answers quickly for the usual case of many single addresses
// and users. Each revocation found through it is then asked itself: the index
// only selects, it never decides.
type revocationIndex struct {
	users map[string][]relay.Revocation
	nets  map[netip.Prefix][]relay.Revocation
	bits  []int              // lengths of the prefixes in nets, by family apart
	wide  []relay.Revocation // all, and what a shortened prefix may touch
}

func (r *revocations) full() bool { return len(r.list) >= MaxRevocations }

// add answers false for a revocation that is known already. The index has it
// after the next build.
func (r *revocations) add(v relay.Revocation, keep time.Duration) bool {
	if _, known := r.list[v]; known {
		return false
	}
	r.list[v] = keep
	r.stale = true
	return true
}

// expire forgets what is over by both clocks: a wall clock that jumps ahead for
// a moment must not bring anybody back.
func (r *revocations) expire(now relay.Now) {
	for v, keep := range r.list {
		if now.Wall.After(v.Until) && now.Mono > keep {
			delete(r.list, v)
			r.stale = true
		}
	}
	r.build()
}

// build brings the index up to date, if it isn't.
func (r *revocations) build() {
	if !r.stale {
		return
	}
	r.stale = false
	if len(r.list) == 0 {
		r.index.Store(nil)
		return
	}
	x := &revocationIndex{users: map[string][]relay.Revocation{}, nets: map[netip.Prefix][]relay.Revocation{}}
	seen := map[int]bool{}
	for v := range r.list {
		switch {
		case v.User != "":
			x.users[v.User] = append(x.users[v.User], v)
		case v.Network.IsValid():
			p := v.Network.Masked()
			x.nets[p] = append(x.nets[p], v)
			if !seen[p.Bits()] {
				seen[p.Bits()] = true
				x.bits = append(x.bits, p.Bits())
			}
		default:
			x.wide = append(x.wide, v)
		}
	}
	r.index.Store(x)
}

// covers says whether any revocation forbids the grant.
func (r *revocations) covers(g *relay.Grant) bool {
	x := r.index.Load()
	if x == nil {
		return false
	}
	if anyCovers(x.wide, g) {
		return true
	}
	if len(x.users) > 0 && g.User != "" {
		user := relay.FoldUser(g.User)
		if anyCovers(x.users[user], g) {
			return true
		}
		if i := strings.IndexByte(user, '@'); i >= 0 && anyCovers(x.users[user[:i]], g) {
			return true
		}
	}
	if int(g.Prefix) < g.Client.BitLen() {
		// The grant covers a range: a revocation of one address inside it
		// takes the whole of it away.
		for _, list := range x.nets {
			if anyCovers(list, g) {
				return true
			}
		}
		return false
	}
	for _, bits := range x.bits {
		if p, err := g.Client.Prefix(bits); err == nil && anyCovers(x.nets[p], g) {
			return true
		}
	}
	return false
}

// latest gives the time of the last revocation meant for a grant, whenever it
// logged in, and whether a block of one runs at the moment.
func (r *revocations) latest(g *relay.Grant, now time.Time) (last time.Time, blocked bool) {
	always := *g
	always.Forced = true
	always.Login = time.Time{}
	for v := range r.list {
		if v.Covers(&always) {
			last = later(last, v.Time)
			blocked = blocked || now.Before(v.Block)
		}
	}
	return last, blocked
}

func anyCovers(list []relay.Revocation, g *relay.Grant) bool {
	for i := range list {
		if list[i].Covers(g) {
			return true
		}
	}
	return false
}
