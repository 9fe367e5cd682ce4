package watcher

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"popgate/internal/relay"
)

const (
	// absence is how long the name may be missing while a log is rotated
	// before the source counts as down.
	absence = 5 * time.Second
	// drain is how long a rotated file must have been quiet before it is let
	// go: the logging daemon writes to it until it is told to reopen.
	drain = time.Minute
	// doubtful is how long the content of a file that was replaced in place
	// does not count as live since it last grew: it may be an old log, still
	// being copied.
	doubtful = 2 * time.Second
	// copying bounds how long that goes on: a busy log never stops growing, and
	// a copy ends.
	copying = 10 * time.Minute
	// maxOld bounds the rotated files that are open at one time.
	maxOld = 8
	// PositionEvery bounds how often a position is told while lines trickle in.
	PositionEvery = 200 * time.Millisecond
)

// File reads a log file that other programs write, rotate, truncate and
// replace.
//
// Everything is done by one step, which looks at the file as it is now: read
// to the end, compare device, inode and the bytes read last, and go on where
// the path leads. Events, errors and a slow tick only say when to take it, so
// there is no state that a lost event could leave wrong.
type File struct {
	path    string
	zone    *time.Location
	now     func() time.Time
	hints   func() *hints
	slow    time.Duration // how long a hint that never came can delay a line
	fast    time.Duration // the same where the kernel gives no hints
	custody custody
}

// NewFile names a log file by its absolute path; zone is that of stamps
// without one.
func NewFile(path string, zone *time.Location) *File {
	return &File{path: filepath.Clean(path), zone: zone, now: time.Now, hints: newHints, slow: time.Second, fast: 100 * time.Millisecond, custody: newCustody()}
}

// Name is the source's name in configuration and status.
func (f *File) Name() string { return "file:" + f.path }

// Type is the kind of source.
func (f *File) Type() string { return "file" }

// Records reads the file until ctx ends; see Source.
func (f *File) Records(ctx context.Context, from relay.Position, since time.Time) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		h := f.hints()
		w := newFollower(f, h, from, since, yield)
		w.ended = ctx.Done()
		defer w.close()
		every := f.fast
		tick := time.NewTicker(every)
		defer tick.Stop()
		for w.step() {
			was := every
			if every = f.fast; w.hinted {
				every = f.slow
			}
			if every != was { // not at each step: in a busy log it would never tick
				tick.Reset(every)
			}
			var ok bool
			if w.recheck, ok = h.wait(ctx.Done(), tick.C); !ok {
				w.toldAt = time.Time{}
				w.settle()
				return
			}
		}
	}
}

// follower is one reading of a File.
type follower struct {
	*File
	hints      *hints
	from       relay.Position
	window     time.Duration // how far back lines are still wanted
	yield      func(Record) bool
	ended      <-chan struct{} // nobody wants more, even in the midst of a long file
	buf        []byte
	dir        string // where the path really leads
	base       string
	owner      uint32               // whose the log is
	owned      bool                 // owner is known
	arrived    time.Time            // when it was found
	rotated    map[fileID]time.Time // rotated files that are done with, and when they had changed last
	marks      map[fileID]mark      // rotated files that were not believed, and how far
	unpackable int64                // how much more may be unpacked
	cur        *tail                // the file the path leads to; nil: it leads nowhere
	old        []*tail              // files it led to before, the oldest first; they may still grow
	begun      bool                 // the start has been found
	recheck    bool                 // look at every step of the way, not only at its end
	hinted     bool                 // the kernel tells when the file changes
	wary       bool                 // others could write here: what is there now is not believed
	stopped    bool                 // nobody wants more
	news       bool                 // something was handed over since the last CaughtUp
	trouble    string               // what was last told as Down
	absent     time.Time
	due        relay.Position // goes with the next record
	told       relay.Position // the last one that was handed over
	toldAt     time.Time
}

func newFollower(f *File, h *hints, from relay.Position, since time.Time, yield func(Record) bool) *follower {
	return &follower{File: f, hints: h, from: from, window: f.now().Sub(since), yield: yield,
		buf: make([]byte, keep+Chunk), recheck: true, news: true}
}

func (w *follower) close() {
	for _, t := range append(w.old, w.cur) {
		w.shut(t)
	}
	w.hints.close()
}

func (w *follower) shut(t *tail) {
	if t != nil {
		w.hints.forget(t.fd)
		syscall.Close(t.fd)
	}
}

// step brings the reading up to date with the file system. It says whether to
// go on.
func (w *follower) step() bool {
	checked := w.recheck
	if checked { // before reading: nothing may fall between
		if w.cur != nil {
			w.hinted = w.hints.file(w.cur.fd)
		}
		for _, t := range w.old {
			w.hints.file(t.fd)
		}
	}
	w.read()
	if w.look() {
		w.read()
	}
	if checked {
		w.letGo()
	}
	w.settle()
	return !w.stopped
}

// look follows the path and says whether there is a file that has not been
// read yet: it leads to another one, or this one may be read again.
func (w *follower) look() bool {
	var st stat
	if !w.recheck && w.begun && syscall.Stat(w.path, &st) == nil && w.cur.is(&st) {
		return false
	}
	w.recheck = false
	refused := w.cur != nil && !w.cur.asApproved()
	way, err := w.custody.follow(w.path)
	if w.hints.places(way.turns) { // it may have changed just before it was watched
		way, err = w.custody.follow(w.path)
	}
	if err == nil && !w.cur.is(&way.info) {
		return w.arrive(way)
	}
	if err != nil {
		w.lost(way, err)
		return false
	}
	w.healthy()
	w.cur.approved, w.owner = way.info, way.info.Uid
	if w.wary {
		w.disbelieve(!w.begun)
	}
	return refused
}

// arrive opens the file the path leads to now.
func (w *follower) arrive(way way) bool {
	fd, st, err := w.custody.openChecked(way)
	if err != nil {
		w.lost(way, err)
		return false
	}
	w.retire()
	w.dir, w.base = filepath.Dir(way.real), filepath.Base(way.real)
	w.owner, w.owned = st.Uid, true
	w.cur = w.known(&st)
	if w.cur != nil {
		w.cur.approved = st
		syscall.Close(fd)
	} else {
		w.cur = newTail(fd, &st)
		w.hinted = w.hints.file(fd)
	}
	w.healthy()
	if w.begun && !w.wary {
		w.between()
	}
	w.arrived = w.now()
	switch {
	case w.wary:
		w.disbelieve(true) // there may have been others before it
	case !w.begun:
		w.begin()
	case w.cur.offset == 0 && !w.behindMark(w.cur):
		w.skipAncient(w.cur)
	}
	return true
}

// retire makes the current file an old one: the path no longer leads to it.
func (w *follower) retire() {
	if w.cur != nil {
		w.cur.grown = w.now()
		w.old = append(w.old, w.cur)
		w.cur = nil
	}
}

// known takes a file out of the old ones, when the path leads to it again.
func (w *follower) known(st *stat) *tail {
	for i, t := range w.old {
		if t.is(st) {
			w.old = slices.Delete(w.old, i, i+1)
			return t
		}
	}
	return nil
}

// lost deals with a path that leads nowhere, or where it must not.
func (w *follower) lost(way way, err error) {
	gone := errors.Is(err, fs.ErrNotExist)
	if _, yes := errors.AsType[*Distrust](err); yes {
		w.wary, w.due = true, relay.Position{Offset: unbelieved}
	} else {
		w.retire() // it is read on wherever it is now
	}
	if gone && !w.begun && len(way.turns) > 0 {
		if last := way.turns[len(way.turns)-1]; last.name == filepath.Base(w.path) {
			w.dir, w.base = last.dir, last.name
			w.begin()
			w.read()
		}
	}
	if w.absent.IsZero() {
		w.absent = w.now()
	}
	if gone && len(w.old) > 0 && w.trouble == "" && w.now().Sub(w.absent) < absence {
		return // in the middle of a rotation
	}
	err = fmt.Errorf("source %w", explain(w.path, err))
	if text := err.Error(); text != w.trouble {
		w.trouble = text
		w.emit(Record{Kind: Down, Err: err})
	}
}

func (w *follower) healthy() {
	w.absent = time.Time{}
	if w.trouble != "" {
		w.trouble, w.news = "", true
	}
}

// disbelieve goes to the end of a log others could write to: none of what was
// written meanwhile is taken for a login. What was not read is lost, and more may
// be than is seen.
func (w *follower) disbelieve(lost bool) {
	end, unread, more := w.unread(w.cur)
	lost = lost || more
	for _, t := range w.old {
		_, n, more := w.unread(t)
		unread, lost = unread+n, lost || more
		w.shut(t)
	}
	w.wary, w.begun, w.old = false, true, nil
	w.distance()
	w.passOver(w.cur, end)
	w.emit(Record{Kind: Gap, Lost: lost, Unread: unread})
}

// unread says where a file ends, and how much before that has not been handed
// over.
func (w *follower) unread(t *tail) (end, n int64, lost bool) {
	end, _ = t.size()
	b := w.buf[:len(t.before)]
	if n, err := t.ReadAt(b, t.offset-int64(len(b))); err != nil || !t.unchanged(b[:n]) {
		return end, end, true // it has been replaced, and its old end is gone
	}
	return end, end - t.offset, end > t.offset
}

// miss stands for lines that were there, or may have been, and are never read.
func (w *follower) miss(bytes int64) {
	w.emit(Record{Kind: Gap, Lost: true, Unread: bytes})
}

// restart sets where reading a file goes on; a file that can't be read now will
// say so when it is read.
func (w *follower) restart(t *tail, offset int64) { _ = t.seek(offset) }

// read hands over everything that can be read now: the old files first, as
// they were written first. The current one is then read only as far as it was
// filled when they had not yet been read to their ends, so that what was
// written last to the old one still comes before what was written to this.
func (w *follower) read() {
	for again := true; again && !w.stopped && !w.wary; {
		again = false
		upto := int64(-1)
		if len(w.old) > 0 && w.cur != nil {
			upto, _ = w.cur.size()
		}
		for _, t := range slices.Clone(w.old) {
			if !w.readTail(t, -1) {
				w.replaced(t)
				again = true
				break // a copy of it may come first
			}
		}
		if !again && w.cur != nil && !w.readTail(w.cur, upto) {
			w.replaced(w.cur)
			again = true
		}
	}
}

// readTail hands over the whole lines of one file, up to an offset if that is
// not negative. It answers false when the file no longer holds what was read
// from it before.
func (w *follower) readTail(t *tail, upto int64) bool {
	for !w.stopped {
		b := w.buf
		if upto >= 0 {
			b = b[:max(int64(len(t.before)), min(int64(len(b)), upto-t.offset+int64(len(t.before))))]
		}
		n, err := t.pread(b, t.offset-int64(len(t.before)))
		if err != nil {
			w.failed(t, err)
			return true
		}
		if !t.asApproved() { // asked after the reading: what is in b was there before
			w.changedHands(t)
			return true
		}
		full := n == len(w.buf)
		if b = b[:n]; !t.unchanged(b) {
			return false
		}
		w.handOver(t, b)
		if !full {
			t.live = t.live || !w.now().Before(t.doubt)
			return true
		}
		if t == w.first() {
			w.due = t.position()
		}
		w.checkEnd()
	}
	return true
}

// changedHands deals with a file that others may be able to write to now. The
// current one waits for its whole way to be checked; an old one has no way any
// more.
func (w *follower) changedHands(t *tail) {
	if t == w.cur {
		w.recheck = true
		return
	}
	w.old = slices.DeleteFunc(w.old, func(o *tail) bool { return o == t })
	_, unread, lost := w.unread(t)
	w.mark(t, true)
	w.done(t)
	w.emit(Record{Kind: Gap, Lost: lost, Unread: unread})
}

// checkEnd stops a long reading when its time is over.
func (w *follower) checkEnd() {
	select {
	case <-w.ended:
		w.stopped = true
	default:
	}
}

// failed gives up a file that can't be read any more (a disk error, a file
// server that lost it). Where it was the current one, reading goes on from the
// same place when it can be opened again.
func (w *follower) failed(t *tail, err error) {
	gap := Record{Kind: Gap, Lost: t != w.cur}
	if t == w.cur {
		w.from, w.begun, w.cur = t.position(), false, nil
	}
	w.old = slices.DeleteFunc(w.old, func(o *tail) bool { return o == t })
	w.shut(t)
	w.emit(gap)
	w.lost(way{}, &fs.PathError{Op: "read", Path: w.path, Err: err})
}

// handOver cuts what was read into lines and hands them over. What follows the
// last newline is left in the file, to be read again with its rest.
func (w *follower) handOver(t *tail, b []byte) {
	at := len(t.before)
	if at == len(b) {
		t.fragment = t.skipping
		return
	}
	now := w.now()
	if end := t.offset + int64(len(b)-at); end > t.end {
		t.end, t.grown = end, now
		if now.Before(t.copied) {
			t.doubt = now.Add(doubtful)
		}
	}
	if t == w.cur {
		w.markFragments()
	}
	for at < len(b) && !w.stopped {
		line, used, what := t.Next(b[at:])
		if used == 0 {
			break
		}
		at += used
		switch what {
		case CutLine:
			w.emit(Record{Kind: Line, Text: line, Arrived: now, Live: t.live})
		case CutLong:
			w.emit(Record{Kind: Gap, Arrived: now})
		}
	}
	t.fragment = at < len(b) || t.skipping
	t.used(b[:at])
}

// markFragments puts a gap where lines of a newer file follow half a line of an
// older one: the parser must not take the two for neighbours.
func (w *follower) markFragments() {
	for _, t := range w.old {
		if t.fragment && !t.told {
			t.told = true
			w.emit(Record{Kind: Gap})
		}
	}
}

// replaced deals with a file whose content is not what it was: it was
// truncated, and may have been filled again. What it held and was not read may
// be in a copy beside it, which is then read first.
func (w *follower) replaced(t *tail) {
	c := w.copyOf(t)
	rest := t.end - t.offset // half a line, seen and not judged
	if c != nil {
		rest = 0
	}
	w.emit(Record{Kind: Gap, Lost: rest > 0, Unread: max(0, rest)})
	if c != nil {
		i := max(0, slices.Index(w.old, t))
		if t == w.cur {
			i = len(w.old)
		}
		w.old = slices.Insert(w.old, i, c)
		w.hints.file(c.fd)
	}
	t.rewind()
	t.doubt, t.copied = w.now().Add(doubtful), w.now().Add(copying)
	w.skipAncient(t)
}

// letGo closes old files that nothing is written to any more.
func (w *follower) letGo() {
	for i := 0; i < len(w.old); {
		t := w.old[i]
		_, names := t.size()
		quiet := w.now().Sub(t.grown) >= drain
		if quiet && (w.cur != nil || names == 0) || len(w.old) > maxOld {
			if t.fragment && !t.told {
				w.emit(Record{Kind: Gap})
			}
			w.done(t)
			w.old = slices.Delete(w.old, i, i+1)
			w.news = true // the position may move on
			continue
		}
		i++
	}
}

// first gives the file whose position stands for the whole reading: as long as
// an older one is open, a restart must begin with that.
func (w *follower) first() *tail {
	if len(w.old) > 0 {
		return w.old[0]
	}
	return w.cur
}

// settle tells that the end was reached, with the position if it is time.
func (w *follower) settle() {
	if w.stopped || w.trouble != "" || !w.begun || w.wary {
		return
	}
	now := w.now()
	if t := w.first(); t != nil && now.Sub(w.toldAt) >= PositionEvery && (t.offset != w.told.Offset || t.ino != w.told.Inode || t.dev != w.told.Device) {
		if p := t.position(); !p.IsZero() {
			w.due = p
		}
	}
	if w.news || !w.due.IsZero() {
		w.emit(Record{Kind: CaughtUp, Arrived: now})
		w.news = false
	}
}

// emit hands one record over, with the position that is due.
func (w *follower) emit(r Record) {
	if w.stopped {
		return
	}
	if r.Arrived.IsZero() {
		r.Arrived = w.now()
	}
	if !w.due.IsZero() {
		r.Position, w.told, w.toldAt = w.due, w.due, w.now()
		w.due = relay.Position{}
	}
	w.news = w.news || r.Kind != CaughtUp
	w.stopped = !w.yield(r)
}
