package cache

import (
	"context"
	"sync/atomic"
	"time"

	"popgate/internal/relay"

	gocache "github.com/patrickmn/go-cache"
)

// The sweeper visits step shards at a time, so often that a round takes a minute.
const (
	round = time.Minute
	step  = 64
)

// SweepStats tells what the sweeper has done so far.
type SweepStats struct {
	Rounds  uint64        // over all shards
	Removed uint64        // grants taken out
	Longest time.Duration // by the wall, for which it kept the changes of a shard waiting
}

type sweepStats struct {
	rounds, removed atomic.Uint64
	longest         atomic.Int64
}

// SweepStats gives what the sweeper has done so far.
func (s *Store) SweepStats() SweepStats {
	return SweepStats{s.swept.rounds.Load(), s.swept.removed.Load(), time.Duration(s.swept.longest.Load())}
}

// Sweep takes out grants that ended ten minutes ago, a few shards at a time,
// until ctx ends. It is the only goroutine a store has, and returns nil.
func (s *Store) Sweep(ctx context.Context) error {
	tick := time.NewTicker(round / (shards / step))
	defer tick.Stop()
	next := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for range step {
			s.sweepShard(next)
			next++
		}
		if next >= shards {
			next = 0
			s.swept.rounds.Add(1)
		}
	}
}

// over says whether a grant may be forgotten: it has ended for good, and ten
// minutes have passed since by one of the clocks.
//
// Only the clock that runs forward can say "for good". By the wall clock alone
// a step forward would end every grant, and they'd be missing when the clock is
// set right again. By both clocks' ten minutes a step backward would fill the
// store with dead grants until the wall clock comes round again.
func over(packed string, now relay.Now) bool {
	end := deadline(packed)
	if now.Mono < end {
		return false
	}
	return now.Mono-end >= Keep || now.Wall.Sub(fromNanos(expires(packed))) >= Keep
}

// sweepShard takes out what is over in one shard. The scan keeps changes of
// that shard waiting, but no look-up. A few grants are then removed one by one;
// when most are to go, those that stay move into a map of their size, which
// look-ups find in one step, and the memory of the old one is given back.
func (s *Store) sweepShard(i int) {
	h := &s.shard[i]
	now := s.now()
	h.change.Lock()
	began := time.Now()
	if h.peak == 0 {
		h.change.Unlock()
		return
	}
	var dead []string
	for _, item := range h.items {
		if packed := item.Object.(string); over(packed, now) {
			dead = append(dead, packed)
		}
	}
	if stay := len(h.items) - len(dead); stay <= h.peak/2 {
		items := make(map[string]gocache.Item, stay)
		if stay > 0 {
			for key, item := range h.items {
				if !over(item.Object.(string), now) {
					items[key] = item
				}
			}
		}
		h.use(items)
	} else {
		grants := h.grants.Load()
		for _, packed := range dead {
			grants.Delete(packed[:keySize])
		}
	}
	s.size.Add(-int64(len(dead)))
	s.swept.hold(time.Since(began))
	h.change.Unlock()
	s.swept.removed.Add(uint64(len(dead)))
	if s.gone != nil {
		for _, packed := range dead {
			s.gone(s.unpack(packed))
		}
	}
}

// hold notes for how long the sweeper held a lock. There is one sweeper.
func (t *sweepStats) hold(d time.Duration) {
	if int64(d) > t.longest.Load() {
		t.longest.Store(int64(d))
	}
}
