package main

import (
	"fmt"
	"io"
	"time"
)

// progress says on a terminal how far a long reading is. The nil *progress says
// nothing and costs nothing.
type progress struct {
	out   io.Writer
	now   func() time.Time
	name  string
	size  int64 // 0: unknown
	read  int64 // of it, packed as it may be
	lines *int
	began time.Time
	next  time.Time
	shown int // characters that stand on the terminal
}

const (
	progressAfter = time.Second // short readings show none
	progressEvery = 250 * time.Millisecond
)

func newProgress(out io.Writer, now func() time.Time) *progress { return &progress{out: out, now: now} }

// begin has r counted from now on.
func (p *progress) begin(r io.Reader, name string, size int64, lines *int) io.Reader {
	if p == nil {
		return r
	}
	p.name, p.size, p.read, p.lines = name, size, 0, lines
	p.began = p.now()
	p.next = p.began.Add(progressAfter)
	return progressReader{p, r}
}

type progressReader struct {
	*progress
	r io.Reader
}

func (r progressReader) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	r.add(n)
	return n, err
}

// add counts bytes.
func (p *progress) add(n int) {
	if p == nil {
		return
	}
	p.read += int64(n)
	if now := p.now(); !now.Before(p.next) {
		p.next = now.Add(progressEvery)
		p.show(now)
	}
}

func (p *progress) show(now time.Time) {
	text := p.name + ": " + size(p.read)
	if p.size > 0 {
		text += fmt.Sprintf(" of %s (%d%%)", size(p.size), min(100, 100*p.read/p.size))
	}
	if s := now.Sub(p.began).Seconds(); s > 0 {
		text += fmt.Sprintf(", %d lines, %.0f lines/s", *p.lines, float64(*p.lines)/s)
	}
	fmt.Fprintf(p.out, "\r%-*s", p.shown, text) // over what is longer
	p.shown = len(text)
}

// end takes away what is shown.
func (p *progress) end() {
	if p != nil && p.shown > 0 {
		fmt.Fprintf(p.out, "\r%*s\r", p.shown, "")
		p.shown = 0
	}
}

// size gives a number of bytes as people read it.
func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
