package milter

import (
	"bytes"
	"encoding/binary"
	"net/netip"

	gomilter "github.com/emersion/go-milter"

	"popgate/internal/relay"
)

const (
	lengthSize = 4       // of the length before each packet
	maxPacket  = 1 << 16 // length of a packet that is kept: libmilter's own bound is 65535
	maxCut     = 1 << 20 // length of one whose contents are thrown away: the library's own bound
)

// symList is what the MTA is asked to tell with each recipient, over its own
// default list. It is shared by all connections and never written.
var symList = map[gomilter.Stage][]string{
	gomilter.StageRcptTo: {"{rcpt_mailer}", "{rcpt_host}", "{rcpt_addr}", "{client_addr}", "{auth_authen}", "{auth_type}", "i", "v"},
}

// Headers and body say nothing about who may relay, and HELO nothing that is
// needed: it ends a transaction, but no recipient comes before the next MAIL,
// which ends it too. An MTA that tells of HELO all the same is listened to.
const (
	wantActions  = gomilter.OptSetSymList
	refuseStages = gomilter.OptNoHelo | gomilter.OptNoHeaders | gomilter.OptNoEOH | gomilter.OptNoBody
)

// treatment is what becomes of a packet.
type treatment uint8

const (
	bad  treatment = iota // ends the connection
	drop                  // the library needn't see it
	cut                   // the library sees only that it came
	pass                  // the library sees all of it
)

// treat says what becomes of a packet by its command alone. Commands of later
// protocol versions (UNKNOWN, QUIT_NC) are never negotiated, so they are bad.
func treat(code byte) treatment {
	switch gomilter.Code(code) {
	case gomilter.CodeMacro:
		return drop
	case gomilter.CodeOptNeg, gomilter.CodeConn, gomilter.CodeHelo, gomilter.CodeMail, gomilter.CodeRcpt,
		gomilter.CodeEOH, gomilter.CodeEOB, gomilter.CodeAbort, gomilter.CodeData, gomilter.CodeQuit:
		return pass
	case gomilter.CodeHeader, gomilter.CodeBody:
		// Refused in the negotiation. An old MTA that can't leave them out
		// sends them all the same, and the library would collect headers.
		return cut
	default:
		return bad
	}
}

// offer is what the MTA can do.
type offer struct{ actions, protocol uint32 }

// parseOffer reads an OPTNEG packet.
func parseOffer(data []byte) (offer, bool) {
	if len(data) < 12 || binary.BigEndian.Uint32(data) < 2 {
		return offer{}, false
	}
	return offer{binary.BigEndian.Uint32(data[4:]), binary.BigEndian.Uint32(data[8:])}, true
}

// mask takes out of our own OPTNEG packet what the MTA didn't offer: an MTA
// may turn a filter away for one bit too many, and the library ignores the
// offer.
func (o offer) mask(packet []byte) []byte {
	const head = lengthSize + 1 + 12
	if len(packet) < head {
		return packet
	}
	actions, protocol := packet[lengthSize+5:][:4], packet[lengthSize+9:][:4]
	binary.BigEndian.PutUint32(actions, binary.BigEndian.Uint32(actions)&o.actions)
	binary.BigEndian.PutUint32(protocol, binary.BigEndian.Uint32(protocol)&o.protocol)
	if o.actions&uint32(gomilter.OptSetSymList) == 0 {
		packet = packet[:head]
		binary.BigEndian.PutUint32(packet, head-lengthSize)
	}
	return packet
}

// parseConnect reads the client address out of a CONNECT packet. A family
// without address, and a text that is none, give the zero Addr: then nobody
// knows who is asking. It answers false where the packet has not the form the
// protocol gives it.
//
// The address is read here because sendmail tags IPv6 addresses and the
// library's own reading of a tagged one is no address at all.
func parseConnect(data []byte) (netip.Addr, bool) {
	_, rest, found := bytes.Cut(data, []byte{0}) // host name
	if !found || len(rest) == 0 {
		return netip.Addr{}, false
	}
	family, rest := gomilter.ProtoFamily(rest[0]), rest[1:]
	if family != gomilter.FamilyInet && family != gomilter.FamilyInet6 {
		return netip.Addr{}, true
	}
	if len(rest) < 2 { // port
		return netip.Addr{}, false
	}
	text, _, found := bytes.Cut(rest[2:], []byte{0})
	if !found {
		return netip.Addr{}, false
	}
	client, err := relay.ParseClient(string(text))
	if err != nil {
		return netip.Addr{}, true
	}
	return client, true
}

// unbracket takes off one pair of angle brackets. The library takes off all
// there are, on either side, and so hides the difference between an address
// and one that only resembles it.
func unbracket(b []byte) []byte {
	if n := len(b); n >= 2 && b[0] == '<' && b[n-1] == '>' {
		return b[1 : n-1]
	}
	return b
}
