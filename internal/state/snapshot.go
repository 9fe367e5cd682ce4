package state

import (
	"context"
	"errors"
	"iter"
	"maps"
	"time"

	"popgate/internal/relay"
)

// syncEvery bounds what a sync of the changes may have to wait for while a
// snapshot is written to the same disk.
const syncEvery = 4 << 20

// snapshot is how one ended.
type snapshot struct {
	size int64
	err  error
}

// begin makes a snapshot of files that are whole: from here on changes go into
// a new file, and what stands in the older ones is in the snapshot.
func (w *writer) begin(ctx context.Context) {
	w.snapAt = time.Time{}
	if !w.flush() {
		w.plan(&w.snapAt, w.pause)
		return
	}
	if w.sync(); w.s.isLost() {
		return
	}
	if w.off > headerSize {
		w.abandon()
		if err := w.open(); err != nil {
			w.later(err)
			return
		}
	}
	w.start(ctx)
}

// start writes a snapshot beside the changes. The positions are taken before
// the ledger is asked, so they are never ahead of it.
func (w *writer) start(ctx context.Context) {
	ctx, w.cancel = context.WithCancel(ctx)
	w.running, w.snapAt = true, time.Time{}
	s, covers := w.s, w.number
	s.mu.Lock()
	positions := maps.Clone(s.positions)
	if w.broken {
		s.lost = nil // from here on the new file has everything
	}
	s.mu.Unlock()
	go func() {
		size, err := s.writeSnapshot(ctx, covers, positions)
		w.done <- snapshot{size, err}
	}()
}

// finished takes note of a snapshot's end.
func (w *writer) finished(r snapshot) {
	w.running = false
	w.cancel()
	switch {
	case r.err == nil:
		w.size, w.grown, w.pause, w.snapErr = r.size, w.off-headerSize, retryOnce, nil
		w.broken = false
		if !w.s.isLost() {
			w.s.trouble(nil)
		}
	case !errors.Is(r.err, context.Canceled):
		w.later(r.err)
	}
}

// later plans the next try of a snapshot that failed. Who waits for one is
// answered.
func (w *writer) later(err error) {
	w.snapErr = err
	if w.broken || w.s.isLost() {
		w.s.forget(err)
		w.tell(append(w.owed, w.s.takeWaiting()...), err)
	} else {
		w.s.trouble(err)
	}
	w.plan(&w.snapAt, w.pause)
	w.pause = min(2*w.pause, retryAtMost)
}

// writeSnapshot writes what the ledger holds and puts it in the place of the
// last snapshot. Only when the new one is on the disk, name and all, do the
// changes go that it stands for. What can't be removed is left for the next.
func (s *State) writeSnapshot(ctx context.Context, covers uint64, positions map[string]relay.Position) (int64, error) {
	size, err := s.fillSnapshot(ctx, covers, positions)
	if err == nil {
		err = s.files.rename(newName, snapshotName)
	}
	if err == nil {
		err = s.files.syncDir()
	}
	if err != nil {
		return 0, s.at(snapshotName, err)
	}
	names, _ := s.files.list()
	for _, name := range names {
		if first, ok := firstOf(name); ok && first <= covers {
			_ = s.files.remove(name)
		}
	}
	return size, nil
}

func (s *State) fillSnapshot(ctx context.Context, covers uint64, positions map[string]relay.Position) (size int64, err error) {
	_ = s.files.remove(newName) // what a crash left
	f, err := s.files.create(newName)
	if err != nil {
		return 0, err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = s.files.remove(newName) // make room
		}
	}()
	w := snapshotWriter{f: f, buf: header(kindSnapshot, covers)}
	// What takes away comes first: a file that is damaged further on then
	// costs grants, and gives none back that was revoked.
	for _, grants := range [...]bool{false, true} {
		if err := w.changes(ctx, s.o.Snapshot(), grants); err != nil {
			return 0, err
		}
	}
	// Positions come last: a reader who doesn't get this far must not have them.
	for source, p := range positions {
		w.enc.position(source, p)
	}
	w.enc.end(w.total)
	w.seal()
	if err := w.flush(); err != nil {
		return 0, err
	}
	return w.off, f.Sync()
}

type snapshotWriter struct {
	f        file
	off      int64
	unsynced int
	buf      []byte
	enc      encoder
	number   uint64
	total    uint64
}

// changes writes the changes that grant, or those that don't.
func (w *snapshotWriter) changes(ctx context.Context, all iter.Seq[relay.Change], grants bool) error {
	for c := range all {
		// What the encoder refuses was refused, and told, when it was appended.
		if (c.Kind == relay.ChangeGrant) != grants || w.enc.change(&c) != nil {
			continue
		}
		w.total++
		if len(w.enc.b) < batchSize {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		w.seal()
		if err := w.flush(); err != nil {
			return err
		}
	}
	return nil
}

func (w *snapshotWriter) seal() {
	w.number++
	w.buf = frame(w.buf, w.number, w.enc.b)
	w.enc.b, w.enc.words = w.enc.b[:0], w.enc.words[:0]
}

func (w *snapshotWriter) flush() error {
	n, err := w.f.WriteAt(w.buf, w.off)
	if err != nil {
		return err
	}
	w.off, w.buf = w.off+int64(n), w.buf[:0]
	if w.unsynced += n; w.unsynced >= syncEvery {
		w.unsynced = 0
		return w.f.Sync()
	}
	return nil
}
