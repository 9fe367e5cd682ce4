package watcher

import (
	"context"
	"errors"
	"sync"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

// Ledger is told what a source tells, in the order of the log and from one
// goroutine for each source.
type Ledger interface {
	// Event is a login, a logout or a restart of the server.
	Event(ev relay.Event, arrived time.Time)
	// Gap says that events may be missing here.
	Gap(source string, at time.Time)
	// Position says that everything up to it has been handed over.
	Position(source string, p relay.Position)
}

// Options are what Watch needs beside the source.
type Options struct {
	Format string        // the format's name, for events
	Parser format.Parser // of this source alone; nil for one that tells no lines
	// NewParser makes a parser for one stream of a source that has several;
	// nil: it has but one.
	NewParser func() format.Parser
	TimeZone  *time.Location // of stamps that name none; nil is the machine's
	From      relay.Position // where an earlier reading got to; zero: none
	Since     time.Time      // without a place to go on from: how far back lines matter
	Ledger    Ledger         //
	// Report is told of health at each change of status and when lines were
	// passed over, else at most each second. One call ends before the next begins, and reading waits for it.
	Report   func(relay.SourceState)       // nil: nobody asks
	Unparsed func(line []byte)             // a line that looks like a login and is none; nil: nobody asks
	Refused  func(why error, times uint64) // something was sent that doesn't count; nil: nobody asks
}

const (
	reportEvery = time.Second
	// ClockTolerance is how far a clock may run ahead of ours.
	ClockTolerance = time.Minute
	// flushEvery is after how many lines of a long reading health is told.
	flushEvery = 4096
)

// errEnded is a source that stopped by itself, which none may.
var errEnded = errors.New("reading ended; it is started again")

// Watch reads a source until ctx ends. Every login, logout and restart goes to
// the ledger, and a position only after everything it stands for.
func Watch(ctx context.Context, src Source, o Options) {
	w := &watch{Options: o, name: src.Name(), health: newHealth(src, o.Report)}
	if w.TimeZone == nil {
		w.TimeZone = time.Local
	}
	defer w.health.close()
	if w.Parser != nil {
		w.Parser.Gap() // what came before is not known to it
	}
	for ctx.Err() == nil {
		for r := range src.Records(ctx, w.From, w.Since) {
			w.record(&r)
		}
		w.flush()
		if ctx.Err() != nil {
			return
		}
		w.health.status(relay.SourceDown, errEnded.Error())
		w.gap(0, time.Now())
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// watch is one run of Watch.
type watch struct {
	Options
	name     string
	streams  map[uint64]format.Parser // of those that are not 0
	health   *health
	message  format.Message // of the present line
	lines    uint64         // since health was last told
	unparsed uint64
	last     time.Time
}

// record deals with one record of the source.
func (w *watch) record(r *Record) {
	switch r.Kind {
	case Line:
		w.line(r)
	case Told:
		w.told(r)
	case Gap:
		w.gap(r.Stream, r.Arrived)
		if r.Lost {
			w.health.missed(r.Unread)
		}
	case CaughtUp:
		w.flush()
		w.health.caughtUp()
	case Down:
		w.flush()
		w.health.status(relay.SourceDown, r.Err.Error())
	case Ended:
		delete(w.streams, r.Stream)
	case Refused:
		if w.Refused != nil {
			w.Refused(r.Err, r.Times)
		}
	}
	if !r.Position.IsZero() {
		w.From = r.Position
		w.Ledger.Position(w.name, r.Position)
	}
}

// parser gives the parser of a stream. A new one's knows nothing of what was
// written before.
func (w *watch) parser(stream uint64) format.Parser {
	if stream == 0 || w.NewParser == nil {
		return w.Parser
	}
	p := w.streams[stream]
	if p == nil {
		if w.streams == nil {
			w.streams = make(map[uint64]format.Parser)
		}
		p = w.NewParser()
		p.Gap()
		w.streams[stream] = p
	}
	return p
}

func (w *watch) gap(stream uint64, at time.Time) {
	if p := w.parser(stream); p != nil {
		p.Gap()
	}
	if stream == 0 {
		for _, p := range w.streams {
			p.Gap()
		}
	}
	w.Ledger.Gap(w.name, at)
	w.health.change(func(s *relay.SourceState) { s.Gaps++ })
}

// line reads one line. Those that are no login leave nothing behind but a count.
func (w *watch) line(r *Record) {
	w.lines++
	w.last = r.Arrived
	if w.lines >= flushEvery {
		w.flush()
		w.health.behind(w.lag(r))
	}
	p := w.parser(r.Stream)
	if !format.MayMatter(p, r.Text) || !format.Split(r.Text, &w.message) {
		return
	}
	doubtful := r.Sent && !format.SafeWhenCut(p, &w.message) && mayBeCut(r.Text, &w.message)
	if r.Withheld || doubtful && format.Remembers(p) {
		w.message.Withheld, w.message.Text = true, nil
	}
	ev, result := p.Parse(&w.message)
	if doubtful && result == format.Login {
		// Somebody's login, or what a stranger wrote, up to the cut.
		result = format.Unparsed
		w.health.missed(0)
	}
	switch result {
	case format.Login, format.Logout, format.Restart:
		if w.date(&ev, r) {
			w.event(ev, r)
			return
		}
		fallthrough
	case format.Unparsed:
		w.unparsed++
		if w.Unparsed != nil {
			w.Unparsed(r.Text)
		}
	}
}

// told takes what no line tells.
func (w *watch) told(r *Record) {
	w.lines++
	w.last = r.Arrived
	w.flush()
	if r.Event != nil {
		w.event(*r.Event, r)
	}
}

// event hands one event over.
func (w *watch) event(ev relay.Event, r *Record) {
	ev.Source, ev.Live = w.name, r.Live
	if ev.Format == "" { // auto tells what it found
		ev.Format = w.Format
	}
	w.Ledger.Event(ev, r.Arrived)
	if ev.Kind == relay.Login {
		w.health.change(func(s *relay.SourceState) {
			s.Logins++
			if ev.Time.After(s.LastLogin) {
				s.LastLogin = ev.Time
			}
		})
	}
}

// date gives the event its time. A line that was seen being written is at
// least as old as its arrival, whatever a stamp without a zone says. One that
// was already there proves nothing by its arrival: without a stamp, or with one
// that lies ahead, its time can't be told, and it is no event.
func (w *watch) date(ev *relay.Event, r *Record) bool {
	t, zoned, ok := w.message.Stamp.Time(r.Arrived, w.TimeZone)
	if !ok {
		t = r.Arrived
	}
	ev.Time, ev.Zoned = t, zoned
	if r.Live {
		return true
	}
	// Seen from a day on, a stamp that lies ahead of the arrival is told apart
	// from one of the same moment.
	t, _, _ = w.message.Stamp.Time(r.Arrived.Add(24*time.Hour), w.TimeZone)
	return ok && !t.After(r.Arrived.Add(ClockTolerance))
}

// lag says how far behind the present a long reading is.
func (w *watch) lag(r *Record) time.Duration {
	if !format.Split(r.Text, &w.message) {
		return 0
	}
	t, _, ok := w.message.Stamp.Time(r.Arrived, w.TimeZone)
	if !ok {
		return 0
	}
	return max(0, r.Arrived.Sub(t))
}

// flush tells health what was counted since.
func (w *watch) flush() {
	if w.lines == 0 {
		return
	}
	w.health.change(func(s *relay.SourceState) {
		s.Lines += w.lines
		s.Unparsed += w.unparsed
		s.LastLine = w.last
	})
	w.lines, w.unparsed = 0, 0
}

// health is a source's state, and who is told of it. While nothing changes
// nobody is told, and no timer runs.
type health struct {
	report func(relay.SourceState)

	mu     sync.Mutex
	state  relay.SourceState
	timer  *time.Timer // not nil: a report is under way
	closed bool
}

func newHealth(src Source, report func(relay.SourceState)) *health {
	h := &health{report: report}
	h.state = relay.SourceState{Name: src.Name(), Type: src.Type(), Status: relay.SourceStarting, Since: time.Now()}
	h.tell()
	return h
}

// tell reports now; the lock keeps reports in order.
func (h *health) tell() {
	if h.report != nil && !h.closed {
		h.report(h.state)
	}
}

// change changes counts, which are reported within a second.
func (h *health) change(do func(*relay.SourceState)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	do(&h.state)
	if h.timer == nil && h.report != nil {
		h.timer = time.AfterFunc(reportEvery, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.timer = nil
			h.tell()
		})
	}
}

// status changes the status, which is reported at once.
func (h *health) status(s relay.SourceStatus, why string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.set(s, why)
}

func (h *health) set(s relay.SourceStatus, why string) {
	if h.state.Status == s && h.state.Error == why {
		return
	}
	if h.state.Status != s {
		h.state.Since = time.Now()
	}
	h.state.Status, h.state.Error = s, why
	h.tell()
}

// missed says that lines were passed over unread, which is reported at once: it
// must be known before the source counts as read.
func (h *health) missed(unread int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Missed++
	h.state.Skipped += uint64(max(0, unread))
	h.tell()
}

// caughtUp says that the source has been read up to the present.
func (h *health) caughtUp() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.state.Lag = 0
	h.set(relay.SourceUp, "")
}

// behind says how far behind the present reading is.
func (h *health) behind(lag time.Duration) {
	h.change(func(s *relay.SourceState) { s.Lag = lag })
}

// close reports the last counts and ends reporting.
func (h *health) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.timer != nil {
		h.timer.Stop()
		h.tell()
	}
	h.closed = true
}
