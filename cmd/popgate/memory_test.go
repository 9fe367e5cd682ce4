package main

import "testing"

func TestGarbageRoomDoesNotGrowWithTheGrants(t *testing.T) {
	for live, want := range map[uint64]int{0: 400, 10 << 20: 400, 64 << 20: 400, 128 << 20: 200, 256 << 20: 100, 1 << 30: 50, 8 << 30: 50} {
		if got := gcPercent(live); got != want {
			t.Errorf("gcPercent(%d MiB) = %d, want %d", live>>20, got, want)
		}
	}
}

func TestMemoryIsGivenBackWhereThatIsWorthACollection(t *testing.T) {
	const mib = 1 << 20
	for _, tt := range []struct {
		name       string
		idle, live uint64
		want       bool
	}{
		{"after a burst of connections", 40 * mib, 20 * mib, true},
		{"a little of a small heap", 7 * mib, 1 * mib, false},
		{"a tenth of a million grants", 24 * mib, 240 * mib, false},
		{"half of a million grants", 120 * mib, 240 * mib, true},
	} {
		if got := worthGivingBack(tt.idle, tt.live); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
