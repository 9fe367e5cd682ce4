package watcher

import (
	"bytes"
	"hash/crc64"
	"io"
	"syscall"
	"time"

	"popgate/internal/relay"
)

// keep is how many of the bytes read last are kept, to notice when the file no
// longer has them: it was truncated, and may have grown past its old size.
const keep = 1 << 10

// tail is one open log file and how far it has been read.
type tail struct {
	Cutter
	fileID
	fd       int
	approved stat      // whose it was and who could write to it when that was found to be right
	offset   int64     // up to and with the last line that was handed over
	before   []byte    // the bytes before offset, at most keep
	end      int64     // how far it was filled when last read
	fragment bool      // there is the beginning of a line behind offset
	told     bool      // and a gap stands for it, because a newer file was read on
	live     bool      // everything that was there when it was opened has been read
	doubt    time.Time // until then it isn't live: another program may still be filling it
	copied   time.Time // until then it stays in doubt while it grows
	grown    time.Time // when it was last seen to grow
}

func newTail(fd int, st *stat) *tail {
	return &tail{fd: fd, fileID: fileID{st.Dev, st.Ino}, approved: *st, before: make([]byte, 0, keep), grown: modified(st)}
}

// fileID is what a file keeps when it is renamed.
type fileID struct{ dev, ino uint64 }

func modified(st *stat) time.Time { return time.Unix(st.Mtim.Unix()) }

func (t *tail) is(st *stat) bool { return t != nil && t.dev == st.Dev && t.ino == st.Ino }

// pread reads at an offset; less than asked for means that the file ends there.
func (t *tail) pread(b []byte, at int64) (int, error) {
	for {
		n, err := syscall.Pread(t.fd, b, at)
		if err != syscall.EINTR {
			return max(n, 0), err
		}
	}
}

// ReadAt makes the file an io.ReaderAt.
func (t *tail) ReadAt(b []byte, at int64) (int, error) {
	n := 0
	for n < len(b) {
		m, err := t.pread(b[n:], at+int64(n))
		if err != nil {
			return n, err
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// size gives the file's length and how many names it still has.
func (t *tail) size() (size int64, names uint64) {
	var st stat
	if syscall.Fstat(t.fd, &st) != nil {
		return 0, 0
	}
	return st.Size, uint64(st.Nlink)
}

// rewind goes back to the start of a file whose content has been replaced.
func (t *tail) rewind() {
	t.offset, t.before, t.Cutter, t.fragment, t.told, t.live = 0, t.before[:0], Cutter{}, false, false, false
	t.end = 0
}

// seek goes to an offset that is the start of a line.
func (t *tail) seek(offset int64) error {
	t.rewind()
	t.before = t.before[:min(offset, keep)]
	t.offset = offset
	if _, err := t.ReadAt(t.before, offset-int64(len(t.before))); err != nil {
		t.rewind()
		return err
	}
	return nil
}

// asApproved says whether nobody can write to the file who could not when it
// was approved of.
func (t *tail) asApproved() bool {
	var st stat
	if syscall.Fstat(t.fd, &st) != nil {
		return false
	}
	const others = syscall.S_IWGRP | syscall.S_IWOTH
	return (st.Uid == t.approved.Uid || st.Uid == 0) && (st.Mode&others == 0 || st.Mode == t.approved.Mode && st.Gid == t.approved.Gid)
}

// atLineStart says whether the bytes read last end a line.
func (t *tail) atLineStart() bool { return len(t.before) == 0 || t.before[len(t.before)-1] == '\n' }

// holds says whether a saved position is a place in this file: the file is as
// long, and the bytes before it are the same.
func (t *tail) holds(p relay.Position) bool {
	if size, _ := t.size(); p.Offset <= 0 || size < p.Offset {
		return p.Offset == 0 && t.dev == p.Device && t.ino == p.Inode
	}
	var b [keep]byte
	n := min(p.Offset, keep)
	_, err := t.ReadAt(b[:n], p.Offset-n)
	return err == nil && b[n-1] == '\n' && sum(b[:n]) == p.Sum
}

// position gives the place up to which lines have been handed over. Inside a
// line that is too long there is none: resumed there, its rest would be judged.
func (t *tail) position() relay.Position {
	if t.skipping {
		return relay.Position{}
	}
	p := relay.Position{Device: t.dev, Inode: t.ino, Offset: t.offset, Sum: sum(t.before)}
	var st stat
	if syscall.Fstat(t.fd, &st) == nil {
		p.Time = modified(&st)
	}
	return p
}

var crcTable = crc64.MakeTable(crc64.ECMA)

func sum(b []byte) uint64 { return crc64.Checksum(b, crcTable) }

// unchanged says whether what was read last is still there, at the front of
// what has just been read.
func (t *tail) unchanged(b []byte) bool { return bytes.HasPrefix(b, t.before) }

// used moves on over bytes that have been handed over or dropped; b is what
// was read, from the kept bytes on, up to the new offset.
func (t *tail) used(b []byte) {
	t.offset += int64(len(b) - len(t.before))
	t.before = t.before[:copy(t.before[:keep], b[max(0, len(b)-keep):])]
}
