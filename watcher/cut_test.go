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

// A Dovecot that proxies, over a daemon that cuts: the stranger's name is all
// that a good login says, up to the cut.
func TestALoginInAProxiedNameCutOnTheWay(t *testing.T) {
	e, l := understand(t, SyslogOptions{Network: "tcp"}, "dovecot")
	const line = "<22>Nov 22 02:05:32 mx1 dovecot: imap-login: proxy(x,%s:1): Started proxying to <h> (0.1 secs): user=<x>, method=PLAIN, rip=%s, lip=192.0.2.1, session=<AAAA>\n"
	proxied := func(client string, length int) string {
		text := fmt.Sprintf(line, "%s", client)
		return fmt.Sprintf(text, strings.Repeat("h", length-len(text)+len("%s\n")))
	}
	a := e.dial()
	for _, limit := range []int{256, 480, 512, 1024, 2048, 8192} {
		for _, n := range []int{limit - 1, limit, limit + len("mx1 ") - 1, limit + len("mx1 ")} {
			say(t, a, proxied(attacker, n))
		}
	}
	say(t, a, proxied(honest, 240))
	l.wait(t, honest)
}

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
			l := &loginsOnly{}
			w := &watch{
				Options: Options{Format: "perdition", Parser: p, Ledger: l, TimeZone: time.UTC},
				health:  newHealth(NewSyslog(SyslogOptions{}), func(s relay.SourceState) { missed.Store(s.Missed) }),
			}
			w.record(&Record{Kind: Line, Text: []byte(text), Arrived: time.Now(), Live: true, Sent: true})
			w.health.close()
			if missed.Load() != tt.missed || l.logins() != tt.logins {
				t.Errorf("missed %d, logins %q; want %d, %q", missed.Load(), l.logins(), tt.missed, tt.logins)
			}
		})
	}
}
