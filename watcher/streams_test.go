package watcher

import (
	"testing"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

// A loss that concerns no one stream concerns all: what is missing may have been
// the first piece of a record, on any of them.
func TestALossInNoStreamIsOneInEach(t *testing.T) {
	fresh := func() format.Parser {
		p, err := format.New("courier")
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	const connection, login = "Connection, ip=[::ffff:192.0.2.7], port=[1]", "LOGIN, user=bob, ip=[::ffff:192.0.2.7], port=[1]"
	for _, tt := range []struct {
		name  string
		gap   *Record
		login bool
	}{
		{"no loss", nil, true},
		{"in none", &Record{Kind: Gap, Lost: true}, false},
		{"in this one", &Record{Kind: Gap, Stream: 1}, false},
		{"in another", &Record{Kind: Gap, Stream: 2}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := &loggedIn{}
			w := &watch{
				Options: Options{Format: "courier", Parser: fresh(), NewParser: fresh, Ledger: l, TimeZone: time.UTC},
				health:  newHealth(&script{}, func(relay.SourceState) {}),
			}
			defer w.health.close()
			say := func(text string) {
				w.record(&Record{Kind: Line, Text: []byte("<22>Nov 22 02:05:32 mx1 pop3d: " + text), Arrived: time.Now(), Live: true, Sent: true, Stream: 1})
			}
			say("the rest of a record") // is never read, after a new stream's gap
			say(connection)
			if tt.gap != nil {
				w.record(tt.gap)
			}
			say("LOGIN FAILED, user=bob, ip=[::ffff:192.0.2.7], port=[2]")
			say(login)
			if got := len(*l) == 1; got != tt.login {
				t.Errorf("logins %v", *l)
			}
		})
	}
}

// What was remembered of a sender goes with him, however many come and go.
func TestNothingIsKeptOfAStreamThatHasEnded(t *testing.T) {
	fresh := func() format.Parser { p, _ := format.New("courier"); return p }
	w := &watch{
		Options: Options{Format: "courier", Parser: fresh(), NewParser: fresh, Ledger: &loggedIn{}, TimeZone: time.UTC},
		health:  newHealth(&script{}, func(relay.SourceState) {}),
	}
	defer w.health.close()
	for i := range uint64(100) {
		w.record(&Record{Kind: Line, Text: []byte("<22>Nov 22 02:05:32 mx1 pop3d: x"), Arrived: time.Now(), Live: true, Sent: true, Stream: 1 + i})
		w.record(&Record{Kind: Ended, Stream: 1 + i})
	}
	if n := len(w.streams); n != 0 {
		t.Errorf("%d of 100 are still there", n)
	}
}
