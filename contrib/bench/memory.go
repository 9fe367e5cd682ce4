package main

import (
	"errors"
	"fmt"
	"time"
)

// memory measures what a milter connection costs that waits for the MTA, after
// it has refused three recipients: at once, and when the collector has been
// round, which it does every two minutes where there is nothing else to do.
func (b *bench) memory() error {
	var fresh []float64
	rested := 0.0
	for round := range b.rounds {
		dir, err := b.room(fmt.Sprintf("idle-%d", round))
		if err != nil {
			return err
		}
		at, later, err := b.idleConnections(dir, round == 0 && !b.quick)
		if err != nil {
			return err
		}
		fresh = append(fresh, at)
		rested += later
	}
	b.report.add("resident memory of an idle connection, at once", limit{}, "%.0f B", median(fresh), "%d connections", b.idle)
	if !b.quick {
		b.report.add("the same after two minutes", atMost(8192, 6144), "%.0f B", rested, "%d connections, one round", b.idle)
	}
	return nil
}

// idleConnections gives what a fresh daemon grows by for each connection.
func (b *bench) idleConnections(dir string, rest bool) (at, later float64, err error) {
	d, err := b.serve(dir, 0, "GODEBUG=gctrace=1") // so that the log tells of the collector
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := b.settle(d.process); err != nil {
		return 0, 0, err
	}
	before, err := d.process.memory()
	if err != nil {
		return 0, 0, err
	}
	each := func() (float64, error) {
		err := b.settle(d.process)
		now, memoryErr := d.process.memory()
		return (now - before) / float64(b.idle), errors.Join(err, memoryErr)
	}
	for n := range b.idle {
		m, err := b.refusedThrice(d.socket, n)
		if err != nil {
			return 0, 0, fmt.Errorf("connection %d (is the limit of open files high enough?): %w", n, err)
		}
		defer m.conn.Close()
	}
	if at, err = each(); err != nil || !rest {
		return at, 0, err
	}
	had := d.log.rounds.Load()
	err = b.until("the collector", 4*time.Minute, func() (bool, error) { return d.log.rounds.Load() > had, nil })
	if err != nil {
		return at, 0, err
	}
	later, err = each()
	return at, later, err
}

// refusedThrice gives a connection on which a stranger has tried three times.
func (b *bench) refusedThrice(socket string, n int) (*mta, error) {
	m, err := dial(socket)
	if err != nil {
		return nil, err
	}
	err = errors.Join(m.begin(plus(strangerNet, n)), m.mail())
	for range 3 {
		_, refused, askErr := m.rcpt("customer", "remote.test", "smtp")
		if err = errors.Join(err, askErr); err == nil && !refused {
			err = fmt.Errorf("a stranger answered with %q", m.answer)
		}
	}
	if err = errors.Join(err, m.abort()); err != nil {
		return nil, errors.Join(err, m.conn.Close())
	}
	return m, nil
}
