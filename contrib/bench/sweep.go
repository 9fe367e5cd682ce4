package main

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// sweep runs the cache's own benchmark, which alone sees its locks: a million
// grants end at once while others are looked up.
func (b *bench) sweep() error {
	figures, err := b.cacheBenchmark("SweepOfAMillion", b.rounds)
	if err != nil {
		return err
	}
	work, hold := figures["longest-visit-cpu-µs"], figures["longest-hold-µs"]
	if len(work) == 0 || len(hold) == 0 {
		return errors.New("the cache's benchmark no longer tells how long it holds a lock")
	}
	b.report.add("longest lock hold of a sweep, processor time", atMost(1, 0.1), "%.3f ms", slices.Max(work)/1e3, "a million grants, longest of %d sweeps, each with some 10,000 holds", len(work))
	b.report.add("the same by the wall clock", limit{}, "%.3f ms", slices.Max(hold)/1e3, "median of the sweeps %.3f ms, shortest %.3f ms", median(hold)/1e3, slices.Min(hold)/1e3)
	return nil
}

// cacheBenchmark runs benchmarks of the cache's own so many times, and gives
// what they report, by its unit.
func (b *bench) cacheBenchmark(names string, times int, env ...string) (map[string][]float64, error) {
	cmd := exec.CommandContext(b.ctx, "go", "test", "popgate/cache", "-run", "^$", "-bench", names, "-timeout", "20m",
		"-benchtime", "1x", "-count", strconv.Itoa(times))
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		return nil, errors.Join(err, errors.New(string(out)))
	}
	figures := map[string][]float64{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 0 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		for i := 2; i+1 < len(f); i += 2 { // behind name and number of runs
			value, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return nil, err
			}
			figures[f[i+1]] = append(figures[f[i+1]], value)
		}
	}
	return figures, nil
}
