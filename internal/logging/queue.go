// Package logging writes popgate's log. Lines about decisions come from those who
// answer MTAs, thousands a second at times, and must cost them nothing: they are
// handed over as small values to a bounded queue, and one goroutine formats and
// writes them, many in one write, once the answers have been sent. Lines keep the
// order in which they were handed over. A full queue drops and counts; nothing
// ever waits for a reader of the log. What is queued, of some milliseconds, is
// lost with a daemon that is killed.
//
// Lines look as the standard library's slog handlers write them, text or JSON,
// whether they come through a slog.Logger or from a decision. To journald they
// go as entries, with a field for each attribute.
package logging

import (
	"bytes"
	"context"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/gate"
)

const (
	maxQueued = 16384                // lines; some 4 MB of them
	linger    = 5 * time.Millisecond // for more lines to share a write
	maxBatch  = 64 << 10             // bytes in one write
)

// Form is how a line is written.
type Form uint8

const (
	Text    Form = iota // as slog.TextHandler
	JSON                // as slog.JSONHandler
	Journal             // an entry for journald, each in a write of its own
)

// Queue takes lines and writes them in its own goroutine.
type Queue struct {
	out  io.Writer
	form Form

	mu      sync.Mutex
	waiting []line
	wake    chan struct{}
	closed  bool

	unheard atomic.Bool // there are decisions of which the writer has not been told
	dropped atomic.Uint64
}

// line is one of: text, already formatted; or a decision.
type line struct {
	text     []byte
	decision gate.Record
}

// NewQueue makes a queue that writes to out. Run must be called for anything
// to be written.
func NewQueue(out io.Writer, form Form) *Queue {
	return &Queue{out: out, form: form, wake: make(chan struct{}, 1)}
}

// Decision queues the log line of a decision. It never blocks, and wakes nobody:
// that takes longer than to decide, and the client waits. Flush does it.
func (q *Queue) Decision(r gate.Record) {
	if q.put(line{decision: r}) {
		q.unheard.Store(true)
	}
}

// Flush has the writer write what Decision queued. Whoever answers MTAs calls it
// when the answers have been sent; otherwise the lines would be written with the
// next one of another kind.
func (q *Queue) Flush() {
	if q.unheard.Load() && q.unheard.Swap(false) {
		q.hear()
	}
}

func (q *Queue) hear() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// text queues a line that is formatted already.
func (q *Queue) text(b []byte) {
	if q.put(line{text: b}) {
		q.hear()
		return
	}
	q.Flush() // the first may have been a decision
}

// put queues a line. It says whether the writer has to be told.
func (q *Queue) put(l line) (first bool) {
	q.mu.Lock()
	if len(q.waiting) >= maxQueued || q.closed {
		q.mu.Unlock()
		q.dropped.Add(1)
		return false
	}
	q.waiting = append(q.waiting, l)
	first = len(q.waiting) == 1
	q.mu.Unlock()
	return first
}

// Dropped gives how many lines were lost because the log's reader was too slow.
func (q *Queue) Dropped() uint64 { return q.dropped.Load() }

// Run writes until ctx ends, and then what is still queued.
func (q *Queue) Run(ctx context.Context) error {
	var spare []line
	var buf []byte
	var told uint64
	for {
		select {
		case <-q.wake:
			time.Sleep(linger)
		case <-ctx.Done():
		}
		q.mu.Lock()
		lines := q.waiting
		q.waiting = spare[:0]
		q.mu.Unlock()
		for i := range lines {
			buf = q.format(buf, &lines[i])
			if len(buf) >= maxBatch || q.form == Journal {
				buf = q.flush(buf)
			}
		}
		if n := q.dropped.Load(); n > told {
			buf = q.appendDropped(buf, n-told)
			told = n
		}
		buf = q.flush(buf)
		clear(lines)
		spare = lines
		if ctx.Err() != nil {
			q.mu.Lock()
			empty := len(q.waiting) == 0
			q.closed = empty
			q.mu.Unlock()
			if empty {
				return nil
			}
		}
	}
}

func (q *Queue) flush(buf []byte) []byte {
	if len(buf) > 0 {
		if _, err := q.out.Write(buf); err != nil {
			q.dropped.Add(q.linesIn(buf))
		}
	}
	return buf[:0]
}

func (q *Queue) format(buf []byte, l *line) []byte {
	switch {
	case l.text != nil:
		return append(buf, l.text...)
	case q.form == JSON:
		return appendDecisionJSON(buf, &l.decision)
	case q.form == Journal:
		return appendDecisionEntry(buf, &l.decision)
	default:
		return appendDecisionText(buf, &l.decision)
	}
}

// linesIn counts the lines of one write.
func (q *Queue) linesIn(buf []byte) uint64 {
	if q.form == Journal {
		return 1
	}
	return uint64(bytes.Count(buf, []byte("\n")))
}
