package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Topic is a kind of thing that can be watched, or several of them.
type Topic uint8

const (
	WatchLogins    Topic = 1 << iota // logins, logouts and restarts, and what became of them
	WatchDecisions                   // one for each recipient that a door asked about
	WatchGrants                      // what the ledger did: grants, ends of sessions, revocations
)

// topicNames are in the order of the bits.
var topicNames = [...]string{"logins", "decisions", "grants"}

// Seen is one thing that happened, as watch prints it. What is unknown, or
// doesn't belong to the event, is left out.
type Seen struct {
	Event string    `json:"event"` // login, logout, restart, decision, grant, close, revocation, dropped
	Time  time.Time `json:"time"`  // when the daemon did it

	Verdict string `json:"verdict,omitempty"` // decision
	Reason  string `json:"reason,omitempty"`

	Client   netip.Addr `json:"client,omitzero"`
	Prefix   int        `json:"prefix,omitempty"`
	User     string     `json:"user,omitempty"`
	Service  string     `json:"service,omitempty"`
	Source   string     `json:"source,omitempty"`
	Format   string     `json:"format,omitempty"`
	Session  string     `json:"session,omitempty"`
	Login    time.Time  `json:"login,omitzero"`    // the login's, logout's or restart's own time
	Outcome  string     `json:"outcome,omitempty"` // what became of a login or logout
	Expires  time.Time  `json:"expires,omitzero"`
	Open     bool       `json:"open,omitempty"` // an open session holds the grant until expires
	Operator bool       `json:"operator,omitempty"`
	Note     string     `json:"note,omitempty"`

	Rcpt      string `json:"rcpt,omitempty"`
	Recipient string `json:"recipient,omitempty"`
	Sender    string `json:"sender,omitempty"`
	Queue     string `json:"queue,omitempty"`
	Door      string `json:"door,omitempty"`
	Waited    string `json:"waited,omitempty"`

	Network netip.Prefix `json:"network,omitzero"` // revocation: of clients in it,
	All     bool         `json:"all,omitempty"`    // or of everybody, or of user
	Block   time.Time    `json:"block,omitzero"`   // and no login of theirs grants until then

	Dropped uint64 `json:"dropped,omitempty"` // events this watcher was too slow for
}

// eventStopped ends a stream whose daemon stops.
const eventStopped = "stopped"

// Bounds of what watching may cost the daemon: what is queued is at most some
// 16 MB, whatever strangers send, and mostly shared by all who watch.
const (
	MaxWatchers        = 16
	maxReadersWatchers = 12   // of them by those who may only read
	maxUnwatched       = 4096 // events queued for one watcher
	maxText            = 512  // bytes of one string in an event
	watchLinger        = 5 * time.Millisecond
)

var (
	errWatchers        = fmt.Errorf("%d watch already; end one of them", MaxWatchers)
	errReadersWatchers = fmt.Errorf("members of control_group have %d places to watch, and all are taken; end one of them", maxReadersWatchers)
)

// Watchers hands what happens to those who watch. Telling never blocks: a
// watcher that doesn't keep up loses events and is told how many. While nobody
// watches, asking Want costs one look at a number.
type Watchers struct {
	topics atomic.Uint32 // what anybody watches
	all    atomic.Pointer[[]*watcher]
	change sync.Mutex // of the two
}

// Want says whether anybody watches any of these. Ask before an event is made.
func (w *Watchers) Want(t Topic) bool { return Topic(w.topics.Load())&t != 0 }

// Tell hands an event to everybody who watches the topic. It must not be
// changed any more.
func (w *Watchers) Tell(t Topic, s *Seen) {
	all := w.all.Load()
	if all == nil {
		return
	}
	for _, text := range [...]*string{&s.User, &s.Source, &s.Session, &s.Note, &s.Rcpt, &s.Sender, &s.Queue} {
		if len(*text) > maxText {
			*text = strings.Clone((*text)[:maxText])
		}
	}
	for _, v := range *all {
		if v.topics&t != 0 {
			v.put(s)
		}
	}
}

// Count gives how many watch.
func (w *Watchers) Count() int {
	if all := w.all.Load(); all != nil {
		return len(*all)
	}
	return 0
}

// join adds a watcher. A reader is one who may only read.
func (w *Watchers) join(t Topic, reader bool) (*watcher, error) {
	w.change.Lock()
	defer w.change.Unlock()
	var all []*watcher
	if before := w.all.Load(); before != nil {
		all = slices.Clone(*before)
	}
	readers := 0
	for _, v := range all {
		if v.reader {
			readers++
		}
	}
	switch {
	case len(all) >= MaxWatchers:
		return nil, errWatchers
	case reader && readers >= maxReadersWatchers:
		return nil, errReadersWatchers
	}
	v := &watcher{topics: t, reader: reader, wake: make(chan struct{}, 1)}
	w.set(append(all, v))
	return v, nil
}

func (w *Watchers) leave(v *watcher) {
	w.change.Lock()
	defer w.change.Unlock()
	w.set(slices.DeleteFunc(slices.Clone(*w.all.Load()), func(o *watcher) bool { return o == v }))
}

func (w *Watchers) set(all []*watcher) {
	var topics Topic
	for _, v := range all {
		topics |= v.topics
	}
	w.all.Store(&all)
	w.topics.Store(uint32(topics))
}

// watcher is one who watches, and what he has not been sent yet.
type watcher struct {
	topics Topic
	reader bool
	wake   chan struct{}

	mu      sync.Mutex
	queue   []*Seen
	dropped uint64 // since the queue was full
}

func (v *watcher) put(s *Seen) {
	v.mu.Lock()
	if len(v.queue) >= maxUnwatched {
		v.dropped++
		v.mu.Unlock()
		return
	}
	v.queue = append(v.queue, s)
	first := len(v.queue) == 1
	v.mu.Unlock()
	if first {
		select {
		case v.wake <- struct{}{}:
		default:
		}
	}
}

// take empties the queue into the room of an earlier one. What was dropped came
// after all that is in it.
func (v *watcher) take(spare []*Seen) (queue []*Seen, dropped uint64) {
	clear(spare)
	v.mu.Lock()
	defer v.mu.Unlock()
	queue, dropped = v.queue, v.dropped
	v.queue, v.dropped = spare[:0], 0
	return queue, dropped
}

// watch streams one event a line until the peer goes away, reads nothing for
// s.limits.watcher, or the daemon stops, which it is told.
func (s *server) watch(w http.ResponseWriter, r *http.Request) {
	topics, err := parseTopics(r.URL.Query()["topic"])
	if err != nil {
		fail(w, http.StatusBadRequest, err)
		return
	}
	p, _ := r.Context().Value(peerKey{}).(peer)
	v, err := s.daemon.Watchers().join(topics, !s.mayWrite(p))
	if err != nil {
		fail(w, http.StatusServiceUnavailable, err)
		return
	}
	defer s.daemon.Watchers().leave(v)
	out := http.NewResponseController(w)
	out.SetReadDeadline(time.Time{}) // or the end of the time for reading a request would end the answer
	hurry := func() { out.SetWriteDeadline(time.Now().Add(drainTime / 4)) }
	defer context.AfterFunc(s.stopping, hurry)()
	w.Header().Set("Content-Type", "application/x-ndjson")
	buf := bufio.NewWriterSize(w, 32<<10)
	enc := json.NewEncoder(buf)
	var queue []*Seen
	for {
		out.SetWriteDeadline(time.Now().Add(s.limits.watcher))
		stopping := s.stopping.Err() != nil
		if stopping {
			hurry()
		}
		var dropped uint64
		queue, dropped = v.take(queue)
		for _, e := range queue {
			enc.Encode(e)
		}
		if dropped > 0 {
			enc.Encode(Seen{Event: "dropped", Time: time.Now().UTC(), Dropped: dropped})
		}
		if stopping {
			enc.Encode(Seen{Event: eventStopped, Time: time.Now().UTC()})
		}
		if buf.Flush() != nil || out.Flush() != nil || stopping {
			return
		}
		select {
		case <-v.wake:
			time.Sleep(watchLinger) // for more to share a write
		case <-s.stopping.Done():
		case <-r.Context().Done():
			return
		}
	}
}

func parseTopics(names []string) (t Topic, err error) {
	for _, name := range names {
		i := slices.Index(topicNames[:], name)
		if i < 0 {
			return 0, fmt.Errorf("%q is nothing to watch; choose of %s", name, strings.Join(topicNames[:], ", "))
		}
		t |= 1 << i
	}
	if t == 0 {
		t = WatchLogins | WatchDecisions | WatchGrants
	}
	return t, nil
}

// Watch calls each for everything of the topics that happens, until ctx ends,
// each answers an error, or the daemon stops: then the error is ErrUnreachable.
// ready is called when nothing will be missed from then on.
func (c *Client) Watch(ctx context.Context, t Topic, ready func(), each func(*Seen) error) error {
	query := url.Values{}
	for i, name := range topicNames {
		if t&(1<<i) != 0 {
			query.Add("topic", name)
		}
	}
	resp, err := c.send(ctx, "GET", "/watch?"+query.Encode(), nil)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer resp.Body.Close()
	ready()
	for d := json.NewDecoder(resp.Body); ; {
		var s Seen
		switch err := d.Decode(&s); {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			return fmt.Errorf("control socket %s: %w any more: it broke off; was nothing read for long?", c.path, ErrUnreachable)
		case err != nil:
			return fmt.Errorf("control socket %s: %w any more: %w", c.path, ErrUnreachable, err)
		case s.Event == eventStopped:
			return fmt.Errorf("control socket %s: %w any more: it has stopped", c.path, ErrUnreachable)
		}
		if err := each(&s); err != nil {
			return err
		}
	}
}
