package main

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"strings"

	"popgate/watcher"
)

// logInput is one log to read: its lines, or the error that ended it, as
// watcher.LinesBut gives them.
type logInput struct {
	name  string // as given; "-" for standard input
	lines func(ctx context.Context, count *int, skip func(block []byte) (n, next int)) iter.Seq2[[]byte, error]
}

// journalName begins the name of what comes from the journal.
const journalName = "journal:"

func (t *logTest) inputs(args []string) []logInput {
	var ins []logInput
	if len(t.units) > 0 {
		ins = append(ins, logInput{journalName + strings.Join(t.units, ","), t.journalLines})
	} else if len(args) == 0 {
		args = []string{"-"}
	}
	for _, name := range args {
		ins = append(ins, logInput{name, func(ctx context.Context, count *int, skip func([]byte) (n, next int)) iter.Seq2[[]byte, error] {
			return t.fileLines(ctx, name, count, skip)
		}})
	}
	return ins
}

// fileLines reads a file or standard input.
func (t *logTest) fileLines(ctx context.Context, name string, count *int, skip func([]byte) (n, next int)) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		open := openLog
		if name == "-" {
			open = t.openStdin
		}
		r, size, err := open(ctx, name)
		if err != nil {
			yield(nil, err)
			return
		}
		defer r.Close()
		watcher.LinesBut(t.bar.begin(r, quoted(name), size, count), skip)(yield)
	}
}

func openLog(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	f, err := os.Open(name)
	if err != nil {
		if at, ok := errors.AsType[*fs.PathError](err); ok {
			err = at.Err // whoever calls knows the name
		}
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = errors.New("is a directory; name the log in it")
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	size := int64(0)
	if info.Mode().IsRegular() {
		size = info.Size()
	}
	return &stoppable{ctx, f}, size, nil
}

// stoppable ends when ctx does. A Read that has begun is waited for.
type stoppable struct {
	ctx context.Context
	io.ReadCloser
}

func (s *stoppable) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.ReadCloser.Read(p)
}

// openStdin reads standard input in a goroutine of its own: somebody may be
// typing, and a Read that waits for him can't be ended.
func (t *logTest) openStdin(ctx context.Context, _ string) (io.ReadCloser, int64, error) {
	p := &pump{ctx: ctx, full: make(chan piece), empty: make(chan []byte, 2), done: make(chan struct{})}
	for range cap(p.empty) {
		p.empty <- make([]byte, 128<<10)
	}
	go p.run(t.e.stdin)
	return p, 0, nil
}

// pump hands pieces of a stream over.
type pump struct {
	ctx   context.Context
	full  chan piece
	empty chan []byte
	done  chan struct{} // closed when nobody takes pieces any more
	now   piece
	rest  []byte // of now
}

type piece struct {
	room []byte
	n    int
	err  error
}

func (p *pump) run(r io.Reader) {
	for {
		var room []byte
		select {
		case room = <-p.empty:
		case <-p.done:
			return
		}
		n, err := r.Read(room)
		select {
		case p.full <- piece{room, n, err}:
		case <-p.done:
			return
		}
		if err != nil {
			return
		}
	}
}

func (p *pump) Read(b []byte) (int, error) {
	for len(p.rest) == 0 {
		if p.now.err != nil {
			return 0, p.now.err
		}
		if p.now.room != nil {
			p.empty <- p.now.room
		}
		select {
		case p.now = <-p.full:
			p.rest = p.now.room[:p.now.n]
		case <-p.ctx.Done():
			return 0, p.ctx.Err()
		}
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

func (p *pump) Close() error {
	close(p.done)
	return nil
}

// readTrouble says what an error means for what has been counted. A warning
// takes nothing away from it.
func readTrouble(name string, lines int, err error) (warning string, failed error) {
	name = quoted(name)
	switch {
	case errors.Is(err, context.Canceled):
		return "", fmt.Errorf("%s: interrupted; the counts are up to here", name)
	case errors.Is(err, gzip.ErrHeader) && lines > 0:
		// As gzip itself does: padding and other rubbish is no part of the log.
		return name + ": what follows the gzipped data is not gzipped, and left out", nil
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "", fmt.Errorf("%s: the gzipped data is cut off: what was there is counted, the end is missing", name)
	case errors.Is(err, gzip.ErrChecksum):
		return "", fmt.Errorf("%s: the gzipped data is damaged; don't rely on the counts", name)
	}
	return "", fmt.Errorf("%s: %s", name, trouble(name, err.Error()))
}
