package milter

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"popgate/internal/listen"
)

// doorOf makes the socket of a listener, with loops in which nobody works.
func doorOf(t *testing.T, ln net.Listener, loops int) *sockets {
	t.Helper()
	s, ok := newSockets(ln)
	if !ok {
		t.Fatal("no socket")
	}
	l := newListener(NewServer(&witness{}, Options{}), t.Context())
	for range loops {
		p, err := newLoop(l, s)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.release)
		s.loops = append(s.loops, p)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func listenUnix(t *testing.T) *net.UnixListener {
	t.Helper()
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

func knock(t *testing.T, s *sockets) {
	t.Helper()
	c, err := net.Dial("unix", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
}

// told says whether the kernel tells a loop of somebody at the door.
func (p *loop) told(t *testing.T) bool {
	t.Helper()
	n, err := syscall.EpollWait(p.epoll, p.events[:], 0)
	if err != nil {
		t.Fatal(err)
	}
	return n == 1 && int(p.events[0].Fd) == p.doorNumber
}

func (s *sockets) tells(t *testing.T, who func(told int) bool) func() bool {
	return func() bool {
		told := 0
		for _, p := range s.loops {
			if p.told(t) {
				told++
			}
		}
		return who(told)
	}
}

func TestLoopsAcceptAgainAfterTrouble(t *testing.T) {
	s := doorOf(t, listenUnix(t), 3)
	nobody := s.tells(t, func(told int) bool { return told == 0 })
	somebody := s.tells(t, func(told int) bool { return told > 0 })
	type taken struct {
		c   net.Conn
		err error
	}
	took := make(chan taken)
	accept := func() {
		go func() {
			c, err := s.Accept()
			took <- taken{c, err}
		}()
	}
	accept()
	for range 3 {
		knock(t, s)
		knock(t, s) // who stays there
		until(t, "left to the loops", somebody)
		select {
		case got := <-took:
			t.Fatalf("%+v taken from the loops", got)
		default:
		}
		s.trouble <- struct{}{} // says one of them
		got := <-took
		if got.err != nil || !nobody() {
			t.Fatalf("%+v, left to the loops: %v", got, !nobody())
		}
		got.c.Close()
		accept()
	}
	s.Close()
	if got := <-took; !errors.Is(got.err, net.ErrClosed) {
		t.Errorf("at the end: %+v", got)
	}
}

func TestLoopsAreAskedToAcceptUntilAllDo(t *testing.T) {
	s := doorOf(t, listenUnix(t), 3)
	if err := control(s.loops[1].epoll, syscall.EPOLL_CTL_ADD, s.fd, syscall.EPOLLIN); err != nil { // as far as it got
		t.Fatal(err)
	}
	for _, op := range []int{syscall.EPOLL_CTL_ADD, syscall.EPOLL_CTL_ADD, syscall.EPOLL_CTL_DEL, syscall.EPOLL_CTL_DEL, syscall.EPOLL_CTL_ADD} {
		if err := s.arm(op); err != nil {
			t.Error(err)
		}
	}
	knock(t, s)
	until(t, "told", s.tells(t, func(told int) bool { return told > 0 }))
}

// systemd keeps the socket it has handed over, so that closing ours ends nothing:
// somebody who comes while the daemon drains would wake its loops without end.
func TestNobodyIsAtTheDoorOnceItIsClosed(t *testing.T) {
	ln := listenUnix(t)
	theirs, err := ln.File()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	s := doorOf(t, ln, 2)
	if err := s.arm(syscall.EPOLL_CTL_ADD); err != nil {
		t.Fatal(err)
	}
	knock(t, s)
	until(t, "told", s.tells(t, func(told int) bool { return told > 0 }))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	knock(t, s)
	if !s.tells(t, func(told int) bool { return told == 0 })() {
		t.Error("loops are told of those who come after the end")
	}
}

// Who comes after us may put his socket's file where ours is as soon as nobody
// listens there, and it must not be that one which goes.
func TestTheFileGoesBeforeNobodyListens(t *testing.T) {
	for range 100 {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := listen.ListenUnix(path)
		if err != nil {
			t.Fatal(err)
		}
		another := path + "-2"
		if err := os.Link(path, another); err != nil {
			t.Fatal(err)
		}
		s := doorOf(t, ln, 1)
		go s.Close()
		for {
			c, err := net.Dial("unix", another)
			if errors.Is(err, syscall.ECONNREFUSED) {
				break
			}
			if err == nil {
				c.Close()
			}
		}
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("nobody listens, and the file is there: %v", err)
		}
	}
}

// A descriptor that was given back may be anybody's.
func TestALoopThatHasEndedIsNotRoused(t *testing.T) {
	p := doorOf(t, listenUnix(t), 1).loops[0]
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pipe[0])
	defer syscall.Close(pipe[1])
	q, err := newLoop(p.listener, p.door)
	if err != nil {
		t.Fatal(err)
	}
	q.release()
	if err := syscall.Dup3(pipe[1], q.wake, syscall.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(q.wake)
	q.rouse()
	if n, err := syscall.Read(pipe[0], make([]byte, 1)); err != syscall.EAGAIN {
		t.Errorf("%d bytes written to another's descriptor, %v", n, err)
	}
}

// A worker that was long away finds nobody to leave its connection to.
func TestAConnectionWhoseLoopHasEndedIsClosed(t *testing.T) {
	p := doorOf(t, listenUnix(t), 1).loops[0]
	q, err := newLoop(p.listener, p.door)
	if err != nil {
		t.Fatal(err)
	}
	q.release()
	var pair [2]int
	if pair, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(pair[0])
	c := newConn(p.listener)
	c.fd, c.loop = int32(pair[1]), q
	q.settle(c, true)
	if n, err := syscall.Read(pair[0], make([]byte, 1)); n != 0 || err != nil {
		t.Errorf("its peer reads %d bytes, %v, want the end", n, err)
	}
}

// Housekeeping breaks off connections by their sockets' numbers, which are others'
// once they are closed.
func TestASocketIsClosedOnlyWhenNobodyKnowsItsConnection(t *testing.T) {
	p := doorOf(t, listenUnix(t), 1).loops[0]
	l := p.listener
	for name, mu := range map[string]*sync.Mutex{"the listener": &l.mu, "the loop": &p.mu} {
		pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer syscall.Close(pair[0])
		ended := func() bool {
			n, err := syscall.Read(pair[0], make([]byte, 1))
			return n == 0 && err == nil
		}
		c := newConn(l)
		c.fd, c.loop = int32(pair[1]), p
		if !l.enter(&arrival{fd: pair[1]}, c) || !p.watch(c) {
			t.Fatal("not taken")
		}
		mu.Lock()
		go c.close()
		until(t, "closing", c.ended.Load)
		time.Sleep(5 * time.Millisecond)
		if ended() {
			t.Errorf("closed while %s knows it", name)
		}
		mu.Unlock()
		until(t, "closed", ended)
	}
}
