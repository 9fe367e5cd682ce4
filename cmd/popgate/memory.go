package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"sync"
	"time"

	"popgate/internal/config"
)

// tuneMemory trades memory for time where the operator has not (GOGC,
// GOMEMLIMIT). Recipients make short-lived garbage, so room between two
// collections saves much time; but the room is a fixed one, not a multiple of
// a heap full of grants, and goes back to the system where nobody uses it. The
// limit grows with the table's bound.
func tuneMemory(cfg *config.Config) {
	if os.Getenv("GOGC") == "" {
		tuneCollector()
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		const base, perGrant = 256 << 20, 1 << 10
		debug.SetMemoryLimit(base + int64(cfg.MaxGrants)*perGrant)
	}
}

// tuneProcessors lets twice as many goroutines run at one time as there are
// processors, where the operator has not said how many (GOMAXPROCS). Who answers
// MTAs sleeps in the kernel, and is woken by it; with a place of his own he goes
// on at once, be the processors as busy as they like with lists, logs or the
// collector, and the kernel is a better judge of who was waiting than the
// runtime, which lets everybody go on for 10 ms. For the same reason the runtime
// need not take places away from those who sleep, which costs more than a place.
//
// Where the runtime makes do with fewer than all processors because of a quota
// (CPUQuota= of systemd), it is let be: it follows the quota, also when that is
// changed, and more threads would only use it up sooner, after which all stand
// still until the next period.
var tuneProcessors = sync.OnceFunc(func() {
	if n := runtime.GOMAXPROCS(0); os.Getenv("GOMAXPROCS") == "" && n >= runtime.NumCPU() {
		runtime.GOMAXPROCS(2 * n)
	}
})

// uncollected does what makes much that stays and little that does not, as
// reading a million saved grants does: to look through what stays again and again
// while it grows would take a quarter of the time. The memory limit still holds.
func uncollected(do func()) {
	if os.Getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(-1))
	}
	do()
}

// tidyUp gives back to the system what a start has left of such reading, beside
// whatever else goes on.
func tidyUp() {
	const much = 64 << 20 // some hundred thousand grants
	made := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	if metrics.Read(made); made[0].Value.Uint64() > much {
		go debug.FreeOSMemory()
	}
}

const garbageRoom = 256 << 20 // bytes of garbage between two collections of a large heap

func gcPercent(live uint64) int {
	return int(min(400, max(50, garbageRoom*100/max(live, 1))))
}

// Where nothing is allocated the collector comes round every two minutes.
const atRest = 110 * time.Second

// worthGivingBack says whether memory that lies idle is worth another
// collection, which giving it back to the system begins with.
func worthGivingBack(idle, live uint64) bool { return idle > max(8<<20, live/4) }

// tuneCollector sets the collector's percentage anew after each collection, by
// what has survived it: the finalizer of a dead object runs then, and makes the
// next one. A daemon at rest gives back what its last burst of work left.
var tuneCollector = sync.OnceFunc(func() {
	percent := gcPercent(0)
	debug.SetGCPercent(percent)
	read := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/free:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}}
	type sentinel struct{ _ [32]byte }
	last := time.Now()
	var collected func(*sentinel)
	collected = func(s *sentinel) {
		metrics.Read(read)
		live, idle := read[0].Value.Uint64(), read[1].Value.Uint64()+read[2].Value.Uint64()
		if p := gcPercent(live); p != percent {
			percent = p
			debug.SetGCPercent(p)
		}
		runtime.SetFinalizer(s, collected)
		rested := time.Since(last) > atRest
		last = time.Now()
		if rested && worthGivingBack(idle, live) {
			go debug.FreeOSMemory() // it waits for finalizers
		}
	}
	runtime.SetFinalizer(new(sentinel), collected)
})
