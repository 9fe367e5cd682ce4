package main

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"
)

// limit is what popgate must reach, and what it wants to (0: no more than
// that).
type limit struct {
	sense         sense
	floor, target float64
}

type sense uint8

const (
	told sense = iota // and not judged
	lower
	higher
)

func atMost(floor, target float64) limit  { return limit{lower, floor, target} }
func atLeast(floor, target float64) limit { return limit{higher, floor, target} }

// reached says in a word how a figure stands.
func (l limit) reached(v float64) string {
	within := func(bound float64) bool { return l.sense == lower && v <= bound || l.sense == higher && v >= bound }
	switch {
	case l.sense == told:
		return "-"
	case !within(l.floor):
		return "MISSED"
	case l.target != 0 && within(l.target):
		return "target"
	default:
		return "floor"
	}
}

// row is one line of the table.
type row struct {
	what   string
	limit  limit
	value  float64
	format string // of value and limit, with the unit
	beside string // the figures the value was made from
}

type report []row

func (r *report) add(what string, l limit, format string, value float64, beside string, args ...any) {
	added := row{what, l, value, format, fmt.Sprintf(beside, args...)}
	*r = append(*r, added)
	progress("%s: "+format+" %s", what, value, added.beside)
}

// print writes the table in Markdown.
func (r report) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "| measured\t| floor\t| target\t| value\t| reaches\t| of\t|")
	fmt.Fprintln(t, "|---\t|---\t|---\t|---\t|---\t|---\t|")
	for _, row := range r {
		floor, target := "-", "-"
		if row.limit.sense != told {
			floor = fmt.Sprintf(row.format, row.limit.floor)
		}
		if row.limit.target != 0 {
			target = fmt.Sprintf(row.format, row.limit.target)
		}
		fmt.Fprintf(t, "| %s\t| %s\t| %s\t| %s\t| %s\t| %s\t|\n", row.what, floor, target,
			fmt.Sprintf(row.format, row.value), row.limit.reached(row.value), row.beside)
	}
	t.Flush()
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// percentile gives the p-th percentile of sorted durations, in microseconds.
func percentile(sorted []time.Duration, p float64) float64 {
	return float64(sorted[min(len(sorted)-1, int(p/100*float64(len(sorted))))]) / 1e3
}
