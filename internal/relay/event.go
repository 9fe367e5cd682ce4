package relay

import (
	"net/netip"
	"time"
)

// Service is what a login was for, with the TLS variants folded (pop3s is
// pop3, imaps is imap).
type Service uint8

const (
	ServiceUnknown Service = iota // the line did not say
	POP3
	IMAP
	Submission
	Sieve
	ServiceOther // said, but none of the above
)

var serviceNames = [...]string{"", "pop3", "imap", "submission", "sieve", "other"}

// String gives the word used in configuration, log and JSON; unknown is empty.
func (s Service) String() string {
	if int(s) < len(serviceNames) {
		return serviceNames[s]
	}
	return "other"
}

// ParseService reads a service's word. The second result is false for a word
// that is none.
func ParseService(word string) (Service, bool) {
	for i, n := range serviceNames {
		if i > 0 && n == word {
			return Service(i), true
		}
	}
	return ServiceUnknown, false
}

// EventKind says what a log line told.
type EventKind uint8

const (
	NoEvent EventKind = iota // nothing that concerns a grant
	Login                    // a password was accepted
	Logout                   // an authenticated session ended; needs no client
	Restart                  // the POP/IMAP server started or stopped: its sessions are over
)

// Event is what a parser made of one record. It is a fact about the log, not
// yet a permission: the ledger decides whether it grants.
type Event struct {
	Kind    EventKind
	Client  netip.Addr // canonical; zero where the line has none (a logout may)
	User    string     // as logged
	Service Service
	Session string    // pairs a logout with its login inside one source; empty: none known
	Time    time.Time // the login's own time, already resolved; never after the arrival by more than the clock of the log allows
	Live    bool      // read as it was written, not in a replay of older lines
	Zoned   bool      // the stamp carried a zone, so Time is exact and a future one is a lie
	Source  string    // name of the source, as in status
	Format  string    // name of the format, as in the configuration
}
