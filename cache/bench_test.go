package cache

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"popgate/internal/relay"

	gocache "github.com/patrickmn/go-cache"
	"golang.org/x/sys/unix"
)

const million = 1_000_000

// grants is how many a benchmark fills a store with that can do with any number:
// a million, or POPGATE_GRANTS.
func grants(b *testing.B) int {
	n, err := strconv.Atoi(cmp.Or(os.Getenv("POPGATE_GRANTS"), strconv.Itoa(million)))
	if err != nil || n < 1 {
		b.Fatalf("POPGATE_GRANTS=%s is no number of grants", os.Getenv("POPGATE_GRANTS"))
	}
	return n
}

// likeALogin is a grant as a Dovecot login makes it, its own texts fresh.
func likeALogin(i int) relay.Grant {
	client := address(i)
	return relay.Grant{Client: client, Prefix: uint8(client.BitLen()), Service: relay.IMAP, User: fmt.Sprintf("user%06d@example.org", i),
		Source: "file:/var/log/mail.log", Format: "dovecot", Session: fmt.Sprintf("dQxY%012dAA", i),
		Login: start, Expires: start.Add(30 * time.Minute), Deadline: 30 * time.Minute}
}

func filled(n int, o Options) *Store {
	s := New(o)
	for i := range n {
		g := likeALogin(i)
		s.Put(g.Key(), g)
	}
	return s
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// perGrant measures both ways of keeping so many grants in one run.
func perGrant(n int) (ours, plain float64) {
	before := heap()
	s := filled(n, Options{})
	ours = float64(heap()-before) / float64(n)
	runtime.KeepAlive(s)
	s = nil
	before = heap()
	c := gocache.New(time.Hour, 0)
	for i := range n {
		g := likeALogin(i)
		k := g.Key()
		c.Set(string(k[:]), g, time.Hour)
	}
	plain = float64(heap()-before) / float64(n)
	runtime.KeepAlive(c)
	return ours, plain
}

func TestGrantTakesThreeQuartersOfAPlainOne(t *testing.T) {
	if testing.Short() || raced {
		t.Skip("fills a million grants twice, without the race detector")
	}
	ours, plain := perGrant(million)
	t.Logf("%.1f bytes a grant, %.1f in one go-cache of structs: %.2f", ours, plain, ours/plain)
	if ours > 0.75*plain {
		t.Errorf("%.1f bytes a grant, more than 0.75 of %.1f", ours, plain)
	}
}

func TestMemoryComesBackAfterMassExpiry(t *testing.T) {
	if testing.Short() || raced {
		t.Skip("fills a million grants, without the race detector")
	}
	kept, full, left := massExpiry(million)
	t.Logf("%d MB with a million grants, %.1f MB when they have expired", full>>20, float64(left)/(1<<20))
	if kept != 0 || left > 16<<20 {
		t.Errorf("%d grants and %d MB left, want none and at most 16 MB", kept, left>>20)
	}
}

// massExpiry has so many grants end at once, and gives how many are left and
// what the heap had more than before, with them and after them.
func massExpiry(n int) (kept int, full, left int64) {
	c := &clocks{now: relay.Now{Wall: start}}
	before := heap()
	s := filled(n, Options{Now: c.read})
	full = heap() - before
	c.pass(30*time.Minute + Keep)
	sweepAll(s)
	left = heap() - before
	kept = s.Len()
	runtime.KeepAlive(s)
	return kept, full, left
}

func BenchmarkGet(b *testing.B) {
	s := filled(million, Options{})
	for _, bb := range []struct {
		name string
		from int
	}{{"hit", 0}, {"miss", million}} {
		keys := make([]relay.Key, 1<<16)
		for i := range keys {
			g := likeALogin(bb.from + i*15%million)
			keys[i] = g.Key()
		}
		b.Run(bb.name, func(b *testing.B) {
			b.ReportAllocs()
			i, found := 0, 0
			for b.Loop() {
				if _, ok := s.Get(keys[i&65535]); ok {
					found++
				}
				i++
			}
			if (found > 0) != (bb.from == 0) {
				b.Errorf("found %d of %d", found, i)
			}
		})
	}
}

func BenchmarkPut(b *testing.B) {
	s := filled(million, Options{})
	gs := make([]relay.Grant, 1<<16)
	for i := range gs {
		gs[i] = likeALogin(i * 15 % million)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		g := &gs[i&65535]
		s.Put(g.Key(), *g)
		i++
	}
}

func BenchmarkBytesPerGrant(b *testing.B) {
	for b.Loop() {
		ours, plain := perGrant(grants(b))
		b.ReportMetric(ours, "B/grant")
		b.ReportMetric(plain, "B/plain")
		b.ReportMetric(ours/plain, "ratio")
	}
}

func BenchmarkExpired(b *testing.B) {
	for b.Loop() {
		kept, full, left := massExpiry(grants(b))
		if kept != 0 {
			b.Fatalf("%d grants left, want none", kept)
		}
		b.ReportMetric(float64(full)/1e6, "full-MB")
		b.ReportMetric(float64(left)/1e6, "left-MB")
	}
}

// BenchmarkCollection is a full round of the garbage collector with a store full
// of grants.
func BenchmarkCollection(b *testing.B) {
	before := heap()
	s := filled(grants(b), Options{})
	alive, took := float64(heap()-before)/1e6, []time.Duration{}
	for b.Loop() {
		for range 5 {
			began := time.Now()
			runtime.GC()
			took = append(took, time.Since(began))
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1e3, "collection-ms")
	b.ReportMetric(alive, "alive-MB")
	runtime.KeepAlive(s)
}

// BenchmarkLookUp tells what BenchmarkGet can't, how much a look-up's time
// varies: one operation is a million of them, timed in blocks, as a clock that
// is read for each would tell more of itself.
func BenchmarkLookUp(b *testing.B) {
	n := grants(b)
	s := filled(n, Options{})
	keys := make([]relay.Key, 1<<16)
	random := rand.New(rand.NewPCG(1, 2))
	for i := range keys {
		g := likeALogin(random.IntN(n))
		keys[i] = g.Key()
	}
	const block = 64
	took := make([]time.Duration, 0, 1<<20)
	var before, after runtime.MemStats
	allocated, lookUps := uint64(0), 0
	for b.Loop() {
		runtime.ReadMemStats(&before)
		for i := 0; i < million; i += block {
			began := time.Now()
			for j := range block {
				if _, ok := s.Get(keys[(i+j)&65535]); !ok {
					b.Fatal("a grant is missing")
				}
			}
			if lookUps += block; len(took) < cap(took) {
				took = append(took, time.Since(began)/block)
			}
		}
		runtime.ReadMemStats(&after)
		allocated += after.Mallocs - before.Mallocs
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds()), "look-up-p50-ns")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds()), "look-up-p99-ns")
	b.ReportMetric(float64(allocated/uint64(lookUps)), "look-up-allocs")
}

// BenchmarkSweepOfAMillion has a million grants expire at once while
// connections look up, and reports the longest hold of a shard's lock (by the
// wall, with whatever else the machine did meanwhile, and by the processor
// time of the whole visit of a shard) and what the look-ups felt of it.
func BenchmarkSweepOfAMillion(b *testing.B) {
	for _, part := range []int{100, 10, 2} { // one in so many lives on
		name := strings.ReplaceAll(fmt.Sprintf("1 in %d lives on", part), " ", "_")
		b.Run(name, func(b *testing.B) {
			var longest, work, worst, p9999, stalls float64
			for b.Loop() {
				b.StopTimer()
				c := &clocks{now: relay.Now{Wall: start}}
				s := filled(million, Options{Now: c.read})
				for i := 0; i < million; i += part {
					g := likeALogin(i)
					g.Expires, g.Deadline = g.Expires.Add(time.Hour), g.Deadline+time.Hour
					s.Put(g.Key(), g)
				}
				c.pass(30*time.Minute + Keep)
				runtime.GC()
				b.StartTimer()
				took := lookUpsWhile(s, func() {
					w := sweeper{s: s}
					for i := range s.shard {
						work = max(work, processorTime(func() { w.visit(i) }))
					}
				})
				longest = max(longest, float64(s.SweepStats().Longest.Microseconds()))
				worst = max(worst, float64(took[len(took)-1].Microseconds()))
				p9999 = max(p9999, float64(took[len(took)*9999/10000].Nanoseconds())/1e3)
				n, _ := slices.BinarySearch(took, 100*time.Microsecond)
				stalls = max(stalls, float64(len(took)-n))
				if want := million / part; s.Len() != want {
					b.Fatalf("%d grants left, want %d", s.Len(), want)
				}
			}
			b.ReportMetric(longest, "longest-hold-µs")
			b.ReportMetric(work, "longest-visit-cpu-µs")
			b.ReportMetric(worst, "worst-look-up-µs")
			b.ReportMetric(p9999, "look-up-p99.99-µs")
			b.ReportMetric(stalls, "look-ups>100µs")
		})
	}
}

// processorTime gives the microseconds of processor time that f took.
func processorTime(f func()) float64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &before) != nil {
		return 0
	}
	f()
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &after) != nil {
		return 0
	}
	return float64(after.Nano()-before.Nano()) / 1e3
}

// lookUpsWhile gives how long each look-up took while f ran, sorted.
func lookUpsWhile(s *Store, f func()) []time.Duration {
	keys := make([]relay.Key, 1024)
	for i := range keys {
		keys[i] = relay.KeyOf(netip.AddrFrom4([4]byte{11, 0, byte(i >> 8), byte(i)}), 128)
	}
	var stop atomic.Bool
	var group sync.WaitGroup
	took := make([]time.Duration, 0, 4<<20)
	group.Go(func() {
		for i := 0; !stop.Load() && len(took) < cap(took); i++ {
			began := time.Now()
			s.Get(keys[i&1023])
			took = append(took, time.Since(began))
		}
	})
	f()
	stop.Store(true)
	group.Wait()
	slices.Sort(took)
	return took
}

// BenchmarkSome is a list of a million grants: the time and the bytes that one
// of them takes.
func BenchmarkSome(b *testing.B) {
	s := filled(grants(b), Options{})
	b.ReportAllocs()
	n, texts := 0, 0
	for b.Loop() {
		for grants := range s.Some(16) {
			for i := range grants {
				texts += len(grants[i].User) + len(grants[i].Session)
			}
			n += len(grants)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/grant")
}
