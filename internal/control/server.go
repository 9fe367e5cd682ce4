package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/user"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"popgate/internal/listen"
)

// Access says who may use the socket beyond root and the daemon's own user.
type Access struct {
	ReadGroup func() int  // group id whose members may read; -1: none
	Log       *log.Logger // trouble with connections; nil: the standard logger
}

const (
	maxBody      = 64 << 10
	writeTimeout = 30 * time.Second
	drainTime    = 2 * time.Second // for commands that have begun, when the daemon stops
)

// limits are times that tests make shorter.
type limits struct {
	request time.Duration // for sending a request
	watcher time.Duration // for reading what there is to watch
}

var usual = limits{request: 10 * time.Second, watcher: 5 * time.Minute}

const forbidden = "not permitted for this user: root and popgate's own user may do all, members of control_group may read"

type peerKey struct{}

// peer is who is at the other end, by the kernel's word.
type peer struct {
	uid, gid uint32
	ok       bool
}

// Serve answers on ln until ctx ends.
func Serve(ctx context.Context, ln net.Listener, d Daemon, a Access) error {
	return serveWithin(ctx, ln, d, a, usual)
}

func serveWithin(ctx context.Context, ln net.Listener, d Daemon, a Access, within limits) error {
	return newServer(ctx, d, a, within).serve(ctx, ln)
}

func newServer(ctx context.Context, d Daemon, a Access, within limits) *server {
	return &server{daemon: d, access: a, limits: within, stopping: ctx, peerOf: peerOf,
		conns: places{max: maxConns, maxReaders: maxReadersConns}, lists: places{max: maxLists, maxReaders: maxReadersLists}}
}

func (s *server) serve(ctx context.Context, ln net.Listener) error {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /ask", s.read(s.ask))
	mux.HandleFunc("GET /list", s.read(s.list))
	mux.HandleFunc("GET /show", s.read(s.show))
	mux.HandleFunc("GET /status", s.read(s.status))
	mux.HandleFunc("GET /watch", s.read(s.watch))
	mux.HandleFunc("POST /grant", s.write(s.grant))
	mux.HandleFunc("POST /revoke", s.write(s.revoke))
	mux.HandleFunc("POST /reload", s.write(s.reload))
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       s.limits.request,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          s.access.Log,
		// A command that has begun is finished, though ctx ends meanwhile.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, peerKey{}, s.peerOf(c))
		},
	}
	drained := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(drained)
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if srv.Shutdown(end) != nil {
			srv.Close()
		}
	})
	err := srv.Serve(listen.NewCountingDoorman(ln, maxConns, s.admits, nil))
	if !stop() {
		<-drained
	}
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("control socket %s: %w", ln.Addr(), err)
	}
	return nil
}

// Who may only read can keep his connections for as long as he likes, so that
// some are kept for those who may do all.
const (
	maxConns        = 64
	maxReadersConns = 48
)

const (
	turnedAway = "Content-Type: application/json\r\nConnection: close\r\n\r\n"
	goAway     = "HTTP/1.1 403 Forbidden\r\n" + turnedAway + `{"error":"` + forbidden + `"}` + "\n"
	crowded    = "HTTP/1.1 503 Service Unavailable\r\n" + turnedAway +
		`{"error":"members of control_group have all the connections open that they may have; end one of them"}` + "\n"
)

// admits lets in only who may read: idle connections of others must not use up
// the daemon's descriptors.
func (s *server) admits(c net.Conn) (leave func(), ok bool) {
	leave, refusal := s.enter(s.peerOf(c))
	if leave == nil {
		// It fits into the empty socket, so nobody waits for the peer to read.
		c.SetWriteDeadline(time.Now().Add(time.Second))
		io.WriteString(c, refusal)
	}
	return leave, leave != nil
}

// enter takes a place for a connection, which leave gives back, or has its peer
// turned away. It keeps nobody waiting for a place: root may stand behind him.
func (s *server) enter(p peer) (leave func(), refusal string) {
	if !s.mayRead(p) {
		return nil, goAway
	}
	leave, ok := s.conns.take(!s.mayWrite(p))
	if !ok {
		return nil, crowded
	}
	return leave, ""
}

func peerOf(c net.Conn) peer {
	if g, ok := c.(*listen.Guest); ok {
		c = g.Conn
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		return peer{}
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return peer{}
	}
	var p peer
	raw.Control(func(fd uintptr) {
		if cred, err := syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED); err == nil {
			p = peer{cred.Uid, cred.Gid, true}
		}
	})
	return p
}

type server struct {
	daemon   Daemon
	access   Access
	limits   limits
	stopping context.Context     // ends when the daemon stops; a request's own doesn't
	peerOf   func(net.Conn) peer // tests have peers of their own
	conns    places              // all connections, which the doorman bounds too
	lists    places              // those being written
}

// maxLists bounds what lists cost: a buffer and a connection each. They share one
// pace, so with more of them each would take longer. One place is kept for those
// who may do all.
const (
	maxLists        = 4
	maxReadersLists = 3
)

var errLists = errors.New("several lists are being written already, wait until one is done")

// places bound what goes on at once, and keep some of it for those who may do all.
// Both bounds are looked at under one lock: a reader too many holds no place that
// is kept for root, not even for a moment.
type places struct {
	max, maxReaders int

	mu           sync.Mutex
	all, readers int // taken; readers are those who may only read
}

// take takes a place, which leave gives back.
func (p *places) take(reader bool) (leave func(), ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.all >= p.max || reader && p.readers >= p.maxReaders {
		return nil, false
	}
	p.change(reader, 1)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.change(reader, -1)
	}, true
}

func (p *places) change(reader bool, by int) {
	p.all += by
	if reader {
		p.readers += by
	}
}

func (s *server) mayWrite(p peer) bool {
	return p.ok && (p.uid == 0 || int(p.uid) == os.Geteuid())
}

func (s *server) mayRead(p peer) bool {
	if s.mayWrite(p) {
		return true
	}
	group := s.access.ReadGroup()
	if !p.ok || group < 0 {
		return false
	}
	if int(p.gid) == group {
		return true
	}
	u, err := user.LookupId(strconv.Itoa(int(p.uid)))
	if err != nil {
		return false
	}
	groups, err := u.GroupIds()
	return err == nil && slices.Contains(groups, strconv.Itoa(group))
}

func (s *server) read(h http.HandlerFunc) http.HandlerFunc  { return guard(s.mayRead, h) }
func (s *server) write(h http.HandlerFunc) http.HandlerFunc { return guard(s.mayWrite, h) }

func guard(may func(peer) bool, h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		p, _ := r.Context().Value(peerKey{}).(peer)
		if !may(p) {
			fail(w, http.StatusForbidden, errors.New(forbidden))
			return
		}
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		h(w, r)
	}
}

type errorAnswer struct {
	Error string `json:"error"`
}

func fail(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(errorAnswer{err.Error()})
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// decode reads a request strictly: what the daemon doesn't know it must not
// pass over in silence.
func decode[T any](w http.ResponseWriter, r *http.Request) (v T, ok bool) {
	d := json.NewDecoder(r.Body)
	d.DisallowUnknownFields()
	if err := d.Decode(&v); err != nil {
		fail(w, http.StatusBadRequest, fmt.Errorf("request: %w", err))
		return v, false
	}
	return v, true
}

func (s *server) ask(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[AskRequest](w, r)
	if !ok {
		return
	}
	a, err := s.daemon.Ask(r.Context(), q)
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	answer(w, a)
}

// list streams one grant a line, so that a million of them are never one
// answer in memory. It leaves their order to who asks: he may take his time for
// it, and this process answers MTAs. A reader that stops reading is cut off
// after a while.
func (s *server) list(w http.ResponseWriter, r *http.Request) {
	p, _ := r.Context().Value(peerKey{}).(peer)
	end, ok := s.lists.take(!s.mayWrite(p))
	if !ok {
		fail(w, http.StatusServiceUnavailable, errLists)
		return
	}
	defer end()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(s.stopping, cancel)()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	out.Flush() // so that who asked knows that it has begun, though there may be little to list
	buf := bufio.NewWriterSize(w, 32<<10)
	var line []byte
	var spell speller
	for g := range s.daemon.Grants(ctx) {
		line = append(spell.appendGrant(line[:0], &g), '\n')
		if buf.Available() < len(line) { // so it is written now
			out.SetWriteDeadline(time.Now().Add(writeTimeout))
		}
		if _, err := buf.Write(line); err != nil {
			return
		}
	}
	if ctx.Err() != nil {
		panic(http.ErrAbortHandler) // or it would look like the whole of it
	}
	out.SetWriteDeadline(time.Now().Add(writeTimeout)) // there may have been little to write for long
	buf.Flush()
}

func (s *server) show(w http.ResponseWriter, r *http.Request) {
	client, err := netip.ParseAddr(r.URL.Query().Get("client"))
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	g, ok := s.daemon.Show(client)
	if !ok {
		fail(w, http.StatusNotFound, fmt.Errorf("%s has no grant", client))
		return
	}
	answer(w, FromGrant(g))
}

func (s *server) status(w http.ResponseWriter, _ *http.Request) { answer(w, s.daemon.Status()) }

func (s *server) grant(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[GrantRequest](w, r)
	if !ok {
		return
	}
	g, err := s.daemon.Grant(r.Context(), q)
	if err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	answer(w, FromGrant(g))
}

func (s *server) revoke(w http.ResponseWriter, r *http.Request) {
	q, ok := decode[RevokeRequest](w, r)
	if !ok {
		return
	}
	taken, err := s.daemon.Revoke(r.Context(), q)
	if err != nil {
		fail(w, http.StatusConflict, err)
		return
	}
	a := RevokeAnswer{Revoked: []Grant{}}
	for _, g := range taken {
		a.Revoked = append(a.Revoked, FromGrant(g))
	}
	answer(w, a)
}

// ReloadAnswer says what the operator should know about a reload that worked.
type ReloadAnswer struct {
	Notes []string `json:"notes,omitempty"`
}

func (s *server) reload(w http.ResponseWriter, r *http.Request) {
	notes, err := s.daemon.Reload(r.Context())
	if err != nil {
		fail(w, http.StatusUnprocessableEntity, err)
		return
	}
	answer(w, ReloadAnswer{notes})
}
