package gate

import (
	"testing"
	"time"
)

func TestTookCountsEachDecisionOnceUpToItsTime(t *testing.T) {
	var g Gate
	for _, d := range []time.Duration{0, 10 * time.Microsecond, 11 * time.Microsecond, 500 * time.Millisecond, time.Hour} {
		g.took.add(d)
	}
	upTo, all, sum := g.Took()
	if all != 5 || sum != time.Hour+500*time.Millisecond+21*time.Microsecond {
		t.Errorf("%d decisions in %v, want 5 in 1h0m0.500021s", all, sum)
	}
	for i, want := range map[int]uint64{0: 2, 1: 3, 13: 3, 14: 4, len(Times) - 1: 4} {
		if upTo[i] != want {
			t.Errorf("%d decisions took at most %v, want %d", upTo[i], Times[i], want)
		}
	}
}
