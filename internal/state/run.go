package state

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// When the changes have grown beyond this and beyond two thirds of the last
// snapshot, a new one is made. So in the long run each change is written once,
// and one and a half times more in snapshots, and a start reads at most a
// snapshot and two thirds as much again. To write less is to read more.
const growBytes = 4 << 20

// How long to wait after the disk refused something: doubled each time for a
// snapshot, which is much to write.
const (
	retryWrite  = time.Second
	retryOnce   = time.Second
	retryAtMost = time.Minute
)

// Run writes until ctx ends, then brings to the disk what was appended before
// that. A disk that fails does not end it; its error says that at the end
// something is not on the disk.
func (s *State) Run(ctx context.Context) error {
	if !s.loaded {
		return errors.New("state: Run before Load")
	}
	w := &writer{s: s, number: s.next - 1, grown: s.grown, size: s.size, done: make(chan snapshot, 1), pause: retryOnce}
	w.plan(&w.flushAt, 0) // make the file now: trouble with the disk shows at start
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-s.urgent:
			w.step(ctx, true)
		case <-s.wake:
			w.plan(&w.flushAt, writeWithin)
		case <-s.idle:
			w.plan(&w.flushAt, syncWithin)
		case <-w.timer():
			w.step(ctx, false)
		case r := <-w.done:
			w.finished(r)
			w.step(ctx, false)
		}
	}
	return w.end()
}

// writer is the one goroutine that writes. Only a snapshot is written beside it.
type writer struct {
	s      *State
	f      file   // the file of changes; nil until one could be made
	name   string // its name
	off    int64  // its length as far as it is known to be good
	buf    []byte // frames that still have to go in at off
	number uint64 // of the last batch that was given one
	dirty  bool   // not all of the file is known to be on the disk
	broken bool   // the files are not whole before the running snapshot is done
	owed   []chan<- error

	grown, size int64 // bytes of changes since the snapshot, bytes of it

	running bool // a snapshot is being written
	done    chan snapshot
	cancel  context.CancelFunc
	pause   time.Duration // before the next try of a snapshot
	snapErr error         // of the last try

	flushAt, syncAt, snapAt time.Time // zero: nothing to do
	alarm                   *time.Timer
}

// plan sets a moment to at most d from now.
func (w *writer) plan(at *time.Time, d time.Duration) {
	if t := time.Now().Add(d); at.IsZero() || t.Before(*at) {
		*at = t
	}
}

// timer wakes at the first of the planned moments.
func (w *writer) timer() <-chan time.Time {
	var first time.Time
	for _, t := range [...]time.Time{w.flushAt, w.syncAt, w.snapAt} {
		if first.IsZero() || !t.IsZero() && t.Before(first) {
			first = t
		}
	}
	if w.alarm == nil {
		w.alarm = time.NewTimer(time.Hour)
	}
	if first.IsZero() {
		w.alarm.Stop()
	} else {
		w.alarm.Reset(time.Until(first))
	}
	return w.alarm.C
}

func past(at time.Time) bool { return !at.IsZero() && !time.Now().Before(at) }

// step does what is due.
func (w *writer) step(ctx context.Context, urgent bool) {
	w.flushAt = time.Time{}
	w.s.looks()
	if w.s.isLost() {
		w.syncAt = time.Time{} // what is in the file counts for nothing now
		w.renew(ctx)
		return
	}
	due := past(w.syncAt)
	switch flushed := w.flush(); {
	case flushed && (urgent || due || len(w.owed) > 0):
		w.sync()
	case due:
		w.settle() // what went in before the disk refused
	}
	if due = w.snapAt.IsZero() || past(w.snapAt); due && !w.running && !w.broken && !w.s.isLost() {
		w.snapAt = time.Time{}
		if w.grown > max(growBytes, w.size/3*2) {
			w.begin(ctx)
		}
	}
}

// looks notes that the writer now looks at what was appended.
func (s *State) looks() {
	s.mu.Lock()
	s.planned = never
	s.mu.Unlock()
}

// renew makes the files whole again when they miss something: a new file whose
// number leaves one out, so that nothing of it counts before a snapshot stands
// for what is missing, and that snapshot.
func (w *writer) renew(ctx context.Context) {
	if w.running {
		return // at its end there is another step
	}
	if !w.snapAt.IsZero() && !past(w.snapAt) {
		w.tell(append(w.owed, w.s.takeWaiting()...), w.snapErr)
		return
	}
	w.abandon()
	w.number++
	if err := w.open(); err != nil {
		w.number-- // nothing was written under it
		w.snapAt = time.Time{}
		w.later(err)
		return
	}
	w.broken = true
	w.start(ctx)
}

// abandon lets go of the present file.
func (w *writer) abandon() {
	if w.f != nil {
		w.f.Close()
	}
	w.f, w.buf, w.dirty, w.syncAt = nil, nil, false, time.Time{}
}

// open makes the file of changes for the next batch.
func (w *writer) open() error {
	first := w.number + 1
	w.name = changesName(first)
	f, err := w.s.files.create(w.name)
	if err != nil {
		return w.s.at(w.name, err)
	}
	if _, err = f.WriteAt(header(kindChanges, first), 0); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = w.s.files.syncDir()
	}
	if err != nil {
		f.Close()
		return w.s.at(w.name, err)
	}
	w.f, w.off, w.dirty = f, headerSize, false
	return nil
}

// flush writes what was appended, and says whether all of it is in the file.
func (w *writer) flush() bool {
	if w.f == nil {
		if err := w.open(); err != nil {
			w.refused(err)
			return false
		}
	}
	bodies, waiting := w.s.collect()
	w.owed = append(w.owed, waiting...)
	for _, body := range bodies {
		w.number++
		w.buf = frame(w.buf, w.number, body)
	}
	if len(w.buf) == 0 {
		return true
	}
	// Always at the end of what is known to be good: a try that was cut short
	// is written over by the next.
	if _, err := w.f.WriteAt(w.buf, w.off); err != nil {
		w.refused(w.s.at(w.name, err))
		return false
	}
	n := len(w.buf)
	w.off, w.grown = w.off+int64(n), w.grown+int64(n)
	w.buf, w.dirty = w.buf[:0], true
	if cap(w.buf) > 1<<20 {
		w.buf = nil
	}
	w.s.wrote()
	w.plan(&w.syncAt, syncWithin)
	return true
}

// refused notes that the disk took nothing; the same is tried again.
func (w *writer) refused(err error) {
	w.s.trouble(err)
	w.tell(append(w.owed, w.s.takeWaiting()...), err)
	w.plan(&w.flushAt, retryWrite)
}

// sync brings the file to the disk and answers those who wait for that.
func (w *writer) sync() {
	if !w.settle() || w.broken {
		return // told already, or to be told when the snapshot is done
	}
	w.s.trouble(w.snapErr)
	w.tell(w.owed, nil)
}

// settle brings the file to the disk. What the system could not write it may
// have dropped: then only writing everything anew helps.
func (w *writer) settle() bool {
	w.syncAt = time.Time{}
	if !w.dirty {
		return true
	}
	if err := w.f.Sync(); err != nil {
		err = w.s.at(w.name, err)
		w.s.forget(err)
		w.tell(w.owed, err)
		w.plan(&w.flushAt, 0)
		return false
	}
	w.dirty = false
	return true
}

func (w *writer) tell(owed []chan<- error, err error) {
	for _, done := range owed {
		answer(done, err)
	}
	w.owed = nil
}

// end brings everything to the disk after ctx has ended.
func (w *writer) end() error {
	if w.running {
		w.cancel()
		w.finished(<-w.done)
	}
	s := w.s
	s.stop()
	if !s.isLost() && w.flush() {
		w.sync()
	}
	if s.isLost() || w.broken {
		w.snapAt = time.Time{}
		if w.renew(context.Background()); w.running {
			w.finished(<-w.done)
		}
	}
	if len(w.buf) > 0 || w.dirty { // said before, and still so
		s.trouble(errors.New("state: the last changes could not be written"))
	}
	w.abandon()
	err := s.Health()
	w.tell(append(w.owed, s.takeWaiting()...), err)
	if err != nil {
		return fmt.Errorf("state: not everything is on disk: %w", err)
	}
	return nil
}
