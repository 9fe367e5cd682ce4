package milter

import (
	"net"
	"syscall"
)

// socket reads a connection from the kernel without package net's layers
// between, which would double the stack of a connection that waits.
type socket struct {
	raw  syscall.RawConn
	read func(fd uintptr) bool // made once, so that no read allocates
	tcp  bool

	to  []byte // where the next read goes
	got int    // what it gave; 0: the end, or an error

	// lend says that to holds nothing yet: while the connection waits, others
	// may have it, and the read that ends the wait goes to another.
	lend bool
}

// newSocket gives nil for a connection that has no file descriptor.
func newSocket(nc net.Conn) *socket {
	sc, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return nil
	}
	_, tcp := nc.(*net.TCPConn)
	s := &socket{raw: raw, tcp: tcp}
	s.read = s.readOnce
	return s
}

// readOnce reads, or answers false when nothing is there and the caller should
// wait.
//
// Before a wait on TCP it has what was received acknowledged: sendmail writes
// macros and command separately and waits for no answer to the macros, and
// without an acknowledgement at once Nagle's algorithm holds the command back
// for some 40 ms. The kernel drops the setting by itself, so once is not enough.
func (s *socket) readOnce(fd uintptr) bool {
	if s.to == nil {
		s.to = borrow()
	}
	for {
		n, err := syscall.Read(int(fd), s.to)
		switch err {
		case nil:
			s.got = n
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			if s.tcp { // a failure makes answers slow, not wrong
				_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
			}
			if s.lend {
				giveBack(s.to)
				s.to = nil
			}
			return false
		}
		return true
	}
}
