package milter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"

	gomilter "github.com/emersion/go-milter"
)

const (
	firstBuffer = 512  // holds the packets of one command of either MTA
	keepBuffer  = 1024 // the largest an idle connection keeps
)

// spare are buffers that no connection needs at the moment.
var spare = sync.Pool{New: func() any { return new([firstBuffer]byte) }}

func borrow() []byte    { return spare.Get().(*[firstBuffer]byte)[:] }
func giveBack(b []byte) { spare.Put((*[firstBuffer]byte)(b)) }

// conn is a connection as the library sees it: Read gives whole packets that
// were checked before, and then io.EOF; Write never fails. So the library,
// which reads twice a packet, knows no deadline and writes every trouble to
// the global log, has nothing to complain of.
//
// All but ended and phase belongs to the goroutine of the connection, which is
// the library's.
type conn struct {
	net.Conn
	listener *listener
	socket   *socket       // the same connection; nil: Conn is no socket
	peer     netip.Addr    // the MTA's host, zero on a unix socket
	phase    atomic.Uint64 // what it is doing and since which tick, see phase
	ended    atomic.Bool   // nothing more is read or written
	last     bool          // the packet being answered is the last one

	buf        []byte // nil before the first packet
	start, end int    // what was read and not handed over lies between
	hand       int    // how much of the packet at start is still to be handed over
	skip       int    // how much behind it is to be thrown away

	negotiated, connected bool
	offer                 offer
	argument              []byte     // its first string; good until the next packet
	client                netip.Addr // from the CONNECT packet
	macros                macroSet

	session session
}

func newConn(nc net.Conn, l *listener, peer netip.Addr) *conn {
	c := &conn{Conn: nc, listener: l, peer: peer,
		socket: newSocket(nc)}
	c.session.conn = c
	c.begin(idle)
	return c
}

// Read hands over what is left of the packet, or the next one. The library asks
// for the length first and then for the rest.
//
// While a connection waits, nothing of ours is on its stack but Read itself: a
// little less than 1.2 KiB are in use then, and the collector, which halves a
// stack only when a quarter of it is enough, leaves 4 KiB instead of 8.
func (c *conn) Read(p []byte) (int, error) {
	if c.hand == 0 {
		c.argument = nil
		c.macros.clear() // they were the last command's
		for !c.take() {
			if c.last || c.ended.Load() {
				return 0, io.EOF
			}
			var got int
			if s := c.await(); s != nil {
				_ = s.raw.Read(s.read) // of an error nothing was got
				got = s.got
				if s.lend {
					c.buf = s.to
				}
			} else {
				got, _ = c.Conn.Read(c.buf[c.end:])
			}
			if !c.received(got) {
				return 0, io.EOF
			}
		}
	}
	n := copy(p, c.buf[c.start:c.start+c.hand])
	c.start += n
	c.hand -= n
	return n, nil
}

// take looks for the next packet the library is to see in what was read. It
// answers false when the connection has ended or more must be read, for which
// there is room then.
func (c *conn) take() bool {
	for !c.last && !c.ended.Load() {
		length, ok := c.whole()
		if !ok {
			return false
		}
		packet := c.buf[c.start:min(c.end, c.start+lengthSize+length)]
		code := packet[lengthSize]
		data := packet[lengthSize+1:]
		switch treat(code) {
		case drop:
			if !c.negotiated || !c.macros.parse(data) {
				return c.bad()
			}
			c.start += len(packet)
			continue
		case cut:
			binary.BigEndian.PutUint32(packet, 1)
			packet, c.skip = packet[:lengthSize+1], length-1
		}
		if !c.check(gomilter.Code(code), data) {
			return c.bad()
		}
		c.hand = len(packet)
		c.enter(answering)
		return true
	}
	return false
}

// whole says whether the next packet has been read, and gives its length, the
// command included. Of a packet whose contents are thrown away only the head
// needs to be there.
func (c *conn) whole() (length int, ok bool) {
	n := min(c.skip, c.end-c.start)
	c.start += n
	c.skip -= n
	if c.skip > 0 {
		return 0, c.has(1)
	}
	if !c.has(lengthSize + 1) {
		return 0, false
	}
	size := binary.BigEndian.Uint32(c.buf[c.start:])
	kind := treat(c.buf[c.start+lengthSize])
	if size == 0 || kind == bad || size > maxCut || kind != cut && size > maxPacket {
		return 0, c.bad()
	}
	return int(size), kind == cut || c.has(lengthSize+int(size))
}

// check looks at a packet the library is to see.
func (c *conn) check(code gomilter.Code, data []byte) bool {
	if c.negotiated == (code == gomilter.CodeOptNeg) { // first, and only once
		return false
	}
	ok := true
	switch code {
	case gomilter.CodeOptNeg:
		c.offer, ok = parseOffer(data)
		c.negotiated = ok
	case gomilter.CodeConn:
		if c.connected { // whose connection would it be now?
			return false
		}
		c.client, ok = parseConnect(data)
		c.connected = ok
	case gomilter.CodeMail, gomilter.CodeRcpt:
		c.argument, _, ok = bytes.Cut(data, []byte{0})
	}
	return ok
}

// macrosFor gives what the MTA told with the command being answered: the macro
// packet just before it, if that was meant for it.
func (c *conn) macrosFor(code gomilter.Code) *macroSet {
	if c.macros.stage != byte(code) {
		c.macros.clear()
	}
	return &c.macros
}

// has says whether need bytes have been read, and makes room for them if not.
func (c *conn) has(need int) bool {
	if c.end-c.start >= need {
		return true
	}
	c.makeRoom(need)
	return false
}

// makeRoom makes the buffer able to hold need bytes, and small again when
// there is nothing in it.
func (c *conn) makeRoom(need int) {
	if c.start == c.end {
		c.start, c.end = 0, 0
		if (c.buf == nil || len(c.buf) > keepBuffer) && need <= firstBuffer {
			c.buf = borrow()
		}
	}
	to := c.buf
	if need > len(to) {
		size := firstBuffer
		for size < need {
			size *= 2
		}
		to = make([]byte, size)
	} else if c.start+need <= len(to) {
		return
	}
	c.start, c.end, c.buf = 0, copy(to, c.buf[c.start:c.end]), to
}

// await notes what is waited for, and makes the socket ready to read it.
func (c *conn) await() *socket {
	if c.begun() {
		c.enter(receiving)
	} else {
		c.enter(idle)
	}
	if c.socket != nil {
		c.socket.to, c.socket.got = c.buf[c.end:], 0
		c.socket.lend = c.start == c.end && len(c.socket.to) == firstBuffer
	}
	return c.socket
}

// begun says whether a part of a packet was read whose rest must follow.
func (c *conn) begun() bool { return c.start < c.end || c.skip > 0 }

// received takes in what one read gave.
func (c *conn) received(n int) bool {
	c.end += n
	if n > 0 {
		return true
	}
	if c.begun() && !c.listener.draining.Load() {
		c.bad() // cut short, and not by us
	}
	return false
}

// Write sends what the library itself has to say, which is the answer to the
// negotiation. It never fails, see send.
func (c *conn) Write(p []byte) (int, error) {
	c.send(c.offer.mask(p))
	return len(p), nil
}

// send writes a whole packet. What can't be sent ends the connection, which the
// library learns by its next read.
func (c *conn) send(packet []byte) {
	c.enter(writing)
	if _, err := c.Conn.Write(packet); err != nil && !c.ended.Swap(true) {
		c.listener.server.counts.unsent.Add(1)
	}
}

// Close ends the connection; the library calls it once it has done with it.
func (c *conn) Close() error {
	c.ended.Store(true)
	err := c.Conn.Close()
	c.listener.forget(c)
	return err
}

// bad counts a packet that ends the connection. It answers false, for the
// caller to return.
func (c *conn) bad() bool {
	if !c.ended.Swap(true) {
		c.listener.server.counts.bad.Add(1)
	}
	return false
}

// panicked ends the connection after the packet that is being answered.
func (c *conn) panicked(v any) {
	s := c.listener.server
	s.counts.panics.Add(1)
	s.lastPanic.Store(new(fmt.Sprintf("%v\n%s", v, debug.Stack())))
	c.last = true
}
