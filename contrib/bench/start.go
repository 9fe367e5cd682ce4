package main

import (
	"bufio"
	"errors"
	"os"
	"slices"
	"time"
)

// withGrants gives a directory in which a daemon has saved its grants. The
// first call makes it, by a log with as many logins.
func (b *bench) withGrants() (dir string, err error) {
	if b.saved != "" {
		return b.saved, nil
	}
	if dir, err = b.room("grants"); err != nil {
		return "", err
	}
	if err := b.writeLogins(dir + "/mail.log"); err != nil {
		return "", err
	}
	began := time.Now()
	d, err := b.serve(dir, 0)
	if err != nil {
		return "", err
	}
	err = d.holding(b.grants)
	took := time.Since(began)
	memory, memoryErr := d.memory()
	if err = errors.Join(err, memoryErr, d.stop()); err != nil {
		return "", err
	}
	progress("%d logins read in %v, %.0f MB resident", b.grants, took.Round(time.Millisecond), memory/1e6)
	// The next daemon finds nothing new in the log.
	b.saved = dir
	return dir, nil
}

func (b *bench) writeLogins(name string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	var line []byte
	now := time.Now()
	for n := range b.grants {
		line = loginLine(line[:0], n, now)
		_, _ = w.Write(line) // Flush tells
	}
	return errors.Join(w.Flush(), f.Close())
}

// start measures how long the daemon takes to be ready with its grants back,
// how much memory they take, and how soon clients that hold them are answered.
func (b *bench) start() error {
	dir, err := b.withGrants()
	if err != nil {
		return err
	}
	var ready, spent, resident []float64
	var answered []time.Duration
	for range b.rounds {
		d, err := b.serve(dir, 0)
		if err != nil {
			return err
		}
		err = d.holding(b.grants)
		memory, memoryErr := d.memory()
		each, _, askErr := b.served(d, 2*time.Second)
		if err = errors.Join(err, memoryErr, askErr, d.stop()); err != nil {
			return err
		}
		answered = append(answered, each...)
		ready, spent, resident = append(ready, d.ready.Seconds()), append(spent, d.spent.Seconds()), append(resident, memory/1e6)
	}
	limits := atMost(2, 0.5)
	if b.grants > 1_000_000 {
		limits = limit{} // they are for a million
	}
	b.report.add("start to ready with saved grants", limits, "%.2f s", median(ready), "%d grants, %.2f s of processor time; quickest %.2f s",
		b.grants, median(spent), slices.Min(ready))
	b.report.add("resident memory after the start", limit{}, "%.0f MB", median(resident), "%d grants", b.grants)
	slices.Sort(answered)
	b.report.add("RCPT p99 after the start, at an MTA's pace", limit{}, "%.2f ms", percentile(answered, 99)/1e3,
		"%d grants, %d recipients on 4 connections, p50 %.2f ms, longest %.1f ms", b.grants, len(answered),
		percentile(answered, 50)/1e3, percentile(answered, 100)/1e3)
	return nil
}
