package state

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"popgate/internal/relay"
)

const (
	snapshotName = "snapshot"
	newName      = "snapshot.new"
	changesStem  = "changes-"
)

// changesName is the file whose first batch has this number. The names sort as
// the numbers do.
func changesName(first uint64) string { return fmt.Sprintf("%s%016x", changesStem, first) }

func firstOf(name string) (uint64, bool) {
	digits, ok := strings.CutPrefix(name, changesStem)
	if !ok || len(digits) != 16 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 16, 64)
	return n, err == nil && changesName(n) == name
}

// Loaded is what Load found beside the changes.
type Loaded struct {
	Positions map[string]relay.Position // by source
	Changes   int                       // given to the callback
	// Warnings tell what could not be read, each with its file. Files that
	// were cut by a crash at their end are no damage and cost nothing that had
	// been promised, but are told as well.
	Warnings []error
	Damaged  bool // grants may be missing
}

// Load reads what the directory holds and gives each change to the callback,
// revocations and ends of sessions before the grants of a snapshot. It is
// called once, before Run. Deadlines are not kept on disk and come as zero.
func (s *State) Load(each func(relay.Change)) Loaded {
	l := loader{each: each, out: Loaded{Positions: map[string]relay.Position{}}}
	names, err := s.files.list()
	if err != nil {
		l.damage("state_dir "+s.dir, err)
	}
	s.readSnapshot(&l, slices.Contains(names, snapshotName))
	s.readChanges(&l, names)
	s.mu.Lock()
	defer s.mu.Unlock()
	for source, p := range l.out.Positions {
		s.positions[source] = p
	}
	if l.out.Damaged {
		l.next = max(l.next, l.high)
		s.lost = errors.New("state: damaged files are replaced by a new snapshot")
	}
	s.loaded, s.next = true, l.next
	return l.out
}

// readSnapshot reads the snapshot, when there is one.
func (s *State) readSnapshot(l *loader, there bool) {
	l.next = 1
	if !there {
		return
	}
	path := s.dir + "/" + snapshotName
	f, err := s.files.open(snapshotName)
	if err != nil {
		l.damage(path, bare(err))
		return
	}
	defer f.Close()
	r := newReader(f)
	covers, err := r.header(kindSnapshot)
	if err != nil {
		l.damage(path, err)
		return
	}
	n := l.out.Changes
	err = l.frames(r, 1)
	switch {
	case err != nil:
		l.damage(path, fmt.Errorf("at byte %d: %w", r.off, err))
		l.salvage(r)
	case !l.batch.end || l.batch.total != uint64(l.out.Changes-n):
		l.damage(path, errors.New("ends too early"))
	}
	s.size, l.next = r.off, covers+1
	if !l.out.Damaged {
		l.keepPositions()
	}
}

// readChanges reads the changes that came after the snapshot.
func (s *State) readChanges(l *loader, names []string) {
	var firsts []uint64
	for _, name := range names {
		if first, ok := firstOf(name); ok {
			l.high = max(l.high, first+1)
			if first >= l.next {
				firsts = append(firsts, first)
			}
		}
	}
	slices.Sort(firsts)
	for _, first := range firsts {
		s.readChangesFrom(l, first)
	}
	l.cutShort(l.behind == 0)
}

func (s *State) readChangesFrom(l *loader, first uint64) {
	path := s.dir + "/" + changesName(first)
	// A crash leaves a file cut short, and the next goes on where it ended.
	l.cutShort(first == l.next)
	if first != l.next && !l.out.Damaged {
		l.damage(path, fmt.Errorf("batches %d to %d are missing before it", l.next, first-1))
	}
	f, err := s.files.open(changesName(first))
	if err != nil {
		l.damage(path, bare(err))
		return
	}
	defer f.Close()
	r := newReader(f)
	if number, err := r.header(kindChanges); err != nil || number != first {
		// A crash right after the file was made leaves it so; the numbers of
		// the next file tell whether there was more.
		if err == nil {
			err = errors.New("was given another file's name")
		}
		if !r.unwritten() {
			l.damage(path, err)
			return
		}
		l.cut = fmt.Errorf("%s: %w", path, err)
		return
	}
	err = l.frames(r, first)
	if !l.out.Damaged {
		l.keepPositions()
	}
	s.grown += r.off
	switch {
	case errors.Is(err, errDamaged):
		l.cut = fmt.Errorf("%s: at byte %d: %w, what follows grants nothing", path, r.off, err)
		l.behind = l.salvage(r)
	case err != nil:
		l.damage(path, fmt.Errorf("at byte %d: %w", r.off, bare(err)))
	}
}

// loader gathers what the files say.
type loader struct {
	each    func(relay.Change)
	out     Loaded
	next    uint64 // number of the batch that has to come next
	high    uint64 // no number from here on was ever used in a file's name
	cut     error  // the last file ended in something that is no batch
	behind  int    // whole batches after that
	dec     decoder
	batch   batch
	pending []position // of the file that is being read
}

// cutShort settles what the end of the last file was: as a crash leaves it, or
// damage.
func (l *loader) cutShort(crash bool) {
	if l.cut != nil {
		l.out.Warnings = append(l.out.Warnings, l.cut)
		l.out.Damaged = l.out.Damaged || !crash
	}
	l.cut, l.behind = nil, 0
}

func (l *loader) damage(path string, err error) {
	l.out.Damaged = true
	l.out.Warnings = append(l.out.Warnings, fmt.Errorf("%s: %w", path, err))
}

// frames reads batches that must be numbered from first on, to the end of the
// file or to what is no such batch. While one is given out the next is being read.
func (l *loader) frames(r *reader, first uint64) (err error) {
	l.next = first
	l.pending = l.pending[:0]
	l.batch = batch{}
	const ahead = 2
	empty, full := make(chan *batch, ahead), make(chan *batch, ahead)
	for range ahead {
		empty <- new(batch)
	}
	go func() { // r and dec are its own until full is closed
		defer close(full)
		ended := false
		for number := first; ; number++ {
			got, body, e := r.next()
			b := <-empty
			if e == nil && (got != number || ended || !l.dec.batch(body, b)) {
				e = errDamaged
			}
			if err = e; err != nil {
				return
			}
			ended = b.end
			full <- b
		}
	}()
	for b := range full {
		l.batch.end, l.batch.total = b.end, b.total
		l.next++
		l.give(b.changes, l.out.Damaged)
		l.pending = append(l.pending, b.positions...)
		empty <- b
	}
	if err == io.EOF {
		return nil
	}
	return err
}

// give hands out a batch's changes, once something is damaged only those
// that take away: a revocation may be among what can't be read.
func (l *loader) give(changes []relay.Change, onlyTaking bool) {
	for i := range changes {
		if c := &changes[i]; !onlyTaking || c.Kind != relay.ChangeGrant {
			l.each(*c)
			l.out.Changes++
		}
	}
}

func (l *loader) keepPositions() {
	for _, p := range l.pending {
		l.out.Positions[p.source] = p.Position
	}
}

// salvage looks behind a damaged place for changes that take away, and says
// how many whole batches it found.
func (l *loader) salvage(r *reader) (found int) {
	for r.seek() {
		for {
			_, body, err := r.next()
			if err != nil {
				break
			}
			if l.dec.batch(body, &l.batch) {
				found++
				l.give(l.batch.changes, true)
			}
		}
	}
	return found
}
