package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"time"
)

// login measures how long it takes from the moment before a login line is
// written to the moment at which it counts: for the daemon the answer to a
// recipient that waits for the login, for tail -F the line on its output.
func (b *bench) login() (err error) {
	d, dir, err := b.serveGrants(2 * time.Second)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	log, err := os.OpenFile(dir+"/mail.log", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer log.Close()
	tail, err := b.startFollower("tail.log", "tail", "-n", "+1", "-F")
	if err != nil {
		return err
	}
	defer tail.stop()
	own, err := os.Executable()
	if err != nil {
		return err
	}
	bare, err := b.startFollower("bare.log", own, followWord)
	if err != nil {
		return err
	}
	defer bare.stop()

	next := b.grants
	rounds, host, err := calmest(b, littleStolen, func() (r loginRound, err error) {
		for range b.lines {
			took, again, err := waitForLogin(d.socket, log, next)
			if err != nil {
				return r, err
			}
			next++
			r.ours, r.plain = append(r.ours, took), append(r.plain, again)
		}
		for range b.lines {
			took, err := tail.follow()
			if err != nil {
				return r, err
			}
			r.theirs = append(r.theirs, took)
		}
		for range b.lines {
			took, err := bare.follow()
			if err != nil {
				return r, err
			}
			r.bare = append(r.bare, took)
		}
		slices.Sort(r.ours)
		slices.Sort(r.theirs)
		slices.Sort(r.bare)
		return r, nil
	})
	if err != nil {
		return err
	}
	var ratio, least []float64
	var ours, theirs, plain []time.Duration
	for _, r := range rounds {
		ratio = append(ratio, percentile(r.ours, 50)/percentile(r.theirs, 50))
		least = append(least, percentile(r.bare, 50)/percentile(r.theirs, 50))
		ours, theirs, plain = append(ours, r.ours...), append(theirs, r.theirs...), append(plain, r.plain...)
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	slices.Sort(plain)
	b.report.add("login line to grant in force, p50", atMost(2.0, 1.2), "%.2f", median(ratio), "%.0f : %.0f µs of tail -F, %d lines (%.2f to %.2f); a question that need not wait %.0f µs; %s",
		percentile(ours, 50), percentile(theirs, 50), len(ours), slices.Min(ratio), slices.Max(ratio), percentile(plain, 50), host)
	b.report.add("a line through two goroutines that do nothing else, p50", limit{}, "%.2f", median(least), "against tail -F (%.2f to %.2f)", slices.Min(least), slices.Max(least))
	b.report.add("login line to grant in force, p99", atMost(5, 1), "%.2f ms", percentile(ours, 99)/1e3, "tail -F %.2f ms; longest %.2f : %.2f ms",
		percentile(theirs, 99)/1e3, percentile(ours, 100)/1e3, percentile(theirs, 100)/1e3)
	return nil
}

// loginRound is what a round of b.lines logins took, as many questions that need
// not wait, as many lines of tail, and as many of two goroutines.
type loginRound struct{ ours, theirs, bare, plain []time.Duration }

func (r loginRound) String() string {
	return fmt.Sprintf("p50 %.0f µs, tail -F %.0f", percentile(r.ours, 50), percentile(r.theirs, 50))
}

// pause lets a few milliseconds pass before a line, so that what waits for it
// waits by then, and so that lines come at no rhythm. A pause too short makes
// the figure worse, not better.
func pause() { time.Sleep(2*time.Millisecond + rand.N(4*time.Millisecond)) }

// waitForLogin has a client ask who has not logged in, writes his login, and
// gives the time from then to the answer. The time of the same question once
// more, when there is nothing to wait for, tells how much of it is the asking.
func waitForLogin(socket string, log *os.File, n int) (took, again time.Duration, err error) {
	m, err := dial(socket)
	if err != nil {
		return 0, 0, err
	}
	defer m.conn.Close()
	if err := errors.Join(m.begin(granted(n)), m.mail()); err != nil {
		return 0, 0, err
	}
	ask := func() (time.Time, error) {
		passed, _, err := m.rcpt("customer", "remote.test", "smtp")
		at := time.Now()
		if err == nil && !passed {
			err = fmt.Errorf("%v logged in and was answered with %q", granted(n), m.answer)
		}
		return at, err
	}
	var at time.Time
	answered := make(chan error, 1)
	go func() {
		var err error
		at, err = ask()
		answered <- err
	}()
	pause()
	line := loginLine(nil, n, time.Now())
	began := time.Now()
	if _, err := log.Write(line); err != nil {
		return 0, 0, err
	}
	if err := <-answered; err != nil {
		return 0, 0, err
	}
	took = at.Sub(began)
	pause()
	began = time.Now()
	at, err = ask()
	return took, at.Sub(began), err
}
