package watcher

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/iotest"
)

// collect gives lines as text, and errors as <text>.
func collect(r io.Reader) (got []string) {
	for line, err := range Lines(r) {
		if err != nil {
			got = append(got, "<"+err.Error()+">")
		} else {
			got = append(got, string(line))
		}
	}
	return got
}

func TestLines(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	tooLong, cut := "<"+ErrLongLine.Error()+">", "<"+ErrFragment.Error()+">"
	for _, tt := range []struct {
		name, text string
		want       []string
	}{
		{"nothing", "", nil},
		{"two lines", "a\nb\n", []string{"a", "b"}},
		{"empty lines count", "\n\na\n", []string{"", "", "a"}},
		{"a last line without newline is not judged", "a\nb", []string{"a", cut}},
		{"only LF ends a line", "a\rb\r\nc\x00\v\f\u2028d\n", []string{"a\rb\r", "c\x00\v\f\u2028d"}},
		{"64 KiB is a line", long + "\n", []string{long}},
		{"one byte more is none", long + "x\na\n", []string{tooLong, "a"}},
		{"much more is none, and nothing of it is a line", strings.Repeat(long, 9) + "a\nb\n", []string{tooLong, "b"}},
		{"a long line without end", strings.Repeat(long, 9), []string{cut}},
		{"one byte that begins like gzip", "\x1f", []string{cut}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for way, r := range map[string]io.Reader{
				"at once":      strings.NewReader(tt.text),
				"byte by byte": iotest.OneByteReader(strings.NewReader(tt.text)),
				"with the end": iotest.DataErrReader(strings.NewReader(tt.text)),
				"gzipped":      bytes.NewReader(gzipped(tt.text)),
			} {
				if got := collect(r); !slices.Equal(got, tt.want) {
					t.Errorf("%s: got %q, want %q", way, shortened(got), shortened(tt.want))
				}
			}
		})
	}
}

func gzipped(text string) []byte {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(text))
	z.Close()
	return b.Bytes()
}

func TestLinesThatEndInAnError(t *testing.T) {
	broken := errors.New("disk on fire")
	r := io.MultiReader(strings.NewReader("a\nb"), iotest.ErrReader(broken))
	if got, want := collect(r), []string{"a", "<disk on fire>"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	z := gzipped("a\nb\n")
	if got := collect(bytes.NewReader(z[:len(z)-6])); len(got) == 0 || got[len(got)-1] != "<unexpected EOF>" {
		t.Errorf("a gzip file cut short: got %q", got)
	}
	if got := collect(strings.NewReader("\x1f\x8bxx")); len(got) != 1 || !strings.Contains(got[0], "looks gzipped") {
		t.Errorf("no gzip file: got %q", got)
	}
}

func TestLinesCanBeLeft(t *testing.T) {
	for range Lines(strings.NewReader("a\nb\n")) {
		break
	}
	for range Lines(strings.NewReader(strings.Repeat("x", MaxLine+1) + "\nb\n")) {
		break
	}
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("a\nb"), byte(1))
	f.Add([]byte("\x1f\x8b"), byte(7))
	f.Add(bytes.Repeat([]byte("x"), 300), byte(200))
	f.Fuzz(func(t *testing.T, text []byte, times byte) {
		if bytes.HasPrefix(text, []byte("\x1f\x8b")) {
			return
		}
		text = bytes.Repeat(text, int(times)*int(times))
		var want []string
		rest := text
		for {
			line, after, ok := bytes.Cut(rest, []byte("\n"))
			if !ok {
				break
			}
			if rest = after; len(line) > MaxLine {
				line = []byte("<" + ErrLongLine.Error() + ">")
			}
			want = append(want, string(line))
		}
		if len(rest) > 0 {
			want = append(want, "<"+ErrFragment.Error()+">")
		}
		if got := collect(bytes.NewReader(text)); !slices.Equal(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	})
}

// TestLinesBut passes over lines that begin with "-", and finds all others,
// however the reader hands its bytes over.
func TestLinesBut(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var log []byte
	for i := range 30000 {
		switch n := random.IntN(1000); {
		case n == 0:
			log = append(append(log, "-long"...), bytes.Repeat([]byte("x"), MaxLine+random.IntN(3*Chunk))...)
		case n == 1:
			log = append(append(log, "+as long as may be"...), bytes.Repeat([]byte("x"), MaxLine-18)...)
		case n < 100:
			log = fmt.Appendf(log, "+%d", i)
		case n < 110:
		default:
			log = append(fmt.Appendf(log, "-%d", i), "............................"[:random.IntN(28)]...)
		}
		log = append(log, '\n')
	}
	log = append(log, "+no end"...)
	skip := func(block []byte) (n, next int) {
		for {
			i := bytes.IndexByte(block[n:], '\n')
			switch {
			case i < 1 || i > 100:
				return n, max(0, i) // also where it is too long a line
			case block[n] != '-':
				return n, i * random.IntN(2)
			}
			n += i + 1
		}
	}
	type got struct {
		line string
		err  error
	}
	var want []got
	for line, err := range Lines(bytes.NewReader(log)) {
		if !bytes.HasPrefix(line, []byte("-")) || err != nil {
			want = append(want, got{string(line), err})
		}
	}
	if len(want) < 1000 {
		t.Fatalf("%d lines to find", len(want))
	}
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(log), "in halves": iotest.HalfReader(bytes.NewReader(log)), "with its end": iotest.DataErrReader(bytes.NewReader(log)),
	} {
		t.Run(name, func(t *testing.T) {
			var have []got
			for line, err := range LinesBut(r, skip) {
				have = append(have, got{string(line), err})
			}
			if !slices.Equal(have, want) {
				t.Errorf("%d lines, want %d", len(have), len(want))
			}
		})
	}
}
