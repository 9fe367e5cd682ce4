package domains

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"
)

const (
	settle   = time.Second      // two readings this far apart must agree
	reread   = time.Minute      // of what a program prints, without any sign of change
	recheck  = 10 * time.Minute // of files, whose size and time tell a change
	maxFile  = 16 << 20
	maxWords = 1_000_000 // names in one leaf
)

// leaf is one text that is read again and again: a file, or what a program
// prints. It changes only when two readings a second apart agree, and what
// can't be read, has become empty or makes no sense leaves the last good text
// in force. It belongs to the goroutine that reads.
type leaf struct {
	name string
	read func(context.Context) ([]byte, error)
	// inspect counts the names in a text and tells what is wrong with it.
	inspect func([]byte) (int, error)
	files   []string // a change of one of these calls for a reading
	program bool     // a program prints it, which may know more than the files show
	must    bool     // an empty text is trouble from the start

	text    []byte // in force
	known   bool   // text has been good once; else it is what could be made of a bad one
	pending []byte
	since   time.Time // of pending; zero: none
	mark    string
	at      time.Time // of the last reading
	problem string
	used    bool // in this pass
}

// step reads if there is reason to.
func (l *leaf) step(ctx context.Context, now time.Time) {
	mark := stamp(l.files)
	quiet := !l.at.IsZero() && mark == l.mark && l.since.IsZero()
	patience := recheck
	if len(l.files) == 0 || l.program {
		patience = reread
	}
	if quiet && now.Sub(l.at) < patience && (l.problem == "" || now.Sub(l.at) < 5*settle) {
		return
	}
	if !l.since.IsZero() && now.Sub(l.since) < settle {
		return
	}
	old := l.settled(now)
	data, err := l.read(ctx)
	l.mark, l.at = mark, now
	if err != nil {
		l.bad(nil, err)
		return
	}
	switch n, err := l.inspect(data); {
	case err != nil:
		l.bad(data, err)
	case n > maxWords:
		l.bad(nil, fmt.Errorf("%d names; %d is the most", n, maxWords))
	case n == 0 && l.must:
		l.bad(nil, errors.New("no domain in it"))
	case n == 0 && l.holds():
		l.bad(nil, errors.New("empty all of a sudden; restart popgate if that is meant"))
	case l.known && bytes.Equal(data, l.text):
		l.problem, l.pending, l.since = "", nil, time.Time{}
	case !l.known && old, !l.since.IsZero() && bytes.Equal(data, l.pending):
		l.text, l.known = data, true
		l.problem, l.pending, l.since = "", nil, time.Time{}
	default:
		l.pending, l.since = data, now
	}
}

// holds says whether the text in force names anything.
func (l *leaf) holds() bool {
	if !l.known {
		return false
	}
	n, _ := l.inspect(l.text)
	return n > 0
}

// bad keeps the last good text. Where there never was one, what can be made
// out of a bad one counts meanwhile: what it names is ours, what it doesn't
// name nobody knows.
func (l *leaf) bad(data []byte, err error) {
	l.pending, l.since = nil, time.Time{}
	l.problem = l.name + ": " + cause(err)
	if l.known {
		l.problem += "; the last good list counts"
	} else {
		l.text = data
	}
}

// cause leaves out the path, which the leaf's name tells already.
func cause(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

// stamp is a text that differs when one of the files has changed.
func stamp(files []string) string {
	var b bytes.Buffer
	for _, path := range files {
		if info, err := os.Stat(path); err == nil {
			fmt.Fprintf(&b, "%d %d %v\n", info.Size(), info.ModTime().UnixNano(), info.Mode())
		} else {
			b.WriteString("-\n")
		}
	}
	return b.String()
}

// settled says whether the files were last written so long ago that one
// reading is as good as two.
func (l *leaf) settled(now time.Time) bool {
	for _, path := range l.files {
		info, err := os.Stat(path)
		if err == nil && now.Sub(info.ModTime()).Abs() < settle {
			return false
		}
	}
	return true
}

// readFile reads a regular file of bounded size. It does not wait on a pipe.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxFile:
		return nil, fmt.Errorf("larger than %d MiB", maxFile>>20)
	case bytes.IndexByte(data, 0) >= 0:
		return nil, errors.New("not a text file")
	}
	return data, nil
}
