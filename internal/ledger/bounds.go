package ledger

import (
	"maps"

	"popgate/internal/relay"
)

// bounded counts the grants of each owner (a user, a network) and knows about
// how old they are: a queue an owner, oldest login first, whose stale places
// are skipped when they come to the front.
type bounded[K comparable] struct{ owners map[K]*queue }

type queue struct {
	count int // grants in the store
	keys  []place
}

type place struct {
	key   relay.Key
	login int64 // Unix nanoseconds of the login that queued it
}

func newBounded[K comparable]() *bounded[K] { return &bounded[K]{map[K]*queue{}} }

func (b *bounded[K]) count(k K) int {
	if q := b.owners[k]; q != nil {
		return q.count
	}
	return 0
}

func (b *bounded[K]) add(k K, key relay.Key, login int64) {
	q := b.owners[k]
	if q == nil {
		q = &queue{}
		b.owners[k] = q
	}
	q.count++
	q.keys = append(q.keys, place{key, login})
}

// remove takes one grant off the owner's count. Its place in the queue goes
// stale and is dropped when it is met, or when the stale ones outnumber the
// others. login is as for oldest.
func (b *bounded[K]) remove(k K, login func(relay.Key) (int64, bool)) {
	q := b.owners[k]
	if q == nil {
		return
	}
	if q.count--; q.count <= 0 {
		delete(b.owners, k)
		return
	}
	if len(q.keys) <= 2*q.count+16 {
		return
	}
	kept := make([]place, 0, q.count)
	known := make(map[relay.Key]bool, q.count)
	for _, p := range q.keys {
		if _, ok := login(p.key); ok && !known[p.key] {
			known[p.key] = true
			kept = append(kept, p)
		}
	}
	q.keys = kept
}

// oldest gives the owner's oldest grant. login tells the present login of a
// key, or false when the owner has no grant there (any more). A grant renewed
// since it was queued goes to the end.
func (b *bounded[K]) oldest(k K, login func(relay.Key) (int64, bool)) (relay.Key, bool) {
	q := b.owners[k]
	if q == nil {
		return relay.Key{}, false
	}
	for range 2*len(q.keys) + 1 {
		if len(q.keys) == 0 {
			break
		}
		p := q.keys[0]
		q.keys = q.keys[1:]
		at, ok := login(p.key)
		switch {
		case !ok:
		case at > p.login:
			q.keys = append(q.keys, place{p.key, at})
		default:
			q.keys = append(q.keys, p) // its removal will be told; the place is stale then
			return p.key, true
		}
	}
	return relay.Key{}, false
}

// room makes place for a new grant: the user's oldest goes when he has all he
// may have, or all he may have in one /64. Nobody crowds out another's. It
// answers false when the table as a whole is full.
func (l *Ledger) room(g *relay.Grant) bool {
	if m := l.rules.MaxGrantsPerUser; m > 0 && g.User != "" && !g.Operator {
		user := relay.FoldUser(g.User)
		for l.users.count(user) >= m {
			if !l.evict(l.users.oldest(user, l.loginOf(user))) {
				break
			}
		}
	}
	if n, ok := neighboursOf(g); ok {
		for l.nets.count(n) >= MaxPer64 {
			if !l.evict(l.nets.oldest(n, l.loginIn(n))) {
				break
			}
		}
	}
	return l.store.Len() < l.rules.MaxGrants
}

func (l *Ledger) evict(key relay.Key, ok bool) bool {
	if ok {
		l.forget(key)
	}
	return ok
}

// loginOf and loginIn say when the grant of a key logged in, if the owner has
// one there.
func (l *Ledger) loginOf(user string) func(relay.Key) (int64, bool) {
	return func(k relay.Key) (int64, bool) {
		g, ok := l.store.Get(k)
		return g.Login.UnixNano(), ok && !g.Operator && relay.FoldUser(g.User) == user
	}
}

func (l *Ledger) loginIn(n neighbours) func(relay.Key) (int64, bool) {
	return func(k relay.Key) (int64, bool) {
		g, ok := l.store.Get(k)
		m, in := neighboursOf(&g)
		return g.Login.UnixNano(), ok && in && m == n
	}
}

// neighbours are one user's grants in one IPv6 /64, which may be one host's
// changing addresses.
type neighbours struct {
	user string
	net  [8]byte
}

// neighboursOf tells of a grant that covers less than a /64.
func neighboursOf(g *relay.Grant) (n neighbours, ok bool) {
	if g.Operator || !g.Client.Is6() || g.Prefix <= 64 {
		return n, false
	}
	a := g.Client.As16()
	copy(n.net[:], a[:8])
	n.user = relay.FoldUser(g.User)
	return n, true
}

func (l *Ledger) index(key relay.Key, g *relay.Grant) {
	if g.Operator {
		return
	}
	at := g.Login.UnixNano()
	if g.User != "" {
		l.users.add(relay.FoldUser(g.User), key, at)
	}
	if n, ok := neighboursOf(g); ok {
		l.nets.add(n, key, at)
	}
}

func (l *Ledger) unindex(g *relay.Grant) {
	if g.Operator {
		return
	}
	if g.User != "" {
		user := relay.FoldUser(g.User)
		l.users.remove(user, l.loginOf(user))
	}
	if n, ok := neighboursOf(g); ok {
		l.nets.remove(n, l.loginIn(n))
	}
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
