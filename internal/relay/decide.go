package relay

import (
	"net/netip"
	"time"
)

// Verdict is one of three answers. The zero Verdict is the safe one.
type Verdict uint8

const (
	Defer  Verdict = iota // cannot tell: a temporary failure
	Refuse                // everything is known and nothing permits it
	Pass                  // the recipient may be taken
)

var verdictNames = [...]string{"defer", "refuse", "pass"}

// String gives the word used in log, metric and JSON.
func (v Verdict) String() string {
	if int(v) < len(verdictNames) {
		return verdictNames[v]
	}
	return "defer"
}

// Reason is the one word that explains a verdict to the administrator. It is
// never told to the client.
type Reason uint8

const (
	ReasonNone Reason = iota
	ReasonLocal
	ReasonAuthenticated
	ReasonTrusted
	ReasonNoClient
	ReasonGrant
	ReasonUnsure
	ReasonStoreError
	ReasonNotReady
	ReasonFull
	ReasonBusy
	ReasonNoGrant
	ReasonExpired
	Reasons // their number
)

var reasonNames = [Reasons]string{"none", "local", "authenticated", "trusted", "no_client", "grant", "unsure",
	"store_error", "not_ready", "full", "busy", "no_grant", "expired"}

// String gives the word used in log, metric and JSON.
func (r Reason) String() string {
	if r < Reasons {
		return reasonNames[r]
	}
	return "none"
}

// Now is one reading of both clocks: the wall clock, which an operator or NTP
// may step, and one that only runs forward.
type Now struct {
	Wall time.Time
	Mono time.Duration // since any fixed moment of this process
}

// Facts is everything that is known about one recipient when it is decided.
// Its zero value is deferred.
type Facts struct {
	Recipient     Recipient
	Authenticated bool       // in this transaction, and the configuration trusts it
	Trusted       bool       // the client is in trusted_networks
	Client        netip.Addr // zero: none was given, or two that differ
	Grant         Grant      // what the store has for the client's key; may be expired or not cover the client
	Allowed       bool       // the never-grant rules hold for the full address, and no block or revocation covers it
	Now           Now
	Blind         Reason // not ReasonNone: a login may have been missed, and why
	Busy          bool   // there was no place to wait for a login
}

// Decision is the answer for one recipient.
type Decision struct {
	Verdict Verdict
	Reason  Reason
}

// Decide applies the rules in the order the manual lists them.
func Decide(f *Facts) Decision {
	switch {
	case f.Recipient == Local:
		return Decision{Pass, ReasonLocal}
	case f.Authenticated:
		return Decision{Pass, ReasonAuthenticated}
	case f.Trusted && f.Client.IsValid():
		return Decision{Pass, ReasonTrusted}
	case !f.Client.IsValid():
		return Decision{Defer, ReasonNoClient}
	case f.Allowed && f.Grant.Covers(f.Client) && f.Grant.Live(f.Now):
		return Decision{Pass, ReasonGrant}
	case f.Recipient != Foreign:
		return Decision{Defer, ReasonUnsure}
	case f.Blind != ReasonNone: // something may have been missed
		return Decision{Defer, f.Blind}
	case f.Busy:
		return Decision{Defer, ReasonBusy}
	case f.Grant.Covers(f.Client):
		return Decision{Refuse, ReasonExpired}
	default:
		return Decision{Refuse, ReasonNoGrant}
	}
}
