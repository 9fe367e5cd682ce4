package ledger_test

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"popgate/cache"
	"popgate/internal/ledger"
	"popgate/internal/relay"
	"popgate/internal/state"
)

const million = 1_000_000

// BenchmarkStart is a start with a million saved grants, each of a user of its
// own: files, ledger and store together. At worst as many changes have come since
// the snapshot as there are grants in it: here every client has logged in again.
func BenchmarkStart(b *testing.B) {
	for _, bb := range []struct {
		name  string
		again bool
	}{{"snapshot", false}, {"snapshot and as many changes", true}} {
		b.Run(bb.name, func(b *testing.B) { benchmarkStart(b, bb.again) })
	}
}

func benchmarkStart(b *testing.B, again bool) {
	began := time.Now()
	rules := &relay.Rules{GrantTTL: 12 * time.Hour, HoldOpenLogins: 12 * time.Hour, IPv6Prefix: 128,
		MaxGrants: million, MaxGrantsPerUser: 1000, Services: []relay.Service{relay.POP3, relay.IMAP}}
	empty := func() *ledger.Ledger {
		return ledger.New(ledger.Options{Store: cache.New(cache.Options{}), Rules: rules,
			Own: func(netip.Addr) bool { return false },
			Now: func() relay.Now { return relay.Now{Wall: began, Mono: time.Hour} }})
	}
	dir := b.TempDir() + "/state"
	save(b, dir, began, again)
	b.ReportAllocs()
	changes := 0
	var spent time.Duration
	for b.Loop() {
		spent -= processorTime()
		l := empty()
		s, err := state.Open(dir, state.Options{Snapshot: l.Snapshot})
		if err != nil {
			b.Fatal(err)
		}
		out := l.Restore(func(yield func(relay.Change) bool) {
			changes = s.Load(func(c relay.Change) { yield(c) }).Changes
		})
		spent += processorTime()
		if err := s.Close(); err != nil || out.Grants != million {
			b.Fatalf("%+v, %v; want a million grants", out, err)
		}
	}
	b.ReportMetric(float64(spent.Milliseconds())/float64(b.N), "cpu-ms")
	b.ReportMetric(float64(changes), "changes")
}

func processorTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t)
	return time.Duration(t.Nano())
}

// save leaves a state directory as a daemon does that has read a million logins,
// and perhaps each of them again.
func save(b *testing.B, dir string, now time.Time, again bool) {
	s, err := state.Open(dir, state.Options{Snapshot: func() iter.Seq[relay.Change] { return logins(now) }})
	if err != nil {
		b.Fatal(err)
	}
	// A damaged file has the whole state written anew.
	if err := os.WriteFile(dir+"/snapshot", []byte("damaged"), 0o600); err != nil {
		b.Fatal(err)
	}
	s.Load(func(relay.Change) {})
	ctx, stop := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	done := make(chan error, 1)
	s.Append(relay.Batch{Done: done})
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	if again {
		var batch relay.Batch
		n := 0
		for c := range logins(now.Add(time.Second)) {
			if batch.Changes = append(batch.Changes, c); len(batch.Changes) < 10_000 {
				continue
			}
			if n += len(batch.Changes); n > million*99/100 {
				break // there would be another snapshot
			}
			batch.Done = done
			s.Append(batch)
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			batch.Changes = batch.Changes[:0]
		}
	}
	stop()
	if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
		b.Fatal(err)
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}

func logins(now time.Time) iter.Seq[relay.Change] {
	return func(yield func(relay.Change) bool) {
		for i := range million {
			login := now.Add(-time.Duration(i) * time.Millisecond)
			g := relay.Grant{Client: netip.AddrFrom4([4]byte{11, byte(i >> 16), byte(i >> 8), byte(i)}), Prefix: 32, Service: relay.IMAP,
				User: fmt.Sprintf("user%07d@local.test", i), Source: "file:/var/log/mail.log", Format: "dovecot",
				Session: fmt.Sprintf("s%015d", i), Login: login, Expires: login.Add(12 * time.Hour)}
			if !yield(relay.Change{Kind: relay.ChangeGrant, Grant: g}) {
				return
			}
		}
	}
}

// BenchmarkSetRules is a reload with a million grants, none of which the new rules
// change, and with as many sessions as may be held. The longest that a login
// waited meanwhile is what its client notices.
func BenchmarkSetRules(b *testing.B) {
	for name, sessions := range map[string]int{"a million grants": 0, "and sessions": ledger.MaxSessions - 1} {
		b.Run(name, func(b *testing.B) { benchmarkSetRules(b, sessions) })
	}
}

func benchmarkSetRules(b *testing.B, sessions int) {
	began := time.Now()
	rules := &relay.Rules{GrantTTL: 12 * time.Hour, HoldOpenLogins: 12 * time.Hour, IPv6Prefix: 128,
		MaxGrants: 2 * million, MaxGrantsPerUser: 1000, Services: []relay.Service{relay.POP3, relay.IMAP}}
	l := ledger.New(ledger.Options{Store: cache.New(cache.Options{}), Rules: rules,
		Own: func(netip.Addr) bool { return false },
		Now: func() relay.Now { return relay.Now{Wall: began, Mono: time.Hour} }})
	if out := l.Restore(logins(began)); out.Grants != million {
		b.Fatalf("%+v", out)
	}
	event := func(kind relay.EventKind, net byte, i int, session string) {
		l.Event(relay.Event{Kind: kind, Client: netip.AddrFrom4([4]byte{net, byte(i >> 16), byte(i >> 8), byte(i)}), User: fmt.Sprint("user", i),
			Service: relay.IMAP, Session: session, Source: "file:/var/log/mail.log", Format: "dovecot", Time: began, Live: true})
	}
	if sessions > 0 {
		event(relay.Login, 12, 0, "pairing") // the source shows that it logs both
		event(relay.Logout, 12, 0, "pairing")
	}
	for i := range sessions {
		event(relay.Login, 13, i, fmt.Sprint("open", i))
	}
	done := make(chan struct{})
	longest := make(chan time.Duration)
	go func() {
		most := time.Duration(0)
		for n := 0; ; n++ {
			select {
			case <-done:
				longest <- most
				return
			case <-time.After(100 * time.Microsecond):
			}
			at := time.Now()
			event(relay.Login, 14, n&255, "")
			most = max(most, time.Since(at))
		}
	}()
	for b.Loop() {
		same := *rules
		if n := l.SetRules(&same); n != 0 {
			b.Fatalf("%d purged", n)
		}
	}
	close(done)
	b.ReportMetric(float64((<-longest).Microseconds())/1e3, "longest-wait-ms")
}
