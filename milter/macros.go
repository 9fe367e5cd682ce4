package milter

import "bytes"

// macro is one of the MTA's macros that somebody needs.
type macro uint8

const (
	macroMailer macro = iota
	macroHost
	macroAddr
	macroClientAddr
	macroAuthUser
	macroAuthType
	macroQueue
	macroVersion
	numMacros
)

// macroSet is what one macro packet told. A packet belongs to the command that
// follows it at once and to no other, so one set is enough.
type macroSet struct {
	stage byte // the command it belongs to; 0: none
	has   uint8
	text  []byte // the values, one behind the other
	until [numMacros]uint16
	from  [numMacros]uint16
}

// keepMacros is the room for values that is kept for the next packet.
const keepMacros = 512

// noMacros is what was told where nothing was. It is never written.
var noMacros macroSet

// clear forgets the packet.
func (m *macroSet) clear() {
	m.stage, m.has = 0, 0
	if cap(m.text) > keepMacros {
		m.text = nil
	}
}

// parse takes a macro packet in: the command it is for, then names and values
// by turns, each ended by a NUL. It answers false for any other form and for a
// macro with two values: then nobody knows which one counts.
func (m *macroSet) parse(data []byte) bool {
	m.clear()
	if len(data) == 0 {
		return false
	}
	m.text = m.text[:0]
	for rest := data[1:]; len(rest) > 0; {
		var name, value []byte
		var named, valued bool
		name, rest, named = bytes.Cut(rest, []byte{0})
		value, rest, valued = bytes.Cut(rest, []byte{0})
		if !named || !valued {
			return false
		}
		i, wanted := macroNamed(name)
		if !wanted {
			continue
		}
		if m.has&(1<<i) != 0 {
			return false
		}
		m.has |= 1 << i
		m.from[i] = uint16(len(m.text))
		m.text = append(m.text, value...)
		m.until[i] = uint16(len(m.text)) // a packet is shorter than 1<<16
	}
	m.stage = data[0]
	return true
}

func macroNamed(name []byte) (macro, bool) {
	switch string(name) {
	case "{rcpt_mailer}":
		return macroMailer, true
	case "{rcpt_host}":
		return macroHost, true
	case "{rcpt_addr}":
		return macroAddr, true
	case "{client_addr}":
		return macroClientAddr, true
	case "{auth_authen}":
		return macroAuthUser, true
	case "{auth_type}":
		return macroAuthType, true
	case "i":
		return macroQueue, true
	case "v":
		return macroVersion, true
	default:
		return 0, false
	}
}

// sent says whether the packet named the macro, be it with an empty value.
func (m *macroSet) sent(i macro) bool { return m.has&(1<<i) != 0 }

// value gives the macro's value, empty if it was not sent. It is good until
// the next packet.
func (m *macroSet) value(i macro) []byte {
	if !m.sent(i) {
		return nil
	}
	return m.text[m.from[i]:m.until[i]]
}
