package main

import (
	"cmp"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A virtual machine's host takes processors away when its other guests need
// them. What takes a hundred microseconds then takes milliseconds now and then,
// with or without the daemon, and a tail measured meanwhile is the host's.
const (
	littleStolen = 0.005 // of the machine's time
	someStolen   = 0.04  // where what is measured meanwhile is left out
	moreRounds   = 4     // at most so many times as many as asked for
)

// window is in what pieces time is looked at. The kernel counts what was taken in
// hundredths of a second, and may tell of it a window later.
const window = 200 * time.Millisecond

// watchHost looks at each window's end whether the host has taken anything. The
// function it gives tells of an answer, once all are there, whether the host has
// taken nothing in the windows into which it fell, nor in the one behind them.
func watchHost(began time.Time) (calm func(asked) bool) {
	var mu sync.Mutex
	var stolen []float64 // at each window's end
	look := func() {
		now, err := machineTime()
		if err != nil {
			now.stolen = math.NaN() // which equals nothing
		}
		mu.Lock()
		stolen = append(stolen, now.stolen)
		mu.Unlock()
	}
	look()
	go func() {
		for n := time.Duration(1); ; n++ {
			time.Sleep(time.Until(began.Add(n * window)))
			look()
		}
	}()
	return func(a asked) bool {
		mu.Lock()
		defer mu.Unlock()
		first, last := int(a.at/window), int((a.at+a.took)/window)+2
		return last < len(stolen) && stolen[first] == stolen[last]
	}
}

// calmest does a round until it has been done b.rounds times, not counting the
// first with its cold caches, while the host took no more than little, and gives what came of
// the calmest of them. How calm they were is put in words. Each is told when it is done: a host
// can be busy for so long that the rest is not waited for.
func calmest[T fmt.Stringer](b *bench, little float64, round func() (T, error)) (results []T, host string, err error) {
	type done struct {
		result T
		stolen float64
	}
	var all []done
	for calm := 0; calm < b.rounds && len(all) < moreRounds*b.rounds; {
		before, err := machineTime()
		if err != nil {
			return nil, "", err
		}
		result, err := round()
		if err != nil {
			return nil, "", err
		}
		after, err := machineTime()
		if err != nil {
			return nil, "", err
		}
		one := done{result, after.stolenSince(before)}
		if all == nil {
			progress("with cold caches, not counted: %v; the host took %.1f %%", result, 100*one.stolen)
			all = []done{}
			continue
		}
		progress("round %d: %v; the host took %.1f %%", len(all)+1, result, 100*one.stolen)
		if all = append(all, one); one.stolen <= little {
			calm++
		}
	}
	slices.SortStableFunc(all, func(x, y done) int { return cmp.Compare(x.stolen, y.stolen) })
	host = fmt.Sprintf("calmest %d of %d rounds", b.rounds, len(all))
	all = all[:b.rounds]
	for _, one := range all {
		results = append(results, one.result)
	}
	return results, fmt.Sprintf("%s, of which the host took up to %.1f %%", host, 100*all[len(all)-1].stolen), nil
}

// ticks are the kernel's count of this machine's time.
type ticks struct{ stolen, all float64 }

func (t ticks) stolenSince(before ticks) float64 {
	return (t.stolen - before.stolen) / max(1, t.all-before.all)
}

// machineTime reads the first line of /proc/stat, proc_stat(5).
func machineTime() (t ticks, err error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return t, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	const user, steal = 1, 8 // what follows is part of them
	if len(fields) <= steal {
		return t, fmt.Errorf("/proc/stat: %q", line)
	}
	for i := user; i <= steal; i++ {
		n, err := strconv.ParseFloat(fields[i], 64)
		if err != nil {
			return t, fmt.Errorf("/proc/stat: %w", err)
		}
		if t.all += n; i == steal {
			t.stolen = n
		}
	}
	return t, nil
}
