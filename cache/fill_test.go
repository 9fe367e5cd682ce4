package cache

import (
	"maps"
	"testing"
	"time"

	"popgate/internal/relay"
)

// What is filled in at once is what one Put after the other would have left,
// beside what was there.
func TestFillAgreesWithPut(t *testing.T) {
	c := &clocks{now: relay.Now{Wall: start}}
	want := map[relay.Key]relay.Grant{}
	filled := New(Options{Now: c.read})
	before := c.grant(address(3), time.Minute)
	filled.Put(before.Key(), before)
	want[before.Key()] = before
	kept := map[relay.Key]relay.Grant{}
	filled.Fill(func(yield func(relay.Grant) bool) {
		for i := range 30_000 {
			g := c.grant(address(i%20_000), time.Duration(i*7919%3600)*time.Second)
			yield(g)
			if b, had := want[g.Key()]; !had || g.Deadline > b.Deadline {
				want[g.Key()] = g
			}
		}
		if n := filled.Len(); n != 1 {
			t.Errorf("%d grants in the store while they are read, want the one from before", n)
		}
	}, func(g, before *relay.Grant) bool {
		if g.Key() != before.Key() {
			t.Errorf("asked to choose between %v and %v", g.Client, before.Client)
		}
		return g.Deadline > before.Deadline
	}, func(k relay.Key, g *relay.Grant) {
		if _, twice := kept[k]; twice {
			t.Errorf("%v was told twice", g.Client)
		}
		kept[k] = *g
	})
	if !maps.Equal(kept, want) {
		t.Errorf("told of %d grants, want %d, each as it is kept", len(kept), len(want))
	}
	if got := maps.Collect(filled.All()); !maps.Equal(got, want) || filled.Len() != len(want) {
		t.Errorf("%d grants are kept, Len %d, want %d", len(got), filled.Len(), len(want))
	}
	for k, g := range want {
		if got, ok := filled.Get(k); !ok || got != g {
			t.Fatalf("Get = %+v, %v, want %+v", got, ok, g)
		}
	}
	c.pass(time.Hour + Keep)
	if sweepAll(filled); filled.Len() != 0 {
		t.Errorf("%d grants are kept after all have ended", filled.Len())
	}
}
