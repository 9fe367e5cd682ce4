package milter

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime/debug"
	"sync/atomic"

	gomilter "github.com/emersion/go-milter"
)

const (
	firstBuffer = 512  // holds the packets of one command of either MTA
	keepBuffer  = 1024 // the largest an idle connection keeps
)

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
	judge    Judge
	ctx      context.Context // of the judge; ends when draining has lasted too long
	quickAck func()          // nil: not TCP
	peer     netip.Addr      // the MTA's host, zero on a unix socket
	phase    atomic.Uint64   // what it is doing and since which tick, see phase
	ended    atomic.Bool     // nothing more is read or written
	last     bool            // the packet being answered is the last one

	buf        []byte
	start, end int // what was read and not handed over lies between
	hand       int // how much of the packet at start is still to be handed over
	skip       int // how much behind it is to be thrown away

	negotiated, connected bool
	offer                 offer
	argument              []byte     // its first string; good until the next packet
	client                netip.Addr // from the CONNECT packet
	macros                macroSet

	session session
}

func newConn(nc net.Conn, l *listener, peer netip.Addr) *conn {
	c := &conn{Conn: nc, listener: l, judge: l.server.judge, ctx: l.judging, peer: peer,
		quickAck: quickAck(nc), buf: make([]byte, firstBuffer)}
	c.session.conn = c
	c.enter(idle)
	return c
}

// Read hands over what is left of the packet, or the next one. The library asks
// for the length first and then for the rest.
func (c *conn) Read(p []byte) (int, error) {
	if c.hand == 0 && !c.next() {
		return 0, io.EOF
	}
	n := copy(p, c.buf[c.start:c.start+c.hand])
	c.start += n
	c.hand -= n
	return n, nil
}

// next reads up to the next packet the library is to see.
func (c *conn) next() bool {
	c.argument = nil
	c.macros.clear() // they were the last command's
	for !c.last && !c.ended.Load() {
		length, ok := c.packet()
		if !ok {
			return false
		}
		packet := c.buf[c.start:min(c.end, c.start+lengthSize+length)]
		code := packet[lengthSize]
		c.hand = len(packet)
		switch treat(code) {
		case cut:
			binary.BigEndian.PutUint32(packet, 1)
			c.hand, c.skip = lengthSize+1, length-1
		case drop:
			if !c.negotiated || !c.macros.parse(packet[lengthSize+1:]) {
				return c.bad()
			}
			c.start, c.hand = c.start+c.hand, 0
			continue
		}
		if !c.check(gomilter.Code(code), packet[lengthSize+1:]) {
			return c.bad()
		}
		c.enter(answering)
		return true
	}
	return false
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

// packet reads until the next packet is in the buffer and gives its length,
// the command included. Of a packet whose contents are thrown away only the
// head needs to be there.
func (c *conn) packet() (length int, ok bool) {
	for c.skip > 0 {
		n := min(c.skip, c.end-c.start)
		c.start += n
		c.skip -= n
		if c.skip > 0 && !c.fill(1) {
			return 0, c.cutShort()
		}
	}
	if !c.fill(lengthSize + 1) {
		if c.start < c.end {
			return 0, c.cutShort()
		}
		return 0, false
	}
	n := binary.BigEndian.Uint32(c.buf[c.start:])
	kind := treat(c.buf[c.start+lengthSize])
	switch {
	case n == 0 || kind == bad || n > maxCut || kind != cut && n > maxPacket:
		return 0, c.bad()
	case kind != cut && !c.fill(lengthSize+int(n)):
		return 0, c.cutShort()
	}
	return int(n), true
}

// fill reads until need bytes are in the buffer.
func (c *conn) fill(need int) bool {
	for c.end-c.start < need {
		c.makeRoom(need)
		if !c.read() {
			return false
		}
	}
	return true
}

// makeRoom makes the buffer able to hold need bytes, and small again when
// there is nothing in it.
func (c *conn) makeRoom(need int) {
	if c.start == c.end {
		c.start, c.end = 0, 0
		if len(c.buf) > keepBuffer && need <= firstBuffer {
			c.buf = make([]byte, firstBuffer)
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

// read reads once from the network.
func (c *conn) read() bool {
	if c.start < c.end || c.skip > 0 {
		c.enter(receiving)
	} else {
		c.enter(idle)
	}
	if c.quickAck != nil {
		c.quickAck()
	}
	n, err := c.Conn.Read(c.buf[c.end:])
	c.end += n
	if n == 0 && err == nil {
		err = io.ErrNoProgress
	}
	return n > 0 || err == nil
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

// cutShort counts a packet of which the end didn't come, unless it was popgate
// that stopped listening. It answers false too.
func (c *conn) cutShort() bool {
	if c.listener.draining.Load() {
		return false
	}
	return c.bad()
}

// panicked ends the connection after the packet that is being answered.
func (c *conn) panicked(v any) {
	s := c.listener.server
	s.counts.panics.Add(1)
	s.lastPanic.Store(new(fmt.Sprintf("%v\n%s", v, debug.Stack())))
	c.last = true
}
