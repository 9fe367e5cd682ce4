package state

import (
	"iter"
	"os"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"popgate/internal/relay"
)

const million = 1_000_000

func saved(b *testing.B, n int) (string, *daemon) {
	dir := b.TempDir() + "/state"
	d := start(b, dir, Options{})
	changes := make([]relay.Change, n)
	for i := range changes {
		changes[i] = grantOf(i)
	}
	d.apply(changes...)
	d.forget(os.ErrInvalid)
	if err := d.put(b, true, relay.Batch{}); err != nil {
		b.Fatal(err)
	}
	return dir, d
}

// BenchmarkLoad reads a million saved grants.
func BenchmarkLoad(b *testing.B) {
	dir, d := saved(b, million)
	size := must(os.Stat(dir + "/" + snapshotName)).Size()
	if err := d.stop(); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		s := must(Open(dir, Options{Snapshot: (&ledger{}).snapshot}))
		n := 0
		s.Load(func(relay.Change) { n++ })
		s.Close()
		if n != million {
			b.Fatalf("%d grants loaded, want a million", n)
		}
	}
	b.ReportMetric(float64(size)/million, "B/grant")
}

// BenchmarkAppend is what the ledger pays for a login, and what the disk does:
// bytes for one login in a batch of its own with its position, written alone.
func BenchmarkAppend(b *testing.B) {
	d := &daemon{}
	s := must(Open("disk", Options{files: newDisk(-1), Snapshot: d.snapshot}))
	s.Load(func(relay.Change) {})
	batch := relay.Batch{Changes: []relay.Change{grantOf(1)}, Source: "file:/var/log/mail.log", Position: relay.Position{Device: 2049, Inode: 1 << 20, Offset: 1 << 30, Sum: 1 << 63, Time: day}}
	var enc encoder
	if err := enc.change(&batch.Changes[0]); err != nil {
		b.Fatal(err)
	}
	record := len(enc.take())
	s.Append(batch)
	bodies, _ := s.collect()
	alone := len(frame(nil, 1, bodies[0]))
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		s.Append(batch)
		if i++; i%500 == 0 { // as the writer would
			s.collect()
			s.wrote()
		}
	}
	b.ReportMetric(float64(record), "B/record")
	b.ReportMetric(float64(alone), "B/written-alone")
	if alone > 3*record {
		b.Errorf("%d bytes written for a record of %d, want at most three times", alone, record)
	}
}

// BenchmarkDoneBesideASnapshot tells how long an operator's command waits for
// the disk, and the ledger for Append, alone and while a snapshot is written.
func BenchmarkDoneBesideASnapshot(b *testing.B) {
	var writing atomic.Bool
	changes := make([]relay.Change, 500_000)
	for i := range changes {
		changes[i] = grantOf(i)
	}
	d := start(b, b.TempDir()+"/state", Options{Snapshot: func() iter.Seq[relay.Change] { return slices.Values(changes) }, Fault: func(op, name string) error {
		switch {
		case op == "create" && name == newName:
			writing.Store(true)
		case op == "rename":
			writing.Store(false)
		}
		return nil
	}})
	var longest [2]time.Duration // alone, beside
	var appended time.Duration
	tell := func(i int) {
		began := time.Now()
		if err := d.put(b, true, relay.Batch{Changes: []relay.Change{grantOf(5)}}); err != nil {
			b.Fatal(err)
		}
		longest[i] = max(longest[i], time.Since(began))
	}
	beside := 0
	for b.Loop() {
		for range 50 {
			tell(0)
		}
		for i := 0; !writing.Load(); i += 500 { // until the file has grown enough
			began := time.Now()
			d.Append(relay.Batch{Changes: changes[i%len(changes):][:500]})
			appended = max(appended, time.Since(began))
			time.Sleep(time.Millisecond)
		}
		for ; writing.Load(); beside++ {
			tell(1)
		}
	}
	b.ReportMetric(float64(longest[0].Microseconds())/1e3, "longest-alone-ms")
	b.ReportMetric(float64(longest[1].Microseconds())/1e3, "longest-beside-ms")
	b.ReportMetric(float64(appended.Microseconds()), "longest-append-of-500-µs")
	b.ReportMetric(float64(beside)/float64(b.N), "told-beside/op")
}
