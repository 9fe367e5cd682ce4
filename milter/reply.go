package milter

import (
	"encoding/binary"
	"net/netip"
	"strconv"

	gomilter "github.com/emersion/go-milter"

	"popgate/internal/relay"
)

var (
	proceed = packetOf(gomilter.ActContinue, "")
	// later is the answer where there should have been another: it refuses
	// nobody for good and lets nobody through.
	later = packetOf(gomilter.ActReplyCode, "451 4.7.1 Relaying cannot be decided at the moment, try again later\x00")
)

// packetOf makes an answer as it goes over the wire.
func packetOf(code gomilter.ActionCode, data string) []byte {
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(data)))
	packet = append(packet, byte(code))
	return append(packet, data...)
}

// maxReplyText keeps a reply inside the 512 bytes of a line (RFC 5321, section
// 4.5.3.1.5), with room for the recipient sendmail puts before it.
const maxReplyText = 400

// refusal makes the packet of a reply. A reply that no MTA would send as it
// stands becomes later: Postfix takes anything but 4xx and 5xx with a text for
// a broken filter, and 421 would end the client's session.
func refusal(r relay.Reply) []byte {
	if r.Code < 400 || r.Code > 599 || r.Code == 421 || r.Text == "" {
		return later
	}
	data := strconv.AppendInt(nil, int64(r.Code), 10)
	data = append(data, ' ')
	if r.Enhanced != "" {
		data = appendText(data, r.Enhanced)
		data = append(data, ' ')
	}
	data = appendText(data, r.Text)
	return packetOf(gomilter.ActReplyCode, string(append(data, 0)))
}

// appendText adds one line of printable ASCII. The MTAs give the text to
// printf, where a lone % is dropped (Postfix) or costs the whole text
// (sendmail), and a line end would begin a reply of its own.
func appendText(data []byte, text string) []byte {
	for i := range min(len(text), maxReplyText) {
		switch c := text[i]; {
		case c == '%':
			data = append(data, '%', '%')
		case c < ' ':
			data = append(data, ' ')
		case c >= 0x7f:
			data = append(data, '?')
		default:
			data = append(data, c)
		}
	}
	return data
}

// lastRefusal is the refusal a connection sent last: a client without a grant
// is mostly refused again.
type lastRefusal struct {
	generation uint64
	decision   relay.Decision
	client     netip.Addr
	packet     []byte
}

// refuse gives the answer to a decision that is not pass.
func (l *lastRefusal) refuse(j Judge, d relay.Decision, client netip.Addr) []byte {
	generation := j.Generation()
	if l.packet == nil || l.generation != generation || l.decision != d || l.client != client {
		*l = lastRefusal{generation, d, client, refusal(j.Reply(d, client))}
	}
	return l.packet
}
