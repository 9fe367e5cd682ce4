// Package cache keeps grants by key in memory.
//
// A look-up takes no lock that is ever held for longer than the change of one
// grant, allocates nothing and gives a grant until ten minutes after its end,
// so that a client whose grant has ended can be told from one that never had
// any. The store holds no opinion about who may relay: whether a grant that it
// gives still counts is for relay.Decide to say.
//
// A grant stays while it could still count by either clock. It is not
// guaranteed that one disappears at a given moment: the sweeper passes about
// once a minute.
package cache

import (
	"hash/maphash"
	"iter"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/relay"

	gocache "github.com/patrickmn/go-cache"
)

// Keep is for how long a grant stays in the store after its end.
const Keep = 10 * time.Minute

// shards is how many go-caches the grants are spread over. Go's maps double
// when seven of eight places are taken; this number, unlike a power of two,
// has them filled to 0.76 when they hold the default max_grants of a million.
const shards = 10240

// Options are what New can be told. The zero Options are fine.
type Options struct {
	// Gone is told of every grant the sweeper took out, from the sweeper's
	// goroutine and outside all locks. By then the key may hold a new grant.
	Gone func(relay.Grant)
	// Now reads the clocks by which grants end; its Mono is the one their
	// deadlines count on. Nil: the wall clock, and time since New.
	Now func() relay.Now
}

// Store holds grants by key. Its methods may be called by any number of
// goroutines at once.
type Store struct {
	gone  func(relay.Grant)
	now   func() relay.Now
	seed  maphash.Seed // nobody outside can aim at one shard
	words words
	size  atomic.Int64
	swept sweepStats
	shard [shards]shard
}

// A shard is one go-cache. Every change is made under change, so whoever holds
// it may also read items, the map that grants uses, past go-cache's own lock:
// nobody writes to it then, and look-ups only read. That way the sweeper and
// All walk a shard without keeping a single look-up waiting.
//
// The go-cache has no janitor (its sweep holds the lock for the whole map and
// can't be stopped) and its lifetimes are not used: it reads the wall clock
// alone, so a step forward would lose grants that live on when the clock is
// set right, and it keeps a negative lifetime for ever.
type shard struct {
	change sync.Mutex
	items  map[string]gocache.Item
	peak   int // most grants since items was made; maps never shrink
	grants atomic.Pointer[gocache.Cache]
}

// New makes an empty store.
func New(o Options) *Store {
	s := &Store{gone: o.Gone, now: o.Now, seed: maphash.MakeSeed()}
	if s.now == nil {
		start := time.Now()
		s.now = func() relay.Now {
			t := time.Now()
			return relay.Now{Wall: t, Mono: t.Sub(start)}
		}
	}
	for i := range s.shard {
		s.shard[i].use(map[string]gocache.Item{})
	}
	return s
}

// use makes items the shard's map. Look-ups that are under way finish in the
// one they began with.
func (h *shard) use(items map[string]gocache.Item) {
	h.items, h.peak = items, len(items)
	h.grants.Store(gocache.NewFrom(gocache.NoExpiration, 0, items))
}

func (s *Store) at(k *relay.Key) *shard { return &s.shard[s.shardOf(k)] }

func (s *Store) shardOf(k *relay.Key) int {
	h := maphash.Bytes(s.seed, k[:])
	return int((h >> 32) * shards >> 32)
}

// Get gives the grant of a key, live or ended.
func (s *Store) Get(k relay.Key) (relay.Grant, bool) {
	v, ok := s.at(&k).grants.Load().Get(string(k[:]))
	if !ok {
		return relay.Grant{}, false
	}
	return s.unpack(v.(string)), true
}

// Put keeps a grant under a key, and gives back the one it takes the place of.
// Times come back in UTC and without a monotonic part; what lies outside the
// years 1678 to 2262 comes back as the nearest time inside.
func (s *Store) Put(k relay.Key, g relay.Grant) (before relay.Grant, had bool) {
	packed := s.pack(&k, &g)
	h := s.at(&k)
	h.change.Lock()
	defer h.change.Unlock()
	if item, ok := h.items[string(k[:])]; ok {
		before, had = s.unpack(item.Object.(string)), true
	}
	h.grants.Load().Set(packed[:len(k)], packed, gocache.NoExpiration)
	if !had {
		s.size.Add(1)
		h.peak = max(h.peak, len(h.items))
	}
	return before, had
}

// Delete forgets the grant of a key and gives it back, if there is one.
func (s *Store) Delete(k relay.Key) (before relay.Grant, had bool) {
	h := s.at(&k)
	h.change.Lock()
	defer h.change.Unlock()
	item, ok := h.items[string(k[:])]
	if !ok {
		return relay.Grant{}, false
	}
	h.grants.Load().Delete(string(k[:]))
	s.size.Add(-1)
	return s.unpack(item.Object.(string)), true
}

// Len gives how many grants are kept, those that have ended among them.
func (s *Store) Len() int { return int(s.size.Load()) }

// All gives every grant in no particular order, those that have ended among
// them. No lock is held while one is handed out, so it may take its time and
// may call the store; a grant that comes or goes meanwhile may be missed, and
// one may come as it was a moment ago, when its shard was read.
func (s *Store) All() iter.Seq2[relay.Key, relay.Grant] {
	return func(yield func(relay.Key, relay.Grant) bool) {
		for packed := range s.packed() {
			if !yield(relay.Key([]byte(packed[:keySize])), s.unpack(packed)) {
				return
			}
		}
	}
}

// Some gives every grant as All does, but up to n (at least 1) at a time, which
// takes less time than one after the other. The slice is used again for the next ones.
func (s *Store) Some(n int) iter.Seq[[]relay.Grant] {
	return func(yield func([]relay.Grant) bool) {
		packed, grants := make([]string, 0, n), make([]relay.Grant, 0, n)
		give := func() bool {
			touch(packed)
			grants = grants[:0]
			for _, p := range packed {
				grants = append(grants, s.unpack(p))
			}
			packed = packed[:0]
			return yield(grants)
		}
		for p := range s.packed() {
			if packed = append(packed, p); len(packed) == n && !give() {
				return
			}
		}
		if len(packed) > 0 {
			give()
		}
	}
}

// packed gives every grant as the store keeps it.
func (s *Store) packed() iter.Seq[string] {
	return func(yield func(string) bool) {
		var batch []string
		for i := range s.shard {
			h := &s.shard[i]
			batch = batch[:0]
			h.change.Lock()
			for _, item := range h.items {
				batch = append(batch, item.Object.(string))
			}
			h.change.Unlock()
			for _, packed := range batch {
				if !yield(packed) {
					return
				}
			}
		}
	}
}

// touch has the processor fetch what will be read, all of it at a time: nothing
// here waits for what comes. One after the other each would be waited for.
func touch(packed []string) {
	sum := byte(0)
	for _, p := range packed {
		sum ^= p[0] ^ p[len(p)-1]
	}
	runtime.KeepAlive(sum)
}
