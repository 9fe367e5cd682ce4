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
	w := sweeper{s: s}
	next := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for range step {
			w.visit(next)
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

// sweeper is one goroutine's visit to shard after shard.
type sweeper struct {
	s    *Store
	dead []string // of the shard it is at
}

// visit takes out what is over in one shard, in two short steps so that neither
// keeps the shard's changes waiting for long; no look-up waits for more than
// the removal of one grant. What is allocated is allocated between the steps:
// there the garbage collector may make the sweeper wait.
func (w *sweeper) visit(i int) {
	s, h, now := w.s, &w.s.shard[i], w.s.now()
	w.dead = w.dead[:0]
	h.change.Lock()
	began := time.Now()
	for _, item := range h.items {
		if packed := item.Object.(string); over(packed, now) {
			w.dead = append(w.dead, packed)
		}
	}
	stay, peak := len(h.items)-len(w.dead), h.peak
	s.swept.hold(time.Since(began))
	h.change.Unlock()
	switch {
	case peak > 0 && stay <= peak/2:
		w.rebuild(h, stay, now)
	case len(w.dead) > 0:
		w.remove(h)
	}
	s.swept.removed.Add(uint64(len(w.dead)))
	if s.gone != nil {
		for _, packed := range w.dead {
			s.gone(s.unpack(packed))
		}
	}
	clear(w.dead)
}

// remove takes the dead out one by one, unless they were renewed or deleted
// since they were found.
func (w *sweeper) remove(h *shard) {
	h.change.Lock()
	began := time.Now()
	grants, n := h.grants.Load(), 0
	for _, packed := range w.dead {
		if item, ok := h.items[packed[:keySize]]; ok && item.Object.(string) == packed {
			grants.Delete(packed[:keySize])
			w.dead[n] = packed
			n++
		}
	}
	w.s.size.Add(-int64(n))
	w.s.swept.hold(time.Since(began))
	h.change.Unlock()
	clear(w.dead[n:])
	w.dead = w.dead[:n]
}

// rebuild moves those that stay into a map of their size, which look-ups find
// in one step, and so gives back the memory of the old one.
func (w *sweeper) rebuild(h *shard, stay int, now relay.Now) {
	items := make(map[string]gocache.Item, stay)
	w.dead = w.dead[:0]
	h.change.Lock()
	began := time.Now()
	for key, item := range h.items {
		if packed := item.Object.(string); over(packed, now) {
			w.dead = append(w.dead, packed)
		} else {
			items[key] = item
		}
	}
	h.use(items)
	w.s.size.Add(-int64(len(w.dead)))
	w.s.swept.hold(time.Since(began))
	h.change.Unlock()
}

// hold notes for how long the sweeper held a lock. There is one sweeper.
func (t *sweepStats) hold(d time.Duration) {
	if int64(d) > t.longest.Load() {
		t.longest.Store(int64(d))
	}
}
