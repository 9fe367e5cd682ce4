package gate

import (
	"sync/atomic"
	"time"
)

// Times are the upper bounds by which decisions are counted by the time they
// took, with waiting: an answer at once is in the first few, a wait for a login
// in the last.
var Times = [...]time.Duration{
	10 * time.Microsecond, 25 * time.Microsecond, 50 * time.Microsecond, 100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2500 * time.Millisecond,
}

// took counts decisions by the time they took.
type took struct {
	counts [len(Times) + 1]atomic.Uint64 // up to each of Times, and longer
	sum    atomic.Int64
}

func (t *took) add(d time.Duration) {
	i := 0
	for i < len(Times) && d > Times[i] {
		i++
	}
	t.counts[i].Add(1)
	t.sum.Add(int64(d))
}

// Took gives how many decisions took at most each of Times, how many there
// were in all, and how long they took together.
func (g *Gate) Took() (upTo [len(Times)]uint64, all uint64, sum time.Duration) {
	for i := range g.took.counts {
		all += g.took.counts[i].Load()
		if i < len(upTo) {
			upTo[i] = all
		}
	}
	return upTo, all, time.Duration(g.took.sum.Load())
}

// Answered gives how many decisions there were in all.
func (g *Gate) Answered() uint64 {
	_, all, _ := g.Took()
	return all
}
