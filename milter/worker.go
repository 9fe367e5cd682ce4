package milter

import (
	"bytes"
	"io"
	"net"

	gomilter "github.com/emersion/go-milter"
)

// worker is one session of the library's, as the library sees it: the
// connection it reads from and the filter it calls. It outlives what it is
// given: its packets are those of whichever connection has one, and each is
// answered by the session of the connection it came from. So the library, which
// needs a goroutine and a stack for as long as a session lasts, has as many as
// there are packets to be answered, and not as many as there are MTAs waiting.
//
// That one session of the library's is as good as another is this package's
// doing: the library sees no macro packet, collects no header, never gets an
// answer to send but that to the negotiation, and so keeps nothing of its own
// from one packet to the next. It reads twice a packet, knows no deadline and
// writes every trouble to the global log; Read gives whole packets that were
// checked before, and Write never fails.
type worker struct {
	net.Conn        // nothing of it is used: the library asks for no address and no deadline
	gomilter.Milter // the session of conn
	queue           queue
	conn            *conn  // whose packet is being answered; nil: none
	hand            []byte // what is left of the packet to be handed over
	aside           bool   // another has taken its place
	dismissed       bool   // it has been told that there is nothing more to do
}

// queue is where a worker gets its packets.
type queue interface {
	// next gives a packet and whose it is, once the one before is answered. It
	// waits until there is one; nil: there never will be.
	next(*worker) (*conn, []byte)
	// lost is told that the library has given up a worker, in the midst of a
	// packet of its connection.
	lost(*worker)
}

// employ has the library serve a queue, in a goroutine of its own: Serve returns
// at once. Its Close is never called: it would race with Serve, and closes
// only listeners.
func employ(q queue) {
	w := &worker{queue: q}
	library := gomilter.Server{
		NewMilter: func() gomilter.Milter { return w },
		Actions:   wantActions,
		Protocol:  refuseStages,
		SymList:   symList,
	}
	_ = library.Serve(&once{conn: w}) // always the error of once
}

// Read hands over what is left of the packet, or the next one. The library asks
// for the length first and then for the rest.
func (w *worker) Read(p []byte) (int, error) {
	if len(w.hand) == 0 {
		if w.conn != nil {
			w.conn.done()
		}
		c, packet := w.queue.next(w)
		if w.conn = c; c == nil {
			w.dismissed = true
			return 0, io.EOF
		}
		c.worker, w.Milter, w.hand = w, &c.session, packet
	}
	n := copy(p, w.hand)
	w.hand = w.hand[n:]
	return n, nil
}

// Write sends what the library itself has to say: the answer to the negotiation,
// and to headers without contents that they were received. It never fails, see
// conn.send.
func (w *worker) Write(p []byte) (int, error) {
	c, n := w.conn, len(p)
	if n > lengthSize && gomilter.Code(p[lengthSize]) == gomilter.CodeOptNeg {
		made := &negotiation{c.offer, c.offer.mask(bytes.Clone(p))}
		c.listener.server.negotiation.Store(made)
		p = made.answer
	}
	c.send(p)
	return n, nil
}

// Close is called by the library once it has done with the worker: it was
// dismissed, or something went wrong that should cost no more than the
// connection.
func (w *worker) Close() error {
	if !w.dismissed {
		w.queue.lost(w)
	}
	return nil
}

// negotiation is what was offered and answered last: MTAs of one kind all offer
// the same, and the library makes its answer from nothing else.
type negotiation struct {
	offer  offer
	answer []byte
}

// once is a listener with one connection.
type once struct{ conn net.Conn }

func (o *once) Accept() (net.Conn, error) {
	c := o.conn
	if c == nil {
		return nil, io.EOF
	}
	o.conn = nil
	return c, nil
}

func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return nil }

// alone is a connection that isn't waited for by a loop: no socket of the
// kernel's, but a pipe, or whatever else somebody's listener accepts. It has a
// worker of its own for as long as it lasts.
type alone struct{ *conn }

func (a alone) next(*worker) (*conn, []byte) {
	for {
		if packet := a.take(); packet != nil {
			return a.conn, packet
		}
		a.listener.server.options.Answered()
		if a.over() {
			a.close()
			return nil, nil
		}
		a.waits()
		n, _ := a.wire.Read(a.room())
		a.received(n)
	}
}

func (a alone) lost(*worker) {
	a.listener.server.counts.panics.Add(1)
	a.close()
}
