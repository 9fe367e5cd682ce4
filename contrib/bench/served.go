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
	own, err := os.Executable()
	if err != nil {
		return nil, 0, err
	}
	cmd := exec.CommandContext(b.ctx, own, askWord, d.socket, strconv.Itoa(b.grants), during.String())
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return nil, 0, err
	}
	for began := time.Now(); time.Since(began) < during; time.Sleep(20 * time.Millisecond) {
		now, memoryErr := d.memory()
		peak, err = max(peak, now), errors.Join(err, memoryErr)
	}
	text, readErr := io.ReadAll(out)
	if err = errors.Join(err, readErr, cmd.Wait()); err != nil {
		return nil, 0, fmt.Errorf("who asks: %w", err)
	}
	for ; len(text) >= 8; text = text[8:] {
		each = append(each, time.Duration(binary.LittleEndian.Uint64(text)))
	}
	slices.Sort(each)
	return each, peak, nil
}

const (
	askWord     = "ask" // as the first argument, of the process that asks
	askers      = 4     // connections at a time
	recipients  = 10    // of a session
	betweenRcpt = time.Millisecond
)

// ask is that process: it writes each time, in nanoseconds, when it is done.
func ask(args []string) error {
	if len(args) != 3 {
		return errors.New("needs a socket, the number of grants and for how long")
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
	results, errs := make([][]time.Duration, askers), make([]error, askers)
	began := time.Now()
	for i := range results {
		group.Go(func() {
			for n := i; errs[i] == nil && time.Since(began) < during; n += askers {
				results[i], errs[i] = asks(args[0], granted(n%grants), results[i])
			}
		})
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	out := bufio.NewWriter(os.Stdout)
	for _, took := range slices.Concat(results...) {
		_, _ = out.Write(binary.LittleEndian.AppendUint64(nil, uint64(took))) // Flush tells
	}
	return out.Flush()
}

// asks is one session of a client with a grant, at an MTA's pace.
func asks(socket string, client netip.Addr, each []time.Duration) ([]time.Duration, error) {
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
		each = append(each, time.Since(began))
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
