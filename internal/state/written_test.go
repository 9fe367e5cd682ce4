package state

import (
	"errors"
	"io"
	"iter"
	"sync/atomic"
	"testing"

	"popgate/internal/relay"
)

// counted is a directory that only counts the bytes written to it.
type counted struct {
	bytes, snapshots atomic.Int64
	writing          atomic.Bool // a snapshot
}

func (c *counted) create(name string) (file, error) {
	c.writing.Store(c.writing.Load() || name == newName)
	return c, nil
}
func (c *counted) open(name string) (io.ReadCloser, error) {
	return nil, errors.New("test: nothing is kept")
}
func (c *counted) rename(from, to string) error {
	c.snapshots.Add(1)
	c.writing.Store(false)
	return nil
}
func (c *counted) remove(name string) error { return nil }
func (c *counted) list() ([]string, error)  { return nil, nil }
func (c *counted) syncDir() error           { return nil }
func (c *counted) Sync() error              { return nil }
func (c *counted) Close() error             { return nil }

func (c *counted) WriteAt(b []byte, off int64) (int, error) {
	c.bytes.Add(int64(len(b)))
	return len(b), nil
}

func TestAGrantCostsThreeRecordsAtMostSnapshotsIncluded(t *testing.T) {
	t.Parallel()
	const batchOf = 1000
	for _, tt := range []struct {
		name    string
		n, live int // grants that come, and those of them that are live in the end
	}{
		{"while the state grows", 400_000, 400_000},
		{"when one ends for each that comes", 800_000, 200_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			files, came := &counted{}, atomic.Int64{}
			d := start(t, "disk", Options{files: files, Snapshot: func() iter.Seq[relay.Change] {
				last := int(came.Load())
				return func(yield func(relay.Change) bool) {
					for i := max(0, last-tt.live); i < last && yield(grantOf(i)); i++ {
					}
				}
			}})
			var enc encoder
			records := int64(0)
			for i := 0; i < tt.n; i += batchOf {
				b := relay.Batch{Changes: make([]relay.Change, batchOf), Source: "s", Position: relay.Position{Offset: int64(i)}}
				for j := range b.Changes {
					b.Changes[j] = grantOf(i + j)
					if err := enc.change(&b.Changes[j]); err != nil {
						t.Fatal(err)
					}
				}
				records += int64(len(enc.take()))
				came.Store(int64(i + batchOf))
				done := make(chan error, 1)
				b.Done = done
				d.Append(b)
				if err := <-done; err != nil {
					t.Fatal(err)
				}
				until(t, "the snapshot", func() bool { return !files.writing.Load() })
			}
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
			ratio := float64(files.bytes.Load()) / float64(records)
			t.Logf("%d bytes for %d grants, records of %d bytes each: %.2f times, %d snapshots",
				files.bytes.Load(), tt.n, records/int64(tt.n), ratio, files.snapshots.Load())
			if ratio > 3 || files.snapshots.Load() < 2 {
				t.Errorf("%.2f times the records written with %d snapshots, want at most 3 with two or more", ratio, files.snapshots.Load())
			}
		})
	}
}
