package state

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// Every file begins with a header of 32 bytes:
//
//	0 "popgate\n"   8 kind   9 version   12 number (8 bytes)   28 CRC-32C of what precedes
//
// The number is that of the first batch (changes) or of the last batch the
// file stands for (snapshot). Then come batches:
//
//	0 mark   4 length of body   8 CRC-32C of length, number and body   12 number   20 body
//
// Numbers rise by one from batch to batch and from file to file. A number that
// is left out says that something is missing.
const (
	magic      = "popgate\n"
	version    = 1
	headerSize = 32
	frameSize  = 20

	kindChanges  = 'c'
	kindSnapshot = 's'

	batchSize = 64 << 10 // a batch is full
	maxBody   = 1 << 20  // no body is longer: a full batch and one more change
)

// mark begins a batch. It is looked for only where reading lost its way.
var mark = [4]byte{0xf7, 'b', 0x0d, 0xa5}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func header(kind byte, number uint64) []byte {
	b := make([]byte, headerSize)
	copy(b, magic)
	b[8], b[9] = kind, version
	binary.LittleEndian.PutUint64(b[12:], number)
	binary.LittleEndian.PutUint32(b[28:], crc32.Checksum(b[:28], castagnoli))
	return b
}

// frame appends a batch to b.
func frame(b []byte, number uint64, body []byte) []byte {
	start := len(b)
	b = append(b, mark[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = append(b, 0, 0, 0, 0)
	b = binary.LittleEndian.AppendUint64(b, number)
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[start+8:], sum(b[start:]))
	return b
}

// sum is the checksum of a whole frame.
func sum(f []byte) uint32 {
	return crc32.Update(crc32.Checksum(f[4:8], castagnoli), castagnoli, f[12:])
}

var errDamaged = errors.New("batch is torn or damaged")

// reader reads one file's frames.
type reader struct {
	r   *bufio.Reader
	off int64
}

func newReader(r io.Reader) *reader {
	return &reader{r: bufio.NewReaderSize(r, frameSize+maxBody)}
}

// unwritten says whether the header is such as a crash leaves behind: cut
// short, or the zeros of a file whose data never reached the disk.
func (r *reader) unwritten() bool {
	b, _ := r.r.Peek(headerSize)
	begun := b[:min(len(b), len(magic))]
	return len(b) < headerSize && string(begun) == magic[:len(begun)] || len(bytes.Trim(b, "\x00")) == 0
}

// header reads the file's header and gives its number.
func (r *reader) header(kind byte) (uint64, error) {
	b, err := r.r.Peek(headerSize)
	if err != nil && err != io.EOF {
		return 0, err
	}
	switch {
	case len(b) < len(magic) || string(b[:len(magic)]) != magic:
		return 0, errors.New("is not a state file of popgate")
	case len(b) < headerSize || crc32.Checksum(b[:28], castagnoli) != binary.LittleEndian.Uint32(b[28:]):
		return 0, errors.New("header is torn or damaged")
	case b[9] != version:
		return 0, fmt.Errorf("has format version %d, this popgate reads version %d", b[9], version)
	case b[8] != kind:
		return 0, errors.New("is a state file of another kind")
	}
	number := binary.LittleEndian.Uint64(b[12:])
	r.skip(headerSize)
	return number, nil
}

// next gives the next batch's number and body, good until the call after. It
// gives io.EOF at the very end and errDamaged, without moving, where no whole
// batch follows.
func (r *reader) next() (number uint64, body []byte, err error) {
	b, err := r.r.Peek(frameSize)
	if len(b) < frameSize {
		switch {
		case err != io.EOF:
			return 0, nil, err
		case len(b) == 0:
			return 0, nil, io.EOF
		}
		return 0, nil, errDamaged
	}
	size := binary.LittleEndian.Uint32(b[4:])
	if [4]byte(b) != mark || size > maxBody {
		return 0, nil, errDamaged
	}
	b, err = r.r.Peek(frameSize + int(size))
	switch {
	case err != nil && err != io.EOF:
		return 0, nil, err
	case len(b) < frameSize+int(size) || sum(b) != binary.LittleEndian.Uint32(b[8:]):
		return 0, nil, errDamaged
	}
	r.skip(len(b))
	return binary.LittleEndian.Uint64(b[12:]), b[frameSize:], nil
}

func (r *reader) skip(n int) {
	n, _ = r.r.Discard(n)
	r.off += int64(n)
}

// seek moves on to the next mark beyond the present place, and says whether
// there is one.
func (r *reader) seek() bool {
	r.skip(1)
	for {
		b, err := r.r.Peek(r.r.Size())
		if i := bytes.Index(b, mark[:]); i >= 0 {
			r.skip(i)
			return true
		}
		if err != nil {
			return false
		}
		r.skip(len(b) - len(mark) + 1)
	}
}
