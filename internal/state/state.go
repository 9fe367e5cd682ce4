// Package state keeps on disk what a restart must not forget: the changes the
// ledger applied, and up to where each source was read.
//
// The directory holds one snapshot and the changes that came since:
//
//	lock              held by the daemon that uses the directory
//	snapshot          the state as of batch N, and what came while it was written
//	changes-<N+1>     batches N+1, N+2, ... in order, in one or more files
//	snapshot.new      a snapshot being written
//
// Changes commute and may be repeated, so a snapshot is taken while changes
// keep coming: what it may or may not have seen is in the next file anyway.
//
// What is promised. A batch is in the file 200 ms after Append and on the disk
// a second later; one with Done is there before Done is told. The disk never
// holds a position without the changes it stands for. Load gives only changes
// whose checksum holds; where a batch is missing or damaged it gives nothing
// more that grants, no position, and only what takes away (revocations, ends of
// sessions). No file can keep the daemon from starting.
//
// What is not promised: that a change without Done outlives a loss of power in
// its first second. Its source's position does not outlive it either.
package state

import (
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync"
	"time"

	"popgate/internal/relay"
)

// How soon what was handed to Append reaches the file, and the file the disk.
const (
	writeWithin = 100 * time.Millisecond
	syncWithin  = time.Second
)

// maxHeld bounds the bytes that wait for a disk that takes none.
const maxHeld = 16 << 20

// Options are what a State needs to know of its surroundings.
type Options struct {
	// Snapshot gives the present state of the ledger as changes, called from a
	// goroutine of Run, twice for each snapshot. Every batch whose Append
	// began before the call must be in what it gives: so the ledger applies
	// first and appends then. It may take its time. Required.
	Snapshot func() iter.Seq[relay.Change]
	Log      *slog.Logger // nil: nothing is logged
	// Fault, for tests, is asked before every operation on a file (create,
	// write, sync, rename, remove, syncdir); its error is the operation's.
	Fault func(op, name string) error

	files files // tests: in place of the directory
}

// State is the open state directory. Use: Open, Load, then Run in a goroutine
// of its own with Append from any other, then Close.
type State struct {
	o     Options
	dir   string
	files files
	lock  func() error // gives the directory's lock back

	loaded bool
	next   uint64 // number of the batch after the last one on disk
	grown  int64  // bytes of changes read since the snapshot
	size   int64  // of the snapshot

	wake   chan struct{} // something is to be written soon
	urgent chan struct{} // something is to be written and synced now
	idle   chan struct{} // a position moved

	mu        sync.Mutex
	planned   planned
	sealed    [][]byte // bodies of full batches, in order
	open      encoder  // the batch that is being filled
	held      int      // bytes in sealed, and in the writer's hands
	taken     int      // of these, in the writer's hands
	positions map[string]relay.Position
	moved     map[string]struct{} // sources whose position is to be written
	waiting   []chan<- error
	lost      error // not nil: the files miss something that only a snapshot can bring
	ended     bool
	err       error
}

var (
	errEnded = errors.New("state: already stopped, nothing more is kept")
	errHeld  = fmt.Errorf("state: more than %d MiB of changes wait for the disk", maxHeld>>20)
)

// Append hands over a batch that the ledger has applied. It never waits for
// the disk, and keeps nothing of b but Done. Batches are written in the order
// in which they come.
//
// When the disk takes nothing, batches are held up to a bound. Beyond it they
// are let go, because the ledger still has what they did: as soon as the disk
// takes something again the whole state is written anew. Nothing but a stop
// before that loses a grant, and Health tells about it.
func (s *State) Append(b relay.Batch) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		answer(b.Done, errEnded)
		return
	}
	for i := range b.Changes {
		if s.lost != nil {
			break
		}
		if err := s.open.change(&b.Changes[i]); err != nil {
			s.fail(err)
			answer(b.Done, err)
			b.Done = nil
		}
		if len(s.open.b) >= batchSize {
			s.seal()
		}
	}
	if b.Source != "" {
		s.positions[b.Source] = b.Position
		s.moved[b.Source] = struct{}{}
	}
	if s.lost == nil && s.held+len(s.open.b) > maxHeld {
		s.lose(errHeld)
	}
	switch {
	case b.Done != nil:
		s.waiting = append(s.waiting, b.Done)
		signal(s.urgent)
	case len(b.Changes) > 0 && s.planned < soon:
		s.planned = soon
		signal(s.wake)
	case s.planned < later:
		s.planned = later
		signal(s.idle)
	}
}

// planned is when the writer is already known to look at what was appended: so
// that it is woken once for many.
type planned uint8

const (
	never planned = iota
	later         // within syncWithin
	soon          // within writeWithin
)

// seal ends the batch that is being filled. Called with mu held.
func (s *State) seal() {
	if len(s.open.b) > 0 {
		body := s.open.take()
		s.sealed = append(s.sealed, body)
		s.held += len(body)
	}
}

// lose lets go of what waits: from here on only a snapshot makes the files
// whole. Called with mu held.
func (s *State) lose(why error) {
	s.lost = why
	s.sealed, s.held, s.taken = nil, 0, 0
	s.open.take()
	clear(s.moved)
	s.fail(why)
}

// collect hands the writer what was appended since it last asked, positions
// behind the changes they stand for. Once something is lost it hands over
// nothing: neither may a position be written without the changes that were let
// go, nor may anyone be told that they are on the disk.
func (s *State) collect() (bodies [][]byte, waiting []chan<- error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lost != nil {
		return nil, nil
	}
	for source := range s.moved {
		s.open.position(source, s.positions[source])
	}
	clear(s.moved)
	s.seal()
	bodies, waiting = s.sealed, s.waiting
	s.sealed, s.waiting, s.taken = nil, nil, s.held
	return bodies, waiting
}

// wrote says that all that was collected is in the file.
func (s *State) wrote() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held, s.taken = s.held-s.taken, 0
}

func (s *State) takeWaiting() []chan<- error {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.waiting
	s.waiting = nil
	return waiting
}

func (s *State) isLost() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost != nil
}

// forget has only a snapshot make the files whole.
func (s *State) forget(why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose(why)
}

// stop takes no more batches.
func (s *State) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

// Health says why the disk does not hold what it should: nil when it does.
func (s *State) Health() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// trouble notes why the disk takes nothing, or with nil that it does.
func (s *State) trouble(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.fail(err)
		return
	}
	if s.err != nil && s.o.Log != nil {
		s.o.Log.Info("state is kept on disk again")
	}
	s.err = nil
}

// fail notes trouble. It is logged when it begins, not each time. Called with
// mu held.
func (s *State) fail(err error) {
	if s.err == nil && s.o.Log != nil {
		s.o.Log.Error("state is not kept on disk", "error", err)
	}
	s.err = err
}

func (s *State) at(name string, err error) error {
	return fmt.Errorf("%s/%s: %w", s.dir, name, bare(err))
}

// Close gives the directory to the next daemon. Call it after Run has returned.
func (s *State) Close() error { return s.lock() }

// signal leaves word on a channel with room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// answer tells the one who waits for a batch; a Done without room is not
// waited for.
func answer(done chan<- error, err error) {
	if done == nil {
		return
	}
	select {
	case done <- err:
	default:
	}
}
