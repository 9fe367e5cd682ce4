package ledger

import (
	"cmp"
	"hash/maphash"
	"maps"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"popgate/internal/relay"
)

// An owner is a user, or a user's machines in one network, by a hash with a seed
// of its own: a million names as keys would be read again whenever their table
// grows. That two names meet in one, and so share what they may have, is as
// likely as 1 in 30 million with a million users.
type owner uint64

// bounded counts the grants of each owner and knows about how old they are: a
// queue an owner, oldest login first, whose stale places are skipped when they
// come to the front.
type bounded struct {
	of    func(*relay.Grant) (o owner, counts bool)
	get   func(relay.Key) (relay.Grant, bool)
	parts [1 << partBits]map[owner]queue
}

const partBits = 8 // of an owner say in which part of the table it is

// A queue lies in the map itself: most owners have but one grant.
type queue struct {
	count int32 // grants in the store
	some  bool  // there is a first place
	mixed bool  // an earlier login came after a later one
	first place
	rest  *[]place
}

type place struct {
	key   relay.Key
	login int64 // Unix nanoseconds of the login that queued it
}

func (q *queue) push(p place) {
	if !q.some {
		q.first, q.some = p, true
		return
	}
	if q.rest == nil {
		q.rest = new([]place)
	}
	*q.rest = append(*q.rest, p)
}

func (q *queue) pop() (p place, ok bool) {
	if !q.some {
		return place{}, false
	}
	p = q.first
	if q.rest != nil && len(*q.rest) > 0 {
		q.first, *q.rest = (*q.rest)[0], (*q.rest)[1:]
	} else {
		q.some = false
	}
	return p, true
}

// last gives the login of the last place.
func (q *queue) last() int64 {
	switch {
	case !q.some:
		return math.MinInt64
	case q.rest == nil || len(*q.rest) == 0:
		return q.first.login
	}
	return (*q.rest)[len(*q.rest)-1].login
}

func (q *queue) len() int {
	switch {
	case !q.some:
		return 0
	case q.rest == nil:
		return 1
	}
	return 1 + len(*q.rest)
}

// take empties the queue.
func (q *queue) take() []place {
	var all []place
	for p, ok := q.pop(); ok; p, ok = q.pop() {
		all = append(all, p)
	}
	q.rest = nil
	return all
}

func (q *queue) sort() {
	all := q.take()
	slices.SortStableFunc(all, func(a, b place) int { return cmp.Compare(a.login, b.login) })
	for _, p := range all {
		q.push(p)
	}
	q.mixed = false
}

func newBounded(store Store, of func(*relay.Grant) (owner, bool)) *bounded {
	b := &bounded{of: of, get: store.Get}
	for i := range b.parts {
		b.parts[i] = map[owner]queue{}
	}
	return b
}

// part is the table an owner is in. One table of a million owners fits in no
// processor's cache, and to fill it would be to wait for memory a million times.
func (b *bounded) part(o owner) map[owner]queue { return b.parts[o>>(64-partBits)] }

func (b *bounded) len() (n int) {
	for _, p := range b.parts {
		n += len(p)
	}
	return n
}

// gathered are the places of grants not yet in the table, by the part they go to.
type gathered [1 << partBits][]placeOf

type placeOf struct {
	owner owner
	place place
}

// gather takes a place for fill.
func (b *bounded) gather(to *gathered, key relay.Key, g *relay.Grant) {
	if o, counts := b.of(g); counts {
		i := o >> (64 - partBits)
		to[i] = append(to[i], placeOf{o, place{key, g.Login.UnixNano()}})
	}
}

// fill puts what was gathered in an empty table, part by part, each made in the
// size it needs when some of the grants are of that many owners.
func (b *bounded) fill(from *gathered, some *sample) {
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4) {
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(from); i = int(next.Add(1)) - 1 {
				if len(from[i]) == 0 {
					continue
				}
				p := make(map[owner]queue, len(from[i])*len(some.of)/some.n)
				for _, one := range from[i] {
					q := p[one.owner]
					q.enter(one.place)
					p[one.owner] = q
				}
				b.parts[i], from[i] = p, nil
			}
		})
	}
	workers.Wait()
}

// sample is whose the first grants are.
type sample struct {
	n  int
	of map[owner]struct{}
}

const sampled = 4096

// take takes a grant into the sample, if it is not large enough.
func (s *sample) take(b *bounded, g *relay.Grant) {
	if s.n == sampled {
		return
	}
	s.n++
	if o, counts := b.of(g); counts {
		if s.of == nil {
			s.of = map[owner]struct{}{}
		}
		s.of[o] = struct{}{}
	}
}

func (b *bounded) count(o owner) int { return int(b.part(o)[o].count) }

func (b *bounded) add(key relay.Key, g *relay.Grant) {
	o, counts := b.of(g)
	if !counts {
		return
	}
	p := b.part(o)
	q := p[o]
	q.enter(place{key, g.Login.UnixNano()})
	p[o] = q
}

// enter counts one more grant, and gives it its place.
func (q *queue) enter(p place) {
	q.count++
	q.mixed = q.mixed || p.login < q.last()
	q.push(p)
}

// remove takes one grant off its owner's count. Its place in the queue goes
// stale and is dropped when it is met, or when the stale ones outnumber the
// others.
func (b *bounded) remove(g *relay.Grant) {
	o, counts := b.of(g)
	part := b.part(o)
	q, ok := part[o]
	if !counts || !ok {
		return
	}
	if q.count--; q.count <= 0 {
		delete(part, o)
		return
	}
	if q.len() > 2*int(q.count)+16 {
		known := make(map[relay.Key]bool, q.count)
		for _, p := range q.take() {
			if _, ok := b.login(o, p.key); ok && !known[p.key] {
				known[p.key] = true
				q.push(p)
			}
		}
	}
	part[o] = q
}

// login tells the present login of a key, or false when the owner has no grant
// there (any more).
func (b *bounded) login(o owner, key relay.Key) (int64, bool) {
	g, ok := b.get(key)
	if !ok {
		return 0, false
	}
	now, counts := b.of(&g)
	return g.Login.UnixNano(), counts && now == o
}

// oldest gives the owner's oldest grant. One renewed since it was queued goes to
// the end.
func (b *bounded) oldest(o owner) (relay.Key, bool) {
	part := b.part(o)
	q, ok := part[o]
	if !ok {
		return relay.Key{}, false
	}
	if q.mixed {
		q.sort()
	}
	defer func() { part[o] = q }()
	for range 2*q.len() + 1 {
		p, ok := q.pop()
		if !ok {
			break
		}
		at, ok := b.login(o, p.key)
		switch {
		case !ok:
		case at > p.login:
			q.push(place{p.key, at})
		default:
			q.push(p) // its removal will be told; the place is stale then
			return p.key, true
		}
	}
	return relay.Key{}, false
}

// beyond gives the owners of more than so many grants.
func (b *bounded) beyond(most int) (over []owner) {
	for _, p := range b.parts {
		for o, q := range p {
			if int(q.count) > most {
				over = append(over, o)
			}
		}
	}
	return over
}

// room makes place for a new grant: the user's oldest goes when he has all he
// may have, or all he may have in one /64. Nobody crowds out another's. It
// answers false when the table as a whole is full.
func (l *Ledger) room(g *relay.Grant) bool {
	if user, counts := l.users.of(g); counts && l.rules.MaxGrantsPerUser > 0 {
		l.keep(l.users, user, l.rules.MaxGrantsPerUser-1)
	}
	if n, counts := l.nets.of(g); counts {
		l.keep(l.nets, n, MaxPer64-1)
	}
	return l.store.Len() < l.rules.MaxGrants
}

// keep leaves an owner at most so many grants, the latest.
func (l *Ledger) keep(b *bounded, o owner, most int) {
	for b.count(o) > most {
		key, ok := b.oldest(o)
		if !ok {
			return
		}
		l.forget(key)
	}
}

// seed keeps those who choose their names from making two owners one.
var seed = maphash.MakeSeed()

// ownerUser and ownerNet are what is bounded. The second is one user's grants in
// one IPv6 /64, which may be one host's changing addresses, unless they cover as
// much as that.
func ownerUser(g *relay.Grant) (o owner, counts bool) {
	if g.Operator || g.User == "" {
		return 0, false
	}
	return owner(maphash.String(seed, relay.FoldUser(g.User))), true
}

func ownerNet(g *relay.Grant) (o owner, counts bool) {
	if g.Operator || !g.Client.Is6() || g.Prefix <= 64 {
		return 0, false
	}
	a := g.Client.As16()
	return owner(maphash.Comparable(seed, struct {
		net  [8]byte
		user string
	}{[8]byte(a[:8]), relay.FoldUser(g.User)})), true
}

func (l *Ledger) index(key relay.Key, g *relay.Grant) {
	l.users.add(key, g)
	l.nets.add(key, g)
}

func (l *Ledger) unindex(g *relay.Grant) {
	l.users.remove(g)
	l.nets.remove(g)
}

// recent is a map that remembers the last n things put into it.
type recent[K comparable, V any] struct {
	max  int
	in   map[K]V
	ring []K
	next int
}

func newRecent[K comparable, V any](n int) *recent[K, V] { return &recent[K, V]{max: n, in: map[K]V{}} }

func (r *recent[K, V]) add(k K, v V) {
	_, known := r.in[k]
	r.in[k] = v
	if known {
		return
	}
	if len(r.ring) < r.max {
		r.ring = append(r.ring, k)
		return
	}
	delete(r.in, r.ring[r.next])
	r.ring[r.next] = k
	r.next = (r.next + 1) % r.max
}

func (r *recent[K, V]) take(k K) (V, bool) {
	v, ok := r.in[k]
	delete(r.in, k)
	return v, ok
}

func (r *recent[K, V]) forget(which func(K) bool) {
	maps.DeleteFunc(r.in, func(k K, _ V) bool { return which(k) })
}
