// Package listen takes connections from a listener, whatever is short at the
// moment, and bounds them.
//
// It promises: Accept, which is for MTAs, ends only with its context or with a
// listener that can never accept again. Where the process has had no descriptor
// left for longer than a moment, peers are hung up on at once instead of being
// left to wait for their own timeouts, and so get to their temporary failure. It
// logs the beginning and the end of such a time, not every connection of it.
// Room holds how many may be open. Doorman does the like for servers that accept
// by themselves. ClearSocket never takes a socket from a program that listens, and
// the file of a Unix goes before nobody listens there any more.
package listen

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"syscall"
	"time"
)

// moment is how long peers wait for a descriptor: it is often another's end that
// frees one.
const moment = 2 * time.Second

// Accept hands the connections made to ln to take, until ctx ends and ln is
// closed, or ln breaks: then it gives the error. failed is called for each
// connection that could not be taken.
func Accept(ctx context.Context, ln net.Listener, log *slog.Logger, failed func(), take func(net.Conn)) error {
	const firstPause, longestPause = 5 * time.Millisecond, time.Second
	var reserve spare
	reserve.back()
	defer reserve.lend()
	var pause time.Duration
	var since time.Time // trouble began; zero: there is none
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil && reserve.back():
			if !since.IsZero() {
				log.Info("listener accepts again", "listen", ln.Addr())
				since, pause = time.Time{}, 0
			}
			take(nc)
			continue
		case err == nil: // by the spare descriptor, and there is no other
			failed()
			_ = nc.Close()
			reserve.back()
			continue
		case ctx.Err() != nil:
			return nil
		case broken(err):
			return err
		}
		if since.IsZero() {
			since = time.Now()
			log.Error("listener can't accept, MTAs will put recipients off until it can", "listen", ln.Addr(), "error", err)
		}
		if noDescriptor(err) && time.Since(since) >= moment && reserve.lend() {
			continue
		}
		failed()
		pause = min(max(2*pause, firstPause), longestPause)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
			reserve.back()
		}
	}
}

// broken says whether accept can't ever succeed again; all else is about one
// connection or about something that is short (accept(2)).
func broken(err error) bool {
	for _, e := range [...]error{net.ErrClosed, syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func noDescriptor(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE)
}

// spare is a descriptor kept for the time when there is no other.
type spare struct{ file *os.File }

// lend closes the descriptor, if it is there, so that one connection can have it.
func (s *spare) lend() bool {
	if s.file == nil {
		return false
	}
	_ = s.file.Close()
	s.file = nil
	return true
}

// back takes the descriptor back. It answers false while there is none to be
// had. Where there can't be a spare one at all, that is no reason to hang up.
func (s *spare) back() bool {
	if s.file != nil {
		return true
	}
	file, err := os.Open(os.DevNull)
	if err != nil {
		return !noDescriptor(err)
	}
	s.file = file
	return true
}
