package watcher

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

func TestMayBeCut(t *testing.T) {
	text := func(n int) string { return strings.Repeat("x", n) }
	for _, tt := range []struct {
		name, line string
		want       bool
	}{
		{"short", "<22>Nov 22 02:05:32 dovecot: " + text(100), false},
		{"BusyBox, as it sends", "<22>Nov 22 02:05:32 dovecot: " + text(255-29), true},
		{"BusyBox, sent on with a host", "<22>Nov 22 02:05:32 mx1.example.org dovecot: " + text(255-29), true},
		{"BusyBox, sent on in RFC 5424", "<22>1 2026-11-22T02:05:32.540141+00:00 mx1.example.org dovecot - - - " + text(255-29), true},
		{"1024 bytes on the wire", "<22>Nov 22 02:05:32 mx1.example.org dovecot[12]: " + text(1024-49), true},
		{"rsyslog's 8192", "<22>Nov 22 02:05:32 mx1 pop3d: " + text(8192-27), true},
		{"between them", "<22>Nov 22 02:05:32 dovecot: " + text(270), false},
	} {
		var m format.Message
		if !format.Split([]byte(tt.line), &m) {
			t.Fatalf("%s: no message", tt.name)
		}
		if got := mayBeCut([]byte(tt.line), &m); got != tt.want {
			t.Errorf("%s, %d bytes: %v, want %v", tt.name, len(tt.line), got, tt.want)
		}
	}
}

// loggedIn is a ledger that notes who has logged in.
type loggedIn []string

func (l *loggedIn) Event(ev relay.Event, _ time.Time) {
	if ev.Kind == relay.Login {
		*l = append(*l, ev.Client.String())
	}
}
func (l *loggedIn) Gap(string, time.Time)           {}
func (l *loggedIn) Position(string, relay.Position) {}

// A login that may be a stranger's, for it has the length of one that was cut,
// may just as well be somebody's: who asks then is put off, not refused.
func TestALoginThatMayBeCutIsCalledMissed(t *testing.T) {
	p, err := format.New("perdition")
	if err != nil {
		t.Fatal(err)
	}
	const line = `<22>Nov 22 02:05:32 mx1 perdition.imap4: Auth: 192.0.2.7:4711->192.0.2.1:143 client-secure=plaintext authorisation_id=NONE authentication_id="%s" server="h:143" protocol=IMAP4 server-secure=plaintext status="ok"`
	for _, tt := range []struct {
		name   string
		length int
		failed bool
		missed uint64
		logins string
	}{
		{"of another length", 280, false, 0, "192.0.2.7"},
		{"of such a length", 256, false, 1, ""},
		{"of such a length, and no login", 256, true, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			text := line
			if tt.failed {
				text = strings.Replace(line, `"ok"`, `"failed: x"`, 1)
			}
			text = fmt.Sprintf(text, strings.Repeat("v", tt.length-len(text)+len("%s")))
			var missed atomic.Uint64
			var l loggedIn
			w := &watch{
				Options: Options{Format: "perdition", Parser: p, Ledger: &l, TimeZone: time.UTC},
				health:  newHealth(NewFile("/x", time.UTC), func(s relay.SourceState) { missed.Store(s.Missed) }),
			}
			w.record(&Record{Kind: Line, Text: []byte(text), Arrived: time.Now(), Live: true, Sent: true})
			w.health.close()
			if missed.Load() != tt.missed || strings.Join(l, " ") != tt.logins {
				t.Errorf("missed %d, logins %q; want %d, %q", missed.Load(), l, tt.missed, tt.logins)
			}
		})
	}
}
