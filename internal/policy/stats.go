package policy

import (
	"context"
	"sync/atomic"
	"time"
)

// counts are what connections hand to whoever logs and measures.
type counts struct {
	bad, unsent, timeouts, panics, acceptErrors atomic.Uint64
}

// Stats is what has happened since the server was made.
type Stats struct {
	Open         int    // connections at the moment
	Total        uint64 // connections taken
	Capped       uint64 // connections closed at once because there were too many
	Denied       uint64 // connections closed at once because of their address
	BadRequests  uint64 // connections ended by a question that can't be one, or was cut short
	Unsent       uint64 // connections whose MTA was gone when it was answered
	Timeouts     uint64 // connections ended because the MTA was too slow
	Panics       uint64 // connections ended by a fault in popgate
	AcceptErrors uint64 // failures to take a connection
}

// Stats gives the counts of all listeners together.
func (s *Server) Stats() Stats {
	c, room := &s.counts, s.room.Counts()
	return Stats{Open: room.Open, Total: room.Total, Capped: room.Capped, Denied: room.Denied, BadRequests: c.bad.Load(),
		Unsent: c.unsent.Load(), Timeouts: c.timeouts.Load(), Panics: c.panics.Load(), AcceptErrors: c.acceptErrors.Load()}
}

const summaryEvery = time.Minute

// keepReporting is the only goroutine that logs for connections: a panic within
// a second, all else once a minute and when ctx ends.
func (s *Server) keepReporting(ctx context.Context) {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			s.reportPanic()
			s.report()
			return
		case now := <-ticker.C:
			s.reportPanic()
			if now.Sub(last) >= summaryEvery {
				last = now
				s.report()
			}
		}
	}
}

func (s *Server) reportPanic() {
	if p := s.lastPanic.Swap(nil); p != nil {
		s.options.Log.Error("panic while answering an MTA; it was answered with a temporary failure", "door", s.door, "panic", *p)
	}
}

// report logs what ended connections early since the last summary.
func (s *Server) report() {
	s.mu.Lock()
	is, was := s.Stats(), s.reported
	s.reported = is
	s.mu.Unlock()
	if is.Capped == was.Capped && is.Denied == was.Denied && is.BadRequests == was.BadRequests && is.Timeouts == was.Timeouts {
		return
	}
	s.options.Log.Warn("look-up connections ended early", "door", s.door, "too_many", is.Capped-was.Capped, "not_allowed", is.Denied-was.Denied,
		"bad_requests", is.BadRequests-was.BadRequests, "timeouts", is.Timeouts-was.Timeouts, "open", is.Open)
}
