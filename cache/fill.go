package cache

import (
	"iter"
	"runtime"
	"sync"
	"sync/atomic"

	"popgate/internal/relay"

	gocache "github.com/patrickmn/go-cache"
)

// Fill keeps many grants at once, as a start with saved ones needs it: they are
// gathered and put in the order of their shards, and each shard gets a map of
// its size, whereas Put would look at a cold shard for each of them and have it
// grow. All of grants is read before the first of them can be found. Nobody may
// change the store meanwhile.
//
// wins says whether g takes the place of the grant before it under the same key,
// and kept is told of every grant the store holds in the end. Both are called by
// one goroutine at a time, but not always the same.
func (s *Store) Fill(grants iter.Seq[relay.Grant], wins func(g, before *relay.Grant) bool, kept func(relay.Key, *relay.Grant)) {
	type waiting struct {
		packed string
		shard  int32
	}
	const chunk = 1 << 14 // one slice of all would be copied again and again
	var all [][]waiting
	total := 0
	ends := make([]int, shards) // of each shard's part of sorted
	for g := range grants {
		k := g.Key()
		i := s.shardOf(&k)
		if total%chunk == 0 {
			all = append(all, make([]waiting, 0, chunk))
		}
		last := &all[len(all)-1]
		*last = append(*last, waiting{s.pack(&k, &g), int32(i)})
		total++
		ends[i]++
	}
	sum := 0
	for i, n := range ends {
		ends[i], sum = sum, sum+n
	}
	sorted := make([]string, total)
	for _, some := range all {
		for _, w := range some {
			sorted[ends[w.shard]] = w.packed
			ends[w.shard]++
		}
	}
	all = nil
	var next atomic.Int64
	var asking sync.Mutex
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), 4) { // more would wait for kept
		workers.Go(func() {
			for i := int(next.Add(1)) - 1; i < shards; i = int(next.Add(1)) - 1 {
				from := 0
				if i > 0 {
					from = ends[i-1]
				}
				h := &s.shard[i]
				twice := s.fillShard(h, sorted[from:ends[i]])
				asking.Lock()
				s.settle(h, twice, wins, kept)
				asking.Unlock()
			}
		})
	}
	workers.Wait()
}

// fillShard puts what is packed in one shard's map, made anew in the size it
// needs, and gives back what goes under keys that are taken.
func (s *Store) fillShard(h *shard, part []string) (twice []string) {
	if len(part) == 0 {
		return nil
	}
	items := make(map[string]gocache.Item, len(h.items)+len(part))
	for key, item := range h.items {
		items[key] = item
	}
	for _, packed := range part {
		if _, taken := items[packed[:keySize]]; taken {
			twice = append(twice, packed)
			continue
		}
		items[packed[:keySize]] = gocache.Item{Object: packed}
	}
	h.change.Lock()
	defer h.change.Unlock()
	s.size.Add(int64(len(items) - len(h.items)))
	h.use(items)
	return twice
}

// settle decides between grants of one key, and tells what is kept.
func (s *Store) settle(h *shard, twice []string, wins func(g, before *relay.Grant) bool, kept func(relay.Key, *relay.Grant)) {
	for _, packed := range twice {
		g, before := s.unpack(packed), s.unpack(h.items[packed[:keySize]].Object.(string))
		if wins(&g, &before) {
			h.grants.Load().Set(packed[:keySize], packed, gocache.NoExpiration)
		}
	}
	for _, item := range h.items {
		packed := item.Object.(string)
		g := s.unpack(packed)
		kept(relay.Key([]byte(packed[:keySize])), &g)
	}
}
