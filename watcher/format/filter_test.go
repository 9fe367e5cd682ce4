package format

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"popgate/internal/relay"
)

// found is what a log yields: the number of a line and what it told.
type found struct {
	line   int
	event  relay.Event
	result Result
}

func readPlainly(t *testing.T, name string, log []byte) (all []found) {
	t.Helper()
	p, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	var m Message
	n := 0
	for line := range bytes.Lines(log) {
		n++
		if Split(bytes.TrimSuffix(line, []byte("\n")), &m) {
			if e, result := p.Parse(&m); result != None {
				all = append(all, found{n, e, result})
			}
		}
	}
	return all
}

// readInBlocks reads the same with Skip and SplitFor, in blocks that end
// anywhere.
func readInBlocks(t *testing.T, name string, log []byte, random *rand.Rand) (all []found, skipped int) {
	t.Helper()
	p, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	var m Message
	n := 0
	for end := 0; len(log) > 0; {
		end = min(len(log), end+1+random.IntN(700))
		for {
			used, lines, next := Skip(p, log[:end])
			if next > 0 && bytes.IndexByte(log[used:end], '\n') != next {
				t.Fatalf("the next line is said to have %d bytes: %q", next, log[used:end])
			}
			if got := bytes.Count(log[:used], []byte("\n")); got != lines || used > 0 && log[used-1] != '\n' {
				t.Fatalf("passed over %d bytes, said to be %d lines: %q", used, lines, log[:used])
			}
			n, skipped = n+lines, skipped+lines
			log, end = log[used:], end-used
			i := bytes.IndexByte(log[:end], '\n')
			if i < 0 {
				break
			}
			n++
			if SplitFor(p, log[:i], &m) {
				if e, result := p.Parse(&m); result != None {
					all = append(all, found{n, e, result})
				}
			}
			log, end = log[i+1:], end-i-1
		}
	}
	return all, skipped
}

func TestSkipLosesNothingWhereverABlockEnds(t *testing.T) {
	logs, err := filepath.Glob("testdata/*/*.log")
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range logs {
		log, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		random := rand.New(rand.NewPCG(uint64(i), 7))
		for _, name := range append([]string{"dovecot", "auto"}, formatsFor(strings.Split(filepath.Base(path), "-")[0])...) {
			want := readPlainly(t, name, log)
			got, skipped := readInBlocks(t, name, log, random)
			if !reflect.DeepEqual(got, want) {
				t.Errorf("%s as %s: %d events, want %d", path, name, len(got), len(want))
			}
			if name == "dovecot" && strings.HasPrefix(filepath.Base(path), "courier10-syslog.") && skipped == 0 {
				t.Errorf("%s as %s: nothing skipped", path, name)
			}
		}
	}
}

func TestSkipStops(t *testing.T) {
	other := head + "postfix/qmgr[7]: 0123456789: removed\n"
	login := head + logins[0].line + "\n"
	for _, tt := range []struct {
		name, block string
		lines       int
	}{
		{"at a line that may matter", other + other + login + other, 2},
		{"at a line without its end", other + other[:len(other)-1], 1},
		{"at a long line", other + head + "x: " + strings.Repeat("y", shortLine) + "\n" + other, 1},
		{"at an empty line", other + "\n" + other, 1},
		{"at a journal entry", other + "{}\n", 1},
		{"at the end", other + other, 2},
		{"at once", "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, lines, _ := Skip(new(dovecot), []byte(tt.block))
			if lines != tt.lines || n != tt.lines*len(other) {
				t.Errorf("passed over %d bytes, %d lines, want %d lines", n, lines, tt.lines)
			}
		})
	}
}

// samePlace compares two messages, and where in the line their parts lie.
func samePlace(a, b *Message) bool {
	return a.Transport == b.Transport && a.Stamp.form == b.Stamp.form && bytes.Equal(a.Stamp.text, b.Stamp.text) &&
		bytes.Equal(a.Host, b.Host) && bytes.Equal(a.Tag, b.Tag) && bytes.Equal(a.PID, b.PID) && bytes.Equal(a.Text, b.Text) &&
		bytes.Equal(a.Unit, b.Unit) && a.Withheld == b.Withheld
}

// checkSplitFor holds SplitFor against Split, after each line that could have
// taught it something.
func checkSplitFor(t *testing.T, line []byte) {
	t.Helper()
	for _, before := range []string{"", head + "x: y", "Nov 22 02:05:32 a(b x: y", "Nov 22 02:05:32 a\x00b x: y", string(line)} {
		d := new(dovecot)
		MayMatter(d, []byte(before))
		var want Message
		got := Message{PID: []byte("7"), Unit: []byte("x.service"), Withheld: true} // of the line before
		if ok1, ok2 := SplitFor(d, line, &got), Split(line, &want); ok1 != ok2 || ok1 && !samePlace(&got, &want) {
			t.Errorf("%q after %q: %v %+v, want %v %+v", line, before, ok1, got, ok2, want)
		}
	}
}

func TestSplitForIsSplit(t *testing.T) {
	for _, line := range []string{
		head + "dovecot: x", head + "dovecot: ", head + "dovecot:", head + "dovecot[7]: x", head + "dovecotx: y",
		"Nov 22 02:05:32 mx2 dovecot: x", "Nov 22 02:05:32  mx1 dovecot: x", "Nov 22 02:05:32_mx1 dovecot: x", "nov 22 02:05:32 mx1 dovecot: x",
		"Nov 22 02-05-32 mx1 dovecot: x", "Nov 22 02:05:32 a\x00b dovecot: x", "Nov 22 02:05:32 a(b dovecot: x", "Nov 22 02:05:32 mx1: dovecot: x",
		"Nov 22 02:05:32 " + strings.Repeat("h", 63) + " dovecot: x", "Nov 22 02:05:32 " + strings.Repeat("h", 64) + " dovecot: x",
		"2026-11-22T02:05:32+00:00 mx1 dovecot: x",
		"Nov 22 02:05:32 mx1.mai dovecot: x", "Nov 22 02:05:32 mx1.mail dovecot: x", "Nov 22 02:05:32 mx1.mail.exampl dovecot: x",
		"Nov 22 02:05:32 mx1.mail.example dovecot: x", "Nov 22 02:05:32 mx1.mail.example.org dovecot: x",
	} {
		checkSplitFor(t, []byte(line))
	}
}

// A host is told from every other one that differs in a byte, or in its length.
func TestLastHost(t *testing.T) {
	for n := 1; n <= 70; n++ {
		host := []byte(strings.Repeat("mx-1.example.", 6)[:n] + " ")
		var h lastHost
		h.remember([]byte("another "))
		h.remember(host)
		line := append(bytes.Clone(host), "dovecot: imap-login: "...)
		if got, want := h.begins(line), n < len(h.text); got != want {
			t.Errorf("%q begins with %q: %v, want %v", line, host, got, want)
		}
		for i := range host {
			line[i] ^= 1
			if h.begins(line) {
				t.Errorf("%q begins with %q", line, host)
			}
			line[i] ^= 1
		}
	}
}

func TestHasControl(t *testing.T) {
	for c := range 256 {
		want := c < ' ' || c == 0x7f
		for length := range 45 {
			for at := range length {
				for _, fill := range []string{" ", "~", "\x80", "\xff", "a"} {
					text := bytes.Repeat([]byte(fill), length)
					text[at] = byte(c)
					if got := hasControl(text); got != want {
						t.Fatalf("%q: %v", text, got)
					}
				}
			}
		}
	}
	if hasControl(nil) {
		t.Error("nothing has a control character")
	}
}

func TestBareLogoutsAreCountedAlike(t *testing.T) {
	for _, name := range []string{"dovecot", "auto"} {
		p, err := New(name)
		if err != nil {
			t.Fatal(err)
		}
		BareLogouts(p)
		e, result := parseLine(t, p, "dovecot: imap(bob)<1><ab>: Disconnected: Logged out in=1")
		if result != Logout || e.Kind != relay.Logout || e.Service != relay.IMAP || e.User != "" || e.Session != "" {
			t.Errorf("%s: %v %+v", name, result, e)
		}
		if _, result := parseLine(t, p, "dovecot: imap(b,ob)<1><ab>: Disconnected: Logged out in=1"); result != None {
			t.Errorf("%s: a user that is refused: %v", name, result)
		}
		if e, result := parseLine(t, p, logins[0].line); result != Login || e.User != "bob" || e.Session == "" {
			t.Errorf("%s: a login: %v %+v", name, result, e)
		}
	}
}

// BenchmarkSkip passes over what other programs log.
func BenchmarkSkip(b *testing.B) {
	var block []byte
	for i := range 1000 {
		block = fmt.Appendf(block, "%spostfix/qmgr[%d]: 0123456789: from=<user%d@example.net>, size=%d, nrcpt=1 (queue active)\n", head, i, i, i)
	}
	p := new(dovecot)
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if n, _, _ := Skip(p, block); n != len(block) {
			b.Fatal(n)
		}
	}
}

// TestMessageThatALoggerMayHaveCutIsNoLogin: behind a name of the right length
// the cut itself is the end of the line that a stranger wrote.
func TestMessageThatALoggerMayHaveCutIsNoLogin(t *testing.T) {
	session := func(user string) string {
		return `perdition.pop3: Auth: 192.0.2.7:4711->192.0.2.1:110 client-secure=plaintext authorisation_id=NONE authentication_id="` + user +
			`" server="a:1" protocol=POP3 server-secure=plaintext status="ok"`
	}
	textLen := len(session("")) - len("perdition.pop3: ")
	for _, tt := range []struct {
		name, format, before, line string
		want                       Result
	}{
		{"perdition, 399 bytes", "perdition", "", session(strings.Repeat("v", shortestCut-1-textLen)), Login},
		{"perdition, 400 bytes", "perdition", "", session(strings.Repeat("v", shortestCut-textLen)), Unparsed},
		{"perdition, 199 bytes through BusyBox", "perdition", "mail.notice ", session(strings.Repeat("v", busyBoxCut-1-textLen)), Login},
		{"perdition, 200 bytes through BusyBox", "perdition", "mail.notice ", session(strings.Repeat("v", busyBoxCut-textLen)), Unparsed},
		{"imapproxy, 199 bytes", "imapproxy", "", "imapproxyd: LOGIN: '" + strings.Repeat("v", busyBoxCut-1-41) + "' (192.0.2.7:4711) on new sd [99]", Login},
		{"imapproxy, 200 bytes", "imapproxy", "", "imapproxyd: LOGIN: '" + strings.Repeat("v", busyBoxCut-41) + "' (192.0.2.7:4711) on new sd [99]", Unparsed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, err := New(tt.format)
			if err != nil {
				t.Fatal(err)
			}
			if _, got := parseLine(t, p, tt.before+tt.line); got != tt.want {
				_, text, _ := strings.Cut(tt.line, ": ")
				t.Errorf("%v, want %v; the message has %d bytes", got, tt.want, len(text))
			}
		})
	}
}
