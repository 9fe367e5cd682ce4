package main

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/cpu"

	"popgate/internal/lab"
)

// table holds what a line of each class may cost.
const table = "instructions.txt"

// What a class may cost above its figure, and how far below it may be before
// the figure counts as stale, in percent. The counts themselves repeat within
// half a percent. Another release of Go makes other code of the same
// text, so then only a coarse look is left.
const (
	tolerance      = 10
	stale          = 25
	otherTolerance = 40
)

// TestInstructions counts what a log line costs, from its line end to its event,
// and compares with the table. It is no measurement of time: what it finds is
// the same on a busy machine.
func TestInstructions(t *testing.T) {
	if runtime.GOARCH != "amd64" || !cpu.X86.HasAVX2 {
		t.Skipf("%s was counted on amd64 with AVX2, where other instructions are run than here", table)
	}
	counted := count(t)
	if os.Getenv("POPGATE_INSTRUCTIONS") == "write" {
		if err := write(counted); err != nil {
			t.Fatal(err)
		}
		return
	}
	release, want, err := read(table)
	if err != nil {
		t.Fatal(err)
	}
	if release != minor(runtime.Version()) {
		t.Logf("%s was counted with %s, this is %s: no more than %d %% above it is asked for. make instructions counts anew", table, release, runtime.Version(), otherTolerance)
	}
	for _, err := range compare(counted, want, release == minor(runtime.Version())) {
		t.Error(err)
	}
}

// figure is what a line of a class costs.
type figure struct {
	class        string
	instructions int
}

// compare holds counts against the table.
func compare(counted, want []figure, same bool) (errs []error) {
	more := tolerance
	if !same {
		more = otherTolerance
	}
	table := map[string]int{}
	for _, w := range want {
		table[w.class] = w.instructions
	}
	for _, c := range counted {
		w, known := table[c.class]
		delete(table, c.class)
		switch {
		case !known:
			errs = append(errs, fmt.Errorf("%s: %d instructions a line, and no figure to compare with; make instructions writes it", c.class, c.instructions))
		case 100*c.instructions > (100+more)*w:
			errs = append(errs, fmt.Errorf("%s: a line costs %d instructions, %.1f %% more than the %d it cost, and %d %% are let pass. Find what it is with callgrind_annotate "+
				"(see docs/performance.md), or, if it has to be, let make instructions write the new figure and say why in the commit", c.class, c.instructions, percent(c.instructions-w, w), w, more))
		case same && 100*c.instructions < (100-stale)*w:
			errs = append(errs, fmt.Errorf("%s: a line costs %d instructions, %.1f %% less than the %d of the table. Let make instructions write the new figure, so that the gain is kept", c.class, c.instructions, percent(w-c.instructions, w), w))
		}
	}
	for class := range table {
		errs = append(errs, fmt.Errorf("%s: has a figure and is not counted any more; make instructions takes it out", class))
	}
	return errs
}

func percent(part, of int) float64 { return 100 * float64(part) / float64(of) }

func TestCompare(t *testing.T) {
	for _, tt := range []struct {
		name          string
		counted, want int // 0: none
		same          bool
		errors        int
	}{
		{"a tenth more is let pass", 110, 100, true, 0},
		{"more than a tenth is not", 111, 100, true, 1},
		{"a quarter less is let pass", 75, 100, true, 0},
		{"more than a quarter less is a stale table", 74, 100, true, 1},
		{"another Go may cost more", 140, 100, false, 0},
		{"but not that much more", 141, 100, false, 1},
		{"another Go may cost less", 10, 100, false, 0},
		{"a class without a figure", 100, 0, true, 1},
		{"a figure without a class", 0, 100, true, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			one := func(n int) []figure {
				if n == 0 {
					return nil
				}
				return []figure{{"x", n}}
			}
			if errs := compare(one(tt.counted), one(tt.want), tt.same); len(errs) != tt.errors {
				t.Errorf("%d errors, want %d: %v", len(errs), tt.errors, errors.Join(errs...))
			}
		})
	}
}

// count builds the program and has callgrind count its instructions. Of a
// class's counts it gives the least.
func count(t *testing.T) (counted []figure) {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "instructions")
	build := exec.Command("go", "build", "-trimpath", "-o", program, ".")
	// What the caller's environment makes the compiler do must not count.
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GOAMD64=v1", "GOEXPERIMENT=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	valgrind, lib := valgrind(t)
	counts := filepath.Join(dir, "counts")
	run := exec.Command(valgrind, "-q", "--tool=callgrind", "--callgrind-out-file="+counts, "--dump-before=main.mark", program)
	// One thread that runs Go, no collector, nobody who interrupts: what is
	// counted is the work. The monitor's thread can't be had out of the way, and
	// callgrind 3.19 dies of the signals by which it would interrupt.
	run.Env = append(os.Environ(), "GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=off", "GODEBUG=asyncpreemptoff=1")
	if lib != "" {
		run.Env = append(run.Env, "VALGRIND_LIB="+lib)
	}
	var stderr bytes.Buffer
	run.Stderr = &stderr
	out, err := run.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s%s", run, err, out, &stderr)
	}
	// The dump of one mark holds what ran since the one before it, so each
	// second one is of lines.
	dump := 0
	for line := range strings.Lines(string(out)) {
		dump += 2
		class, n, _ := strings.Cut(strings.TrimSpace(line), " ")
		lines, err := strconv.Atoi(n)
		if err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if lines == 0 {
			continue
		}
		total, err := total(counts + "." + strconv.Itoa(dump))
		if err != nil {
			t.Fatal(err)
		}
		each := int(math.Round(float64(total) / float64(lines)))
		if last := len(counted) - 1; last >= 0 && counted[last].class == class {
			counted[last].instructions = min(counted[last].instructions, each)
		} else {
			counted = append(counted, figure{class, each})
		}
	}
	if len(counted) != len(classes) {
		t.Fatalf("%d classes counted of %d:\n%s", len(counted), len(classes), out)
	}
	return counted
}

// valgrind gives the machine's own valgrind, or the program and the library of
// Debian's, unpacked.
func valgrind(t *testing.T) (path, lib string) {
	t.Helper()
	if path, err := exec.LookPath("valgrind"); err == nil {
		return path, ""
	}
	root := lab.Tools(t, "valgrind", "valgrind")
	return filepath.Join(root, "usr/bin/valgrind"), filepath.Join(root, "usr/libexec/valgrind")
}

// total reads the sum out of a dump of callgrind's.
func total(dump string) (int, error) {
	text, err := os.ReadFile(dump)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if n, ok := strings.CutPrefix(line, "totals: "); ok {
			return strconv.Atoi(strings.TrimSpace(n))
		}
	}
	return 0, fmt.Errorf("%s: has no totals", dump)
}

// minor is the release of Go that a version belongs to: go1.26 of go1.26.8.
func minor(version string) string {
	version, _, _ = strings.Cut(version, " ")
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

func read(name string) (release string, figures []figure, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return "", nil, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 0 || f[0] == "#":
			continue
		case len(f) != 2:
			return "", nil, fmt.Errorf("%s: %q is not a class and a number", name, line)
		case f[0] == "go":
			release = f[1]
			continue
		}
		n, err := strconv.Atoi(f[1])
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", name, err)
		}
		figures = append(figures, figure{f[0], n})
	}
	return release, figures, nil
}

func write(figures []figure) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Instructions of a log line of each class, on amd64 with AVX2. Written by make instructions.\n%-30s %6s\n", "go", minor(runtime.Version()))
	for _, f := range figures {
		fmt.Fprintf(&b, "%-30s %6d\n", f.class, f.instructions)
	}
	return os.WriteFile(table, b.Bytes(), 0o644)
}
