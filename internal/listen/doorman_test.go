package listen

import (
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// gatehouse is a doorman before a socket, and a way to it.
func gatehouse(t *testing.T, places int, may func(net.Conn) bool, missed func()) (*Doorman, func() net.Conn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return NewDoorman(ln, places, may, missed), func() net.Conn {
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
}

func everybody(net.Conn) bool { return true }

func TestDoormanTurnsAwayWhoMayNot(t *testing.T) {
	asked := 0
	d, dial := gatehouse(t, 1, func(c net.Conn) bool {
		if asked++; asked == 1 {
			io.WriteString(c, "no")
		}
		return asked > 1
	}, nil)
	first := dial()
	dial()
	if _, err := d.Accept(); err != nil || asked != 2 {
		t.Fatalf("%v after %d were asked for, want the second let in", err, asked)
	}
	if text, err := io.ReadAll(first); err != nil || string(text) != "no" {
		t.Errorf("the first heard %q, %v", text, err)
	}
}

func TestDoormanHangsUpWhenThereIsNoPlaceAndTells(t *testing.T) {
	missed := make(chan struct{}, 8)
	d, dial := gatehouse(t, 1, everybody, func() { missed <- struct{}{} })
	dial()
	first, err := d.Accept()
	if err != nil {
		t.Fatal(err)
	}
	second := dial()
	next := make(chan net.Conn)
	go func() {
		c, _ := d.Accept()
		next <- c
	}()
	second.SetDeadline(time.Now().Add(10 * time.Second))
	if text, err := io.ReadAll(second); err != nil || len(text) > 0 {
		t.Errorf("the second heard %q, %v, want to be hung up on", text, err)
	}
	if len(missed) != 1 {
		t.Errorf("told of %d, want 1", len(missed))
	}
	first.Close()
	first.Close() // gives back one place, not two
	dial()
	if c := <-next; c == nil {
		t.Error("the third was not let in, and there was a place")
	}
	if len(d.places) != 1 {
		t.Errorf("%d places taken, want 1", len(d.places))
	}
}

// Who counts his guests himself must not count one that isn't there any more, or
// has never come in.
func TestDoormanTellsWhenAGuestHasGone(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var there atomic.Int64
	admit := func(net.Conn) (func(), bool) {
		there.Add(1)
		return func() { there.Add(-1) }, true
	}
	missed := make(chan struct{}, 1)
	d := NewCountingDoorman(ln, 1, admit, func() { missed <- struct{}{} })
	for range 2 {
		c, err := net.Dial("unix", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	guest, err := d.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if n := there.Load(); n != 1 {
		t.Errorf("%d are there, want 1", n)
	}
	ended := make(chan struct{})
	go func() {
		d.Accept() // the second, for whom there is no place
		close(ended)
	}()
	<-missed
	if n := there.Load(); n != 1 {
		t.Errorf("%d are there, want 1: there was no place for the second", n)
	}
	guest.Close()
	guest.Close()
	if n := there.Load(); n != 0 {
		t.Errorf("%d are there, want 0: the first has gone", n)
	}
	ln.Close()
	<-ended
}

func TestDoormanLetsWaitWhoNeedNotBeMissed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &scripted{done: make(chan struct{})}
		d := NewDoorman(ln, 1, everybody, nil)
		first, err := d.Accept()
		if err != nil {
			t.Fatal(err)
		}
		var ended atomic.Bool
		go func() {
			d.Accept()
			ended.Store(true)
		}()
		ln.Close()
		synctest.Wait()
		if ended.Load() {
			t.Error("accepted without a place")
		}
		first.Close()
		synctest.Wait()
		if !ended.Load() || len(d.places) != 0 {
			t.Errorf("with a place again: ended %v, %d places taken", ended.Load(), len(d.places))
		}
	})
}

// What is short must end no server: the control socket's would end the daemon.
func TestNoServerEndsForWhatIsShort(t *testing.T) {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.EPROTO, syscall.EPERM} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			ln := &scripted{errs: []error{e, e, e}, done: make(chan struct{})}
			missed := 0
			srv := &http.Server{ErrorLog: log.New(io.Discard, "", 0)}
			context.AfterFunc(ctx, func() { srv.Close() })
			d := NewDoorman(ln, 1, func(net.Conn) bool { stop(); return false }, func() { missed++ })
			if err := srv.Serve(d); !errors.Is(err, http.ErrServerClosed) || missed != 3 {
				t.Errorf("%v: ended with %v, told of %d", e, err, missed)
			}
		})
	}
	for _, e := range []error{syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK} {
		d := NewDoorman(&scripted{errs: []error{e}, done: make(chan struct{})}, 1, everybody, nil)
		if err := (&http.Server{}).Serve(d); !errors.Is(err, e) {
			t.Errorf("%v: ended with %v", e, err)
		}
	}
}
