package logging

import (
	"bytes"
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// journald is a socket that takes entries as journald does, and reads them as
// its protocol says.
type journald struct {
	*net.UnixConn
	path string
}

func listen(t *testing.T) *journald {
	t.Helper()
	dir, err := os.MkdirTemp("", "popgate")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	j := &journald{path: filepath.Join(dir, "socket")}
	j.open(t)
	return j
}

func (j *journald) open(t *testing.T) {
	t.Helper()
	var err error
	if j.UnixConn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: j.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { j.Close() })
}

func (j *journald) entry(t *testing.T) map[string]string {
	t.Helper()
	buf := make([]byte, 1<<17)
	j.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := j.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for b := buf[:n]; len(b) > 0; {
		end := bytes.IndexByte(b, '\n')
		if end < 0 {
			t.Fatalf("an entry that does not end: %q", buf[:n])
		}
		if name, value, ok := strings.Cut(string(b[:end]), "="); ok {
			out[name] = value
			b = b[end+1:]
			continue
		}
		size := int(binary.LittleEndian.Uint64(b[end+1:]))
		out[string(b[:end])] = string(b[end+9 : end+9+size])
		b = b[end+10+size:]
	}
	return out
}

func running(t *testing.T, j *journald) *Queue {
	t.Helper()
	out, err := OpenJournal(j.path)
	if err != nil {
		t.Fatal(err)
	}
	q := NewQueue(out, Journal)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); q.Run(ctx) }()
	t.Cleanup(func() { stop(); <-done })
	return q
}

func want(t *testing.T, got map[string]string, fields ...string) {
	t.Helper()
	for i := 0; i < len(fields); i += 2 {
		if v, ok := got[fields[i]]; !ok || v != fields[i+1] {
			t.Errorf("%s is %q, want %q", fields[i], v, fields[i+1])
		}
	}
	if n := len(fields) / 2; len(got) != n {
		t.Errorf("%d fields, want %d: %q", len(got), n, got)
	}
}

func TestJournalGetsADecisionInFields(t *testing.T) {
	j := listen(t)
	r := decision()
	q := running(t, j)
	q.Decision(r)
	q.Flush()
	want(t, j.entry(t), "SYSLOG_IDENTIFIER", "popgate", "PRIORITY", "6",
		"MESSAGE", `decision verdict=refuse reason=no_grant client=203.0.113.9 rcpt=x@remote.test recipient=foreign sender="a b\n@x" queue=4X door=milter waited=1.5ms`,
		"POPGATE_VERDICT", "refuse", "POPGATE_REASON", "no_grant", "POPGATE_CLIENT", "203.0.113.9", "POPGATE_RCPT", "x@remote.test",
		"POPGATE_RECIPIENT", "foreign", "POPGATE_SENDER", "a b\n@x", "POPGATE_QUEUE", "4X", "POPGATE_DOOR", "milter")
}

func TestJournalFieldCannotBeForgedByAStranger(t *testing.T) {
	j := listen(t)
	r := decision()
	r.Rcpt = "x@remote.test\nPOPGATE_VERDICT=pass\nMESSAGE=decision verdict=pass"
	r.Sender = ""
	q := running(t, j)
	q.Decision(r)
	q.Flush()
	got := j.entry(t)
	if got["POPGATE_VERDICT"] != "refuse" || got["POPGATE_RCPT"] != r.Rcpt || strings.Contains(got["MESSAGE"], "\n") {
		t.Errorf("%q", got)
	}
}

func TestJournalGetsALogRecordInFields(t *testing.T) {
	j := listen(t)
	log := slog.New(running(t, j).Handler(slog.LevelInfo))
	log.Debug("not told")
	log.With("door", "policy").WithGroup("in").Warn("too many", "open", 7, slog.Group("deep", "er", "a\nb"))
	want(t, j.entry(t), "SYSLOG_IDENTIFIER", "popgate", "PRIORITY", "4", "MESSAGE", `too many door=policy in.open=7 in.deep.er="a\nb"`,
		"POPGATE_DOOR", "policy", "POPGATE_IN_OPEN", "7", "POPGATE_IN_DEEP_ER", "a\nb")
}

func TestJournalThatStartsAgainIsFound(t *testing.T) {
	j := listen(t)
	q := running(t, j)
	decide := func() {
		q.Decision(decision())
		q.Flush()
	}
	decide()
	j.entry(t)
	j.Close()
	if err := os.Remove(j.path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	decide()
	for end := time.Now().Add(10 * time.Second); q.Dropped() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the line that nobody took was not counted")
		}
	}
	j.open(t)
	decide()
	if got := j.entry(t); got["POPGATE_LINES"] == "" && got["POPGATE_REASON"] != "no_grant" {
		t.Errorf("%q", got)
	}
}

func TestOnlyTheJournalsOwnStreamIsOne(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if ToJournal("", f) || ToJournal("1:2", f) || ToJournal("1:2", &bytes.Buffer{}) {
		t.Error("a file that is none was taken for a stream into the journal")
	}
}
