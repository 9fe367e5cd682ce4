package state

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"popgate/internal/relay"
)

// disk is one in memory that remembers what a loss of power would leave: only
// what was synced is sure, of the rest any part may be there.
type disk struct {
	mu      sync.Mutex
	names   map[string]*inode // as the running system sees the directory
	durable map[string]*inode // as it was at the last syncDir
	lists   []map[string]*inode
	left    int // operations before the crash; negative: none comes
	ops     int
	writes  bool // the crash tears a write
}

type inode struct {
	now    []byte
	synced []byte
}

var errCrashed = errors.New("test: the machine has crashed")

func newDisk(left int) *disk {
	return &disk{names: map[string]*inode{}, durable: map[string]*inode{}, left: left}
}

// op counts an operation, and says whether it still happens. Called with mu held.
func (d *disk) op() bool {
	d.ops++
	if d.left == 0 {
		return false
	}
	if d.left > 0 {
		d.left--
	}
	return true
}

func (d *disk) create(name string) (file, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.op() {
		return nil, errCrashed
	}
	if d.names[name] == nil {
		d.names[name] = &inode{}
	}
	d.names[name].now = nil
	return &openFile{d, d.names[name]}, nil
}

func (d *disk) open(name string) (io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.names[name]
	if n == nil {
		return nil, fs.ErrNotExist
	}
	return io.NopCloser(bytes.NewReader(slices.Clone(n.now))), nil
}

func (d *disk) rename(from, to string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.op() {
		return errCrashed
	}
	d.names[to] = d.names[from]
	delete(d.names, from)
	d.lists = append(d.lists, maps.Clone(d.names))
	return nil
}

func (d *disk) remove(name string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.op() {
		return errCrashed
	}
	delete(d.names, name)
	d.lists = append(d.lists, maps.Clone(d.names))
	return nil
}

func (d *disk) list() ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Collect(maps.Keys(d.names)), nil
}

func (d *disk) syncDir() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.op() {
		return errCrashed
	}
	d.durable, d.lists = maps.Clone(d.names), nil
	return nil
}

type openFile struct {
	d *disk
	n *inode
}

func (f *openFile) WriteAt(b []byte, off int64) (int, error) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	ok := f.d.op()
	if !ok && (f.d.ops > 0 && !f.d.writes) {
		return 0, errCrashed
	}
	if !ok {
		f.d.writes = false
		b = b[:len(b)/2] // torn in the middle, by kill -9 as well
	}
	if end := int(off) + len(b); end > len(f.n.now) {
		f.n.now = append(f.n.now, make([]byte, end-len(f.n.now))...)
	}
	copy(f.n.now[off:], b)
	if !ok {
		return len(b), errCrashed
	}
	return len(b), nil
}

func (f *openFile) Sync() error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if !f.d.op() {
		return errCrashed
	}
	f.n.synced = slices.Clone(f.n.now)
	return nil
}

func (f *openFile) Close() error { return nil }

// survivors are disks that the crash may leave behind.
func (d *disk) survivors(r *rand.Rand) map[string]*disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := map[string]*disk{"killed": after(d.names, func(n *inode) []byte { return n.now })}
	directories := append([]map[string]*inode{d.durable}, d.lists...)
	for i, names := range directories {
		all[fmt.Sprintf("power lost, directory %d, nothing unsynced", i)] = after(names, func(n *inode) []byte { return n.synced })
		all[fmt.Sprintf("power lost, directory %d, torn", i)] = after(names, func(n *inode) []byte { return torn(n, r) })
	}
	return all
}

// torn is a file of which the unsynced part came to the disk in pieces.
func torn(n *inode, r *rand.Rand) []byte {
	b := slices.Clone(n.synced)
	if len(n.now) < len(b) {
		return b
	}
	b = append(b, make([]byte, len(n.now)-len(b))...)
	const piece = 64
	for i := 0; i < len(n.now); i += piece {
		if r.IntN(2) == 0 {
			copy(b[i:min(i+piece, len(b))], n.now[i:])
		}
	}
	return b[:len(n.synced)+r.IntN(len(b)-len(n.synced)+1)]
}

func after(names map[string]*inode, content func(*inode) []byte) *disk {
	d := newDisk(-1)
	for name, n := range names {
		b := content(n)
		d.names[name] = &inode{now: slices.Clone(b), synced: slices.Clone(b)}
	}
	d.durable = maps.Clone(d.names)
	return d
}

// story is one life of a daemon on a disk: batches with and without Done,
// snapshots in between. It tells what was promised to be on the disk.
type story struct {
	promised map[string]bool // grants whose batch, or a later one, was answered
	offered  map[string]int64
}

// As a source does, it goes on from the position that was kept.
func (st *story) live(t *testing.T, d *disk, to int) {
	t.Helper()
	var l ledger
	s := must(Open("disk", Options{files: d, Snapshot: l.snapshot}))
	from := int(s.Load(func(c relay.Change) { l.apply(c) }).Positions["s"].Offset)
	ctx, cancel := context.WithCancel(context.Background())
	w := &writer{s: s, number: s.next - 1, grown: s.grown, size: s.size, done: make(chan snapshot, 1), pause: time.Nanosecond}
	for i := from; i < to; i++ {
		c := grantOf(i)
		st.offered[c.Grant.User] = int64(i + 1)
		l.apply(c)
		done := make(chan error, 1)
		b := relay.Batch{Changes: []relay.Change{c}, Source: "s", Position: relay.Position{Offset: int64(i + 1)}}
		if i%3 == 2 {
			b.Done = done
		}
		s.Append(b)
		if i%7 == 5 {
			w.grown = growBytes + 1 // a snapshot is due, and runs beside what follows
		}
		w.step(ctx, b.Done != nil)
		if w.running && i%2 == 0 {
			w.finished(<-w.done)
			w.step(ctx, false)
		}
		select {
		case err := <-done:
			if err == nil {
				for user, at := range st.offered {
					if at <= int64(i+1) {
						st.promised[user] = true
					}
				}
			}
		default:
		}
	}
	cancel()
	if w.end() == nil {
		for user := range st.offered {
			st.promised[user] = true
		}
	}
}

// check loads what is left and holds it against what was promised.
func (st *story) check(t *testing.T, what string, d *disk) {
	t.Helper()
	s := must(Open("disk", Options{files: d, Snapshot: (&ledger{}).snapshot}))
	got := map[string]bool{}
	l := s.Load(func(c relay.Change) {
		got[c.Grant.User] = true
		if at, ok := st.offered[c.Grant.User]; !ok || c != grantOf(int(at-1)) {
			t.Errorf("%s: loaded %+v, which was never appended", what, c)
		}
	})
	for user := range st.promised {
		if !got[user] {
			t.Errorf("%s: the grant of %s is lost, %v", what, user, l.Warnings)
		}
	}
	for user, at := range st.offered {
		if at <= l.Positions["s"].Offset && !got[user] {
			t.Errorf("%s: position %d stands for the grant of %s, which is lost; %v", what, l.Positions["s"].Offset, user, l.Warnings)
		}
	}
}

// The machine stops after every single operation on the disk, by kill -9 or by
// loss of power; what comes up goes on, and stops again.
func TestCrashAfterEveryOperation(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for left := 0; ; left++ {
		for _, tear := range []bool{false, true} {
			d := newDisk(left)
			d.writes = tear
			st := &story{promised: map[string]bool{}, offered: map[string]int64{}}
			st.live(t, d, 20)
			ended := d.left > 0
			for what, rest := range d.survivors(r) {
				name := fmt.Sprintf("crash after %d operations (torn write %v), %s", left, tear, what)
				st.check(t, name, rest)
				// and a second life on what is left, that crashes as well
				again := &story{promised: maps.Clone(st.promised), offered: maps.Clone(st.offered)}
				rest.left, rest.writes = r.IntN(40), !tear
				again.live(t, rest, 32)
				for what, rest := range rest.survivors(r) {
					again.check(t, name+", then "+what, rest)
				}
			}
			if t.Failed() {
				t.FailNow()
			}
			if ended {
				if left < 60 {
					t.Errorf("the whole story took %d operations: no snapshots in it?", left)
				}
				return
			}
		}
	}
}

// Operations fail at random, with what they write torn, and work again: what
// was answered stays.
func TestDiskThatFailsAtRandomKeepsWhatItPromised(t *testing.T) {
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 7))
		d := newDisk(-1)
		st := &story{promised: map[string]bool{}, offered: map[string]int64{}}
		flaky := &flaky{disk: d, r: r}
		st.liveOn(t, flaky)
		for what, rest := range d.survivors(r) {
			st.check(t, fmt.Sprintf("seed %d, %s", seed, what), rest)
		}
		if t.Failed() {
			t.FailNow()
		}
	}
}

// flaky fails one operation in four. A failed sync drops what was not synced,
// as Linux may.
type flaky struct {
	*disk
	mu sync.Mutex
	r  *rand.Rand
}

func (f *flaky) fails() bool { f.mu.Lock(); defer f.mu.Unlock(); return f.r.IntN(4) == 0 }

func (f *flaky) create(name string) (file, error) {
	if f.fails() {
		return nil, errCrashed
	}
	n, err := f.disk.create(name)
	if err != nil {
		return nil, err
	}
	return &flakyFile{n.(*openFile), f}, nil
}

func (f *flaky) rename(from, to string) error {
	if f.fails() {
		return errCrashed
	}
	return f.disk.rename(from, to)
}

func (f *flaky) syncDir() error {
	if f.fails() {
		return errCrashed
	}
	return f.disk.syncDir()
}

type flakyFile struct {
	*openFile
	f *flaky
}

func (f *flakyFile) WriteAt(b []byte, off int64) (int, error) {
	if f.f.fails() {
		n, _ := f.openFile.WriteAt(b[:len(b)/2], off)
		return n, errCrashed
	}
	return f.openFile.WriteAt(b, off)
}

func (f *flakyFile) Sync() error {
	if f.f.fails() {
		f.d.mu.Lock()
		f.n.now = slices.Clone(f.n.synced)
		f.d.mu.Unlock()
		return errCrashed
	}
	return f.openFile.Sync()
}

func (st *story) liveOn(t *testing.T, d *flaky) {
	t.Helper()
	var l ledger
	s := must(Open("disk", Options{files: d, Snapshot: l.snapshot}))
	s.Load(func(c relay.Change) { l.apply(c) })
	w := &writer{s: s, number: s.next - 1, done: make(chan snapshot, 1), pause: time.Nanosecond}
	for i := range 60 {
		c := grantOf(i)
		st.offered[c.Grant.User] = int64(i + 1)
		l.apply(c)
		done := make(chan error, 1)
		s.Append(relay.Batch{Changes: []relay.Change{c}, Source: "s", Position: relay.Position{Offset: int64(i + 1)}, Done: done})
		w.pause = time.Nanosecond
		if i%9 == 8 {
			w.grown = growBytes + 1
		}
		w.step(t.Context(), true)
		if w.running && i%2 == 0 {
			w.finished(<-w.done)
			w.step(t.Context(), false)
		}
		select {
		case err := <-done:
			if err == nil {
				for user, at := range st.offered {
					if at <= int64(i+1) {
						st.promised[user] = true
					}
				}
			}
		default:
		}
	}
	if w.running {
		w.finished(<-w.done)
	}
}

// Batches are let go at any moment, also between two steps of the writer: who
// waits for one is not told that it is on the disk before it is.
func TestBatchLetGoIsNotPromised(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(ctx context.Context, w *writer)
	}{
		{"before a flush", func(_ context.Context, w *writer) {
			if w.flush() {
				w.sync()
			}
		}},
		{"before a snapshot of whole files", func(ctx context.Context, w *writer) { w.start(ctx) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var l ledger
			d := newDisk(-1)
			s := must(Open("disk", Options{files: d, Snapshot: l.snapshot}))
			s.Load(func(relay.Change) {})
			w := &writer{s: s, number: s.next - 1, done: make(chan snapshot, 1), pause: time.Nanosecond}
			w.step(t.Context(), true)

			s.forget(errHeld)
			done := make(chan error, 1)
			l.apply(grantOf(1))
			s.Append(relay.Batch{Changes: []relay.Change{grantOf(1)}, Source: "s", Position: relay.Position{Offset: 1}, Done: done})
			tt.do(t.Context(), w)
			if !s.isLost() || len(done) != 0 {
				t.Fatalf("lost = %v, told = %d; want the loss remembered and nobody told", s.isLost(), len(done))
			}
			for range 3 {
				if w.running {
					w.finished(<-w.done)
				}
				w.step(t.Context(), true)
			}
			if len(done) != 1 || <-done != nil {
				t.Error("Done was not told that the batch is on the disk after the snapshot")
			}
			st := &story{promised: map[string]bool{grantOf(1).Grant.User: true}, offered: map[string]int64{grantOf(1).Grant.User: 2}}
			st.check(t, "power lost", after(d.durable, func(n *inode) []byte { return n.synced }))
		})
	}
}
