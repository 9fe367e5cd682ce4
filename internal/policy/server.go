package policy

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/listen"
	"popgate/internal/relay"
)

// Judge answers what an MTA asks. JudgeClient is called by many connections at
// once; the query is the caller's again when it returns, and its strings may be
// kept. It returns soon after ctx has ended.
type Judge interface {
	JudgeClient(ctx context.Context, q *relay.Query) relay.Decision
}

// Options bound what MTAs may take. Zero fields have the defaults.
type Options struct {
	MaxConns        int           // in all; default 4096
	MaxConnsPerPeer int           // from one address over TCP; default 2048
	IdleTimeout     time.Duration // between two questions; default 7210s: an MTA that keeps its connection for a whole SMTP session would take its end for a failure
	RequestTimeout  time.Duration // from a question's first byte to its last; default 10s
	WriteTimeout    time.Duration // for one answer; default 10s
	DrainTimeout    time.Duration // from the end of Serve's ctx to the end of its last connection; default 2s

	// Answered is called when an answer has been sent: what was put off for its
	// sake can be done now. nil: nothing is.
	Answered func()

	Allow func(peer netip.Addr) bool // which addresses may connect over TCP; nil: all
	Log   *slog.Logger               // trouble of listeners, and a summary of that of connections; nil: none
}

func (o *Options) setDefaults() {
	setDefault(&o.MaxConns, 4096)
	setDefault(&o.MaxConnsPerPeer, 2048)
	setDefault(&o.IdleTimeout, 7210*time.Second)
	setDefault(&o.RequestTimeout, 10*time.Second)
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

// language is what a door speaks. A value of it belongs to one connection.
type language interface {
	// whole gives the length of the first question in what was read, 0 when
	// more of it must be read, and false when it can't become one.
	whole(read []byte) (length int, ok bool)
	// answer appends the answer to a whole question. It answers false for one
	// that can't be understood, with what to say before the connection ends.
	answer(ctx context.Context, to, question []byte) (answer []byte, ok bool)
	// later appends the temporary failure.
	later(to []byte) []byte
}

// Server serves any number of listeners of one door; caps and counts are common
// to them.
type Server struct {
	door      string
	speak     func() language
	longest   int // question
	options   Options
	room      *listen.Room
	counts    counts
	lastPanic atomic.Pointer[string] // not yet reported

	mu       sync.Mutex
	reported Stats // what the last summary said
}

// NewDelegation makes the server of Postfix's policy delegation.
func NewDelegation(j Judge, o Options) *Server {
	return newServer("policy", maxRequest, func() language { return &delegation{judge: j} }, o)
}

// NewSocketMap makes the server of the socket map.
func NewSocketMap(j Judge, o Options) *Server {
	return newServer("socketmap", maxNetstring, func() language { return &socketMap{judge: j} }, o)
}

func newServer(door string, longest int, speak func() language, o Options) *Server {
	o.setDefaults()
	return &Server{door: door, speak: speak, longest: longest, options: o, room: listen.NewRoom(o.MaxConns, o.MaxConnsPerPeer, o.Allow)}
}

// Serve answers the MTAs that connect to ln until ctx ends, and then for at
// most DrainTimeout those it is already answering. It closes ln. Its error is
// nil when ctx has ended, else why the listener can't be used any more.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	judging, stopJudging := context.WithCancel(context.WithoutCancel(ctx))
	defer stopJudging()
	l := &listener{server: s, judging: judging, conns: map[*conn]struct{}{}}

	reporting, stopReporting := context.WithCancel(context.Background())
	var reporter sync.WaitGroup
	reporter.Go(func() { s.keepReporting(reporting) })
	defer reporter.Wait()
	defer stopReporting()

	unhook := context.AfterFunc(ctx, func() { _ = ln.Close() })
	err := listen.Accept(ctx, ln, s.options.Log.With("door", s.door), func() { s.counts.acceptErrors.Add(1) }, l.start)
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
	judging  context.Context // ends when draining has lasted too long
	draining atomic.Bool
	running  sync.WaitGroup

	mu    sync.Mutex
	conns map[*conn]struct{}
}

// start gives a connection its goroutine, if there is room for it.
func (l *listener) start(nc net.Conn) {
	peer, ok := l.server.room.Enter(nc)
	if !ok {
		_ = nc.Close()
		return
	}
	c := &conn{Conn: nc, listener: l, language: l.server.speak()}
	l.mu.Lock()
	l.conns[c] = struct{}{}
	l.mu.Unlock()
	l.running.Go(func() {
		c.run()
		_ = nc.Close()
		l.mu.Lock()
		delete(l.conns, c)
		l.mu.Unlock()
		l.server.room.Leave(peer)
	})
}

// drain ends all connections: the idle ones at once, the others when the
// question being answered is answered, and what is then still there by force.
// A judge that waits for a login is told to stop while there is still time to
// send its answer.
func (l *listener) drain(stopJudging context.CancelFunc) {
	l.draining.Store(true)
	l.each(func(c *conn) { _ = c.SetReadDeadline(time.Unix(1, 0)) }) // wakes readers, and lets writers write
	ended := make(chan struct{})
	go func() { l.running.Wait(); close(ended) }()
	limit := l.server.options.DrainTimeout
	for _, step := range [...]struct {
		after time.Duration
		then  func()
	}{
		{limit * 3 / 4, stopJudging},
		{limit / 4, func() { l.each(func(c *conn) { _ = c.Close() }) }},
		{limit / 4, func() {}}, // only a judge that ignores its context still holds one
	} {
		timer := time.NewTimer(step.after)
		select {
		case <-ended:
			timer.Stop()
			return
		case <-timer.C:
			step.then()
		}
	}
}

func (l *listener) each(f func(*conn)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		f(c)
	}
}
