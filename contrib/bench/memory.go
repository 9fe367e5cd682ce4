package main

import (
	"errors"
	"fmt"
)

// memory measures what a milter connection costs that waits for the MTA, after
// it has refused three recipients.
func (b *bench) memory() (err error) {
	var each []float64
	for round := range b.rounds {
		dir, err := b.room(fmt.Sprintf("idle-%d", round))
		if err != nil {
			return err
		}
		bytes, err := b.idleConnections(dir)
		if err != nil {
			return err
		}
		each = append(each, bytes/float64(b.idle))
	}
	b.report.add("resident memory of an idle milter connection", atMost(8192, 6144), "%.0f B", median(each), "%d connections", b.idle)
	return nil
}

// idleConnections gives what a fresh daemon grows by.
func (b *bench) idleConnections(dir string) (grown float64, err error) {
	d, err := b.serve(dir, 0)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := b.settle(d.process); err != nil {
		return 0, err
	}
	before, err := d.process.memory()
	if err != nil {
		return 0, err
	}
	for n := range b.idle {
		m, err := dial(d.socket)
		if err != nil {
			return 0, fmt.Errorf("connection %d (is the limit of open files high enough?): %w", n, err)
		}
		defer m.conn.Close()
		if err := errors.Join(m.begin(plus(strangerNet, n)), m.mail()); err != nil {
			return 0, err
		}
		for range 3 {
			_, refused, err := m.rcpt("customer", "remote.test", "smtp")
			if err == nil && !refused {
				err = fmt.Errorf("a stranger answered with %q", m.answer)
			}
			if err != nil {
				return 0, err
			}
		}
		if err := m.abort(); err != nil {
			return 0, err
		}
	}
	if err := b.settle(d.process); err != nil {
		return 0, err
	}
	after, err := d.process.memory()
	return after - before, err
}
