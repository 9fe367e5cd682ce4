package policy

import (
	"bytes"
	"context"
	"net/netip"

	"popgate/internal/relay"
)

// answer is what becomes of a decision behind the MTA's own rule. The zero
// answer is the safe one.
type answer uint8

const (
	cantTell answer = iota // a temporary failure
	nothing                // no opinion: the MTA's own rule decides
	open                   // this client may relay
)

// ask has one question judged.
func ask(ctx context.Context, j Judge, q *relay.Query) answer {
	d := j.JudgeClient(ctx, q)
	switch d.Verdict {
	case relay.Pass:
		switch d.Reason {
		case relay.ReasonAuthenticated, relay.ReasonTrusted, relay.ReasonGrant:
			return open
		case relay.ReasonLocal:
			// Our reading of the recipient opens nothing. If it is the MTA's
			// own, its rule takes it without us.
			return nothing
		}
	case relay.Refuse:
		if ctx.Err() == nil { // else the judge may have been cut short
			return nothing
		}
	}
	return cantTell
}

// literal reads a whole address literal and nothing else: no zone, which would
// name another host by the same address, and no "IPv6:" before an IPv4 address,
// which no MTA writes.
func literal(s []byte) (netip.Addr, bool) {
	if len(s) > len("IPv6:ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255") ||
		bytes.IndexByte(s, '%') >= 0 || bytes.Count(s, []byte{':'}) == 1 {
		return netip.Addr{}, false
	}
	a, err := relay.ParseClient(string(s))
	return a, err == nil
}
