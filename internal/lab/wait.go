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

// waits reports whether a text came before patience ended, or before the
// writer was gone.
func (l *Log) waits(text string, gone <-chan struct{}) bool {
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		l.mu.Lock()
		found, more := strings.Contains(l.text.String(), text), l.more
		l.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-more:
		case <-gone:
			return strings.Contains(l.String(), text)
		case <-end.C:
			return false
		}
	}
}
