package milter

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	gomilter "github.com/emersion/go-milter"

	"popgate/internal/listen"
	"popgate/internal/relay"
)

// Judge answers what the MTA asks. Its methods are called by many connections
// at once.
type Judge interface {
	// Judge decides one recipient. The query is the caller's again when Judge
	// returns; its strings may be kept. It returns soon after ctx has ended.
	Judge(ctx context.Context, q *relay.Query) relay.Decision
	// Reply gives what the client is told for a decision that is not pass. It
	// may be kept while Generation stays what it is.
	Reply(d relay.Decision, client netip.Addr) relay.Reply
	// Generation changes whenever the rules do.
	Generation() uint64
}

// Options bound what MTAs may take. Zero fields have the defaults.
type Options struct {
	MaxConns        int           // in all; default 16384
	MaxConnsPerPeer int           // from one address over TCP; default 8192
	IdleTimeout     time.Duration // between two packets; default 7210s, as in libmilter: longer than an MTA waits for its client
	PacketTimeout   time.Duration // from a packet's first byte to its last; default 30s
	WriteTimeout    time.Duration // for one answer; default 10s
	DrainTimeout    time.Duration // from the end of Serve's ctx to the end of its last connection; default 2s

	Allow func(peer netip.Addr) bool // which addresses may connect over TCP; nil: all
	Log   *slog.Logger               // trouble of listeners, and a summary of that of connections; nil: none
}

func (o *Options) setDefaults() {
	setDefault(&o.MaxConns, 16384)
	setDefault(&o.MaxConnsPerPeer, 8192)
	setDefault(&o.IdleTimeout, 7210*time.Second)
	setDefault(&o.PacketTimeout, 30*time.Second)
	setDefault(&o.WriteTimeout, 10*time.Second)
	setDefault(&o.DrainTimeout, 2*time.Second)
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

	mu       sync.Mutex
	reported Stats // what the last summary said
	summary  time.Time
}

// NewServer makes a server that asks j.
func NewServer(j Judge, o Options) *Server {
	o.setDefaults()
	return &Server{judge: j, options: o, room: listen.NewRoom(o.MaxConns, o.MaxConnsPerPeer, o.Allow)}
}

// Serve answers the MTAs that connect to ln until ctx ends, and then for at
// most DrainTimeout those it is already answering. It closes ln. Its error is
// nil when ctx has ended, else why the listener can't be used any more.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	judging, stopJudging := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJudging()
	l := newListener(s, judging)

	housekept := make(chan struct{})
	var keeper sync.WaitGroup
	keeper.Go(func() { l.keepHouse(housekept) })
	defer keeper.Wait()
	defer close(housekept)

	unhook := context.AfterFunc(ctx, func() { _ = ln.Close() })
	err := listen.Accept(ctx, ln, s.options.Log.With("door", "milter"), func() { s.counts.acceptErrors.Add(1) }, l.serve)
	if unhook() {
		_ = ln.Close()
	}
	l.drain(stopJudging)
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
}

func newListener(s *Server, judging context.Context) *listener {
	return &listener{server: s, judging: judging, conns: map[*conn]struct{}{}, empty: make(chan struct{}, 1)}
}

// serve hands one connection to a library server of its own, so that its
// NewMilter can give the same session for as long as the connection lasts.
// The library's Serve returns at once, with its own goroutine at work. Its
// Close is never called: it would race with Serve, and closes only listeners.
func (l *listener) serve(nc net.Conn) {
	peer, ok := l.server.room.Enter(nc)
	if !ok {
		_ = nc.Close()
		return
	}
	c := newConn(nc, l, peer)
	l.mu.Lock()
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	library := gomilter.Server{
		NewMilter: func() gomilter.Milter { return &c.session },
		Actions:   wantActions,
		Protocol:  refuseStages,
		SymList:   symList,
	}
	_ = library.Serve(&once{conn: c}) // always the error of once
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
