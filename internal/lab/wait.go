package lab

import (
	"strings"
	"sync"
	"testing"
	"time"
)

// patience is how long any condition may take. It is long because nothing
// waits for it unless something is broken.
const patience = 30 * time.Second

// Until waits for a condition that nobody announces: it asks again and again,
// and fails the test when patience ends.
func Until(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); {
		if time.Now().After(end) {
			t.Fatalf("gave up after %v waiting until %s", patience, what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// Log collects what a program writes and can be waited on.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
	more chan struct{} // closed and replaced at each write
}

func newLog() *Log { return &Log{more: make(chan struct{})} }

// Write appends to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(p)
	close(l.more)
	l.more = make(chan struct{})
	return len(p), nil
}

// String gives all that was written.
func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// Mark gives the place up to which has been written, for WaitAfter.
func (l *Log) Mark() int { return len(l.String()) }

// Wait waits until the log contains a text.
func (l *Log) Wait(t testing.TB, text string) {
	t.Helper()
	l.WaitAfter(t, 0, text)
}

// WaitAfter waits until a text has been written after a mark.
func (l *Log) WaitAfter(t testing.TB, mark int, text string) {
	t.Helper()
	if !l.waits(mark, text, nil) {
		t.Fatalf("gave up after %v waiting for %q in a log", patience, text)
	}
}

// waits reports whether the text came before patience ended, or before the
// writer was gone.
func (l *Log) waits(mark int, text string, gone <-chan struct{}) bool {
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		l.mu.Lock()
		found, more := strings.Contains(l.text.String()[mark:], text), l.more
		l.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-more:
		case <-gone:
			return strings.Contains(l.String()[mark:], text)
		case <-end.C:
			return false
		}
	}
}
