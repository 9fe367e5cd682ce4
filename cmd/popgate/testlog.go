package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// logEvent is one login or logout as `test-log --json` prints it.
type logEvent struct {
	File    string     `json:"file"`
	Line    int        `json:"line"`
	Event   string     `json:"event"`
	Client  netip.Addr `json:"client,omitzero"`
	User    string     `json:"user,omitempty"`
	Service string     `json:"service,omitempty"`
	Session string     `json:"session,omitempty"`
	Time    *time.Time `json:"time,omitempty"`
	Format  string     `json:"format"`
}

// logCount is what test-log has found.
type logCount struct {
	lines, foreign, long      int // foreign: of no known transport, but with a login's words
	logins, logouts, restarts int
	unparsed                  int
	services                  map[string]int
	never                     int // logins whose client no login may open
	fragment                  bool
}

func newTestLog(e *env, g *global) *cobra.Command {
	var formatName string
	var showUnparsed bool
	cmd := &cobra.Command{
		Use:   "test-log [FILE|-]...",
		Short: "Show what popgate reads out of a log",
		Long: "test-log reads log files (or standard input) as the daemon would and prints the logins\n" +
			"and logouts it finds, and counts. It exits with 1 if it finds no login.",
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				args = []string{"-"}
			}
			n := logCount{services: map[string]int{}}
			out := bufio.NewWriter(e.stdout)
			defer out.Flush()
			for _, file := range args {
				t := &logTest{e: e, g: g, file: file, name: formatName, out: out, count: &n, unparsed: showUnparsed}
				if err := t.read(); err != nil {
					return err
				}
			}
			if !g.json {
				n.print(out)
			}
			if n.logins == 0 {
				return answerNo(exitNo)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&formatName, "format", "auto", "log format: "+strings.Join(format.Names(), ", ")+" or one of the configuration's")
	f.BoolVar(&showUnparsed, "unparsed", false, "print the lines that look like a login and match nothing")
	return cmd
}

// logTest reads one file.
type logTest struct {
	e        *env
	g        *global
	file     string
	name     string
	out      *bufio.Writer
	count    *logCount
	unparsed bool
}

// parser gives a parser of the format, which may be one of the configuration's
// own.
func (t *logTest) parser() (format.Parser, error) {
	if slices.Contains(format.Names(), t.name) {
		return format.New(t.name)
	}
	cfg, _, err := config.Load(t.g.config)
	if err == nil {
		for i := range cfg.Formats {
			if cfg.Formats[i].Name == t.name {
				return customParser(&cfg.Formats[i])
			}
		}
	}
	_, unknown := format.New(t.name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, failWith(exitConfig, errors.Join(unknown, err))
	}
	return nil, failWith(exitUsage, unknown)
}

func (t *logTest) open() (io.ReadCloser, error) {
	if t.file == "-" {
		return io.NopCloser(t.e.stdin), nil
	}
	return os.Open(t.file) // Lines unpacks gzip by itself
}

func (t *logTest) read() error {
	p, err := t.parser()
	if err != nil {
		return err
	}
	in, err := t.open()
	if err != nil {
		return failWith(exitNo, err)
	}
	defer in.Close()
	n := t.count
	number := 0
	var m format.Message
	for line, err := range watcher.Lines(in) {
		switch {
		case errors.Is(err, watcher.ErrLongLine):
			number++
			n.lines++
			n.long++
			p.Gap()
			continue
		case errors.Is(err, watcher.ErrFragment):
			n.fragment = true
			continue
		case err != nil:
			return failWith(exitNo, fmt.Errorf("%s: %w", t.file, err))
		}
		number++
		n.lines++
		if !format.MayMatter(p, line) {
			continue
		}
		if !format.Split(line, &m) {
			n.foreign++
			continue
		}
		ev, result := p.Parse(&m)
		t.event(number, line, &m, &ev, result)
	}
	return nil
}

func (t *logTest) event(number int, line []byte, m *format.Message, ev *relay.Event, result format.Result) {
	n := t.count
	var word string
	switch result {
	case format.Login:
		n.logins++
		n.services[ev.Service.String()]++
		if relay.NeverClient(ev.Client) {
			n.never++
		}
		word = "login"
	case format.Logout:
		n.logouts++
		word = "logout"
	case format.Restart:
		n.restarts++
		return
	case format.Unparsed:
		n.unparsed++
		if t.unparsed {
			fmt.Fprintf(t.out, "%s:%d: %s\n", t.file, number, quoted(string(line)))
		}
		return
	default:
		return
	}
	o := logEvent{File: t.file, Line: number, Event: word, Client: ev.Client, User: ev.User, Service: ev.Service.String(),
		Session: ev.Session, Format: t.name}
	if ev.Format != "" {
		o.Format = ev.Format
	}
	if at, zoned, ok := m.Stamp.Time(t.e.now().Wall, time.Local); ok {
		if !zoned {
			at = at.Local()
		}
		o.Time = &at
	}
	if t.g.json {
		printJSON(t.out, o)
	} else if result == format.Login && !t.unparsed {
		fmt.Fprintf(t.out, "%s:%d: login %s %s %s\n", t.file, number, ev.Client, orDash(o.Service), orDash(ev.User))
	}
}

func (n *logCount) print(out io.Writer) {
	w := table(out)
	row := func(name string, count int) {
		if count > 0 {
			fmt.Fprintf(w, "%s\t%d\n", name, count)
		}
	}
	fmt.Fprintf(w, "lines\t%d\n", n.lines)
	fmt.Fprintf(w, "logins\t%d\n", n.logins)
	for _, s := range slices.Sorted(maps.Keys(n.services)) {
		row("  "+orDash(s), n.services[s])
	}
	row("  of addresses that never get a grant", n.never)
	fmt.Fprintf(w, "logouts\t%d\n", n.logouts)
	row("server starts and stops", n.restarts)
	fmt.Fprintf(w, "unparsed\t%d\n", n.unparsed)
	row("of no transport known, though they may name a login", n.foreign)
	row("longer than 64 KiB, dropped", n.long)
	if n.fragment {
		fmt.Fprintf(w, "last line has no newline, not judged\t1\n")
	}
	w.Flush()
	if n.unparsed > 0 {
		fmt.Fprintln(out, "lines that look like a login could not be parsed; --unparsed prints them")
	}
	if n.logins == 0 {
		fmt.Fprintln(out, "no login was found: is this the POP/IMAP server's log, and is the format right?")
	}
}
