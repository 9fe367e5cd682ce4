package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"

	"popgate/internal/config"
)

// tuneMemory trades memory for time where the operator has not (GOGC,
// GOMEMLIMIT). Recipients make short-lived garbage, so room between two
// collections saves much time; but the room is a fixed one, not a multiple of
// a heap full of grants. The limit grows with the table's bound.
func tuneMemory(cfg *config.Config) {
	if os.Getenv("GOGC") == "" {
		tuneCollector()
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		const base, perGrant = 256 << 20, 1 << 10
		debug.SetMemoryLimit(base + int64(cfg.MaxGrants)*perGrant)
	}
}

const garbageRoom = 256 << 20 // bytes of garbage between two collections of a large heap

func gcPercent(live uint64) int {
	return int(min(400, max(50, garbageRoom*100/max(live, 1))))
}

// tuneCollector sets the collector's percentage anew after each collection, by
// what has survived it: the finalizer of a dead object runs then, and makes the
// next one.
var tuneCollector = sync.OnceFunc(func() {
	percent := gcPercent(0)
	debug.SetGCPercent(percent)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	type sentinel struct{ _ [32]byte }
	var collected func(*sentinel)
	collected = func(s *sentinel) {
		metrics.Read(live)
		if p := gcPercent(live[0].Value.Uint64()); p != percent {
			percent = p
			debug.SetGCPercent(p)
		}
		runtime.SetFinalizer(s, collected)
	}
	runtime.SetFinalizer(new(sentinel), collected)
})
