// Command instructions reads prepared log lines as the daemon and test-log do,
// one class of lines after the other, for callgrind to count what a line costs.
// The package's test runs it and compares with instructions.txt.
//
// Between one reading and the next it calls mark, at which callgrind writes down
// what it has counted since the last time. For each count it prints which class
// it is of, and how many lines were read.
package main

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"os"
	"strings"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// class is a kind of line, and who reads it.
type class struct {
	name   string
	read   func(*class) error
	format string
	before string // read once, before anything is counted
	lines  string // read again and again
	events int    // what the lines tell
}

const (
	head = "Nov 22 02:05:32 mx1 "
	// times is how often a class's lines are read for one count, and counts how
	// often they are counted. The least is what the test takes: what is above it
	// is the runtime's monitor, which looks in once in a while.
	times, counts = 2000, 3

	foreign   = head + "postfix/smtpd[12345]: connect from unknown[192.0.2.7]\n"
	failed    = head + "dovecot: imap-login: Disconnected: Connection closed (auth failed, 2 attempts in 9 secs): user=<bob@example.net>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, TLS, session=<abcdefghijklmnop>\n"
	saved     = head + "dovecot: lmtp(bob@example.net)<4711><abcdefghijklmnop>: msgid=<x@example.org>: saved mail to INBOX\n"
	loginText = "dovecot: imap-login: Login: user=<bob@example.net>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=4711, TLS, session=<abcdefghijklmnop>\n"
	login     = head + loginText
	logout    = head + "dovecot: imap(bob@example.net)<4711><abcdefghijklmnop>: Disconnected: Logged out in=24 out=775 deleted=0 expunged=0 trashed=0 hdr_count=0 hdr_bytes=0 body_count=0 body_bytes=0\n"

	isoLogin      = "2026-11-22T02:05:32.540141+01:00 mx1 " + loginText
	journalFailed = `{"_UID":"0","__REALTIME_TIMESTAMP":"1795312674521028","MESSAGE":"imap-login: Disconnected: Connection closed (no auth attempts in 0 secs): user=<>, rip=192.0.2.7, lip=192.0.2.1, session=<abc>","SYSLOG_IDENTIFIER":"dovecot","_SYSTEMD_UNIT":"dovecot.service","_HOSTNAME":"mx1","_PID":"12"}` + "\n"

	courierConnection = head + "pop3d: Connection, ip=[::ffff:192.0.2.7], port=[4711]\n"
	courierLogin      = head + "pop3d: LOGIN, user=bob@example.net, ip=[::ffff:192.0.2.7], port=[4711]\n"

	cyrusLogin = head + "cyrus/imap[77]: login: host.example.net [192.0.2.7] bob@example.net plaintext+TLS User logged in SESSIONID=<mx1-77-1795312674-1>\n"
)

var classes = []class{
	{"daemon/dovecot/foreign", (*class).daemon, "dovecot", login, foreign, 0},
	{"daemon/dovecot/failed", (*class).daemon, "dovecot", login, failed, 0},
	{"daemon/dovecot/other", (*class).daemon, "dovecot", login, saved, 0},
	{"daemon/dovecot/login", (*class).daemon, "dovecot", login, login, 1},
	{"daemon/dovecot/logout", (*class).daemon, "dovecot", login, logout, 1},
	{"daemon/dovecot/login-iso", (*class).daemon, "dovecot", login, isoLogin, 1},
	{"daemon/dovecot/failed-journal", (*class).daemon, "dovecot", login, journalFailed, 0},
	{"daemon/courier/foreign", (*class).daemon, "courier", courierConnection, foreign, 0},
	{"daemon/courier/login", (*class).daemon, "courier", courierConnection, courierConnection + courierLogin, 1},
	{"daemon/cyrus/foreign", (*class).daemon, "cyrus", cyrusLogin, foreign, 0},
	{"daemon/cyrus/login", (*class).daemon, "cyrus", cyrusLogin, cyrusLogin, 1},
	{"daemon/auto/undecided", (*class).daemon, "auto", "", foreign, 0},
	{"daemon/auto/foreign", (*class).daemon, "auto", login, foreign, 0},
	{"daemon/auto/login", (*class).daemon, "auto", login, login, 1},
	{"test-log/dovecot/foreign", (*class).bulk, "dovecot", login, foreign, 0},
	{"test-log/dovecot/failed", (*class).bulk, "dovecot", login, failed, 0},
	{"test-log/dovecot/login", (*class).bulk, "dovecot", login, login, 1},
	{"test-log/dovecot/logout", (*class).bulk, "dovecot", login, logout, 1},
}

var (
	// zone has no summer time: with one, the cost of a stamp would depend on
	// when the program is run.
	zone    = time.FixedZone("CET", 60*60)
	arrived = time.Date(2026, time.November, 22, 2, 5, 33, 0, zone)
)

// mark is where callgrind writes down what it has counted. It is without a call
// and needs no stack, so that it is entered once.
//
//go:noinline
func mark() {}

func main() {
	for i := range classes {
		c := &classes[i]
		if err := c.read(c); err != nil {
			fmt.Fprintf(os.Stderr, "instructions: %s: %v\n", c.name, err)
			os.Exit(1)
		}
	}
}

// count reads the lines as often as they are counted, and once before.
func (c *class) count(read func(text []byte), events *int) error {
	text := []byte(strings.Repeat(c.lines, times))
	read([]byte(c.before))
	for n := range counts + 1 {
		*events = 0
		mark()
		read(text)
		mark()
		if *events != c.events*times {
			return fmt.Errorf("%d events read, not %d", *events, c.events*times)
		}
		if n > 0 { // the first time memory and maps grow
			fmt.Printf("%s %d\n", c.name, bytes.Count(text, []byte("\n")))
		} else {
			fmt.Println("- 0")
		}
	}
	return nil
}

// daemon reads as the daemon does: Cutter and Watch.
func (c *class) daemon() error {
	p, err := format.New(c.format)
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &source{class: c, stop: stop}
	watcher.Watch(ctx, s, watcher.Options{Format: c.format, Parser: p, TimeZone: zone, Ledger: s})
	return s.err
}

// source is a source of prepared lines, and the ledger that is told of them.
type source struct {
	*class
	stop   func()
	events int
	err    error
}

func (*source) Name() string { return "file:/var/log/mail.log" }
func (*source) Type() string { return "file" }

func (s *source) Records(context.Context, relay.Position, time.Time) iter.Seq[watcher.Record] {
	return func(yield func(watcher.Record) bool) {
		s.err = s.count(func(text []byte) {
			var cut watcher.Cutter
			for len(text) > 0 {
				line, used, _ := cut.Next(text)
				text = text[used:]
				if !yield(watcher.Record{Kind: watcher.Line, Text: line, Arrived: arrived, Live: true}) {
					return
				}
			}
		}, &s.events)
		s.stop()
	}
}

func (s *source) Event(relay.Event, time.Time)  { s.events++ }
func (*source) Gap(string, time.Time)           {}
func (*source) Position(string, relay.Position) {}

// bulk reads as test-log does: LinesBut, Skip and SplitFor.
func (c *class) bulk() error {
	p, err := format.New(c.format)
	if err != nil {
		return err
	}
	format.BareLogouts(p)
	var message format.Message
	var calendar format.Calendar
	var events, lines int
	skip := func(block []byte) (n, next int) {
		n, skipped, next := format.Skip(p, block)
		lines += skipped
		return n, next
	}
	return c.count(func(text []byte) {
		for line, err := range watcher.LinesBut(bytes.NewReader(text), skip) {
			if err != nil {
				panic(err) // of lines that stand above
			}
			lines++
			if !format.SplitFor(p, line, &message) {
				continue
			}
			if _, result := p.Parse(&message); result == format.Login || result == format.Logout {
				events++
				if result == format.Login {
					calendar.Time(message.Stamp, arrived.Add(time.Hour), zone)
				}
			}
		}
	}, &events)
}
