package milter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"runtime/debug"
	"sync/atomic"
	"syscall"

	gomilter "github.com/emersion/go-milter"
)

const firstBuffer = 512 // holds the packets of one command of either MTA

// conn is one connection of an MTA's: the packets it has sent, checked before
// anybody sees them, and what is known from them. It belongs to the worker that
// answers its packet, and between packets to whoever waits for the next one;
// only ended and phase are everybody's. A judge that waits may have somebody else
// answer meanwhile, see Passes.
type conn struct {
	listener *listener
	loop     *loop         // that waits for its packets; nil: wire does
	fd       int32         // its socket, where loop waits
	full     bool          // loop waits for room in the socket, and for nothing else
	answers  uint32        // how often loop has done with what was read
	wire     net.Conn      // its socket, where there is no loop
	peer     netip.Addr    // the MTA's host, zero on a unix socket
	phase    atomic.Uint64 // what it is doing and since which tick, see phase
	ended    atomic.Bool   // nothing more is read or written
	last     bool          // the packet being answered is the last one
	passed   bool          // the recipient being answered has been told so already
	worker   *worker       // that answers its packet, or answered the last one

	buf        []byte // nil while nothing is in it
	start, end int    // what was read and not handed over lies between
	skip       int    // how much behind it is to be thrown away
	unsent     []byte // of an answer the socket had no room for

	negotiated, connected bool
	offer                 offer
	argument              []byte     // its first string; good until the next packet
	client                netip.Addr // from the CONNECT packet
	macros                *macroSet  // nil: none were sent

	session session
}

func newConn(l *listener) *conn {
	c := &conn{listener: l}
	c.session.conn = c
	c.begin(idle)
	return c
}

// take gives the next packet the library is to see, out of what was read; it is
// good until the next one. nil: the connection is over, its last answer has not
// gone out yet, or more must be read, for which there is room then.
func (c *conn) take() []byte {
	for !c.last && !c.ended.Load() && len(c.unsent) == 0 {
		length, ok := c.whole()
		if !ok {
			return nil
		}
		packet := c.buf[c.start:min(c.end, c.start+lengthSize+length)]
		code, data := packet[lengthSize], packet[lengthSize+1:]
		switch treat(code) {
		case drop:
			c.start += len(packet)
			if !c.negotiated || !c.takeMacros(data) {
				c.bad()
				return nil
			}
			continue
		case cut:
			binary.BigEndian.PutUint32(packet, 1)
			packet, c.skip = packet[:lengthSize+1], length-1
		}
		c.start += len(packet)
		if !c.check(gomilter.Code(code), data) {
			c.bad()
			return nil
		}
		c.enter(answering)
		if !c.answered(gomilter.Code(code)) {
			return packet
		}
	}
	return nil
}

// answered deals with what the library needn't be asked for: the end, and a
// negotiation with an MTA that offers what another has offered before.
func (c *conn) answered(code gomilter.Code) bool {
	switch code {
	case gomilter.CodeQuit:
		c.last = true
	case gomilter.CodeOptNeg:
		n := c.listener.server.negotiation.Load()
		if n == nil || n.offer != c.offer {
			return false
		}
		c.send(n.answer)
	default:
		return false
	}
	return true
}

// done forgets the packet that has been answered, and the macros sent for it.
func (c *conn) done() {
	c.argument = nil
	if c.macros != nil {
		c.macros.giveBack()
		c.macros = nil
	}
}

// takeMacros takes a macro packet in, for the command that follows.
func (c *conn) takeMacros(data []byte) bool {
	if c.macros == nil {
		c.macros = borrowMacros()
	}
	return c.macros.parse(data)
}

// macrosFor gives what the MTA told with the command being answered: the macro
// packet just before it, if that was meant for it.
func (c *conn) macrosFor(code gomilter.Code) *macroSet {
	if c.macros == nil || c.macros.stage != byte(code) {
		return &noMacros
	}
	return c.macros
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

// check looks at a packet before it is answered.
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

// has says whether need bytes have been read, and makes room for them if not.
func (c *conn) has(need int) bool {
	if c.end-c.start >= need {
		return true
	}
	c.makeRoom(need)
	return false
}

// makeRoom makes the buffer able to hold need bytes. An empty one is given back.
func (c *conn) makeRoom(need int) {
	c.lend()
	to := c.buf
	switch {
	case to == nil && need <= firstBuffer, c.start+need <= len(to):
		return
	case need > len(to):
		size := firstBuffer
		for size < need {
			size *= 2
		}
		to = make([]byte, size)
	}
	c.start, c.end, c.buf = 0, copy(to, c.buf[c.start:c.end]), to
}

// lend gives a buffer with nothing in it to whoever needs one. While a
// connection waits it has none.
func (c *conn) lend() {
	if c.start < c.end {
		return
	}
	if len(c.buf) == firstBuffer {
		giveBack(c.buf)
	}
	c.start, c.end, c.buf = 0, 0, nil
}

// room is where the next read goes.
func (c *conn) room() []byte {
	if c.buf == nil {
		c.buf = borrow()
	}
	return c.buf[c.end:]
}

// begun says whether a part of a packet was read whose rest must follow.
func (c *conn) begun() bool { return c.start < c.end || c.skip > 0 }

// waits notes that more must be read.
func (c *conn) waits() {
	if c.begun() {
		c.enter(receiving)
	} else {
		c.enter(idle)
	}
}

// received takes in what one read gave; nothing is the end.
func (c *conn) received(n int) {
	if n > 0 {
		c.end += n
		return
	}
	if c.begun() && !c.listener.draining.Load() {
		c.bad() // cut short, and not by us
	}
	c.ended.Store(true)
}

// over says whether nothing more is to be read or written.
func (c *conn) over() bool { return c.ended.Load() || c.last && len(c.unsent) == 0 }

// send writes a whole packet. What can't be sent ends the connection.
func (c *conn) send(packet []byte) {
	var err error
	if c.loop != nil {
		err = c.loop.write(c, packet)
	} else {
		c.enter(writing)
		_, err = c.wire.Write(packet)
	}
	if err != nil {
		c.broken()
	}
}

// broken counts an answer that could not be sent, which ends the connection.
func (c *conn) broken() {
	if !c.ended.Swap(true) {
		c.listener.server.counts.unsent.Add(1)
	}
}

// bad counts a packet that ends the connection. It answers false, for the
// caller to return.
func (c *conn) bad() bool {
	if !c.ended.Swap(true) {
		c.listener.server.counts.bad.Add(1)
	}
	return false
}

// Blocks is told by the judge that the answer will take time.
func (c *conn) Blocks() { c.loop.stepAside(c.worker) }

// Passes is told while the judge waits that the answer will be to pass, by a
// goroutine other than the worker's. The judge sees to it that it has returned
// before he does, and that it has been called only when he passes.
func (c *conn) Passes() {
	c.passed = true
	defer func() {
		if v := recover(); v != nil {
			c.panicked(v) // nobody knows whether it was sent
		}
	}()
	c.send(proceed)
}

// panicked ends the connection after the packet that is being answered.
func (c *conn) panicked(v any) {
	s := c.listener.server
	s.counts.panics.Add(1)
	s.lastPanic.Store(new(fmt.Sprintf("%v\n%s", v, debug.Stack())))
	c.last = true
}

// close ends the connection. Its socket is closed last: until nobody knows the
// connection any more its number can't be another's.
func (c *conn) close() {
	c.ended.Store(true)
	c.done()
	if c.loop != nil {
		c.loop.forget(c)
	}
	c.listener.forget(c)
	if c.wire != nil {
		_ = c.wire.Close()
	} else {
		_ = syscall.Close(int(c.fd))
	}
}

// breakOff ends a connection from outside, which whoever waits for it then
// notices. The listener's lock is held, so that the connection is still known.
func (c *conn) breakOff() {
	if c.wire != nil {
		_ = c.wire.Close()
	} else {
		_ = syscall.Shutdown(int(c.fd), syscall.SHUT_RDWR)
	}
}
