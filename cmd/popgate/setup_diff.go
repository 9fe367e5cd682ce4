package main

import (
	"fmt"
	"slices"
	"strings"
)

// difference shows how one text becomes another, as diff -u does; empty if it
// is the same.
func difference(path, old, now string) string {
	if old == now {
		return ""
	}
	a, b := slices.Collect(strings.Lines(old)), slices.Collect(strings.Lines(now))
	// How many lines the rest of one text and of the other have in common, by
	// where the rests begin.
	common := make([][]int, len(a)+1)
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := len(a) - 1; i >= 0; i-- {
		for j := len(b) - 1; j >= 0; j-- {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	type line struct {
		mark byte
		text string
	}
	var lines []line
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			lines = append(lines, line{' ', a[i]})
			i, j = i+1, j+1
		case j == len(b) || i < len(a) && common[i+1][j] >= common[i][j+1]:
			lines = append(lines, line{'-', a[i]})
			i++
		default:
			lines = append(lines, line{'+', b[j]})
			j++
		}
	}
	const around = 2
	var out strings.Builder
	fmt.Fprintf(&out, "--- %s\n+++ %s, with popgate\n", path, path)
	shown := -1
	for n, l := range lines {
		near := false
		for m := max(0, n-around); m <= min(len(lines)-1, n+around); m++ {
			near = near || lines[m].mark != ' '
		}
		if !near {
			continue
		}
		if shown >= 0 && n > shown+1 {
			out.WriteString("...\n")
		}
		shown = n
		fmt.Fprintf(&out, "%c%s\n", l.mark, strings.TrimSuffix(l.text, "\n"))
	}
	return out.String()
}
