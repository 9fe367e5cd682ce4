package watcher

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

const (
	// newborn is how big a file may be when it appears and not be asked for its age.
	newborn = 16 << 10
	// ancient is the size from which a file that appears is not read from its
	// start, but from where its lines are young enough to matter.
	ancient = 1 << 20
	// maxCatchUp bounds what is read from one file because of a saved position:
	// behind it, only what is young enough.
	maxCatchUp = 256 << 20
	// maxUnpacked bounds what is unpacked of gzipped files at one start.
	maxUnpacked = 1 << 30
	// maxSiblings bounds how many rotated files are looked at.
	maxSiblings = 16
	// unbelieved is the offset of the position that is kept while others could
	// write to the log: a restart must not believe what they wrote either.
	unbelieved = -1
	// slack is how much the stamps of a log may run backwards (a clock being
	// set) without a line being passed over.
	slack = 10 * time.Minute
)

// begin finds where to start: at the saved position, here or in a rotated
// sibling, else at what was logged within the window. The current file may be
// missing.
func (w *follower) begin() {
	w.begun, w.unpackable = true, maxUnpacked
	w.remember(w.siblings(time.Time{}))
	from := w.from
	if from.Offset == unbelieved {
		// Nothing that is there now is believed, wherever it was moved.
		w.distance()
		if w.cur != nil {
			w.toEnd(w.cur)
		}
		w.miss(0) // how far it had been read is not known any more
		return
	}
	if !from.IsZero() {
		if w.cur != nil && w.cur.dev == from.Device && w.cur.ino == from.Inode && w.cur.holds(from) {
			w.goOn(w.cur, from.Offset)
			return
		}
		if w.beginInSibling(from) {
			return
		}
		w.miss(0) // the place is gone, and what followed it perhaps too
	}
	w.beginAt(w.now().Add(-w.window))
}

// between finds files that were the current one only between two looks, and
// were rotated before anybody saw them.
func (w *follower) between() {
	all := w.siblings(time.Time{})
	for _, s := range slices.Backward(all) {
		at, known := w.rotated[s.fileID]
		if s.gz || w.opened(s) || known && !s.changed.After(at) || s.changed.Before(w.arrived.Add(-time.Second)) {
			continue
		}
		if !w.take(s, nil) {
			w.miss(0)
		}
	}
	w.remember(all)
}

func (w *follower) remember(all []sibling) {
	w.rotated = make(map[fileID]time.Time, len(all))
	for _, s := range all {
		w.rotated[s.fileID] = s.changed
	}
}

// distance marks the end of every rotated log: what is there now is not
// believed, and what is written behind it is.
func (w *follower) distance() {
	for _, s := range w.siblings(time.Time{}) {
		if t := w.open(s); t != nil {
			w.mark(t, false)
			w.shut(t)
		}
	}
}

// mark is how far a file was filled when it was not believed.
type mark struct {
	size  int64
	sum   uint64 // of the bytes before it: another file may come to have the same inode
	never bool   // what is written behind it is not believed either
}

func (w *follower) mark(t *tail, never bool) {
	size, _ := t.size()
	if w.marks[t.fileID].never || t.seek(size) != nil {
		return
	}
	if w.marks == nil {
		w.marks = map[fileID]mark{}
	}
	w.marks[t.fileID] = mark{size, sum(t.before), never}
}

// behindMark goes to the mark in a file that has one, and says whether it has.
func (w *follower) behindMark(t *tail) bool {
	m, marked := w.marks[t.fileID]
	if !marked {
		return false
	}
	if t.seek(m.size) != nil || sum(t.before) != m.sum {
		t.rewind()
		return false
	}
	if m.never {
		w.toEnd(t)
		w.miss(t.offset - m.size)
	}
	t.skipping = !t.atLineStart()
	return true
}

// done closes a rotated file for good.
func (w *follower) done(t *tail) {
	var st stat
	if syscall.Fstat(t.fd, &st) == nil {
		w.rotated[t.fileID] = modified(&st)
	}
	w.shut(t)
}

// goOn reads a file on from a position, or from later where that is too far back.
func (w *follower) goOn(t *tail, offset int64) {
	size, _ := t.size()
	if size-offset > maxCatchUp {
		if at := w.sinceIn(t, w.now().Add(-w.window)); at > offset {
			w.miss(at - offset)
			offset = at
		}
	}
	w.restart(t, offset)
}

// beginInSibling looks for the place in the rotated files, reads the one that
// has it on from there and everything rotated after it from its start.
func (w *follower) beginInSibling(from relay.Position) bool {
	all := w.siblings(from.Time)
	for _, byInode := range [...]bool{true, false} {
		for i, s := range all {
			if byInode && (s.gz || s.dev != from.Device || s.ino != from.Inode) {
				continue
			}
			if from.Offset == 0 && !byInode || !w.take(s, &from) {
				continue
			}
			for _, newer := range slices.Backward(all[:i]) {
				if newer.fileID != s.fileID {
					w.take(newer, nil)
				}
			}
			return true
		}
	}
	return false
}

// beginAt starts with what was logged since a time, in the current file and,
// where that is younger, in the rotated ones.
func (w *follower) beginAt(since time.Time) {
	if w.cur != nil {
		at := w.sinceIn(w.cur, since)
		w.restart(w.cur, at)
		if at > 0 {
			return
		}
	}
	for _, s := range slices.Backward(w.siblings(since)) {
		if s.gz {
			w.unpack(s, nil, since)
		} else if t := w.open(s); t != nil {
			if !w.behindMark(t) {
				w.restart(t, w.sinceIn(t, since))
			}
			w.old = append(w.old, t)
		}
	}
}

// take reads a sibling: from a place in it, if it has that place, or all of it.
func (w *follower) take(s sibling, from *relay.Position) bool {
	if s.gz {
		return w.unpack(s, from, time.Time{})
	}
	t := w.open(s)
	switch {
	case t == nil:
		return false
	case from == nil:
		if !w.behindMark(t) {
			w.goOn(t, 0)
		}
	case t.holds(*from):
		w.goOn(t, from.Offset)
	default:
		w.shut(t)
		return false
	}
	w.old = append(w.old, t)
	return true
}

// copyOf looks for the copy that copytruncate made of a file before it emptied
// it, and gives it at the place up to which the file had been read.
func (w *follower) copyOf(t *tail) *tail {
	if t.offset == 0 {
		return nil
	}
	for _, s := range w.siblings(t.grown.Add(-time.Second)) {
		if s.gz || t.fileID == s.fileID || w.opened(s) {
			continue
		}
		if c := w.open(s); c != nil {
			if c.seek(t.offset) == nil && bytes.Equal(c.before, t.before) {
				c.skipping = t.skipping
				return c
			}
			w.shut(c)
		}
	}
	return nil
}

// sibling is a rotated log beside the one that is read.
type sibling struct {
	fileID
	path    string
	changed time.Time
	gz      bool
}

// siblings lists the rotated logs that were written to since a time, the
// newest first. A log that moves from one name to another meanwhile may be seen
// under none of them, so it is looked until it is seen twice alike.
func (w *follower) siblings(since time.Time) []sibling {
	found := w.glance(since)
	for range maxSiblings {
		again := w.glance(since)
		if slices.EqualFunc(found, again, func(a, b sibling) bool { return a.fileID == b.fileID && a.path == b.path }) {
			break
		}
		found = again
	}
	return found[:min(len(found), maxSiblings)]
}

// glance looks for rotated logs once.
func (w *follower) glance(since time.Time) []sibling {
	var found []sibling
	places := []place{{w.dir, w.base}}
	if own := (place{filepath.Dir(w.path), filepath.Base(w.path)}); places[0] != own {
		places = append(places, own) // a symbolic link, which may have been rotated itself
	}
	for _, p := range places {
		names, _ := os.ReadDir(p.dir)
		for _, e := range names {
			var st stat
			path := filepath.Join(p.dir, e.Name())
			if rotated(e.Name(), p.name) && syscall.Lstat(path, &st) == nil && st.Mode&syscall.S_IFMT == syscall.S_IFREG &&
				!modified(&st).Before(since) && !w.cur.is(&st) {
				found = append(found, sibling{fileID{st.Dev, st.Ino}, path, modified(&st), strings.HasSuffix(path, ".gz")})
			}
		}
	}
	slices.SortFunc(found, func(a, b sibling) int {
		if c := b.changed.Compare(a.changed); c != 0 {
			return c
		}
		return byName(a.path, b.path)
	})
	// gzip keeps the time of what it packs; where both are there, one is enough.
	return slices.DeleteFunc(found, func(s sibling) bool {
		return s.gz && slices.ContainsFunc(found, func(o sibling) bool { return o.path+".gz" == s.path })
	})
}

// byName orders rotated files of the same time, the newest first: mail.log.1
// before mail.log.2, and mail.log-20261122 before mail.log-20261121.
func byName(a, b string) int {
	if i := strings.LastIndexByte(a, '-'); i > strings.LastIndexByte(a, '/') {
		return strings.Compare(b, a)
	}
	if len(a) != len(b) {
		return len(a) - len(b)
	}
	return strings.Compare(a, b)
}

// rotated says whether name is what logrotate and its like make of base:
// mail.log.1, mail.log-20261122, mail.log.2.gz, mail.log.old, and with
// logrotate's "extension" mail-20261122.log.
func rotated(name, base string) bool {
	name = strings.TrimSuffix(name, ".gz")
	ext := filepath.Ext(base)
	mark, ok := strings.CutPrefix(name, base)
	if !ok && ext != "" {
		if mark, ok = strings.CutPrefix(name, strings.TrimSuffix(base, ext)); ok {
			mark, ok = strings.CutSuffix(mark, ext)
		}
	}
	if !ok || len(mark) < 2 || mark[0] != '.' && mark[0] != '-' {
		return false
	}
	return mark == ".old" || '0' <= mark[1] && mark[1] <= '9' && strings.Trim(mark, "0123456789.-_:T") == ""
}

// open opens a sibling, by the same rules as the log itself, and only one of
// the same owner. Logs may be rotated on between the listing and now: then it is
// looked for under its new name, as under the old one there is another by now.
func (w *follower) open(s sibling) *tail {
	for range maxSiblings {
		fd, st, err := w.custody.openChecked(way{real: s.path})
		if err == nil && s.fileID == (fileID{st.Dev, st.Ino}) {
			if !w.custody.own(st.Uid) && w.owned && st.Uid != w.owner {
				syscall.Close(fd)
				return nil
			}
			w.hints.file(fd)
			return newTail(fd, &st)
		}
		if err == nil {
			syscall.Close(fd)
		}
		all, before := w.siblings(time.Time{}), s
		i := slices.IndexFunc(all, func(o sibling) bool { return o.fileID == s.fileID })
		if i < 0 || all[i].path == before.path && err != nil {
			return nil // it is gone, or it is there and may not be read
		}
		s = all[i]
	}
	return nil
}

func (w *follower) opened(s sibling) bool {
	return slices.ContainsFunc(w.old, func(t *tail) bool { return t.fileID == s.fileID })
}

// unpack hands over the lines of a gzipped sibling: those after a place, if it
// has that place, or those since a time.
func (w *follower) unpack(s sibling, from *relay.Position, since time.Time) bool {
	t := w.open(s)
	if t == nil {
		return false
	}
	defer w.shut(t)
	z, err := gzip.NewReader(bufio.NewReader(io.NewSectionReader(t, 0, 1<<62)))
	if err != nil {
		return false
	}
	limited := &io.LimitedReader{R: z, N: w.unpackable}
	defer func() { w.unpackable = limited.N }()
	r := bufio.NewReaderSize(limited, keep)
	if from != nil && (from.Offset > w.unpackable || !reach(r, from)) {
		return false
	}
	young := since.IsZero()
	for line, err := range Lines(r) {
		switch {
		case err != nil:
			w.emit(Record{Kind: Gap})
		case young || !w.older(line, since):
			young = true
			w.emit(Record{Kind: Line, Text: line})
		}
		if w.checkEnd(); w.stopped {
			break
		}
	}
	if limited.N <= 0 {
		w.miss(0) // there may be more
	}
	return true
}

// reach reads up to a place and says whether it is the right one.
func reach(r *bufio.Reader, from *relay.Position) bool {
	n := min(from.Offset, keep)
	if _, err := io.CopyN(io.Discard, r, from.Offset-n); err != nil {
		return false
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	return err == nil && n > 0 && b[n-1] == '\n' && sum(b) == from.Sum
}

// skipAncient lets a file that appeared, or was put in the place of another,
// begin where its lines matter. A new log is small when it is first seen; a
// bigger one whose last line is not of about now is an old one put back, and
// nothing in it is read: a stamp without a year that looks like today's may be
// last year's.
func (w *follower) skipAncient(t *tail) {
	size, _ := t.size()
	switch {
	case size <= newborn:
	case w.bygone(t, size):
		w.toEnd(t)
		w.emit(Record{Kind: Gap})
	case size > ancient:
		w.restart(t, w.sinceIn(t, w.now().Add(-w.window)))
	}
}

// bygone says whether the last stamp of a file lies outside the window.
func (w *follower) bygone(t *tail, size int64) bool {
	from := max(0, size-MaxLine)
	n, _ := t.ReadAt(w.buf[:size-from], from)
	b := w.buf[:n]
	for {
		i := bytes.LastIndexByte(b, '\n')
		if i < 0 {
			return false
		}
		line := b[i+1:]
		b = b[:i]
		var m format.Message
		if !format.Split(line, &m) {
			continue
		}
		// Seen from a day on, so that one that lies ahead is not taken for now.
		if stamp, _, ok := m.Stamp.Time(w.now().Add(24*time.Hour), w.zone); ok {
			return stamp.Before(w.now().Add(-w.window-slack)) || stamp.After(w.now().Add(slack))
		}
	}
}

// toEnd passes over everything a file holds, half a line at its end included.
func (w *follower) toEnd(t *tail) {
	size, _ := t.size()
	w.passOver(t, size)
}

// passOver goes to an offset that may be inside a line, whose rest is not judged.
func (w *follower) passOver(t *tail, offset int64) {
	w.restart(t, offset)
	t.skipping = !t.atLineStart()
}

// sinceIn finds the start of a line from which on a file holds everything
// that was logged since a time: in steps from the end that grow, then by
// halving. Where stamps can't be read it errs to the front.
func (w *follower) sinceIn(t *tail, since time.Time) int64 {
	since = since.Add(-slack)
	size, _ := t.size()
	lo, hi := int64(0), size
	for span := int64(MaxLine); span < size; span *= 4 {
		if lo = size - span; w.olderAt(t, lo, since) {
			break
		}
		lo, hi = 0, lo
	}
	for hi-lo > MaxLine {
		if mid := lo + (hi-lo)/2; w.olderAt(t, mid, since) {
			lo = mid
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return 0
	}
	return w.lineStart(t, lo)
}

// olderAt says whether the first stamp behind an offset is older than a time.
func (w *follower) olderAt(t *tail, at int64, than time.Time) bool {
	n, _ := t.ReadAt(w.buf, at)
	b := w.buf[:n]
	for first := true; ; first = false {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return false
		}
		if stamp, ok := w.stamp(b[:i]); ok && !first {
			return stamp.Before(than)
		}
		b = b[i+1:]
	}
}

// older says whether a line's stamp can be read and is older than a time.
func (w *follower) older(line []byte, than time.Time) bool {
	stamp, ok := w.stamp(line)
	return ok && stamp.Before(than.Add(-slack))
}

func (w *follower) stamp(line []byte) (time.Time, bool) {
	var m format.Message
	if len(line) > MaxLine || !format.Split(line, &m) {
		return time.Time{}, false
	}
	stamp, _, ok := m.Stamp.Time(w.now(), w.zone)
	return stamp, ok
}

// lineStart gives the start of the first line behind an offset; 0 if it finds
// none.
func (w *follower) lineStart(t *tail, at int64) int64 {
	n, _ := t.ReadAt(w.buf, at)
	i := bytes.IndexByte(w.buf[:n], '\n')
	if i < 0 {
		return 0
	}
	return at + int64(i) + 1
}
