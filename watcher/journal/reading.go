package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// reading is one reading of a Source.
type reading struct {
	*Source
	ctx    context.Context
	yield  func(watcher.Record) bool
	window time.Duration // how far back entries are still wanted
	buf    []byte
	entry  format.Entry

	cursor   []byte    // of the last entry journalctl told
	resumed  bool      // an earlier reading got somewhere
	complete time.Time // what was logged up to then has been handed over
	skip     bool      // the next entry must be that of cursor, which has been
	broken   error     // and is not
	misses   int       // how often it was looked for in vain
	since    time.Time // where reading began; zero: at the cursor
	whole    bool      // times mean nothing in this journal: all of it is read

	view     view
	changed  time.Time // since when the folders are not those of view
	looked   time.Time // when they were last looked at
	covered  time.Time // nothing older is needed when reading begins
	head     []byte    // the oldest entry then
	began    time.Time
	goal     []byte        // an entry to be reached: the last one there was
	goalAt   time.Time     // at this time
	heard    time.Time     // when journalctl last told anything
	patience time.Duration // how long it may tell nothing while it owes something

	live    bool      // the present has been reached
	news    bool      // something was handed over since the last CaughtUp
	told    time.Time // when a position was last told
	trouble string    // what was last told as Down
	failing time.Time // since when it does not work
	pause   time.Duration
	stopped bool // nobody wants more
}

var (
	// errMoved is a journal that journald has taken elsewhere.
	errMoved = errors.New("journald writes to another folder")
	// errGone is an entry, handed over before, that is not where it was.
	errGone = errors.New("the last entry that was read is gone")
	// errSilent is a journalctl that lives and does not tell.
	errSilent = errors.New("journalctl --follow does not tell entries that are there")
)

// session reads until something makes it begin again. It answers false when
// nobody wants more.
func (r *reading) session() bool {
	r.began = r.now()
	dir, place, err := r.begin()
	if err == nil && !r.over() {
		err = r.follow(dir, place)
	}
	if r.over() {
		r.settle() // the last word: where it got to
		return false
	}
	r.live, r.goal = false, nil
	if errors.Is(err, errMoved) {
		return true
	}
	if r.whole = errors.Is(err, errSilent); r.whole {
		r.patience = min(2*r.patience, mostSilence)
	}
	// One that lived for long may be started again at once.
	if r.pause = min(max(2*r.pause, firstPause), lastPause); r.now().Sub(r.began) > 10*r.pause {
		r.pause = firstPause
	}
	r.failed(err)
	select {
	case <-r.ctx.Done():
	case <-time.After(r.pause):
	}
	return !r.over()
}

// over says whether nobody wants more.
func (r *reading) over() bool { return r.stopped || r.ctx.Err() != nil }

// failed tells of trouble, unless it may pass within moments.
func (r *reading) failed(err error) {
	if r.failing.IsZero() {
		r.failing = r.now()
	}
	certain := errors.Is(err, fs.ErrPermission) || errors.Is(err, errNoJournalctl) || errors.Is(err, errSilent)
	if !certain && r.now().Add(r.pause).Sub(r.failing) < prompt {
		return
	}
	if text := err.Error(); text != r.trouble {
		r.trouble = text
		r.emit(watcher.Record{Kind: watcher.Down, Err: err})
	}
}

// begin finds the place to go on from and reads everything but the folder that
// journald writes to: that is to be followed, from the place it gives.
func (r *reading) begin() (dir, place string, err error) {
	if r.view, err = r.look(); err != nil {
		return "", "", err
	}
	r.changed, r.broken = time.Time{}, nil
	if r.head, err = r.ask(r.view.dirs[0]); err != nil {
		return "", "", err
	}
	oldest := entryTime(r.entry.Time)
	at, err := r.find()
	if err != nil {
		return "", "", err
	}
	since := r.now().Add(-r.window)
	r.covered = since
	if r.complete.After(since) {
		r.covered = r.complete
	}
	if at < 0 && len(r.cursor) > 0 && r.misses < sure {
		r.misses++
		return "", "", errGone
	}
	if r.misses = 0; at < 0 {
		lost := (r.resumed || !r.complete.IsZero()) && (r.head == nil || oldest.After(r.covered))
		if lost || len(r.cursor) > 0 {
			r.emit(watcher.Record{Kind: watcher.Gap, Lost: lost})
		}
		r.cursor = r.cursor[:0]
	}
	if r.whole {
		since = time.Unix(0, 0)
	}
	for i, dir := range r.view.dirs {
		switch {
		case i < at:
			continue
		case i == at:
			place, r.since, r.skip = "--cursor="+string(r.cursor), time.Time{}, true
		default:
			if at >= 0 {
				r.emit(watcher.Record{Kind: watcher.Gap}) // what follows is no neighbour of what came before
			}
			place, r.since, r.skip = "--since=@"+strconv.FormatInt(since.Unix(), 10), since, false
		}
		if dir == r.view.active() {
			break
		}
		if err := r.pass(dir, place); err != nil {
			return "", "", err
		}
	}
	return r.view.active(), place, nil
}

// find looks for the entry that was handed over last and gives the folder it is
// in, -1 for none. journalctl never says that a place is gone: it goes on from
// wherever it thinks is near, or nowhere.
func (r *reading) find() (at int, err error) {
	if len(r.cursor) == 0 {
		return -1, nil
	}
	for at = len(r.view.dirs) - 1; at >= 0; at-- {
		c, err := r.ask(r.view.dirs[at], append([]string{"--cursor=" + string(r.cursor)}, r.proof.matches()...)...)
		if err != nil {
			return -1, err
		}
		if sameEntry(c, r.cursor) {
			return at, nil
		}
	}
	return -1, nil
}

// ask gives the cursor of the first entry that journalctl shows, nil for none.
// The rest is in entry. While journald rotates, an answer may be of half a
// journal: it counts only if the files' names were the same before and after.
func (r *reading) ask(dir string, more ...string) ([]byte, error) {
	args := r.view.arguments(dir, append([]string{"--output-fields=_UID"}, more...)...)
	for end := r.now().Add(prompt); ; time.Sleep(firstPause) {
		before := journalNames(dir)
		line, err := ask(r.ctx, args)
		if err != nil {
			return nil, err
		}
		still := slices.Equal(before, journalNames(dir)) && (dir != r.view.active() || slices.Contains(before, "system.journal"))
		if !still && r.now().Before(end) {
			continue
		}
		r.entry = format.Entry{}
		if line == nil {
			return nil, nil
		}
		if !format.SplitEntry(line, &r.entry) || !isCursor(r.entry.Cursor) {
			return nil, fmt.Errorf("%s: %q is no entry", journalctlPath, line[:min(len(line), 100)])
		}
		return r.entry.Cursor, nil
	}
}

// pass reads a folder that nobody writes to any more, to its end.
func (r *reading) pass(dir, place string) error {
	c, err := startChild(r.view.arguments(dir, append([]string{"--output-fields=" + outputFields, place}, r.proof.matches()...)...))
	if err != nil {
		return err
	}
	return r.read(c, watchEvery, func() error { return r.broken })
}

// follow reads what there is and what comes.
func (r *reading) follow(dir, place string) error {
	w := newWaker(dir)
	defer w.close()
	c, err := startChild(r.view.arguments(w.folder(), append([]string{"--output-fields=" + outputFields, place, "--no-tail", "--follow"}, r.proof.matches()...)...))
	if err != nil {
		return err
	}
	if err := r.aim(); err != nil {
		c.stop()
		return err
	}
	err = r.read(c, w.every(), func() error { w.look(); return r.tick() })
	if err == nil {
		err = errors.New("journalctl --follow ended")
	}
	return err
}

// read hands over what a journalctl tells, until it ends, or tick, which is asked
// that often, has a reason to end it.
func (r *reading) read(c *child, every time.Duration, tick func() error) error {
	wake := context.AfterFunc(r.ctx, func() { c.out.SetReadDeadline(time.Unix(1, 0)) })
	defer wake()
	var cut watcher.Cutter
	n := 0
	for {
		if err := tick(); err != nil {
			c.stop()
			return err
		}
		c.out.SetReadDeadline(time.Now().Add(every))
		if r.ctx.Err() != nil { // the deadline of AfterFunc may just have been replaced
			c.stop()
			return nil
		}
		m, err := c.out.Read(r.buf[n:])
		if n += m; m > 0 {
			r.heard = r.now()
			n = copy(r.buf, r.buf[r.handOver(&cut, r.buf[:n]):n])
		}
		switch {
		case r.over():
			c.stop()
			return nil
		case err == io.EOF:
			return c.ended()
		case errors.Is(err, os.ErrDeadlineExceeded):
			if r.now().Sub(r.told) >= watcher.PositionEvery {
				r.settle()
			}
		case err != nil:
			c.stop()
			return err
		}
	}
}

// handOver cuts what was read into entries and says how many bytes it used.
func (r *reading) handOver(cut *watcher.Cutter, b []byte) (used int) {
	for used < len(b) && !r.over() && r.broken == nil {
		line, n, what := cut.Next(b[used:])
		if n == 0 {
			break
		}
		used += n
		switch what {
		case watcher.CutLine:
			r.line(line)
		case watcher.CutLong:
			r.emit(watcher.Record{Kind: watcher.Gap})
		}
	}
	return used
}

// line deals with one entry.
func (r *reading) line(line []byte) {
	e := &r.entry
	if !format.SplitEntry(line, e) || !isCursor(e.Cursor) {
		r.emit(watcher.Record{Kind: watcher.Gap, Lost: true}) // journalctl never writes such a line
		return
	}
	if r.skip {
		r.skip = false
		if sameEntry(e.Cursor, r.cursor) {
			r.passed(e)
			return
		}
		r.broken = errGone
		return
	}
	switch r.proof.judge(e, r.view.machine) {
	case believed:
		rec := watcher.Record{Kind: watcher.Line, Text: line, Live: r.live, Unit: r.proof.unit(e)}
		r.passed(e)
		r.emit(rec)
	case dropped:
		r.passed(e)
		r.emit(watcher.Record{Kind: watcher.Gap, Lost: true})
	default:
		r.passed(e)
	}
}

// passed notes that an entry has been dealt with.
func (r *reading) passed(e *format.Entry) {
	r.cursor = append(r.cursor[:0], e.Cursor...)
	r.complete = entryTime(e.Time)
	if r.goal != nil && sameEntry(e.Cursor, r.goal) {
		r.goal = nil
	}
}

// aim sets the goal: the last entry there is now.
func (r *reading) aim() error {
	r.goalAt = r.now()
	goal, err := r.ask(r.view.active(), append([]string{"--lines=1"}, r.proof.matches()...)...)
	if err != nil {
		return err
	}
	// What is older than where reading began is not told.
	if goal != nil && !sameEntry(goal, r.cursor) && !entryTime(r.entry.Time).Before(r.since) {
		r.goal, r.heard = goal, r.now()
	}
	return nil
}

// tick does what is due while journalctl follows.
func (r *reading) tick() error {
	now := r.now()
	switch {
	case r.broken != nil:
		return r.broken
	case r.goal != nil:
		if now.Sub(r.heard) > r.patience {
			return errSilent
		}
	case !r.live:
		if now.Sub(r.goalAt) > recent { // the end that was reached is an old one by now
			if err := r.aim(); err != nil {
				return err
			}
		}
		if r.goal == nil {
			if err := r.arrived(); err != nil {
				return err
			}
		}
	case now.Sub(r.goalAt) > r.proved:
		if err := r.aim(); err != nil {
			return err
		}
	}
	if now.Sub(r.looked) < watchEvery {
		return nil
	}
	r.looked = now
	return r.lookAgain(now)
}

// arrived deals with the present being reached.
func (r *reading) arrived() error {
	if r.now().Sub(r.began) > 2*recent {
		// A long reading may have been overtaken by a vacuum.
		head, err := r.ask(r.view.dirs[0])
		if err != nil {
			return err
		}
		if r.head != nil && !sameEntry(head, r.head) && entryTime(r.entry.Time).After(r.covered) {
			r.emit(watcher.Record{Kind: watcher.Gap, Lost: true})
		}
	}
	r.live, r.news = true, true
	r.trouble, r.failing, r.whole, r.patience = "", time.Time{}, false, r.silent
	r.settle()
	return nil
}

// lookAgain notices folders that came or went, and what may no longer be read.
func (r *reading) lookAgain(now time.Time) error {
	v, err := r.look()
	if err == nil && v.same(&r.view) {
		r.changed = time.Time{}
		return nil
	}
	if r.changed.IsZero() {
		r.changed = now
	}
	// Between the two steps of a rotation a folder looks empty.
	switch {
	case err == nil && now.Sub(r.changed) >= watchEvery:
		return errMoved
	case err != nil && (!errors.Is(err, fs.ErrNotExist) || now.Sub(r.changed) >= rotation):
		return err
	}
	return nil
}

// settle tells that the end was reached.
func (r *reading) settle() {
	if !r.live || !r.news {
		return
	}
	if r.goal == nil && r.goalAt.After(r.complete) {
		r.complete = r.goalAt
	}
	r.told = time.Time{}
	r.emit(watcher.Record{Kind: watcher.CaughtUp})
	r.news = false
}

// emit hands one record over, with a position if it is time.
func (r *reading) emit(rec watcher.Record) {
	if r.stopped {
		return
	}
	rec.Arrived = r.now()
	if rec.Kind != watcher.Down && rec.Kind != watcher.Gap && rec.Arrived.Sub(r.told) >= watcher.PositionEvery && !r.skip {
		r.told = rec.Arrived
		rec.Position = relay.Position{Cursor: string(r.cursor), Sum: r.proof.sum(), Time: r.complete}
	}
	r.news = r.news || rec.Kind != watcher.CaughtUp
	r.stopped = !r.yield(rec)
}
