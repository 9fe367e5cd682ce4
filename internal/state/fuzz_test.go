package state

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io/fs"
	"math/rand/v2"
	"testing"

	"popgate/internal/relay"
)

// aLife gives the two files of a directory that has lived: a snapshot of three
// changes and a file of changes with three batches.
func aLife() (snapshot, changes []byte) {
	var enc encoder
	var total uint64
	for _, c := range []relay.Change{revokeOf(0), grantOf(1), grantOf(2)} {
		if enc.change(&c) == nil {
			total++
		}
	}
	enc.position("s", relay.Position{Offset: 7})
	enc.end(total)
	snapshot = frame(header(kindSnapshot, 4), 1, enc.take())
	changes = header(kindChanges, 5)
	for i := range 3 {
		c := grantOf(3 + i)
		if enc.change(&c) != nil {
			panic("a plain grant can't be kept")
		}
		enc.position("s", relay.Position{Offset: int64(8 + i)})
		changes = frame(changes, uint64(5+i), enc.take())
	}
	return snapshot, changes
}

// checked reads a file the slow way, apart from the code under test: every
// body anywhere in it whose checksum holds.
func checked(data []byte) (bodies [][]byte) {
	table := crc32.MakeTable(crc32.Castagnoli)
	for i := range data {
		d := data[i:]
		if !bytes.HasPrefix(d, mark[:]) || len(d) < 20 {
			continue
		}
		n := int(binary.LittleEndian.Uint32(d[4:]))
		if n > len(d)-20 {
			continue
		}
		covered := append(bytes.Clone(d[4:8]), d[12:20+n]...)
		if crc32.Checksum(covered, table) == binary.LittleEndian.Uint32(d[8:]) {
			bodies = append(bodies, d[20:20+n])
		}
	}
	return bodies
}

// loadBytes loads a directory of these two files. It fails the test when a
// change is given that no checksum vouches for.
func loadBytes(t *testing.T, snapshot, changes []byte) ([]relay.Change, Loaded) {
	t.Helper()
	vouched := map[string]bool{}
	for _, data := range [][]byte{snapshot, changes} {
		for _, body := range checked(data) {
			var dec decoder
			var b batch
			if dec.batch(body, &b) {
				for _, c := range b.changes {
					vouched[fmt.Sprintf("%#v", c)] = true
				}
				for _, p := range b.positions {
					vouched[fmt.Sprintf("%#v", p)] = true
				}
			}
		}
	}
	d := newDisk(-1)
	d.names[snapshotName] = &inode{now: snapshot}
	d.names[changesName(5)] = &inode{now: changes}
	s := must(Open("disk", Options{files: d, Snapshot: (&ledger{}).snapshot}))
	var got []relay.Change
	l := s.Load(func(c relay.Change) { got = append(got, c) })
	for _, c := range got {
		if !vouched[fmt.Sprintf("%#v", c)] {
			t.Errorf("loaded %+v, which no checksum vouches for", c)
		}
	}
	for source, p := range l.Positions {
		if !vouched[fmt.Sprintf("%#v", position{source, p})] {
			t.Errorf("loaded position %+v of %q, which no checksum vouches for", p, source)
		}
	}
	return got, l
}

// FuzzState loads arbitrary files: first as they are, then with the input as a
// recipe that damages good ones, then with the input behind good checksums.
func FuzzState(f *testing.F) {
	snapshot, changes := aLife()
	f.Add(snapshot, changes)
	f.Add(snapshot[:50], changes[:len(changes)-1])
	f.Add(changes, snapshot)
	f.Add([]byte{}, []byte{recordGrant, 0xff, 32, 2, 4, 1, 2, 3, 4})
	f.Add([]byte{1, 40, 0xff}, []byte{recordEnd, 1, recordPosition, 0, 1, 's'})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		loadBytes(t, a, b)

		hurtSnapshot, hurtChanges := hurt(snapshot, a), hurt(changes, b)
		whole, _ := loadBytes(t, snapshot, changes)
		original := map[string]bool{}
		for _, c := range whole {
			original[fmt.Sprintf("%#v", c)] = true
		}
		got, l := loadBytes(t, hurtSnapshot, hurtChanges)
		for _, c := range got {
			if !original[fmt.Sprintf("%#v", c)] {
				t.Errorf("damage made the change %+v", c)
			}
		}
		if at := l.Positions["s"].Offset; at > 10 || at > 7 && len(got) < int(at-7)+3 {
			t.Errorf("position %d with %d changes", at, len(got))
		}

		loadBytes(t, frame(header(kindSnapshot, 4), 1, a), frame(header(kindChanges, 5), 5, b))
	})
}

// hurt changes good bytes as the recipe says: pairs of place and mask, and at
// the end the length to cut to.
func hurt(good, recipe []byte) []byte {
	b := bytes.Clone(good)
	for len(recipe) >= 3 {
		b[int(binary.LittleEndian.Uint16(recipe))%len(b)] ^= recipe[2]
		recipe = recipe[3:]
	}
	if len(recipe) == 2 {
		b = b[:int(binary.LittleEndian.Uint16(recipe))%(len(b)+1)]
	}
	return b
}

func TestEveryFlippedByteIsNoticed(t *testing.T) {
	snapshot, changes := aLife()
	want, l := loadBytes(t, snapshot, changes)
	if len(want) != 6 || len(l.Warnings) != 0 || l.Positions["s"].Offset != 10 {
		t.Fatalf("undamaged: %d changes, %+v; want 6, position 10", len(want), l)
	}
	r := rand.New(rand.NewPCG(1, 1))
	for i := range snapshot {
		b := bytes.Clone(snapshot)
		b[i] ^= byte(1 + r.IntN(255))
		// the spare bytes of the header are covered too
		if got, l := loadBytes(t, b, changes); len(got) >= 6 || !l.Damaged || len(l.Positions) != 0 {
			t.Errorf("snapshot, byte %d flipped: %d changes, %+v", i, len(got), l)
		}
	}
	for i := range changes {
		b := bytes.Clone(changes)
		b[i] ^= byte(1 + r.IntN(255))
		if got, l := loadBytes(t, snapshot, b); len(got) >= 6 || len(l.Warnings) == 0 || l.Positions["s"].Offset > 9 {
			t.Errorf("changes, byte %d flipped: %d changes, %+v", i, len(got), l)
		}
	}
}

// unreadable is a disk on which opening fails.
type unreadable struct{ *disk }

func (unreadable) list() ([]string, error) { return nil, fs.ErrPermission }

func TestUnreadableDirectoryIsNoReasonNotToStart(t *testing.T) {
	s := must(Open("disk", Options{files: unreadable{newDisk(-1)}, Snapshot: (&ledger{}).snapshot}))
	if l := s.Load(func(c relay.Change) { t.Errorf("loaded %+v", c) }); !l.Damaged || len(l.Warnings) != 1 {
		t.Errorf("Load = %+v, want one warning", l)
	}
}
