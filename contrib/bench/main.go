// Command bench measures the popgate daemon on this machine, side by side with
// yardsticks, and prints a table for docs/performance.md.
//
//	go run ./contrib/bench [-only start,rcpt,sessions,login,live,bytes,sweep,memory,together,disk,testlog,biglog,attack] [-rounds N] [-grants N] [-idle N] [-log MiB] [-quick]
//
// It builds the daemon and runs it as an administrator would: with a
// configuration file, a log to watch, a state directory and its log in a pipe
// that is read. Nothing of the daemon's is imported, so that nothing but what
// the daemon does can be measured.
//
// A machine is never the same from one minute to the next. So daemon and
// yardstick take turns, a ratio is taken inside one round only, and what is
// printed is the median of the rounds.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// bench is one run of the program.
type bench struct {
	ctx     context.Context
	dir     string // everything it makes is in here
	popgate string
	rounds  int
	grants  int
	rcpts   int // in one turn
	lines   int // in one turn
	idle    int // connections
	log     int // MiB of the log that is mostly too old
	// connections that ask at once, for one turn each
	connections []int
	quick       bool
	saved       string       // the daemon's directory once grants are saved in it
	refused     atomic.Int64 // recipients of strangers, in an attack
	report      report
}

type measure struct {
	name string
	run  func(*bench) error
}

var measures = []measure{
	{"start", (*bench).start},
	{"rcpt", (*bench).rcpt},
	{"sessions", (*bench).sessions},
	{"login", (*bench).login},
	{"live", (*bench).live},
	{"bytes", (*bench).bytes},
	{"sweep", (*bench).sweep},
	{"memory", (*bench).memory},
	{"together", (*bench).together},
	{"disk", (*bench).disk},
	{"testlog", (*bench).testlog},
	{"biglog", (*bench).biglog},
	{"attack", (*bench).attack}, // last: what is left of it in the log would slow down the others
}

// parts are what this program is when it is run as a process of its own.
var parts = map[string]func(args []string) error{askWord: ask, followWord: follow}

func main() {
	if len(os.Args) > 1 {
		if part := parts[os.Args[1]]; part != nil {
			if err := part(os.Args[2:]); err != nil {
				fmt.Fprintln(os.Stderr, "bench:", err)
				os.Exit(1)
			}
			return
		}
	}
	var names []string
	for _, m := range measures {
		names = append(names, m.name)
	}
	b := bench{rcpts: 100_000, lines: 400, idle: 5000, log: 10 << 10, connections: []int{1, 16, 256}}
	only := flag.String("only", strings.Join(names, ","), "what to measure")
	flag.IntVar(&b.rounds, "rounds", 5, "turns that daemon and yardstick take")
	flag.IntVar(&b.grants, "grants", 1_000_000, "grants that the daemon holds")
	flag.IntVar(&b.idle, "idle", b.idle, "connections that wait while their memory is measured")
	flag.IntVar(&b.log, "log", b.log, "MiB of the log of which the daemon needs but the end (biglog)")
	flag.Func("connections", "how many connections ask for recipients at once, a list (default 1,16,256)", func(list string) error {
		b.connections = nil
		for one := range strings.SplitSeq(list, ",") {
			n, err := strconv.Atoi(one)
			if err != nil || n < 1 {
				return fmt.Errorf("%q is no number of connections", one)
			}
			b.connections = append(b.connections, n)
		}
		return nil
	})
	flag.BoolVar(&b.quick, "quick", false, "a look in a minute: fewer grants, fewer and shorter rounds")
	flag.Parse()
	if b.quick {
		b.rounds, b.grants, b.rcpts, b.lines = min(b.rounds, 3), min(b.grants, 50_000), 20_000, 100
		b.log = min(b.log, 1<<10)
	}
	if err := b.run(strings.Split(*only, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func (b *bench) run(only []string) (err error) {
	if b.rounds < 1 || b.grants < 1 || b.grants > maxGrants {
		return fmt.Errorf("-rounds must be at least 1 and -grants from 1 to %d", maxGrants)
	}
	for _, name := range only {
		if !slices.ContainsFunc(measures, func(m measure) bool { return m.name == name }) {
			return fmt.Errorf("-only: %q is nothing that can be measured", name)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	b.ctx = ctx
	if b.dir, err = os.MkdirTemp("", "popgate-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	b.popgate = filepath.Join(b.dir, "popgate")
	if err := b.command("go", "build", "-trimpath", "-o", b.popgate, "popgate/cmd/popgate"); err != nil {
		return err
	}
	before := loadAverage()
	for _, m := range measures {
		if !slices.Contains(only, m.name) {
			continue
		}
		progress("%s, load average %s", m.name, loadAverage())
		if err := m.run(b); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	fmt.Printf("%d processors, %s, %s, %d rounds, %d grants, load average %s before and %s after\n\n",
		runtime.NumCPU(), kernel(), runtime.Version(), b.rounds, b.grants, before, loadAverage())
	b.report.print(os.Stdout)
	return nil
}

// command runs a program to its end.
func (b *bench) command(name string, args ...string) error {
	cmd := exec.CommandContext(b.ctx, name, args...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}

// until asks every few milliseconds whether what is waited for is so.
func (b *bench) until(what string, limit time.Duration, so func() (bool, error)) error {
	ctx, stop := context.WithTimeoutCause(b.ctx, limit, fmt.Errorf("waited %v in vain for %s", limit, what))
	defer stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if yes, err := so(); err != nil || yes {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-tick.C:
		}
	}
}

func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "%s  "+format+"\n", append([]any{time.Now().Format(time.TimeOnly)}, args...)...)
}

func kernel() string {
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return runtime.GOOS
	}
	return "Linux " + strings.TrimSpace(string(release))
}

func loadAverage() string {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(text))[:3], " ")
}
