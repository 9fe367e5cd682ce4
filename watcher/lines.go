package watcher

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"iter"
)

// MaxLine is how long a line may be, without its newline. A longer one is
// dropped whole: cut in two, its second half could read like a login.
const MaxLine = 64 << 10

// ErrLongLine stands for a line over MaxLine, which is dropped.
var ErrLongLine = errors.New("line longer than 64 KiB: dropped")

// ErrFragment stands for what follows the last newline: it may be half a line,
// so it is not judged.
var ErrFragment = errors.New("last line has no newline: not judged")

// Chunk is how much is read at once; it holds more than one longest line.
const Chunk = 256 << 10

// Cut is what a Cutter made of the bytes it was given.
type Cut uint8

const (
	CutMore Cut = iota // no newline yet: give it more
	CutLine            // a line
	CutLong            // the end of a line that was too long
)

// Cutter cuts a stream of bytes into lines. Its zero value stands at the start
// of a line.
type Cutter struct {
	skipping bool // inside a line that is already too long
}

// Skipping says whether it stands inside a line that is too long.
func (c *Cutter) Skipping() bool { return c.skipping }

// Next cuts one line off b and says how many bytes it used up. With CutMore
// what is left unused must be given again, with more behind it.
func (c *Cutter) Next(b []byte) (line []byte, used int, what Cut) {
	i := bytes.IndexByte(b, '\n')
	if i < 0 {
		if c.skipping || len(b) > MaxLine {
			c.skipping = true
			return nil, len(b), CutMore
		}
		return nil, 0, CutMore
	}
	if c.skipping || i > MaxLine {
		c.skipping = false
		return nil, i + 1, CutLong
	}
	return b[:i], i + 1, CutLine
}

// Lines reads a finished log, plain or gzipped, line by line by the same rule
// as a live one: for each line its text (good until the next one) or
// ErrLongLine, at the end ErrFragment if the last line has no newline, and the
// error that ended the reading, if one did.
func Lines(r io.Reader) iter.Seq2[[]byte, error] { return LinesBut(r, nil) }

// LinesBut is Lines without the lines that skip passes over. skip is given a
// block that begins where a line does, and says how many bytes of it it passes
// over: whole lines, with their line ends; and how far from there the next line
// end is, 0 if it didn't look, so that it isn't looked for twice. What was handed
// over before has been dealt with by then. It is asked again after each line.
func LinesBut(r io.Reader, skip func(block []byte) (n, next int)) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		r, err := unpacked(r)
		if err != nil {
			yield(nil, err)
			return
		}
		var c Cutter
		buf := make([]byte, Chunk)
		start, end := 0, 0
		for {
			n, err := r.Read(buf[end:])
			end += n
			for start < end {
				if skip != nil && !c.skipping {
					n, next := skip(buf[start:end])
					start += n
					if 0 < next && next <= MaxLine {
						line := buf[start : start+next]
						start += next + 1
						if !yield(line, nil) {
							return
						}
						continue
					}
				}
				line, used, what := c.Next(buf[start:end])
				start += used
				if what == CutMore {
					break
				}
				if what == CutLong && !yield(nil, ErrLongLine) || what == CutLine && !yield(line, nil) {
					return
				}
			}
			if err == io.EOF {
				if start < end || c.skipping {
					yield(nil, ErrFragment)
				}
				return
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if start == end {
				start, end = 0, 0
			} else if len(buf)-end < Chunk/2 {
				end = copy(buf, buf[start:end])
				start = 0
			}
		}
	}
}

// unpacked gives the plain text of what may be gzipped, told by its first bytes.
func unpacked(r io.Reader) (io.Reader, error) {
	b := bufio.NewReaderSize(r, 4096)
	if magic, _ := b.Peek(2); len(magic) < 2 || magic[0] != 0x1f || magic[1] != 0x8b {
		return b, nil
	}
	z, err := gzip.NewReader(b)
	if err != nil {
		return nil, fmt.Errorf("looks gzipped but is not: %w", err)
	}
	return z, nil
}
