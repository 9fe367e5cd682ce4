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
	ends := make([]int, shards) // of each shard's part of sorted
	all, total := s.gather(grants, ends)
	sum := 0
	for i, n := range ends {
		ends[i], sum = sum, sum+n
	}
	sorted := make([]string, total)
	for _, some := range all {
		for _, p := range some {
			sorted[ends[p.shard]] = p.grant
			ends[p.shard]++
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

// packed is a grant on its way to its shard.
type packed struct {
	grant string
	shard int32
}

// gather packs grants, and counts how many go to each shard. They are packed
// beside the reading of the next ones, which takes about as long.
func (s *Store) gather(grants iter.Seq[relay.Grant], counts []int) (all [][]packed, total int) {
	const atOnce = 1 << 10
	read := make(chan []relay.Grant, 4)
	done := make(chan []relay.Grant, 8) // to be filled again
	var packer sync.WaitGroup
	packer.Go(func() {
		for some := range read {
			out := make([]packed, len(some)) // one slice of all would be copied again and again
			for i := range some {
				k := some[i].Key()
				n := s.shardOf(&k)
				out[i] = packed{s.pack(&k, &some[i]), int32(n)}
				counts[n]++
			}
			all = append(all, out)
			total += len(some)
			done <- some[:0]
		}
	})
	some := make([]relay.Grant, 0, atOnce)
	for g := range grants {
		if some = append(some, g); len(some) == atOnce {
			read <- some
			select {
			case some = <-done:
			default:
				some = make([]relay.Grant, 0, atOnce)
			}
		}
	}
	read <- some
	close(read)
	packer.Wait()
	return all, total
}

// fillShard puts what is packed in one shard's map, made anew in the size it
// needs, and gives back what goes under keys that are taken.
func (s *Store) fillShard(h *shard, part []string) (twice []string) {
	if len(part) == 0 {
		return nil
	}
	touch(part)
	items := make(map[string]gocache.Item, len(h.items)+len(part))
	for _, packed := range part {
		items[packed[:keySize]] = gocache.Item{Object: packed}
	}
	if len(h.items) > 0 || len(items) < len(part) { // seldom, and so not looked for one by one
		items, twice = s.fillTaken(h, part)
	}
	h.change.Lock()
	defer h.change.Unlock()
	s.size.Add(int64(len(items) - len(h.items)))
	h.use(items)
	return twice
}

// fillTaken is fillShard's work where a key may be taken.
func (s *Store) fillTaken(h *shard, part []string) (items map[string]gocache.Item, twice []string) {
	items = make(map[string]gocache.Item, len(h.items)+len(part))
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
	return items, twice
}

// settle decides between grants of one key, and tells what is kept.
func (s *Store) settle(h *shard, twice []string, wins func(g, before *relay.Grant) bool, kept func(relay.Key, *relay.Grant)) {
	for _, packed := range twice {
		g, before := s.unpack(packed), s.unpack(h.items[packed[:keySize]].Object.(string))
		if wins(&g, &before) {
			h.grants.Load().Set(packed[:keySize], packed, gocache.NoExpiration)
		}
	}
	var g relay.Grant
	for _, item := range h.items {
		packed := item.Object.(string)
		g = s.unpack(packed)
		kept(relay.Key([]byte(packed[:keySize])), &g)
	}
}
