package milter

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"popgate/internal/listen"
)

// sockets is a listener whose connections the loops take from the kernel
// themselves, each as soon as it is there. Package net never hears of them, and
// the runtime, which would be woken by each, no longer of the listener. Only when
// something is short, descriptors mostly, is it left to the listener's own
// goroutine, which knows how to wait for better times, until one was taken again.
type sockets struct {
	net.Listener
	loops    []*loop
	trouble  chan struct{} // told by a loop that can't accept
	closed   chan struct{}
	troubled bool // the loops are not asked to accept
	accept   taker

	mu sync.RWMutex
	fd int // -1: closed
}

// newSockets takes the socket out of a listener. It answers false for one that
// has none of the kernel's.
func newSockets(ln net.Listener) (*sockets, bool) {
	outer := ln
	if u, ok := ln.(listen.Unix); ok {
		ln = u.UnixListener // its file stays
	}
	s := &sockets{Listener: outer, fd: -1, trouble: make(chan struct{}, 1), closed: make(chan struct{})}
	switch l := ln.(type) {
	case *net.TCPListener:
		s.fd = duplicate(l)
	case *net.UnixListener:
		l.SetUnlinkOnClose(false) // the Close below is not the end of it; whose file is ours, Close removes
		s.fd = duplicate(l)
	}
	if s.fd < 0 {
		return nil, false
	}
	_ = ln.Close()
	return s, true
}

// duplicate gives a descriptor of the same socket that is ours alone, or a
// negative number.
func duplicate(c syscall.Conn) int {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1
	}
	number := -1
	_ = raw.Control(func(fd uintptr) {
		if n, _, errno := syscall.Syscall(syscall.SYS_FCNTL, fd, syscall.F_DUPFD_CLOEXEC, 0); errno == 0 {
			number = int(n)
		}
	})
	return number
}

// Close closes the socket. Its file goes first: as long as somebody listens,
// nobody else puts one of his own there.
func (s *sockets) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd < 0 {
		return nil
	}
	close(s.closed)
	if _, ok := s.Listener.(listen.Unix); ok {
		_ = s.Listener.Close() // the rest of it was closed long ago
	}
	for _, p := range s.loops { // closing ends no watch of a socket that systemd has open too
		_ = control(p.epoll, syscall.EPOLL_CTL_DEL, s.fd, 0)
	}
	err := os.NewSyscallError("close", syscall.Close(s.fd))
	s.fd = -1
	return err
}

// Accept gives an arrival that no loop could take, or why there is none.
func (s *sockets) Accept() (net.Conn, error) {
	if !s.troubled {
		if err := s.arm(syscall.EPOLL_CTL_ADD); err != nil {
			return nil, err
		}
		select {
		case <-s.closed:
			return nil, net.ErrClosed
		case <-s.trouble:
		}
		if err := s.arm(syscall.EPOLL_CTL_DEL); err != nil {
			return nil, err
		}
		s.troubled = true
	}
	const often = 10 * time.Millisecond // is nobody there, while nobody else looks
	for !s.take(&s.accept) {
		select {
		case <-s.closed:
			return nil, net.ErrClosed
		case <-time.After(often):
		}
	}
	a, err := s.accept.got()
	if err != nil {
		return nil, &net.OpError{Op: "accept", Net: s.Addr().Network(), Addr: s.Addr(), Err: os.NewSyscallError("accept4", err)}
	}
	s.troubled = false
	return a, nil
}

// arm has the loops watch the socket, or no longer, those that do so already
// included. One of those that wait is woken for each arrival.
func (s *sockets) arm(op int) (err error) {
	const exclusive = 1 << 28 // EPOLLEXCLUSIVE, which package syscall lacks
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return net.ErrClosed
	}
	for _, p := range s.loops {
		e := control(p.epoll, op, s.fd, syscall.EPOLLIN|exclusive)
		if !errors.Is(e, syscall.EEXIST) && !errors.Is(e, syscall.ENOENT) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// take takes one connection, or answers false when there is none.
func (s *sockets) take(t *taker) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		t.err = net.ErrClosed
		return true
	}
	for {
		t.fd, t.from, t.err = syscall.Accept4(s.fd, syscall.SOCK_NONBLOCK|syscall.SOCK_CLOEXEC)
		switch t.err {
		case syscall.EINTR, syscall.ECONNABORTED:
			continue
		}
		return t.err != syscall.EAGAIN
	}
}

// taker is who takes a connection, and what he got.
type taker struct {
	fd   int
	from syscall.Sockaddr
	err  error
}

// got gives what was taken.
func (t *taker) got() (*arrival, error) {
	if t.err != nil {
		return nil, t.err
	}
	a := &arrival{fd: t.fd}
	switch from := t.from.(type) {
	case *syscall.SockaddrInet4:
		a.from = netip.AddrPortFrom(netip.AddrFrom4(from.Addr), uint16(from.Port))
	case *syscall.SockaddrInet6:
		a.from = netip.AddrPortFrom(netip.AddrFrom16(from.Addr), uint16(from.Port))
	}
	return a, nil
}

// arrival is a connection that has just been accepted: no more of a net.Conn
// than whoever lets it in needs.
type arrival struct {
	net.Conn
	fd   int
	from netip.AddrPort // zero on a unix socket
}

// RemoteAddr gives who has arrived, as far as that is an address.
func (a *arrival) RemoteAddr() net.Addr {
	if !a.from.IsValid() {
		return &net.UnixAddr{Net: "unix"}
	}
	return net.TCPAddrFromAddrPort(a.from)
}

// Close turns it away.
func (a *arrival) Close() error { return syscall.Close(a.fd) }

// keepAlive is how long a TCP peer may be silent before it is asked whether it
// is still there, and how long it then has, in seconds; as package net has it.
const keepAlive = 15

// prepare sets what package net sets on a TCP connection. What can't be set makes
// answers slower, or a dead peer noticed later, not anything wrong.
func (a *arrival) prepare() {
	if !a.from.IsValid() {
		return
	}
	set := func(level, option, value int) { _ = syscall.SetsockoptInt(a.fd, level, option, value) }
	set(syscall.IPPROTO_TCP, syscall.TCP_NODELAY, 1)
	set(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1)
	set(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, keepAlive)
	set(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, keepAlive)
}

// acknowledge has what was received over TCP acknowledged at once: sendmail
// writes macros and command separately and waits for no answer to the macros, and
// without an acknowledgement Nagle's algorithm holds the command back for some 40
// ms. The kernel drops the setting by itself, so once is not enough.
func (c *conn) acknowledge() {
	_ = syscall.SetsockoptInt(int(c.fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
}
