package main

import (
	"errors"
	"slices"
)

// bytes runs the cache's own benchmarks of what a grant costs in memory, beside
// one go-cache that holds a struct of the same fields, and of what a store full
// of grants costs others.
func (b *bench) bytes() error {
	figures, err := b.cacheBenchmark("BytesPerGrant|LookUp|Collection|Expired", b.rounds)
	if err != nil {
		return err
	}
	for _, unit := range []string{"B/grant", "B/plain", "ratio", "look-up-p50-ns", "look-up-p99-ns", "look-up-allocs", "collection-ms", "left-MB"} {
		if len(figures[unit]) == 0 {
			return errors.New("the cache's benchmarks no longer tell " + unit)
		}
	}
	of := func(unit string) float64 { return median(figures[unit]) }
	b.report.add("bytes a grant against a go-cache of structs", atMost(0.75, 0.60), "%.2f", of("ratio"), "%.1f : %.1f B, a million grants, proof included",
		of("B/grant"), of("B/plain"))
	b.report.add("look-up of a grant, p50", limit{}, "%.0f ns", of("look-up-p50-ns"), "p99 %.0f ns, by blocks of 64; %.0f allocations",
		of("look-up-p99-ns"), of("look-up-allocs"))
	b.report.add("heap over empty when a million grants have expired", atMost(16, 0), "%.1f MB", slices.Max(figures["left-MB"]), "the most of %d", len(figures["left-MB"]))
	b.report.add("full collection with a million grants", limit{}, "%.0f ms", of("collection-ms"), "the collector's whole round, beside which all else goes on")
	if b.quick {
		return nil
	}
	if figures, err = b.cacheBenchmark("Collection", 1, "POPGATE_GRANTS=10000000"); err != nil {
		return err
	}
	b.report.add("the same with ten million", limit{}, "%.0f ms", of("collection-ms"), "%.0f MB alive", of("alive-MB"))
	return nil
}
