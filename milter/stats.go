package milter

import (
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
	BadPackets   uint64 // connections ended by a packet that can't be one, or was cut short
	Unsent       uint64 // connections whose MTA was gone when it was answered
	Timeouts     uint64 // connections ended because the MTA was too slow
	Panics       uint64 // connections ended by a fault in popgate
	AcceptErrors uint64 // failures to take a connection
}

// Stats gives the counts of all listeners together.
func (s *Server) Stats() Stats {
	c, room := &s.counts, s.room.Counts()
	return Stats{Open: room.Open, Total: room.Total, Capped: room.Capped, Denied: room.Denied, BadPackets: c.bad.Load(),
		Unsent: c.unsent.Load(), Timeouts: c.timeouts.Load(), Panics: c.panics.Load(), AcceptErrors: c.acceptErrors.Load()}
}

const summaryEvery = time.Minute

// report logs what ended connections early since the last summary, at most
// once a minute or when it is the last one, and a panic at once.
func (s *Server) report(now time.Time, last bool) {
	if p := s.lastPanic.Swap(nil); p != nil {
		s.options.Log.Error("panic while answering an MTA; its connection was ended with 451", "panic", *p)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !last && now.Sub(s.summary) < summaryEvery {
		return
	}
	is, was := s.Stats(), s.reported
	s.summary, s.reported = now, is
	if is.Capped == was.Capped && is.Denied == was.Denied && is.BadPackets == was.BadPackets && is.Timeouts == was.Timeouts {
		return
	}
	s.options.Log.Warn("milter connections ended early", "too_many", is.Capped-was.Capped, "not_allowed", is.Denied-was.Denied,
		"bad_packets", is.BadPackets-was.BadPackets, "timeouts", is.Timeouts-was.Timeouts, "open", is.Open)
}
