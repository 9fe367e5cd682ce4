package syslog

import (
	"bytes"
	"errors"
	"fmt"

	"popgate/watcher"
	"popgate/watcher/format"
)

// frame is one message of a connection: text is nil where one was too long.
type frame struct{ text []byte }

// maxSkip is how long a counted message may be at all. One over MaxLine is
// passed over; nobody sends what is longer than this.
const maxSkip = 1 << 20

// framer cuts what comes over one connection into messages, as RFC 6587 has
// them: with an octet count before each, or with a line end behind each. The
// first byte of the connection decides which, for all of it: were it decided
// anew for each message, a line that begins with a number could swallow those
// behind it.
//
// Its zero value stands at the beginning of a connection.
type framer struct {
	counted, lines bool
	skip           int // bytes left of a counted message that is too long
	cutter         watcher.Cutter
}

var errNoSyslog = errors.New("what was sent is not syslog: it begins neither with a priority such as <22> nor with an octet count")

// cut appends the messages in b to frames and says how many bytes it used up.
// What is left must be given again, with more behind it. After an error nothing
// more can be read from the connection.
func (f *framer) cut(b []byte, frames []frame) (_ []frame, used int, err error) {
	for used < len(b) {
		if !f.counted && !f.lines {
			switch c := b[used]; {
			case c == '<':
				f.lines = true
			case '1' <= c && c <= '9':
				f.counted = true
			default:
				return frames, used, errNoSyslog
			}
		}
		var n int
		var message []byte
		var what watcher.Cut
		if f.lines {
			message, n, what = f.cutter.Next(b[used:])
		} else {
			message, n, what, err = f.count(b[used:])
		}
		used += n
		switch {
		case err != nil:
			return frames, used, err
		case what == watcher.CutLong:
			frames = append(frames, frame{})
		case what == watcher.CutLine:
			if message = trimEnd(message); len(message) > 0 {
				frames = append(frames, frame{message})
			}
		case n == 0:
			return frames, used, nil
		}
	}
	return frames, used, nil
}

// count cuts one message off b that has its length before it.
func (f *framer) count(b []byte) (message []byte, used int, what watcher.Cut, err error) {
	if f.skip > 0 {
		used = min(f.skip, len(b))
		if f.skip -= used; f.skip == 0 {
			return nil, used, watcher.CutLong, nil
		}
		return nil, used, watcher.CutMore, nil
	}
	n, i := 0, 0
	for ; i < len(b) && '0' <= b[i] && b[i] <= '9'; i++ {
		if n = 10*n + int(b[i]-'0'); n == 0 || n > maxSkip {
			return nil, 0, watcher.CutMore, wrongCount(b)
		}
	}
	switch {
	case i == len(b):
		return nil, 0, watcher.CutMore, nil
	case i == 0 || b[i] != ' ':
		return nil, 0, watcher.CutMore, wrongCount(b)
	}
	i++
	// A message begins with its priority. One that does not was not counted
	// right, and nobody can tell where the next one begins.
	if i < len(b) && b[i] != '<' {
		return nil, 0, watcher.CutMore, wrongCount(b)
	}
	if n > watcher.MaxLine {
		f.skip = n
		return nil, i, watcher.CutMore, nil
	}
	if len(b)-i < n {
		return nil, 0, watcher.CutMore, nil
	}
	message = b[i : i+n]
	if format.PriorityLen(message) == 0 {
		return nil, 0, watcher.CutMore, wrongCount(b)
	}
	return message, i + n, watcher.CutLine, nil
}

func wrongCount(b []byte) error {
	return fmt.Errorf("an octet count was wrong: %.20q is not the length of a message and its priority", b)
}

// trimEnd takes away what some senders put behind a message.
func trimEnd(message []byte) []byte { return bytes.TrimRight(message, "\n\x00") }

// open says whether the connection stands inside a message, with n bytes left
// over.
func (f *framer) open(n int) bool { return n > 0 || f.skip > 0 || f.cutter.Skipping() }
