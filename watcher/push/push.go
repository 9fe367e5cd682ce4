// Package push takes logins that others tell instead of logging them: Dovecot in
// its auth policy reports, scripts with popgate login.
//
// It promises: nobody who tells ever waits for the ledger, and what could not be
// taken is a Gap that says Lost. Whoever may tell is believed, so who may is for
// a secret or a socket's mode to say.
package push

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"popgate/internal/listen"
	"popgate/internal/relay"
	"popgate/watcher"
)

// Options say where Reports listens and whom it believes.
type Options struct {
	Network string         // tcp, tcp4 or tcp6
	Address string         // host:port with a literal host
	Allow   []netip.Prefix // who may connect, beside this host
	KeyFile string         // the secrets that reports carry
}

// Reports takes Dovecot's auth policy reports (auth_policy_server_url): one HTTP
// request for each login and each failed one, from the server itself, so that
// no log is read. It keeps no place: what is reported while nobody listens is
// lost, so there is a Gap that says Lost whenever it begins to listen.
//
// Dovecot never waits for it. A report is answered before it is looked at by
// the ledger, and a question whether a login is allowed (command=allow), which
// Dovecot asks unless it is told not to, is answered with yes, whoever asks.
//
// What is promised about a login that comes this way: whoever sent it knew a
// secret of the key file, and Dovecot had found the password right for POP3 or
// IMAP and was not told to refuse it. What can't be promised: that the session
// came about. Dovecot reports before it looks up the user's mailbox, counts his
// connections or runs a post-login script. Logouts are not reported.
type Reports struct {
	Options
	tick   time.Duration // between looks at the key file, and retries
	within time.Duration // a report must have been sent
	places int           // connections at once
}

// NewReports makes a source. Nothing is opened before Records.
func NewReports(o Options) *Reports {
	return &Reports{Options: o, tick: tellTick, within: reportIn, places: maxReporters}
}

// Name is the source's name unless the configuration gives it another.
func (p *Reports) Name() string { return "push:" + p.Address }

// Type is "push".
func (p *Reports) Type() string { return "push" }

// Bounds of what others may send. Dovecot keeps up to 100 connections open, and
// gives up a report after 2 seconds.
const (
	maxReport    = 64 << 10 // Dovecot's own bounds of a client's words are below it
	maxReporters = 512      // connections
	reportIn     = 5 * time.Second
	reportIdle   = time.Minute
	tellQueue    = 4096 // logins answered and not yet looked at
	tellTick     = time.Second
)

// Records listens until ctx ends. Neither a position nor a time to begin with
// means anything here.
func (p *Reports) Records(ctx context.Context, _ relay.Position, _ time.Time) iter.Seq[watcher.Record] {
	return func(yield func(watcher.Record) bool) {
		for ctx.Err() == nil {
			err := p.listen(ctx, yield)
			if err == nil || ctx.Err() != nil {
				return
			}
			if !yield(watcher.Record{Kind: watcher.Down, Err: err}) {
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(p.tick):
			}
		}
	}
}

// listen takes reports until ctx ends or nobody reads any more, which is no
// error.
func (p *Reports) listen(ctx context.Context, yield func(watcher.Record) bool) error {
	ln, err := new(net.ListenConfig).Listen(ctx, p.Network, p.Address)
	if err != nil {
		return fmt.Errorf("%w; is another program listening there?", err)
	}
	d := &desk{allow: p.Allow, key: keyFile{path: p.KeyFile, self: uint32(os.Geteuid())}, post: newPost()}
	trouble := d.key.read()
	srv := &http.Server{
		Handler:           d,
		ReadHeaderTimeout: p.within,
		ReadTimeout:       p.within,
		WriteTimeout:      p.within,
		IdleTimeout:       reportIdle,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          log.New(io.Discard, "", 0), // only what strangers sent
	}
	ended := make(chan error, 1)
	go func() {
		// Whoever is not let in might have told of a login.
		ended <- srv.Serve(listen.NewDoorman(ln, p.places, d.admits, d.post.miss))
	}()
	serving := true
	defer func() {
		srv.Close()
		if serving {
			<-ended
		}
	}()
	h := handing{post: d.post, yield: yield}
	h.state(trouble)
	tick := time.NewTicker(p.tick)
	defer tick.Stop()
	for !h.stopped {
		select {
		case <-ctx.Done():
			return nil
		case err := <-ended:
			serving = false
			return err
		case r := <-d.post.queue:
			h.tell(r)
		case <-d.post.lost:
			h.lost()
		case <-tick.C:
			h.tick()
			h.state(d.key.read())
		}
	}
	return nil
}

// post is where those who were told something leave it for the one who reads
// records. Nobody ever waits for room in it.
type post struct {
	queue chan watcher.Record
	lost  chan struct{} // something was told for which there was no room

	mu      sync.Mutex
	refused uint64 // since the last tick
	why     error  // of the last of them
}

func newPost() *post {
	return &post{queue: make(chan watcher.Record, tellQueue), lost: make(chan struct{}, 1)}
}

// lateAfter is how old what was told must be to count as late. Dovecot gives a
// report up after 2 seconds, and its stamps are cut to the second.
const lateAfter = 5 * time.Second

// put says whether there was room for an event that was sent at a time, if that
// is known. It happened when it arrives, unless it was sent long before: while
// popgate stood still, say. One that concerns no grant is only counted, and
// never missed.
func (p *post) put(ev relay.Event, sent time.Time) bool {
	r := watcher.Record{Kind: watcher.Told, Arrived: time.Now(), Live: true}
	if ev.Kind != relay.NoEvent {
		if ev.Time = r.Arrived.Round(0); !sent.IsZero() && ev.Time.Sub(sent) > lateAfter {
			ev.Time = sent
		}
		r.Event = &ev
	}
	select {
	case p.queue <- r:
		return true
	default:
	}
	if r.Event != nil {
		p.miss()
	}
	return r.Event == nil
}

// miss says that a login may have been told in vain.
func (p *post) miss() {
	select {
	case p.lost <- struct{}{}:
	default: // that is known already
	}
}

// refuse notes something that doesn't count.
func (p *post) refuse(why error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refused++
	p.why = why
}

// handing hands over what is in a post, in one goroutine.
type handing struct {
	*post
	yield   func(watcher.Record) bool
	stopped bool
	begun   bool
	trouble error
	gap     time.Time // of the last loss
	missed  bool      // again since
}

func (h *handing) tell(r watcher.Record) {
	if !h.stopped && !h.yield(r) {
		h.stopped = true
	}
}

// state tells when trouble begins and ends. What was told before, or in the
// meantime, is not known.
func (h *handing) state(trouble error) {
	switch {
	case trouble != nil && (h.trouble == nil || h.trouble.Error() != trouble.Error()):
		h.tell(watcher.Record{Kind: watcher.Down, Err: trouble})
	case trouble == nil && (!h.begun || h.trouble != nil):
		h.begun, h.gap = true, time.Time{}
		h.lost()
		h.tell(watcher.Record{Kind: watcher.CaughtUp})
	}
	h.trouble = trouble
}

// lost tells of a loss, but not again within a second.
func (h *handing) lost() {
	now := time.Now()
	if h.missed = now.Sub(h.gap) < tellTick; h.missed {
		return
	}
	h.gap = now
	h.tell(watcher.Record{Kind: watcher.Gap, Lost: true, Arrived: now})
}

func (h *handing) tick() {
	if h.missed {
		h.gap = time.Time{}
		h.lost()
	}
	h.mu.Lock()
	n, why := h.refused, h.why
	h.refused = 0
	h.mu.Unlock()
	if n > 0 {
		h.tell(watcher.Record{Kind: watcher.Refused, Err: why, Times: n})
	}
}

// desk answers Dovecot.
type desk struct {
	allow []netip.Prefix
	key   keyFile
	post  *post
}

// admits says whether the peer of a connection may send. This host itself may.
func (d *desk) admits(c net.Conn) bool {
	ap, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return false
	}
	peer := relay.Canonical(ap.Addr())
	if peer.IsLoopback() || slices.ContainsFunc(d.allow, func(p netip.Prefix) bool { return p.Contains(peer) }) {
		return true
	}
	d.post.refuse(fmt.Errorf("%s may not connect; allow names who may", peer))
	return false
}

// keyHeader carries the secret. Dovecot itself gives it this name when it is
// told a secret only.
const keyHeader = "X-Api-Key"

func (d *desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, maxReport)
	code, err := d.take(r)
	if err != nil {
		d.post.refuse(fmt.Errorf("report from %s: %w", r.RemoteAddr, err))
		http.Error(w, http.StatusText(code), code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	io.WriteString(w, `{"status":0}`) // a login is nothing popgate would ever stop
}

// take deals with one request, and never waits for anybody but its sender.
func (d *desk) take(r *http.Request) (code int, err error) {
	q, err := url.ParseQuery(r.URL.RawQuery)
	command := q["command"]
	switch {
	case r.Method != http.MethodPost:
		return http.StatusMethodNotAllowed, errors.New("only POST is known")
	case err != nil || len(command) != 1:
		return http.StatusBadRequest, errors.New("no command; is auth_policy_server_url http://HOST:PORT/ ?")
	case command[0] == "allow":
		return http.StatusOK, nil
	case command[0] != "report":
		return http.StatusBadRequest, errors.New("the command is neither report nor allow")
	}
	given := r.Header[keyHeader]
	if len(given) != 1 {
		return http.StatusUnauthorized, errors.New("no secret; set auth_policy_server_api_header to X-API-Key:SECRET")
	}
	switch known, err := d.key.holds(given[0]); {
	case err != nil:
		return http.StatusServiceUnavailable, err
	case !known:
		return http.StatusUnauthorized, errors.New("wrong secret; the one in auth_policy_server_api_header must stand in key_file")
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		if _, tooLong := errors.AsType[*http.MaxBytesError](err); tooLong {
			return http.StatusRequestEntityTooLarge, fmt.Errorf("longer than %d bytes", maxReport)
		}
		return http.StatusBadRequest, errors.New("it ends in the middle")
	}
	ev, err := readReport(body)
	if err != nil {
		return http.StatusBadRequest, err
	}
	sent, _ := http.ParseTime(r.Header.Get("Date")) // zero: it doesn't say
	d.post.put(ev, sent)
	return http.StatusOK, nil
}
