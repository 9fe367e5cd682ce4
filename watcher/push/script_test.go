package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
)

func startScript(t *testing.T) (*pushStage, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "push.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	s := &pushStage{T: t, records: make(chan watcher.Record, 10000)}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range NewScript(ln).Records(ctx, relay.Position{}, time.Time{}) {
			s.records <- r
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return s, path
}

func TestAScriptTellsOfALogin(t *testing.T) {
	s, path := startScript(t)
	s.up()
	l := Login{Client: "::ffff:198.51.100.7", User: `al"ice`, Service: "imaps", Session: "x"}
	if err := errors.Join(l.Check(), l.Tell(t.Context(), path)); err != nil {
		t.Fatal(err)
	}
	ev := *s.next(watcher.Told).Event
	if time.Since(ev.Time) > time.Minute || ev.Client.String() != "198.51.100.7" || ev.User != l.User || ev.Service != relay.IMAP || ev.Session != "x" {
		t.Errorf("got %+v", ev)
	}
}

func TestWithoutADaemonTellSaysSo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	l := Login{Client: "198.51.100.7", User: "alice", Service: "pop3"}
	if err := l.Tell(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, ErrNobodyListens) {
		t.Errorf("no socket: %v", err)
	}
	ln, err := net.Listen("unix", filepath.Join(dir, "mute"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	start := time.Now()
	if err := l.Tell(t.Context(), ln.Addr().String()); !errors.Is(err, ErrNobodyListens) {
		t.Errorf("a daemon that stands still: %v", err)
	}
	if took := time.Since(start); took > 2*toldIn {
		t.Errorf("it held up the login for %v", took)
	}
}

// On the socket there is nothing to be had but a login.
func TestAttackOnTheScriptSocketGrantsNothing(t *testing.T) {
	t.Parallel()
	s, path := startScript(t)
	s.up()
	good := `{"client":"198.51.100.7","user":"alice","service":"imap","time":"2026-11-23T06:28:25Z"}`
	for _, tt := range []struct{ name, line string }{
		{"a command", `{"command":"list"}` + "\n"},
		{"HTTP", "GET /list HTTP/1.0\r\n\r\n"},
		{"a field more", strings.Replace(good, "{", `{"ttl":"24h",`, 1) + "\n"},
		{"forced", strings.Replace(good, "{", `{"force":true,`, 1) + "\n"},
		{"client twice", strings.Replace(good, "{", `{"client":"203.0.113.66",`, 1) + "\n"},
		{"client twice in another case", strings.Replace(good, "{", `{"CLIENT":"203.0.113.66",`, 1) + "\n"},
		{"client is a network", strings.Replace(good, "198.51.100.7", "0.0.0.0/0", 1) + "\n"},
		{"no user", strings.Replace(good, `"user":"alice",`, "", 1) + "\n"},
		{"user anonymous", strings.Replace(good, "alice", "anonymous", 1) + "\n"},
		{"service unknown", strings.Replace(good, "imap", "smtp", 1) + "\n"},
		{"service empty", strings.Replace(good, "imap", "", 1) + "\n"},
		{"service s", strings.Replace(good, "imap", "s", 1) + "\n"},
		{"sieves", strings.Replace(good, "imap", "sieves", 1) + "\n"},
		{"user is a list", strings.Replace(good, `"alice"`, `["alice"]`, 1) + "\n"},
		{"session is a number", strings.Replace(good, "{", `{"session":1,`, 1) + "\n"},
		{"no time", strings.Replace(good, `,"time":"2026-11-23T06:28:25Z"`, "", 1) + "\n"},
		{"time in words", strings.Replace(good, "2026-11-23T06:28:25Z", "now", 1) + "\n"},
		{"no line end", good},
		{"endless line", strings.Repeat("x", 3*maxTold)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := net.Dial("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, tt.line)
			c.(*net.UnixConn).CloseWrite()
			answer, _ := io.ReadAll(c)
			if !strings.HasPrefix(string(answer), answerNo) && len(answer) > 0 || bytes.Count(answer, []byte("\n")) > 1 {
				t.Errorf("answer %q, want one line with no", answer)
			}
		})
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "%s\n%s\n", good, strings.Replace(good, "198.51.100.7", "203.0.113.66", 1))
	if answer, _ := io.ReadAll(c); string(answer) != "taken\n" {
		t.Errorf("answer %q, want one login taken", answer)
	}
	for {
		r := <-s.records
		if r.Kind == watcher.Refused {
			continue
		}
		if r.Kind != watcher.Told || r.Event.Client.String() != "198.51.100.7" {
			t.Errorf("record %+v, want the last login only", r)
		}
		break
	}
	select {
	case r := <-s.records:
		if r.Kind == watcher.Told {
			t.Errorf("a second login in one connection: %+v", r.Event)
		}
	default:
	}
}

func TestScriptsThatHangCostOthersNothing(t *testing.T) {
	t.Parallel()
	s, path := startScript(t)
	s.up()
	l := Login{Client: "198.51.100.7", User: "alice", Service: "pop3"}
	for range maxScripts {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	for deadline := time.Now().Add(10 * time.Second); l.Tell(t.Context(), path) != nil; {
		if time.Now().After(deadline) {
			t.Fatal("they keep others out for ever")
		}
	}
	for r := range s.records {
		if r.Kind == watcher.Told {
			break
		}
		if r.Kind == watcher.Gap && !r.Lost {
			t.Error("somebody was kept out, and the gap doesn't say so")
		}
	}
}

func FuzzTold(f *testing.F) {
	f.Add([]byte(`{"client":"198.51.100.7","user":"alice","service":"imap","time":"2026-11-23T06:28:25Z"}` + "\n"))
	f.Add([]byte(`{"client":"2001:db8::7","user":"al\u0131ce","service":"pop3s","session":"x","time":"2026-11-23T06:28:25.5+01:00"}`))
	f.Add([]byte(`{"client":"198.51.100.7","Client":"203.0.113.66","user":"alice","service":"imap","time":"2026-11-23T06:28:25Z"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		ev, _, err := readTold(line)
		if err != nil {
			if ev != (relay.Event{}) {
				t.Errorf("an error and an event: %+v", ev)
			}
			return
		}
		checkTold(t, &ev)
		var m map[string]string
		if err := json.Unmarshal(line, &m); err != nil || m["user"] != ev.User || m["session"] != ev.Session {
			t.Errorf("%q gave %+v (%v)", line, ev, err)
		}
	})
}
