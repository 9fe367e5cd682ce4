package main

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// fleets share the grants that are live: each is a user with as many as one may
// have, whose oldest makes place for the next.
const (
	fleets  = 300
	ofFleet = 1000
	live    = fleets * ofFleet
)

// disk measures what is written for a new grant in the long run, snapshots
// included, while 300,000 grants are live: each login makes a new one and ends
// another. Then the same without a snapshot, at a thousand a second.
func (b *bench) disk() (err error) {
	logins := 2_000_000
	if b.quick {
		logins = 700_000
	}
	dir, err := b.room("disk")
	if err != nil {
		return err
	}
	d, err := b.serve(dir, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	s := fleetLog{d: d, dir: dir}
	if _, err := s.logins(live, 20_000); err != nil {
		return err
	}
	began := time.Now()
	long, err := s.logins(logins, 20_000)
	if err != nil {
		return err
	}
	took := time.Since(began)
	if long.written == 0 {
		return fmt.Errorf("%s is on no disk; set TMPDIR", b.dir)
	}
	snapshot, err := s.snapshot()
	if err != nil {
		return err
	}
	const few = 10_000
	slow, err := s.logins(few, 1000)
	if err != nil {
		return err
	}
	if now, err := s.snapshot(); err != nil || !os.SameFile(snapshot, now) {
		slow, err = s.logins(few, 1000) // the next is far off
		if err != nil {
			return err
		}
	}
	record := float64(snapshot.Size()) / live
	each := func(n, of int) float64 { return float64(n) / float64(of) }
	b.report.add("written to the disk for a new grant in the long run, against its record", atMost(3, 0), "%.2f", each(long.written, logins)/record,
		"%.1f : %.1f B by the kernel's count, whole pages, %.1f B by the daemon's writing; %d new grants in %.0f s, %d live, a snapshot is %.1f MB",
		each(long.written, logins), record, each(long.wrote, logins), logins, took.Seconds(), live, float64(snapshot.Size())/1e6)
	b.report.add("the same between two snapshots at a thousand a second", limit{}, "%.2f", each(slow.written, few)/record,
		"%.1f : %.1f B by the kernel's count, %.1f B by the daemon's writing, %d new grants", each(slow.written, few), record, each(slow.wrote, few), few)
	return nil
}

// fleetLog is the log of a server at which fleets log in, each time from
// another address.
type fleetLog struct {
	d    *daemon
	dir  string
	done int
}

// logins writes so many at a pace, waits until they have been read, and gives
// what the daemon wrote meanwhile.
func (l *fleetLog) logins(n, pace int) (account, error) {
	before, err := l.account()
	if err != nil {
		return before, err
	}
	f, err := os.OpenFile(l.dir+"/mail.log", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return before, err
	}
	defer f.Close()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var text []byte
	began := time.Now()
	for wrote := 0; wrote < n; {
		now := <-tick.C
		text = text[:0]
		for due := min(n, int(time.Since(began).Seconds()*float64(pace))); wrote < due; wrote++ {
			text = loginOf(text, l.done%fleets, l.done, now)
			l.done++
		}
		if _, err := f.Write(text); err != nil {
			return before, err
		}
	}
	err = l.d.b.until("the log to be read", l.d.b.patience(), func() (bool, error) {
		s, err := l.d.status()
		return err == nil && s.Sources[0].Logins >= l.done, err
	})
	if err = errors.Join(err, l.d.b.settle(l.d.process)); err != nil {
		return before, err
	}
	s, err := l.d.status()
	if err == nil && s.Grants != min(l.done, live) {
		err = fmt.Errorf("%d grants after %d logins, want %d", s.Grants, l.done, min(l.done, live))
	}
	after, accountErr := l.account()
	return after.minus(before), errors.Join(err, accountErr)
}

// account leaves out what the daemon wrote to its own log.
func (l *fleetLog) account() (account, error) {
	a, err := l.d.account()
	a.wrote -= int(l.d.log.bytes.Load())
	return a, err
}

func (l *fleetLog) snapshot() (os.FileInfo, error) { return os.Stat(l.dir + "/state/snapshot") }
