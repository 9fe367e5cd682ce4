package syslog

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"popgate/watcher"
	"popgate/watcher/format"
)

// cutAll gives a framer a stream in pieces of the given lengths, the last of
// them again and again, through a buffer as a connection has it.
func cutAll(stream []byte, sizes ...int) (messages []string, open bool, err error) {
	var f framer
	var buf []byte
	for i := 0; len(stream) > 0 && err == nil; i++ {
		n := min(max(1, sizes[min(i, len(sizes)-1)]), len(stream), mostBuffer-len(buf))
		buf = append(buf, stream[:n]...)
		stream = stream[n:]
		var frames []frame
		var used int
		frames, used, err = f.cut(buf, nil)
		for _, m := range frames {
			if m.text == nil {
				messages = append(messages, "GAP")
			} else {
				messages = append(messages, string(m.text))
			}
		}
		buf = append([]byte(nil), buf[used:]...)
	}
	return messages, f.open(len(buf)), err
}

func TestFraming(t *testing.T) {
	const a, b = "<22>Nov 22 02:05:32 mx1 dovecot: a", "<22>Nov 22 02:05:32 mx1 dovecot: b"
	long := "<22>" + strings.Repeat("x", watcher.MaxLine)
	counted := func(s string) string { return fmt.Sprintf("%d %s", len(s), s) }
	for _, tt := range []struct {
		name, stream string
		want         []string
		open, wrong  bool
	}{
		{"lines", a + "\n" + b + "\n", []string{a, b}, false, false},
		{"a line without its end is not judged", a + "\n" + b, []string{a}, true, false},
		{"octet counts", counted(a) + counted(b), []string{a, b}, false, false},
		{"a counted message that is not all there is not judged", counted(a) + counted(b)[:20], []string{a}, true, false},
		{"a line end inside a counted message ends nothing", counted(a + "\n" + b), []string{a + "\n" + b}, false, false},
		{"what stands behind a message", counted(a+"\n") + counted(b+"\x00"), []string{a, b}, false, false},
		{"empty lines", "<1>\n\n\n" + a + "\n", []string{"<1>", a}, false, false},
		{"a line that begins with a number is a line where lines came first", a + "\n34 " + b + "\n", []string{a, "34 " + b}, false, false},
		{"a line is no counted message", counted(a) + b + "\n", []string{a}, true, true},
		{"count beyond what comes", "340 " + a + "\n", nil, true, false},
		{"count too large by one", fmt.Sprintf("%d %s", len(a)+1, a) + counted(b), []string{a + "3", "<22>"}, true, true},
		{"count too small by one", fmt.Sprintf("%d %s", len(a)-1, a) + counted(b), []string{a[:len(a)-1]}, true, true},
		{"a counted message that only begins like one", counted("<999>"+a) + counted(b), nil, true, true},
		{"count with a leading zero", "034 " + a, nil, true, true},
		{"count of a million millions", "1000000000000 " + a, nil, true, true},
		{"count without an end", strings.Repeat("1", 30), nil, true, true},
		{"count and no message", "34 x", nil, true, true},
		{"no syslog", "GET / HTTP/1.0\r\n\r\n", nil, true, true},
		{"TLS where none is expected", "\x16\x03\x01\x02\x00", nil, true, true},
		{"a line too long is passed over whole", long + b + "\n" + a + "\n", []string{"GAP", a}, false, false},
		{"a counted message too long is passed over whole", counted(long+b) + counted(a), []string{"GAP", a}, false, false},
		{"the longest line", long[:watcher.MaxLine] + "\n" + a + "\n", []string{long[:watcher.MaxLine], a}, false, false},
		{"the longest counted message", counted(long[:watcher.MaxLine]) + counted(a), []string{long[:watcher.MaxLine], a}, false, false},
	} {
		for _, size := range []int{1, 7, 4096, 1 << 20} {
			if size == 1 && len(tt.stream) > 5000 {
				continue
			}
			t.Run(fmt.Sprintf("%s/%d", tt.name, size), func(t *testing.T) {
				got, open, err := cutAll([]byte(tt.stream), size)
				if !slices.Equal(got, tt.want) || err != nil != tt.wrong || err == nil && open != tt.open {
					t.Errorf("got %q, inside a message %v, %v; want %q", inShort(got), open, err, inShort(tt.want))
				}
			})
		}
	}
}

// modelCut says the same of a whole stream with as little cunning as possible.
// How it ends is not told; a count that leads nowhere is no message.
func modelCut(stream string) (messages []string) {
	put := func(s string) {
		if len(s) > watcher.MaxLine {
			messages = append(messages, "GAP")
		} else if s = strings.TrimRight(s, "\n\x00"); s != "" {
			messages = append(messages, s)
		}
	}
	if strings.HasPrefix(stream, "<") {
		lines := strings.Split(stream, "\n")
		for _, line := range lines[:len(lines)-1] {
			put(line)
		}
		return messages
	}
	for {
		count, rest, found := strings.Cut(stream, " ")
		n, err := strconv.ParseUint(count, 10, 32)
		if !found || err != nil || count[0] == '0' || count[0] == '+' || n > maxSkip || uint64(len(rest)) < n ||
			n <= watcher.MaxLine && format.PriorityLen([]byte(rest[:n])) == 0 || n > watcher.MaxLine && rest[0] != '<' {
			return messages
		}
		put(rest[:n])
		stream = rest[n:]
	}
}

func FuzzFraming(f *testing.F) {
	const a = "<22>Nov 22 02:05:32 mx1 dovecot: a"
	for _, seed := range []string{
		a + "\n" + a + "\n", "34 " + a + "34 " + a, "34 " + a + a + "\n", a + "\n34 " + a + "\n", "35 " + a + "34 " + a,
		"70000 <" + strings.Repeat("x", 69999) + "34 " + a, "<" + strings.Repeat("x", 70000) + "\n" + a + "\n",
		"4 <1>\n5 <1>\x00\n", "0 <1>", "+4 <1>a", "1", "1048577 <", "<1>\x00\n\n<2>\n",
	} {
		f.Add([]byte(seed), 1, 1)
		f.Add([]byte(seed), 5, 70000)
	}
	f.Fuzz(func(t *testing.T, stream []byte, first, rest int) {
		kept := bytes.Clone(stream)
		least := len(stream) / 64 // or a long stream takes for ever
		got, _, _ := cutAll(stream, max(first, least), max(rest, least))
		if want := modelCut(string(stream)); !slices.Equal(got, want) {
			t.Errorf("%.200q in pieces of %d, %d: got %q, want %q", stream, first, rest, inShort(got), inShort(want))
		}
		if !bytes.Equal(kept, stream) {
			t.Error("the stream was changed")
		}
	})
}

func inShort(messages []string) []string {
	short := make([]string, len(messages))
	for i, m := range messages {
		if short[i] = m; len(m) > 60 {
			short[i] = fmt.Sprintf("%.20s...(%d)", m, len(m))
		}
	}
	return short
}
