// Package syslog takes what syslog daemons send: over unix sockets, UDP, TCP and
// TLS, in the forms of RFC 3164 and 5424.
//
// It promises: a message is handed over only whole, and only from a sender who
// may send. Where one may be missing a Gap stands in its place. What can't be
// promised: that the sender's daemon tells the truth about who wrote it.
package syslog

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"strings"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// Options say where a Source listens and who may send to it.
type Options struct {
	Network  string         // unix (datagrams, as /dev/log), unix-stream, udp, tcp or tls
	Address  string         // a path, or host:port with a literal host
	Allow    []netip.Prefix // udp, tcp, tls: who may send; empty: who reaches the address
	PeerUIDs []uint32       // unix: who may send beside root
	Hosts    []string       // hosts named in the messages whose messages count; empty: all
	TLS      TLS            // tls

	// Ordered is for formats in which a line is understood by those before it:
	// what a sender sends over several connections at once has no order, and is
	// withheld.
	Ordered bool
}

// Source takes messages from syslog daemons. It keeps no place: what is sent
// while nobody listens is lost, so a Gap says Lost whenever that may have
// happened, and the source is Down while it hears nobody.
//
// Who is heard: a sender counts from the first message it has sent, so that
// one who only connects changes nothing. One that may not send changes nothing
// at all. With connections, a sender is gone when its last one has ended for
// longer than comeback. While another one is heard that is a Gap, Lost, and so
// is its return; when it was the last one the source is Down. A connection that
// broke, or ended inside a message, is a Gap, Lost, at once. Datagrams don't
// tell whether their sender is still there; silence is not noticed.
//
// What one sender can do to others: nothing but take its share of the reading.
// Each connection is cut into messages, and understood, by itself; memory is
// bounded by maxConns buffers of some MaxLine bytes; who sends faster than
// messages are read waits, or, over UDP, is not heard, which is a Gap, Lost.
type Source struct {
	Options
	text string // of the address, for people
}

// New makes a source. Nothing is opened before Records.
func New(o Options) *Source {
	return &Source{Options: o, text: o.Network + ":" + o.Address}
}

// Name is the source's name unless the configuration gives it another.
func (s *Source) Name() string { return "syslog:" + s.text }

// Type is "syslog".
func (s *Source) Type() string { return "syslog" }

const (
	retryEvery = time.Second      // to open a listener
	comeback   = 10 * time.Second // how long a sender may be away without being gone
	firstWord  = 10 * time.Second // how long nobody may be heard before that is said
	lookEvery  = 5 * time.Second  // whether the socket is still in its place
	finishIn   = 30 * time.Second // a message that has begun
	maxConns   = 128
	maxOfOne   = 16 // connections of one sender
)

// Records listens until ctx ends. Neither a position nor a time to begin with
// means anything here.
func (s *Source) Records(ctx context.Context, _ relay.Position, _ time.Time) iter.Seq[watcher.Record] {
	return func(yield func(watcher.Record) bool) {
		for ctx.Err() == nil {
			err := s.listen(ctx, yield)
			if ctx.Err() != nil || errors.Is(err, errStopped) {
				return
			}
			if !yield(watcher.Record{Kind: watcher.Down, Err: err}) {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(retryEvery):
			}
		}
	}
}

// errStopped is the wish of who reads the records.
var errStopped = errors.New("nobody reads any more")

// listen opens the listener and reads until it fails.
func (s *Source) listen(ctx context.Context, yield func(watcher.Record) bool) error {
	ctx, stop := context.WithCancelCause(ctx)
	h := &hall{Source: s, ctx: ctx, fail: stop, post: make(chan parcel), conns: map[*conn]bool{}, of: map[string]int{}}
	defer func() {
		stop(nil)
		h.close()
		h.workers.Wait()
	}()
	if err := h.open(); err != nil {
		return err
	}
	r := &reader{hall: h, yield: yield, senders: map[string]*sender{}}
	return r.run(ctx)
}

// parcel is what a worker of the hall hands to the reader. It waits until done
// before it goes on, for the messages lie in its own memory.
type parcel struct {
	conn   *conn // nil: a datagram socket, or the listener
	what   parcelKind
	frames []frame // messages
	err    error
	times  uint64
	done   chan<- struct{}
}

type parcelKind uint8

const (
	messages  parcelKind = iota
	opened               // conn may send
	closed               // conn has ended; err says why unless it was in order
	overflow             // datagrams were dropped for lack of room
	turnedOff            // refused, times, because of err
	deaf                 // nobody can connect, because of err; nil: that is over
)

// reader turns parcels into records, in one goroutine.
type reader struct {
	*hall
	yield   func(watcher.Record) bool
	stopped bool
	senders map[string]*sender // with connections, or not yet gone
	up      bool
	deaf    error
	begun   time.Time
	message format.Message
}

// sender is one host, or one user of this one, that may send.
type sender struct {
	name    string
	open    int       // connections
	heard   int       // those of them on which it has sent a message
	left    time.Time // when it ended the last of these; zero: it has not
	crowded time.Time // until when its order can't be told; Ordered
}

func (r *reader) tell(rec watcher.Record) {
	if !r.stopped && !r.yield(rec) {
		r.stopped = true
	}
}

// run reads until ctx ends.
func (r *reader) run(ctx context.Context) error {
	r.begun = time.Now()
	r.tell(watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: r.begun})
	look := time.NewTicker(time.Second)
	defer look.Stop()
	silent := false
	for ticks := 0; !r.stopped; {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case p := <-r.post:
			r.parcel(&p, time.Now())
			if p.done != nil {
				p.done <- struct{}{}
			}
		case now := <-look.C:
			r.leave(now)
			if !r.up && !silent && now.Sub(r.begun) >= firstWord {
				silent = true
				r.down(fmt.Errorf("%s: nothing has been received yet; do the syslog daemons of the POP/IMAP servers send to it?", r.text))
			}
			if ticks++; ticks%int(lookEvery/time.Second) == 0 {
				if err := r.inPlace(); err != nil {
					return err
				}
			}
		}
	}
	return errStopped
}

func (r *reader) down(err error) {
	r.up = false
	r.tell(watcher.Record{Kind: watcher.Down, Err: err})
}

func (r *reader) parcel(p *parcel, now time.Time) {
	switch p.what {
	case messages:
		for _, f := range p.frames {
			r.frame(p.conn, f, now)
		}
		if r.up {
			r.tell(watcher.Record{Kind: watcher.CaughtUp}) // so that what was counted is told
		}
	case opened:
		r.opened(p.conn, now)
	case closed:
		r.closed(p.conn, p.err, now)
	case overflow:
		r.tell(watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: now})
	case turnedOff:
		r.tell(watcher.Record{Kind: watcher.Refused, Err: fmt.Errorf("%s: %w", r.text, p.err), Times: p.times})
	case deaf:
		if r.deaf = p.err; p.err != nil {
			r.down(fmt.Errorf("%s: %w", r.text, p.err))
			return
		}
		r.tell(watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: now})
		for _, s := range r.senders {
			if s.heard > 0 {
				r.hear()
			}
		}
	}
}

// hear says that somebody is heard.
func (r *reader) hear() {
	if !r.up && r.deaf == nil {
		r.up = true
		r.tell(watcher.Record{Kind: watcher.CaughtUp})
	}
}

// frame passes one message on.
func (r *reader) frame(c *conn, f frame, now time.Time) {
	rec := watcher.Record{Kind: watcher.Line, Text: f.text, Arrived: now, Live: true, Sent: true}
	if c != nil {
		rec.Stream = c.id
	}
	if f.text == nil {
		rec.Kind = watcher.Gap
		r.tell(rec)
		return
	}
	r.welcome(c, f.text, now)
	rec.Withheld = c != nil && r.Ordered && (c.sender.open > 1 || now.Before(c.sender.crowded))
	if len(r.Hosts) > 0 && (!format.Split(f.text, &r.message) || !r.counts(r.message.Host)) {
		return
	}
	r.tell(rec)
}

// counts says whether messages of a host count.
func (r *reader) counts(host []byte) bool {
	for _, h := range r.Hosts {
		if len(h) == len(host) && strings.EqualFold(h, string(host)) {
			return true
		}
	}
	return false
}

// welcome notes the first message of a connection, or of a datagram socket.
func (r *reader) welcome(c *conn, text []byte, now time.Time) {
	if c != nil && c.heard || c == nil && r.up || format.PriorityLen(text) == 0 {
		return
	}
	gap := watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: now}
	if c != nil {
		c.heard = true
		s := c.sender
		s.heard++
		if s.heard > 1 {
			return
		}
		// Back within a moment, it had what it logged in between in its queue.
		gap.Lost = s.left.IsZero()
		s.left = time.Time{}
	}
	if r.up || c == nil || gap.Lost {
		r.tell(gap)
	}
	r.hear()
}

func (r *reader) opened(c *conn, now time.Time) {
	s := r.senders[c.from]
	if s == nil {
		s = &sender{name: c.from}
		r.senders[c.from] = s
	}
	c.sender = s
	if s.open++; s.open == 2 && r.Ordered {
		r.tell(watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: now})
		r.tell(watcher.Record{Kind: watcher.Refused, Times: 1, Err: fmt.Errorf("%s: %s sends over several connections at once, so its messages have no order and this format can't be read; let it send over one (rsyslog: queue.workerThreads=\"1\")", r.text, s.name)})
	}
}

func (r *reader) closed(c *conn, err error, now time.Time) {
	s := c.sender
	if s == nil {
		return
	}
	if s.open--; s.open > 0 {
		s.crowded = now.Add(comeback)
	}
	if c.heard {
		s.heard--
		if err != nil {
			r.tell(watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: now})
		}
		if s.heard == 0 {
			s.left = now
		}
	}
	if err != nil {
		r.tell(watcher.Record{Kind: watcher.Refused, Times: 1, Err: fmt.Errorf("%s: %s: %w", r.text, s.name, err)})
	}
	r.tell(watcher.Record{Kind: watcher.Ended, Stream: c.id})
	if s.open == 0 && s.left.IsZero() {
		delete(r.senders, s.name)
	}
}

// leave finds the senders that have not come back.
func (r *reader) leave(now time.Time) {
	heard := 0
	var last *sender
	for _, s := range r.senders {
		switch {
		case s.heard > 0 || !s.left.IsZero() && now.Sub(s.left) < comeback:
			heard++
		case !s.left.IsZero():
			if last == nil || s.left.After(last.left) {
				last = s
			}
			s.left = time.Time{}
			if s.open == 0 {
				delete(r.senders, s.name)
			}
		}
	}
	switch {
	case last == nil:
	case heard > 0:
		r.tell(watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: now})
		r.tell(watcher.Record{Kind: watcher.Refused, Times: 1, Err: fmt.Errorf("%s: %s sends no more: it has ended its connection", r.text, last.name)})
	case r.deaf == nil:
		r.down(fmt.Errorf("%s: %s has ended its connection, and nobody else sends; is its syslog daemon running?", r.text, last.name))
	}
}
