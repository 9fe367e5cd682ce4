package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serveLimited is serve with limits of the test's own; the daemon stops when
// stop is called, and served tells how Serve ended.
func serveLimited(t *testing.T, d Daemon, within limits) (path string, stop func(), served chan error) {
	t.Helper()
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path = filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served = make(chan error, 1)
	go func() { served <- serveWithin(ctx, ln, d, readers(-1), within) }()
	t.Cleanup(cancel)
	return path, cancel, served
}

// watching starts a client that sends what it sees to seen, and gives back how
// it ended. It returns when nothing will be missed.
func watching(t *testing.T, ctx context.Context, path string, topics Topic) (seen chan Seen, ended chan error) {
	t.Helper()
	seen, ended = make(chan Seen, 3*maxUnwatched), make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		ended <- NewClient(path).Watch(ctx, topics, func() { close(ready) }, func(s *Seen) error { seen <- *s; return nil })
	}()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	case <-time.After(10 * time.Second):
		t.Fatal("not ready in time")
	}
	return seen, ended
}

func within[T any](t *testing.T, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(10 * time.Second):
		t.Fatal("waited in vain for " + what)
	}
	return v
}

func TestWatcherSeesWhatItAskedForInOrder(t *testing.T) {
	d := &calm{}
	path, _, _ := serveLimited(t, d, usual)
	if d.watchers.Want(WatchLogins | WatchDecisions | WatchGrants) {
		t.Error("somebody is said to watch, and nobody does")
	}
	ctx, stop := context.WithCancel(t.Context())
	seen, ended := watching(t, ctx, path, WatchLogins|WatchGrants)
	if !d.watchers.Want(WatchGrants) || d.watchers.Want(WatchDecisions) {
		t.Error("Want does not say what is watched")
	}
	d.watchers.Tell(WatchDecisions, &Seen{Event: "decision"})
	at := time.Date(2026, 11, 23, 6, 0, 0, 0, time.UTC)
	sent := []Seen{
		{Event: "login", Time: at, Client: netip.MustParseAddr("198.51.100.7"), User: "b\x1bob", Service: "imap", Outcome: "granted", Login: at, Expires: at.Add(time.Hour)},
		{Event: "grant", Time: at, Client: netip.MustParseAddr("2001:db8::1"), Prefix: 64, Open: true},
		{Event: "revocation", Time: at, Network: netip.MustParsePrefix("198.51.100.0/24"), Block: at},
	}
	for i := range sent {
		d.watchers.Tell(WatchLogins, &sent[i])
	}
	for _, want := range sent {
		if got := within(t, "an event", seen); got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	stop()
	if err := within(t, "the end", ended); err != nil {
		t.Errorf("an interrupted watch ended with %v", err)
	}
	until(t, "the watcher is forgotten", func() bool { return d.watchers.Count() == 0 && !d.watchers.Want(WatchLogins) })
}

func until(t *testing.T, what string, yes func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !yes(); {
		if time.Now().After(end) {
			t.Fatal("waited in vain until " + what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// paused connects as a watcher and reads nothing but the head of the answer.
func paused(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "GET /watch HTTP/1.0\r\n\r\n")
	head := make([]byte, 15)
	if _, err := c.Read(head); err != nil || string(head) != "HTTP/1.0 200 OK" {
		t.Fatalf("%q, %v", head, err)
	}
	return c
}

func TestSlowWatcherBlocksNobodyAndIsToldWhatItMissed(t *testing.T) {
	d := &calm{}
	path, _, _ := serveLimited(t, d, usual)
	slow := paused(t, path)
	quick, _ := watching(t, t.Context(), path, 0)
	const events = 50_000
	text := strings.Repeat("x", 200)
	received := make(chan int)
	go func() {
		n := 0
		for n < events {
			if s := <-quick; s.Event == "dropped" {
				n += int(s.Dropped)
			} else {
				n++
			}
		}
		received <- n
	}()
	began := time.Now()
	for i := range events {
		d.watchers.Tell(WatchDecisions, &Seen{Event: "decision", Rcpt: text})
		if i%1000 == 0 {
			time.Sleep(time.Millisecond) // for the quick one to keep up, more or less
		}
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("telling took %v with a watcher that does not read", took)
	}
	if n := within(t, "the quick watcher's events", received); n != events {
		t.Errorf("the quick watcher accounts for %d of %d", n, events)
	}
	// The slow one reads at last: what it did not get it is told of, once and in place.
	slow.SetReadDeadline(time.Now().Add(10 * time.Second))
	got, dropped := 0, 0
	for in := bufio.NewScanner(slow); got+dropped < events && in.Scan(); {
		switch line := in.Text(); {
		case strings.Contains(line, `"event":"decision"`):
			got++
		case strings.Contains(line, `"event":"dropped"`):
			_, after, _ := strings.Cut(line, `"dropped":`)
			n := 0
			fmt.Sscan(after, &n)
			dropped += n
		}
	}
	if got+dropped != events || dropped == 0 || got < maxUnwatched {
		t.Errorf("the slow watcher got %d and was told of %d dropped, together %d of %d", got, dropped, got+dropped, events)
	}
}

func TestWatcherThatReadsNothingIsCutOff(t *testing.T) {
	d := &calm{}
	path, _, _ := serveLimited(t, d, limits{request: time.Minute, watcher: 100 * time.Millisecond})
	paused(t, path)
	until(t, "it is cut off", func() bool {
		for range 100 {
			d.watchers.Tell(WatchGrants, &Seen{Event: "grant", Note: strings.Repeat("x", maxText)})
		}
		return d.watchers.Count() == 0
	})
}

func TestQuietWatchOutlivesTheTimeForARequest(t *testing.T) {
	d := &calm{}
	path, _, _ := serveLimited(t, d, limits{request: 50 * time.Millisecond, watcher: 50 * time.Millisecond})
	seen, ended := watching(t, t.Context(), path, 0)
	select {
	case err := <-ended:
		t.Fatalf("it ended by itself: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	d.watchers.Tell(WatchLogins, &Seen{Event: "login"})
	if s := within(t, "an event after the silence", seen); s.Event != "login" {
		t.Errorf("got %+v", s)
	}
}

func TestOfAThousandWatchersAllButAFewAreRefused(t *testing.T) {
	d := &calm{}
	path, _, _ := serveLimited(t, d, usual)
	for range MaxWatchers {
		watching(t, t.Context(), path, 0)
	}
	var turns sync.WaitGroup
	wrong := make(chan error, 1000)
	for range 8 {
		turns.Go(func() {
			for range (1000 - MaxWatchers) / 8 {
				err := NewClient(path).Watch(t.Context(), 0, func() {}, func(*Seen) error { return nil })
				if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "16 watch already") {
					wrong <- err
				}
			}
		})
	}
	turns.Wait()
	select {
	case err := <-wrong:
		t.Errorf("a watcher too many got %v", err)
	default:
	}
	if _, err := NewClient(path).Status(t.Context()); err != nil {
		t.Errorf("with all watchers there, status got %v", err)
	}
	if n := d.watchers.Count(); n != MaxWatchers {
		t.Errorf("%d watch, want %d", n, MaxWatchers)
	}
}

func TestStoppingDaemonTellsItsWatchersAndWaitsForNone(t *testing.T) {
	d := &calm{}
	path, stop, served := serveLimited(t, d, usual)
	paused(t, path)
	for range 3 * maxUnwatched {
		d.watchers.Tell(WatchGrants, &Seen{Event: "grant", Note: strings.Repeat("x", maxText)})
	}
	_, ended := watching(t, t.Context(), path, 0)
	began := time.Now()
	stop()
	if err := within(t, "the watcher's end", ended); !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "it has stopped") {
		t.Errorf("the watcher ended with %v", err)
	}
	if err := within(t, "Serve's end", served); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > drainTime {
		t.Errorf("stopping took %v with a watcher that does not read", took)
	}
}

func TestUnknownTopicIsRefused(t *testing.T) {
	path := serve(t, &calm{}, readers(-1))
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "GET /watch?topic=passwords HTTP/1.0\r\n\r\n")
	var answer strings.Builder
	bufio.NewReader(c).WriteTo(&answer)
	if !strings.Contains(answer.String(), "400 Bad Request") || !strings.Contains(answer.String(), "logins, decisions, grants") {
		t.Errorf("got %s", answer.String())
	}
}

func TestLongTextOfAStrangerIsCut(t *testing.T) {
	d := &calm{}
	path, _, _ := serveLimited(t, d, usual)
	seen, _ := watching(t, t.Context(), path, 0)
	d.watchers.Tell(WatchDecisions, &Seen{Event: "decision", Rcpt: strings.Repeat("x", 60_000)})
	if s := within(t, "an event", seen); len(s.Rcpt) != maxText {
		t.Errorf("a recipient of %d bytes in the queue, want %d", len(s.Rcpt), maxText)
	}
}

func BenchmarkWantWithoutWatchers(b *testing.B) {
	var w Watchers
	b.ReportAllocs()
	for b.Loop() {
		if w.Want(WatchDecisions) {
			b.Fatal("somebody watches")
		}
	}
}

func BenchmarkTellOneWatcher(b *testing.B) {
	var w Watchers
	v, err := w.join(WatchDecisions, false)
	if err != nil {
		b.Fatal(err)
	}
	s := &Seen{Event: "decision", Rcpt: "x@remote.test"}
	var spare []*Seen
	b.ReportAllocs()
	for b.Loop() {
		w.Tell(WatchDecisions, s)
		if len(v.queue) == maxUnwatched {
			spare, _ = v.take(spare)
		}
	}
}
