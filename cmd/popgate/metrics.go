package main

import (
	"log/slog"
	"time"

	"popgate/internal/control"
	"popgate/internal/gate"
	"popgate/internal/metrics"
)

// metrics is the daemon as the metrics listener sees it. The walk over all
// grants that status takes is not for every scrape: the store's size is.
func (d *daemon) metrics() metrics.Options {
	return metrics.Options{
		Snapshot: d.snapshot,
		Problems: d.troubles,
		Allow:    mayConnect(d.config.Load().Listen.Allow),
		Log:      slog.NewLogLogger(d.log.Handler(), slog.LevelWarn),
	}
}

// troubles are what makes the daemon degraded, as status lists them.
func (d *daemon) troubles() []string {
	var st control.Status
	d.statusOfSources(&st)
	d.problems(&st)
	return st.Problems
}

// snapshot gathers what the daemon counts.
func (d *daemon) snapshot() metrics.Snapshot {
	s := metrics.Snapshot{
		Version: version(), Started: d.started, Problems: len(d.troubles()), Decisions: d.gate.Counts(), Logins: d.sources.counts(),
		Sources: d.gate.SourceStates(), Tables: d.ledger.Sizes(), Doors: d.doors(), Domains: d.sites.current().Len(), LogDropped: d.queue.Dropped(),
	}
	upTo, all, sum := d.gate.Took()
	s.Times = metrics.Times{UpTo: make(map[time.Duration]uint64, len(upTo)), All: all, Sum: sum}
	for i, n := range upTo {
		s.Times.UpTo[gate.Times[i]] = n
	}
	s.StateFails = d.state != nil && d.state.Health() != nil
	return s
}

// doors gives what each kind of listener counts.
func (d *daemon) doors() map[string]metrics.Door {
	m := d.milter.Stats()
	out := map[string]metrics.Door{"milter": {Open: m.Open, Total: m.Total, Ended: map[string]uint64{"capped": m.Capped, "denied": m.Denied,
		"bad_packets": m.BadPackets, "unsent": m.Unsent, "timeouts": m.Timeouts, "panics": m.Panics, "accept_errors": m.AcceptErrors}}}
	for name, s := range d.closed {
		p := s.Stats()
		out[name] = metrics.Door{Open: p.Open, Total: p.Total, Ended: map[string]uint64{"capped": p.Capped, "denied": p.Denied,
			"bad_requests": p.BadRequests, "unsent": p.Unsent, "timeouts": p.Timeouts, "panics": p.Panics, "accept_errors": p.AcceptErrors}}
	}
	return out
}
