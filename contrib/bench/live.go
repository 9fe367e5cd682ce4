package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"time"
)

// live measures how long it takes from the moment before a login line is
// written to the moment at which it counts, while 10,000 lines a second are
// logged, one in ten a login. The line is written in the midst of others.
func (b *bench) live() (err error) {
	d, dir, err := b.serveGrants(2 * time.Second)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	next := b.grants + 3<<18 // clients that no other measure logs in
	s, err := startStream(dir+"/mail.log", next+1<<16)
	if err != nil {
		return err
	}
	var all, plain []time.Duration
	for i := range (b.rounds + 1) * b.lines {
		took, again, err := s.waitForLogin(d.socket, next+i)
		if err != nil {
			return errors.Join(err, s.end())
		}
		if i >= b.lines { // caches are cold in the first round
			all, plain = append(all, took), append(plain, again)
		}
	}
	if err := s.end(); err != nil {
		return err
	}
	slices.Sort(all)
	slices.Sort(plain)
	b.report.add("login line to grant in force at 10,000 lines a second, p99", atMost(3, 0), "%.2f ms", percentile(all, 99)/1e3,
		"p50 %.0f µs, p90 %.0f µs, longest %.2f ms; a question that need not wait p99 %.2f ms; %d logins that somebody waited for, and %.0f lines/s with %.0f other logins/s for %.0f s",
		percentile(all, 50), percentile(all, 90), percentile(all, 100)/1e3, percentile(plain, 99)/1e3, len(all),
		float64(s.lines)/s.during.Seconds(), float64(s.logins)/s.during.Seconds(), s.during.Seconds())
	return nil
}

// stream is a log that a busy mail server writes, into which one more login can
// be put.
type stream struct {
	log           *os.File
	next          int // client to log in
	lines, logins int
	during        time.Duration
	asked         chan wanted
	end           func() error // ends it, and tells what went wrong
}

// wanted is a client who is to log in.
type wanted struct {
	client int
	at     chan<- time.Time // the moment before his line is written
}

// startStream begins to write. Some twenty lines are written at a time, and
// after a pause as many as were due.
func startStream(name string, next int) (*stream, error) {
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	s := &stream{log: log, next: next, asked: make(chan wanted, 1)}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.write(ctx) }()
	s.end = sync.OnceValue(func() error {
		stop()
		return errors.Join(<-ended, log.Close())
	})
	return s, nil
}

func (s *stream) write(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	began := time.Now()
	defer func() { s.during = time.Since(began) }()
	var text []byte
	for ctx.Err() == nil {
		now := <-tick.C
		due := int(time.Since(began).Seconds()*linesPerSecond) - s.lines
		if due <= 0 {
			continue
		}
		var who wanted
		select {
		case who = <-s.asked:
		default:
		}
		place := rand.N(due)
		text = text[:0]
		for i := range due {
			if who.at != nil && i == place {
				text = loginLine(text, who.client, now)
			}
			if s.lines++; s.lines%loginEvery == 0 {
				text = loginLine(text, s.next, now)
				s.next, s.logins = s.next+1, s.logins+1
				continue
			}
			text = otherLine(text, s.lines, now)
		}
		if who.at != nil {
			who.at <- time.Now()
		}
		if _, err := s.log.Write(text); err != nil {
			return err
		}
	}
	return nil
}

// waitForLogin has a client ask who has not logged in, has his login written,
// and gives the time from then to the answer, and that of the same question once
// more.
func (s *stream) waitForLogin(socket string, n int) (took, again time.Duration, err error) {
	m, err := dial(socket)
	if err != nil {
		return 0, 0, err
	}
	defer m.conn.Close()
	if err := errors.Join(m.begin(granted(n)), m.mail()); err != nil {
		return 0, 0, err
	}
	written := make(chan time.Time, 1)
	go func() {
		pause() // so that he waits by then
		s.asked <- wanted{n, written}
	}()
	ask := func() (time.Time, error) {
		passed, _, err := m.rcpt("customer", "remote.test", "smtp")
		at := time.Now()
		if err == nil && !passed {
			err = fmt.Errorf("%v logged in and was answered with %q", granted(n), m.answer)
		}
		return at, err
	}
	answered, err := ask()
	if err != nil {
		return 0, 0, err
	}
	took = answered.Sub(<-written)
	pause()
	began := time.Now()
	answered, err = ask()
	return took, answered.Sub(began), err
}
