package policy

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"slices"
	"time"
)

const (
	firstBuffer = 1024 // holds most questions of either door
	keepBuffer  = 4096 // the largest an idle connection keeps
)

// conn is one MTA's connection. It is its goroutine's alone but for deadlines
// and Close.
type conn struct {
	net.Conn
	listener *listener
	language language
	read     []byte    // and not yet answered
	begun    time.Time // when the first byte of the unfinished question came; zero: there is none
	reply    []byte
	asked    bool // at least one question: silence before it is nobody's way to wait
}

// run answers questions, one after the other, until either side has had enough.
// Questions sent ahead wait their turn; those that were whole when the MTA shut
// its side are still answered, for Exim shuts it before it listens.
func (c *conn) run() {
	counts := &c.listener.server.counts
	for {
		length, ok := c.language.whole(c.read)
		if length == 0 && ok && len(c.read) >= c.listener.server.longest {
			ok = false
		}
		switch {
		case !ok:
			counts.bad.Add(1)
			c.send(c.language.later(c.reply[:0]))
			return
		case length == 0:
			if !c.more() {
				return
			}
			continue
		}
		reply, ok := c.answer(c.read[:length])
		if !c.send(reply) || !ok || c.listener.draining.Load() {
			return
		}
		c.drop(length)
	}
}

// answer makes the answer to a question. It answers false when the connection
// is to end with it.
func (c *conn) answer(question []byte) (reply []byte, ok bool) {
	s := c.listener.server
	c.asked = true
	defer func() {
		if v := recover(); v != nil {
			s.counts.panics.Add(1)
			s.lastPanic.Store(new(fmt.Sprintf("%v\n%s", v, debug.Stack())))
			reply, ok = c.language.later(nil), false
		}
	}()
	if reply, ok = c.language.answer(c.listener.judging, c.reply[:0], question); !ok {
		s.counts.bad.Add(1)
	}
	c.reply = reply
	return reply, ok
}

// more reads what comes next. It answers false when nothing will.
func (c *conn) more() bool {
	deadline := time.Now()
	switch {
	case len(c.read) == 0 && c.asked:
		deadline = deadline.Add(c.listener.server.options.IdleTimeout)
	case c.begun.IsZero():
		c.begun = deadline
		fallthrough
	default:
		deadline = c.begun.Add(c.listener.server.options.RequestTimeout)
	}
	_ = c.SetReadDeadline(deadline) // of an error the read will tell
	if c.listener.draining.Load() { // may just have set another deadline
		return false
	}
	if len(c.read) == cap(c.read) {
		// Twice as much at most, so that what was promised is not surpassed.
		c.read = slices.Grow(c.read, max(firstBuffer, len(c.read)))
	}
	n, err := c.Read(c.read[len(c.read):cap(c.read)])
	c.read = c.read[:len(c.read)+n]
	if n > 0 {
		return true
	}
	switch {
	case c.listener.draining.Load():
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.listener.server.counts.timeouts.Add(1)
	case len(c.read) > 0:
		c.listener.server.counts.bad.Add(1) // cut short
	}
	return false
}

// drop forgets an answered question, and the room a long one took.
func (c *conn) drop(length int) {
	c.begun = time.Time{}
	rest := len(c.read) - length
	if cap(c.read) > keepBuffer && rest <= firstBuffer {
		c.read = append(make([]byte, 0, firstBuffer), c.read[length:]...)
		return
	}
	c.read = c.read[:copy(c.read, c.read[length:])]
}

// send writes an answer. What can't be sent ends the connection.
func (c *conn) send(reply []byte) bool {
	_ = c.SetWriteDeadline(time.Now().Add(c.listener.server.options.WriteTimeout))
	_, err := c.Write(reply)
	c.listener.server.options.Answered()
	if err != nil {
		c.listener.server.counts.unsent.Add(1)
		return false
	}
	return true
}
