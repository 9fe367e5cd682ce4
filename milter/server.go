package milter

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/listen"
	"popgate/internal/relay"
)

// Judge answers what the MTA asks. Its methods are called by many connections
// at once.
type Judge interface {
	// Judge decides one recipient. The query is the caller's again when Judge
	// returns; its strings may be kept. It returns soon after ctx has ended. Before
	// it waits for anything it calls Block of the query's Waits, or others are kept
	// waiting with it.
	Judge(ctx context.Context, q *relay.Query) relay.Decision
	// Reply gives what the client is told for a decision that is not pass. It
	// may be kept while Generation stays what it is.
	Reply(d relay.Decision, client netip.Addr) relay.Reply
	// Generation changes whenever the rules do.
	Generation() uint64
}

// Options bound what MTAs may take. Zero fields have the defaults.
type Options struct {
	// Loops is how many packets are answered at one time, for each listener; those
	// that wait for something are not counted. Default: half as many as goroutines
	// may run at one time (GOMAXPROCS), at most 8.
	Loops           int
	MaxConns        int           // in all; default 16384
	MaxConnsPerPeer int           // from one address over TCP; default 8192
	IdleTimeout     time.Duration // between two packets; default 7210s, as in libmilter: longer than an MTA waits for its client
	PacketTimeout   time.Duration // from a packet's first byte to its last; default 30s
	WriteTimeout    time.Duration // for one answer; default 10s
	DrainTimeout    time.Duration // from the end of Serve's ctx to the end of its last connection; default 2s

	// Answered is called when answers have been sent and before anybody waits
	// again: what was put off for their sake can be done now. nil: nothing is.
	Answered func()

	Allow func(peer netip.Addr) bool // which addresses may connect over TCP; nil: all
	Log   *slog.Logger               // trouble of listeners, and a summary of that of connections; nil: none
}

func (o *Options) setDefaults() {
	setDefault(&o.Loops, min(max(1, runtime.GOMAXPROCS(0)/2), maxLoops))
	setDefault(&o.MaxConns, 16384)
	setDefault(&o.MaxConnsPerPeer, 8192)
	setDefault(&o.IdleTimeout, 7210*time.Second)
	setDefault(&o.PacketTimeout, 30*time.Second)
	setDefault(&o.WriteTimeout, 10*time.Second)
	setDefault(&o.DrainTimeout, 2*time.Second)
	if o.Answered == nil {
		o.Answered = func() {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}

// Server serves any number of listeners; caps and counts are common to them.
type Server struct {
	judge     Judge
	options   Options
	room      *listen.Room
	counts    counts
	lastPanic atomic.Pointer[string] // not yet reported

	negotiation atomic.Pointer[negotiation]

	mu       sync.Mutex
	reported Stats // what the last summary said
	summary  time.Time
	loops    map[*loop]struct{} // of all listeners
}

// NewServer makes a server that asks j.
func NewServer(j Judge, o Options) *Server {
	o.setDefaults()
	return &Server{judge: j, options: o, room: listen.NewRoom(o.MaxConns, o.MaxConnsPerPeer, o.Allow), loops: map[*loop]struct{}{}}
}

// Alive waits until whoever answers MTAs has come round to them once more, which
// takes no longer than what is being answered at the moment. It answers false
// when ctx has ended before that.
func (s *Server) Alive(ctx context.Context) bool {
	s.mu.Lock()
	loops := slices.Collect(maps.Keys(s.loops))
	s.mu.Unlock()
	for _, p := range loops {
		if !p.comesRound(ctx) {
			return false
		}
	}
	return true
}

// Serve answers the MTAs that connect to ln until ctx ends, and then for at
// most DrainTimeout those it is already answering. It closes ln. Its error is
// nil when ctx has ended, else why the listener can't be used any more.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	judging, stopJudging := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJudging()
	l := newListener(s, judging)
	take := l.serve
	if own, ok := newSockets(ln); ok {
		if err := l.startLoops(own); err != nil {
			return errors.Join(err, own.Close())
		}
		ln, take = own, func(nc net.Conn) { l.admit(nc.(*arrival)) } // nothing else comes from sockets
	}

	housekept := make(chan struct{})
	var keeper sync.WaitGroup
	keeper.Go(func() { l.keepHouse(housekept) })
	defer keeper.Wait()
	defer close(housekept)

	closed := make(chan struct{})
	unhook := context.AfterFunc(ctx, func() { _ = ln.Close(); close(closed) })
	err := listen.Accept(ctx, ln, s.options.Log.With("door", "milter"), func() { s.counts.acceptErrors.Add(1) }, take)
	if unhook() {
		_ = ln.Close()
	} else {
		<-closed
	}
	l.drain(stopJudging)
	l.stopLoops(s.options.DrainTimeout / 4)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// listener is one call of Serve: a listener and the connections it made.
type listener struct {
	server   *Server
	judging  context.Context // of the judge; ends when draining has lasted too long
	ticks    atomic.Uint64   // advanced by housekeeping
	draining atomic.Bool

	mu    sync.Mutex
	conns map[*conn]struct{}
	empty chan struct{} // told when the last connection ends

	loops []*loop // never changes while connections are taken
}

func newListener(s *Server, judging context.Context) *listener {
	return &listener{server: s, judging: judging, conns: map[*conn]struct{}{}, empty: make(chan struct{}, 1)}
}

// serve gives a connection a worker of its own.
func (l *listener) serve(nc net.Conn) {
	c := newConn(l)
	c.wire = nc
	if l.enter(nc, c) {
		employ(alone{c})
	}
}

// admit leaves an arrival to the first loop, where most connections begin and
// end: in one place they take fewer wake-ups. One that goes on is moved.
func (l *listener) admit(a *arrival) {
	p := l.loops[0]
	c := newConn(l)
	c.fd, c.loop, c.session.waits.Asker = int32(a.fd), p, c
	if !l.enter(a, c) {
		return
	}
	a.prepare()
	if !p.watch(c) {
		c.close()
	}
}

// enter takes in a connection that may come in, and closes another.
func (l *listener) enter(nc net.Conn, c *conn) (ok bool) {
	if c.peer, ok = l.server.room.Enter(nc); !ok {
		_ = nc.Close()
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns[c] = struct{}{}
	return true
}

// leastBusy gives the loop that watches the fewest connections.
func (l *listener) leastBusy() *loop {
	return slices.MinFunc(l.loops, func(p, q *loop) int { return cmp.Compare(p.watched.Load(), q.watched.Load()) })
}

// maxLoops bounds what Options.Loops is by default.
const maxLoops = 8

// startLoops makes the loops, all of them before the first begins.
func (l *listener) startLoops(door *sockets) error {
	for range l.server.options.Loops {
		p, err := newLoop(l, door)
		if err != nil {
			for _, p := range l.loops {
				p.release()
			}
			return err
		}
		l.loops = append(l.loops, p)
	}
	door.loops = l.loops[:1]
	l.server.mu.Lock()
	defer l.server.mu.Unlock()
	for _, p := range l.loops {
		l.server.loops[p] = struct{}{}
		employ(p)
	}
	return nil
}

// forget takes note that a connection has ended.
func (l *listener) forget(c *conn) {
	l.mu.Lock()
	_, known := l.conns[c]
	delete(l.conns, c)
	if len(l.conns) == 0 {
		select {
		case l.empty <- struct{}{}:
		default:
		}
	}
	l.mu.Unlock()
	if known {
		l.server.room.Leave(c.peer)
	}
}
