package watcher

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

// noLogins is what most of a mail log looks like.
func noLogins(size int) []byte {
	var b bytes.Buffer
	for i := 0; b.Len() < size; i++ {
		at := time.Now().Format(time.Stamp)
		fmt.Fprintf(&b, "%s mx1 postfix/smtpd[%d]: connect from mail%d.example.org[198.51.100.%d]\n", at, i%30000, i, i%250)
		fmt.Fprintf(&b, "%s mx1 dovecot: lmtp(u%d)<%d><s%dAAAA>: msgid=<x@example.org>: saved mail to INBOX\n", at, i, i, i)
		fmt.Fprintf(&b, "%s mx1 dovecot: imap-login: Disconnected: Connection closed (no auth attempts in 0 secs): user=<>, rip=192.0.2.%d, lip=198.51.100.1, session=<a%dA>\n", at, i%250, i)
	}
	return b.Bytes()
}

// BenchmarkWatchLines reads lines that are no login from a growing file to the
// end of the parser; one operation is one line.
func BenchmarkWatchLines(b *testing.B) {
	text := noLogins(1 << 20)
	perText := bytes.Count(text, []byte("\n"))
	parser, err := format.New("dovecot")
	if err != nil {
		b.Fatal(err)
	}
	path := watchedLog(b)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	src := NewFile(path, time.UTC)
	w := &watch{Options: Options{Parser: parser, TimeZone: time.UTC, Ledger: &notes{}}, name: src.Name(), health: newHealth(src, nil)}
	r := newFollower(src, &hints{}, relay.Position{}, time.Now(), func(r Record) bool { w.record(&r); return true })
	defer r.close()
	r.step()
	b.ReportAllocs()
	b.SetBytes(int64(len(text) / perText))
	for n := 0; b.Loop(); n++ {
		if n%perText != 0 {
			continue // one of those that the last step read
		}
		b.StopTimer()
		if _, err := f.Write(text); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		r.step()
	}
	b.StopTimer()
	if w.flush(); w.health.state.Lines < uint64(b.N) {
		b.Fatalf("%d lines read, want %d", w.health.state.Lines, b.N)
	}
}

// BenchmarkLines reads a finished log; one operation is one line.
func BenchmarkLines(b *testing.B) {
	text := noLogins(16 << 20)
	lines := bytes.Count(text, []byte("\n"))
	b.SetBytes(int64(len(text) / lines))
	b.ReportAllocs()
	for more := true; more; {
		for _, err := range Lines(bytes.NewReader(text)) {
			if err != nil {
				b.Fatal(err)
			}
			if more = b.Loop(); !more {
				break
			}
		}
	}
}

// arrivals tells a benchmark of each login as soon as the ledger would know.
type arrivals chan time.Time

func (a arrivals) Event(relay.Event, time.Time)    { a <- time.Now() }
func (a arrivals) Gap(string, time.Time)           {}
func (a arrivals) Position(string, relay.Position) {}

// BenchmarkLatency measures from just before write(2) of a login line, with the
// reader idle, to its event, and the same to the line's arrival through tail -F.
func BenchmarkLatency(b *testing.B) {
	b.Run("watch", func(b *testing.B) {
		path := watchedLog(b)
		got := make(arrivals, 1)
		_, stop := watchFile(b, path, func(o *Options, _ *File) { o.Ledger = got })
		defer stop()
		latency(b, path, func() time.Time { return <-got })
	})
	b.Run("tail", func(b *testing.B) {
		path := watchedLog(b)
		cmd := exec.Command("tail", "-n", "+1", "-F", path)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			b.Skip(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		buf := make([]byte, 4096)
		appendLine(b, path, "ready")
		out.Read(buf)
		latency(b, path, func() time.Time {
			if _, err := out.Read(buf); err != nil {
				b.Fatal(err)
			}
			return time.Now()
		})
	})
}

func latency(b *testing.B, path string, arrived func() time.Time) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		line := logged(time.Now(), i) + "\n"
		time.Sleep(500 * time.Microsecond) // readers have gone back to sleep
		start := time.Now()
		f.WriteString(line)
		took = append(took, arrived().Sub(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
}

// Lines that are no login leave nothing behind.
func TestNoAllocationForALineThatIsNoLogin(t *testing.T) {
	text := noLogins(200 << 10)
	s := newStage(t)
	s.append("mail.log", "").start()
	parser, err := format.New("dovecot")
	if err != nil {
		t.Fatal(err)
	}
	w := &watch{Options: Options{Parser: parser, TimeZone: time.UTC, Ledger: &notes{}}, name: "x", health: newHealth(s.file, nil)}
	s.w.yield = func(r Record) bool { w.record(&r); return true }
	f := s.open("mail.log")
	lines := float64(bytes.Count(text, []byte("\n")))
	allocs := testing.AllocsPerRun(10, func() {
		f.Write(text)
		s.step()
	})
	if allocs/lines > 0.05 { // a step itself, and its look at the way, may cost some
		t.Errorf("%.0f allocations for %.0f lines", allocs, lines)
	}
}

// The memory of reading does not depend on how big the log is, nor on its lines.
func TestMemoryIsBounded(t *testing.T) {
	s := newStage(t)
	f := s.open("mail.log")
	for range 20 {
		f.Write(noLogins(1 << 20))
		f.WriteString(strings.Repeat("x", 1<<20))
	}
	s.w = newFollower(s.file, &hints{}, relay.Position{}, time.Time{}, func(Record) bool { return true })
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	s.step()
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 1<<20 {
		t.Errorf("reading 40 MiB allocated %d bytes in all, want less than a mebibyte", grown)
	}
}
