package syslog

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"popgate/watcher"
)

// conn is one connection of somebody who may send.
type conn struct {
	net.Conn
	id   uint64
	from string // who: an address, or "user id 0"

	// of the hall, under its lock
	stranger bool // it has yet to show its certificate

	// of the reader
	sender *sender
	heard  bool // it has sent a message
}

// accept lets senders in until the listener is closed.
func (h *hall) accept() {
	failing := false
	for {
		raw, err := h.listener.Accept()
		switch {
		case errors.Is(err, net.ErrClosed) || h.ctx.Err() != nil:
			if err == nil {
				raw.Close()
			}
			return
		case err != nil:
			// Out of descriptors, most likely. Those who are in stay in.
			if !failing && !h.hand(parcel{what: deaf, err: fmt.Errorf("no sender can connect: %w", errors.Unwrap(err))}) {
				return
			}
			failing = true
			select {
			case <-h.ctx.Done():
			case <-time.After(retryEvery / 10):
			}
			continue
		case failing:
			failing = false
			h.hand(parcel{what: deaf})
		}
		c, err := h.admit(raw)
		if err != nil {
			raw.Close()
			h.hand(parcel{what: turnedOff, err: err, times: 1})
			continue
		}
		h.workers.Go(func() { h.serve(c) })
	}
}

// admit looks who has connected.
func (h *hall) admit(raw net.Conn) (*conn, error) {
	c := &conn{Conn: raw}
	if u, ok := raw.(*net.UnixConn); ok {
		uid, err := peer(u)
		if err != nil {
			return nil, err
		}
		if c.from = userName(uid); !h.vouched(uid) {
			return nil, fmt.Errorf("%s is neither root nor in peer_uids", c.from)
		}
	} else {
		at, ok := raw.RemoteAddr().(*net.TCPAddr)
		if !ok {
			return nil, errors.New("a connection without an address")
		}
		a := at.AddrPort().Addr().Unmap().WithZone("")
		if c.from = a.String(); !h.allowed(a) {
			return nil, fmt.Errorf("%s is not in allow", c.from)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.full(c.from) {
		h.makeRoom(c.from)
	}
	if h.full(c.from) {
		return nil, fmt.Errorf("%s has %d connections, and there are %d; at most %d and %d are taken", c.from, h.of[c.from], len(h.conns), maxOfOne, maxConns)
	}
	h.ids++
	c.id, c.stranger = h.ids, h.tls != nil
	h.conns[c] = true
	h.of[c.from]++
	return c, nil
}

// full says whether one more connection from there would be too many. The lock
// is held.
func (h *hall) full(from string) bool { return len(h.conns) >= maxConns || h.of[from] >= maxOfOne }

// makeRoom hangs up on the stranger who has taken longest to show a certificate,
// so that whoever has none can't keep out those who have by being many. The lock
// is held.
func (h *hall) makeRoom(from string) {
	var slowest *conn
	for c := range h.conns {
		if c.stranger && (h.of[from] < maxOfOne || c.from == from) && (slowest == nil || c.id < slowest.id) {
			slowest = c
		}
	}
	if slowest != nil {
		h.leave(slowest)
	}
}

// leave takes a connection out of the count. The lock is held.
func (h *hall) leave(c *conn) {
	c.Close()
	if !h.conns[c] {
		return // it was hung up on
	}
	delete(h.conns, c)
	if h.of[c.from]--; h.of[c.from] == 0 {
		delete(h.of, c.from)
	}
}

// peer asks the kernel whose the other end of a unix socket is.
func peer(u *net.UnixConn) (uid uint32, err error) {
	raw, err := u.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *syscall.Ucred
	if e := raw.Control(func(fd uintptr) {
		cred, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); e != nil || err != nil {
		return 0, errors.Join(e, err)
	}
	return cred.Uid, nil
}

func (h *hall) dismiss(c *conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leave(c)
}

// serve reads one connection to its end.
func (h *hall) serve(c *conn) {
	defer h.dismiss(c)
	if h.tls != nil {
		if err := h.shakeHands(c); err != nil {
			h.hand(parcel{what: turnedOff, err: fmt.Errorf("%s: %w", c.from, err), times: 1})
			return
		}
	}
	if h.hand(parcel{what: opened, conn: c}) {
		h.hand(parcel{what: closed, conn: c, err: h.read(c)})
	}
}

// handshakeIn is how long a TLS handshake may take.
const handshakeIn = 10 * time.Second

// shakeHands finds out by its certificate whether a client may send.
func (h *hall) shakeHands(c *conn) error {
	config, err := h.tls.config()
	if err != nil {
		// The files that are there can't be used; those from before still count.
		h.hand(parcel{what: turnedOff, err: err, times: 1})
	}
	secure := tls.Server(c.Conn, config)
	ctx, stop := context.WithTimeout(h.ctx, handshakeIn)
	defer stop()
	if err := secure.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.conns[c] {
		return errors.New("TLS: it took its time while others waited")
	}
	c.Conn, c.stranger = secure, false
	return nil
}

const (
	firstBuffer = 4 << 10
	mostBuffer  = watcher.MaxLine + 16 // a line, and its end or count
)

// read reads messages until the connection ends. nil means that it ended in
// order, between two messages.
func (h *hall) read(c *conn) error {
	var (
		f      framer
		frames []frame
		n      int       // bytes in buf
		since  time.Time // when the message began that is not finished yet
		done   = make(chan struct{}, 1)
		buf    = make([]byte, firstBuffer)
	)
	for {
		var deadline time.Time
		if f.open(n) {
			deadline = since.Add(finishIn)
		}
		c.SetReadDeadline(deadline)
		got, err := c.Read(buf[n:])
		n += got
		var used int
		var wrong error
		frames, used, wrong = f.cut(buf[:n], frames[:0])
		if len(frames) > 0 && !h.handOver(parcel{conn: c, frames: frames}, done) {
			return nil
		}
		if used > 0 || n == got {
			since = time.Now()
		}
		n = copy(buf, buf[used:n])
		switch {
		case wrong != nil:
			return wrong
		case err == nil:
		case f.open(n) && errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("a message was not finished within %v; the connection is closed", finishIn)
		case f.open(n):
			return errors.New("the connection ended inside a message")
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("the connection broke: %w", err)
		}
		switch {
		case n == len(buf) || got == len(buf) && len(buf) < mostBuffer:
			buf = append(make([]byte, 0, mostBuffer), buf[:n]...)[:mostBuffer]
		case n == 0 && got < firstBuffer/2 && len(buf) > firstBuffer:
			buf = make([]byte, firstBuffer) // an idle connection keeps little
		}
	}
}

// addrOf is the address of a datagram's sender.
func addrOf(from syscall.Sockaddr) netip.Addr {
	switch a := from.(type) {
	case *syscall.SockaddrInet4:
		return netip.AddrFrom4(a.Addr)
	case *syscall.SockaddrInet6:
		return netip.AddrFrom16(a.Addr).Unmap()
	}
	return netip.Addr{}
}
