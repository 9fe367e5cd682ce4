package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"
)

// served has clients with a grant ask for some time, and gives how long each
// answer took, sorted, and how much memory the daemon had at most. Who asks is
// a process of its own, as an MTA is: what this one does meanwhile to keep the
// daemon busy must not keep the answers from being noticed.
func (b *bench) served(d *daemon, during time.Duration) (each []time.Duration, peak float64, err error) {
	cmd, out, err := b.startAsking(d, during, allTimes)
	if err != nil {
		return nil, 0, err
	}
	for began := time.Now(); time.Since(began) < during; time.Sleep(20 * time.Millisecond) {
		now, memoryErr := d.memory()
		peak, err = max(peak, now), errors.Join(err, memoryErr)
	}
	each, _, waitErr := times(cmd, out)
	return each, peak, errors.Join(err, waitErr)
}

// servedCalmly gives only the times of answers while the machine's host took
// none of it away, which can be few, and how many there were in all.
func (b *bench) servedCalmly(d *daemon, during time.Duration) (each []time.Duration, all int, err error) {
	cmd, out, err := b.startAsking(d, during, calmTimes)
	if err != nil {
		return nil, 0, err
	}
	return times(cmd, out)
}

func (b *bench) startAsking(d *daemon, during time.Duration, which string) (*exec.Cmd, io.Reader, error) {
	own, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(b.ctx, own, askWord, d.socket, strconv.Itoa(b.grants), during.String(), which)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	return cmd, out, err
}

// times reads what a process that asks has written: how many answers it had, and
// the times it gives.
func times(cmd *exec.Cmd, from io.Reader) (each []time.Duration, all int, err error) {
	text, readErr := io.ReadAll(from)
	if err = errors.Join(readErr, cmd.Wait()); err != nil {
		return nil, 0, fmt.Errorf("who asks: %w", err)
	}
	for ; len(text) >= 8; text = text[8:] {
		each = append(each, time.Duration(binary.LittleEndian.Uint64(text)))
	}
	if len(each) == 0 {
		return nil, 0, errors.New("who asks: it has not said how many answers it had")
	}
	all, each = int(each[0]), each[1:]
	slices.Sort(each)
	return each, all, nil
}

const (
	askWord     = "ask" // as the first argument, of the process that asks
	allTimes    = "all" // as the last: which it writes
	calmTimes   = "calm"
	askers      = 4  // connections at a time
	recipients  = 10 // of a session
	betweenRcpt = time.Millisecond
)

// asked is an answer by when it was asked for and how long it took.
type asked struct{ at, took time.Duration }

// ask is that process: when it is done it writes how many answers it had, and
// each time in nanoseconds.
func ask(args []string) error {
	if len(args) != 4 {
		return errors.New("needs a socket, the number of grants, for how long and which times")
	}
	grants, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	during, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	var group sync.WaitGroup
	results, errs := make([][]asked, askers), make([]error, askers)
	began := time.Now()
	calm := func(asked) bool { return true }
	if args[3] == calmTimes {
		calm = watchHost(began)
	}
	for i := range results {
		group.Go(func() {
			for n := i; errs[i] == nil && time.Since(began) < during; n += askers {
				results[i], errs[i] = asks(args[0], granted(n%grants), began, results[i])
			}
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	number := func(n int) { _, _ = out.Write(binary.LittleEndian.AppendUint64(nil, uint64(n))) } // Flush tells
	answers := slices.Concat(results...)
	number(len(answers))
	for _, a := range answers {
		if calm(a) {
			number(int(a.took))
		}
	}
	return out.Flush()
}

// asks is one session of a client with a grant, at an MTA's pace.
func asks(socket string, client netip.Addr, start time.Time, each []asked) ([]asked, error) {
	m, err := dial(socket)
	if err != nil {
		return each, err
	}
	if err := errors.Join(m.begin(client), m.mail()); err != nil {
		return each, errors.Join(err, m.conn.Close())
	}
	for range recipients {
		began := time.Now()
		passed, _, err := m.rcpt("customer", "remote.test", "smtp")
		each = append(each, asked{began.Sub(start), time.Since(began)})
		if err == nil && !passed {
			err = fmt.Errorf("%v has a grant and was answered with %q", client, m.answer)
		}
		if err != nil {
			return each, errors.Join(err, m.conn.Close())
		}
		time.Sleep(betweenRcpt)
	}
	return each, m.close()
}
