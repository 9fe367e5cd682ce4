package listen

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// scripted is a listener that gives each error once, and then a connection.
type scripted struct {
	errs []error
	done chan struct{}
	last atomic.Bool
}

func (l *scripted) Accept() (net.Conn, error) {
	if len(l.errs) > 0 {
		err := l.errs[0]
		l.errs = l.errs[1:]
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
	}
	if l.last.CompareAndSwap(false, true) {
		ours, theirs := net.Pipe()
		theirs.Close()
		return ours, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *scripted) Close() error   { close(l.done); return nil }
func (l *scripted) Addr() net.Addr { return &net.UnixAddr{Name: "scripted", Net: "unix"} }

func TestAcceptSurvivesWhatIsShort(t *testing.T) {
	for _, e := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED, syscall.EPROTO, syscall.EPERM} {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			ln := &scripted{done: make(chan struct{})}
			for range 20 {
				ln.errs = append(ln.errs, e)
			}
			var log lockedBuffer
			failures, begin := 0, time.Now()
			err := Accept(ctx, ln, slog.New(slog.NewTextHandler(&log, nil)), func() { failures++ }, func(c net.Conn) {
				c.Close()
				stop()
				ln.Close()
			})
			if err != nil || !ln.last.Load() {
				t.Errorf("%v: ended with %v", e, err)
			}
			if took := time.Since(begin); took < 100*time.Millisecond || took > 20*time.Second {
				t.Errorf("%v: 20 failures in %v, want neither a storm nor a standstill", e, took)
			}
			if failures < 10 || strings.Count(log.String(), "can't accept") != 1 || strings.Count(log.String(), "accepts again") != 1 {
				t.Errorf("%v: %d failures told, log:\n%s", e, failures, log.String())
			}
		})
	}
}

func TestAcceptEndsWithAListenerThatIsBroken(t *testing.T) {
	for _, e := range []error{syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK} {
		ln := &scripted{errs: []error{e}, done: make(chan struct{})}
		if err := Accept(t.Context(), ln, slog.New(slog.DiscardHandler), func() {}, func(net.Conn) {}); !errors.Is(err, e) {
			t.Errorf("%v: ended with %v", e, err)
		}
	}
}

// gated is a listener that accepts nothing until it is opened.
type gated struct {
	net.Listener
	open chan struct{}
}

func (l *gated) Accept() (net.Conn, error) {
	<-l.open
	return l.Listener.Accept()
}

// exhaust uses up every descriptor of the process. The function it gives back
// makes them free again.
func exhaust(t *testing.T) (free func()) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: 200, Max: was.Max}); err != nil {
		t.Fatal(err)
	}
	var taken []int
	free = sync.OnceFunc(func() {
		for _, fd := range taken {
			syscall.Close(fd)
		}
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(free)
	for {
		fd, err := syscall.Dup(0)
		if err != nil {
			if !errors.Is(err, syscall.EMFILE) {
				t.Fatal(err)
			}
			return free
		}
		taken = append(taken, fd)
	}
}

func TestAPeerIsServedWhenADescriptorComesFreeInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		ln := &scripted{done: make(chan struct{})}
		for range 8 { // 5 ms, 10 ms, ... 640 ms
			ln.errs = append(ln.errs, syscall.EMFILE)
		}
		failures := 0
		err := Accept(ctx, ln, slog.New(slog.DiscardHandler), func() { failures++ }, func(c net.Conn) {
			c.Close()
			stop()
			ln.Close()
		})
		if err != nil || failures != 8 {
			t.Errorf("ended with %v after %d failures, want 8", err, failures)
		}
	})
}

func TestPeersAreHungUpOnWhileThereIsNoDescriptor(t *testing.T) {
	real, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ln := &gated{real, make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	var log lockedBuffer
	var failures atomic.Int64
	ended := make(chan error, 1)
	dial := func() net.Conn {
		c, err := net.Dial("unix", real.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		return c
	}
	go func() {
		ended <- Accept(ctx, ln, slog.New(slog.NewTextHandler(&log, nil)), func() { failures.Add(1) }, func(c net.Conn) {
			io.WriteString(c, "served")
			c.Close()
		})
	}()
	defer func() {
		stop()
		real.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	heard := func(c net.Conn) string {
		text, err := io.ReadAll(c)
		if err != nil {
			t.Error(err)
		}
		return string(text)
	}
	// Served once, Accept has its spare descriptor.
	first := dial()
	ln.open <- struct{}{}
	if got := heard(first); got != "served" {
		t.Fatalf("heard %q", got)
	}
	waiting := []net.Conn{dial(), dial(), dial()}
	free := exhaust(t)
	begin := time.Now()
	close(ln.open)
	for i, c := range waiting {
		if got := heard(c); got != "" {
			t.Errorf("waiting peer %d heard %q, want it hung up on", i, got)
		}
	}
	if took := time.Since(begin); took < moment || took > moment+3*time.Second {
		t.Errorf("hung up on after %v, want %v", took, moment)
	}
	if n := failures.Load(); n < 3 || strings.Count(log.String(), "can't accept") != 1 {
		t.Errorf("%d failures told, log:\n%s", n, log.String())
	}
	free()
	if got := heard(dial()); got != "served" {
		t.Errorf("with descriptors again: %q", got)
	}
	if strings.Count(log.String(), "accepts again") != 1 {
		t.Errorf("log:\n%s", log.String())
	}
}
