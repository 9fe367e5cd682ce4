package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
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
	tail, err := b.startTail()
	if err != nil {
		return err
	}
	defer tail.stop()

	next := b.grants
	rounds, host, err := calmest(b, func() (r loginRound, err error) {
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
		slices.Sort(r.ours)
		slices.Sort(r.theirs)
		return r, nil
	})
	if err != nil {
		return err
	}
	var ratio []float64
	var ours, theirs, plain []time.Duration
	for _, r := range rounds {
		ratio = append(ratio, percentile(r.ours, 50)/percentile(r.theirs, 50))
		ours, theirs, plain = append(ours, r.ours...), append(theirs, r.theirs...), append(plain, r.plain...)
	}
	slices.Sort(ours)
	slices.Sort(theirs)
	slices.Sort(plain)
	b.report.add("login line to grant in force, p50", atMost(2.0, 1.2), "%.2f", median(ratio), "%.0f : %.0f µs of tail -F, %d lines (%.2f to %.2f); a question that need not wait %.0f µs; %s",
		percentile(ours, 50), percentile(theirs, 50), len(ours), slices.Min(ratio), slices.Max(ratio), percentile(plain, 50), host)
	b.report.add("login line to grant in force, p99", atMost(5, 1), "%.2f ms", percentile(ours, 99)/1e3, "tail -F %.2f ms; longest %.2f : %.2f ms",
		percentile(theirs, 99)/1e3, percentile(ours, 100)/1e3, percentile(theirs, 100)/1e3)
	return nil
}

// loginRound is what a round of b.lines logins took, and as many lines of tail.
type loginRound struct{ ours, theirs, plain []time.Duration }

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

// tail is a running tail -F.
type tail struct {
	process *process
	log     *os.File
	out     *bufio.Reader
	lines   int
}

func (b *bench) startTail() (*tail, error) {
	name := b.dir + "/tail.log"
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, "tail", "-n", "+1", "-F", name)
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = write
	t := &tail{log: log, out: bufio.NewReader(read)}
	t.process, err = launch(cmd, "")
	return t, errors.Join(err, write.Close())
}

// follow writes a line and gives the time until tail has written it too.
func (t *tail) follow() (time.Duration, error) {
	t.lines++
	line := loginLine(nil, t.lines, time.Now())
	type answer struct {
		at   time.Time
		same bool
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		got := make([]byte, len(line))
		_, err := io.ReadFull(t.out, got)
		answered <- answer{time.Now(), slices.Equal(got, line), err}
	}()
	pause()
	began := time.Now()
	if _, err := t.log.Write(line); err != nil {
		return 0, err
	}
	a := <-answered
	if a.err == nil && !a.same {
		a.err = errors.New("tail -F wrote another line than its file got")
	}
	return a.at.Sub(began), a.err
}

func (t *tail) stop() {
	_ = t.process.stop() // it ends by the signal
	t.log.Close()
}
