package logging

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/gate"
	"popgate/internal/relay"
)

func decision() gate.Record {
	return gate.Record{
		At: time.Date(2026, 11, 22, 2, 5, 32, 540_000_000, time.UTC), Took: 1500 * time.Microsecond, Waited: true,
		Decision: relay.Decision{Verdict: relay.Refuse, Reason: relay.ReasonNoGrant}, Whose: relay.Foreign,
		Client: netip.MustParseAddr("203.0.113.9"), Rcpt: "x@remote.test", Sender: "a b\n@x", Queue: "4X", Door: "milter",
	}
}

// slogged is what slog's own handler writes for the same decision.
func slogged(asJSON bool, r gate.Record) string {
	var b bytes.Buffer
	var h slog.Handler = slog.NewTextHandler(&b, nil)
	if asJSON {
		h = slog.NewJSONHandler(&b, nil)
	}
	rec := slog.NewRecord(r.At, slog.LevelInfo, "decision", 0)
	rec.Add("verdict", r.Decision.Verdict.String(), "reason", r.Decision.Reason.String(), "client", r.Client, "rcpt", r.Rcpt,
		"recipient", r.Whose.String(), "sender", r.Sender, "queue", r.Queue, "door", r.Door, "waited", r.Took.String())
	h.Handle(context.Background(), rec)
	return b.String()
}

func form(asJSON bool) Form {
	if asJSON {
		return JSON
	}
	return Text
}

func written(t *testing.T, asJSON bool, do func(*Queue)) string {
	t.Helper()
	var b bytes.Buffer
	q := NewQueue(&b, form(asJSON))
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); q.Run(ctx) }()
	do(q)
	stop()
	<-done
	return b.String()
}

func TestDecisionReadsAsSlogWouldWriteIt(t *testing.T) {
	for _, text := range []string{"plain@x.test", "", "a b", "a=b", `quo"te`, "back\\slash", "line\nfeed", "é@x", "\xff", "\u2028", "\x1b[31m", "a\u00a0b"} {
		r := decision()
		r.Rcpt = text
		got := written(t, false, func(q *Queue) { q.Decision(r) })
		if want := slogged(false, r); got != want {
			t.Errorf("rcpt %q:\n got %s\nwant %s", text, got, want)
		}
	}
}

func TestDecisionInJSONReadsAsSlogWouldWriteIt(t *testing.T) {
	r := decision()
	got := written(t, true, func(q *Queue) { q.Decision(r) })
	var a, b map[string]any
	if err := json.Unmarshal([]byte(got), &a); err != nil {
		t.Fatalf("%v in %q", err, got)
	}
	json.Unmarshal([]byte(slogged(true, r)), &b)
	delete(a, "time")
	delete(b, "time")
	for k, v := range b {
		if a[k] != v && k != "waited" {
			t.Errorf("%s is %v, want %v", k, a[k], v)
		}
	}
	if len(a) != len(b) {
		t.Errorf("keys %v, want those of %v", a, b)
	}
}

func TestLinesKeepTheirOrder(t *testing.T) {
	got := written(t, false, func(q *Queue) {
		log := slog.New(q.Handler(slog.LevelInfo)).With("a", 1)
		log.Info("first")
		q.Decision(decision())
		log.Debug("not logged")
		log.WithGroup("g").Warn("last", "k", "v")
	})
	lines := strings.Split(strings.TrimSpace(got), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "msg=first a=1") || !strings.Contains(lines[1], "msg=decision") ||
		!strings.Contains(lines[2], "msg=last a=1 g.k=v") {
		t.Errorf("got\n%s", got)
	}
}

// Whoever decides wakes nobody; but no line is left behind, whoever comes next.
func TestADecisionIsWrittenOnceItsAnswerIsSent(t *testing.T) {
	for _, tt := range []struct {
		name string
		then func(q *Queue)
	}{
		{"flushed", (*Queue).Flush},
		{"a line of another kind", func(q *Queue) { slog.New(q.Handler(slog.LevelInfo)).Info("last") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var out bytes.Buffer
				q := NewQueue(&out, Text)
				ctx, stop := context.WithCancel(t.Context())
				done := make(chan struct{})
				go func() { defer close(done); q.Run(ctx) }()
				synctest.Wait()
				q.Decision(decision())
				q.Decision(decision())
				time.Sleep(time.Second)
				if out.Len() > 0 {
					t.Errorf("written before the answer was sent: %s", &out)
				}
				tt.then(q)
				time.Sleep(linger)
				synctest.Wait()
				if n := strings.Count(out.String(), "msg=decision"); n != 2 {
					t.Errorf("%d decisions written, want 2", n)
				}
				stop()
				<-done
			})
		})
	}
}

// stuck is a log nobody reads until it is let go.
type stuck struct {
	entered chan struct{}
	release chan struct{}
	once    sync.Once
	bytes.Buffer
}

func (s *stuck) Write(p []byte) (int, error) {
	s.once.Do(func() { close(s.entered); <-s.release })
	return s.Buffer.Write(p)
}

func TestBlockedLogCostsNobodyTimeAndIsCounted(t *testing.T) {
	out := &stuck{entered: make(chan struct{}), release: make(chan struct{})}
	q := NewQueue(out, Text)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); q.Run(ctx) }()
	q.Decision(decision())
	q.Flush()
	<-out.entered
	for range maxQueued + 100 {
		q.Decision(decision())
	}
	if n := q.Dropped(); n != 100 {
		t.Errorf("dropped %d, want 100", n)
	}
	close(out.release)
	stop()
	<-done
	if !strings.Contains(out.String(), "lines=100") {
		t.Error("the log does not say how many lines were dropped")
	}
	if n := strings.Count(out.String(), "msg=decision"); n != maxQueued+1 {
		t.Errorf("%d lines written, want %d", n, maxQueued+1)
	}
}

func BenchmarkDecision(b *testing.B) {
	q := NewQueue(io.Discard, Text)
	r := decision()
	r.Sender, r.Waited = "sender@client.test", false
	l := line{decision: r}
	buf := make([]byte, 0, 1024)
	b.ReportAllocs()
	for b.Loop() {
		buf = q.format(buf[:0], &l)
	}
}
