package main

import (
	_ "embed"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
)

//go:embed yardstick/gate.c
var gateSource []byte

// turn is what one server did under one load.
type turn struct {
	rate           float64 // recipients a second
	p50, p99, p999 float64 // microseconds
	processor      float64 // microseconds a recipient, of the server alone
}

// rcpt measures what a recipient costs, beside a filter that knows the answers.
func (b *bench) rcpt() error {
	var loads []load
	for _, n := range b.connections {
		loads = append(loads, load{connections: n, rcpts: b.rcpts, grants: b.grants, session: longSessions})
	}
	return b.ask(loads)
}

// sessions measures what a session of one message costs, connection and all.
func (b *bench) sessions() error {
	return b.ask([]load{{connections: 16, rcpts: b.rcpts / 5, grants: b.grants, session: shortSessions}})
}

// ask puts loads on the daemon and on the yardstick.
func (b *bench) ask(loads []load) (err error) {
	yardstick, err := b.gateYardstick()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, yardstick.stop()) }()
	d, _, err := b.serveGrants(0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	wrong, asked := 0, 0
	for _, l := range loads {
		n, err := b.sideBySide(l, d.process, yardstick)
		if err != nil {
			return err
		}
		wrong, asked = wrong+n, asked+2*(b.rounds+1)*l.rcpts
	}
	memory, err := d.memory()
	if err != nil {
		return err
	}
	b.report.add("wrong answers", atMost(0, 0), "%.0f", float64(wrong), "of %d, each looked at; %d log lines dropped",
		asked, d.log.dropped.Load())
	b.report.add("resident memory under this load", limit{}, "%.0f MB", memory/1e6, "%d grants", b.grants)
	if wrong > 0 {
		return fmt.Errorf("%d wrong answers", wrong)
	}
	return nil
}

// sideBySide has both servers take turns with the same load. The first round
// is not counted: caches are cold.
func (b *bench) sideBySide(l load, popgate, yardstick *process) (wrong int, err error) {
	var ours, theirs []turn
	for round := range b.rounds + 1 {
		l.seed = uint64(round)
		order := []*process{popgate, yardstick}
		if round%2 == 1 {
			slices.Reverse(order)
		}
		for _, server := range order {
			t, n, err := l.on(server)
			if err != nil {
				return 0, fmt.Errorf("%s: %w", filepath.Base(server.cmd.Path), err)
			}
			wrong += n
			switch {
			case round == 0:
			case server == popgate:
				ours = append(ours, t)
			default:
				theirs = append(theirs, t)
			}
		}
	}
	b.compare(l, ours, theirs)
	return wrong, nil
}

// on puts the load on one server.
func (l load) on(server *process) (t turn, wrong int, err error) {
	before, err := server.processor()
	if err != nil {
		return t, 0, err
	}
	a, err := l.run(server.socket)
	if err != nil {
		return t, 0, err
	}
	after, err := server.processor()
	if a.wrong > 0 {
		progress("wrong: %s", a.sample)
	}
	n := float64(len(a.each))
	return turn{
		rate: n / a.took.Seconds(), processor: float64((after - before).Nanoseconds()) / 1e3 / n,
		p50: percentile(a.each, 50), p99: percentile(a.each, 99), p999: percentile(a.each, 99.9),
	}, a.wrong, err
}

// figure is one of a turn's, as it is told.
type figure struct {
	what   string
	form   string // of the values, with their unit
	limits map[int]limit
	value  func(turn) float64
}

// compare adds the ratios to the report.
func (b *bench) compare(l load, ours, theirs []turn) {
	figures := []figure{
		{"server processor time a RCPT", "%.1f : %.1f µs", map[int]limit{16: atMost(0.60, 0.50), 256: atMost(0.60, 0.50)},
			func(t turn) float64 { return t.processor }},
		{"RCPT/s", "%.0f : %.0f", map[int]limit{1: atLeast(1.0, 1.2), 16: atLeast(1.1, 1.3), 256: atLeast(1.1, 1.4)},
			func(t turn) float64 { return t.rate }},
		{"RCPT p50", "%.0f : %.0f µs", nil, func(t turn) float64 { return t.p50 }},
		{"RCPT p99", "%.0f : %.0f µs", nil, func(t turn) float64 { return t.p99 }},
		{"RCPT p99.9", "%.0f : %.0f µs", map[int]limit{256: atMost(0.5, 0.3)}, func(t turn) float64 { return t.p999 }},
	}
	if l.session == shortSessions {
		figures = []figure{{"server processor time a session of one message", "%.1f : %.1f µs", map[int]limit{16: atMost(0.55, 0)},
			func(t turn) float64 { return t.processor }}}
	}
	for _, f := range figures {
		var mine, yard, ratio []float64
		for i := range ours {
			mine, yard = append(mine, f.value(ours[i])), append(yard, f.value(theirs[i]))
			ratio = append(ratio, mine[i]/yard[i])
		}
		b.report.add(fmt.Sprintf("%s, connections: %d", f.what, l.connections), f.limits[l.connections], "%.2f", median(ratio),
			f.form+" (%.2f to %.2f)", median(mine), median(yard), slices.Min(ratio), slices.Max(ratio))
	}
}
