package format

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"unicode"
	"unicode/utf8"

	"popgate/internal/relay"
)

// charset is a set of bytes.
type charset [256]bool

func chars(s string) (set charset) {
	for i := range len(s) {
		set[s[i]] = true
	}
	return set
}

const (
	digits  = "0123456789"
	lowers  = "abcdefghijklmnopqrstuvwxyz"
	uppers  = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
	letters = lowers + uppers
)

var (
	digitChars   = chars(digits)
	addressChars = chars(digits + "abcdefABCDEF.:")
)

// scanner reads a message from its front. Each method takes what it names, or
// leaves everything as it is and says so.
type scanner struct{ rest []byte }

// lit takes exactly this text.
func (s *scanner) lit(want string) bool {
	if len(s.rest) < len(want) || string(s.rest[:len(want)]) != want {
		return false
	}
	s.rest = s.rest[len(want):]
	return true
}

// run takes the longest text of the set, which may be empty.
func (s *scanner) run(set *charset) (text []byte) {
	n := span(s.rest, set)
	text, s.rest = s.rest[:n], s.rest[n:]
	return text
}

// span gives how many bytes at the front are of the set.
func span(b []byte, set *charset) int {
	i := 0
	for ; i < len(b)-3; i += 4 { // by fours, without asking each time for the end
		switch {
		case !set[b[i]]:
			return i
		case !set[b[i+1]]:
			return i + 1
		case !set[b[i+2]]:
			return i + 2
		case !set[b[i+3]]:
			return i + 3
		}
	}
	for i < len(b) && set[b[i]] {
		i++
	}
	return i
}

// asciiUser takes a user name that is plainUser by its ASCII characters alone,
// all of the set, up to the stop byte, which is not of the set. So it is until
// and plainUser in one look, for nearly every name there is.
func (s *scanner) asciiUser(stop byte, set *charset) (name []byte, ok bool) {
	n := span(s.rest, set)
	if n == 0 || n > maxUser || n == len(s.rest) || s.rest[n] != stop {
		return nil, false
	}
	name, s.rest = s.rest[:n], s.rest[n:]
	return name, true
}

// word is run, but not empty.
func (s *scanner) word(set *charset) bool { return len(s.run(set)) > 0 }

// until takes the text before the first stop byte, and leaves that byte. It is
// short as a rule, so a loop is quicker than a search.
func (s *scanner) until(stop byte) (text []byte, ok bool) {
	for i, c := range s.rest {
		if c == stop {
			text, s.rest = s.rest[:i], s.rest[i:]
			return text, true
		}
	}
	return nil, false
}

// address takes an IP address: all that can belong to one, so that never a
// part of it is read.
func (s *scanner) address() (netip.Addr, bool) {
	if a, n := frontIPv4(s.rest); n > 0 && (n == len(s.rest) || !addressChars[s.rest[n]]) {
		s.rest = s.rest[n:]
		return a, true
	}
	before := s.rest
	a, ok := parseAddr(s.run(&addressChars))
	if !ok {
		s.rest = before
	}
	return a, ok
}

// done says whether the message is at its end.
func (s *scanner) done() bool { return len(s.rest) == 0 }

// parseAddr reads a full IP address without zone and gives popgate's one
// spelling. It takes what netip.ParseAddr takes, without its allocation, which
// every line with an address would cost, login or not.
func parseAddr(b []byte) (netip.Addr, bool) {
	if a, ok := parseIPv4(b); ok {
		return a, true
	}
	a, ok := parseIPv6(b)
	return relay.Canonical(a), ok
}

func parseIPv4(b []byte) (netip.Addr, bool) {
	a, n := frontIPv4(b)
	return a, n > 0 && n == len(b)
}

// frontIPv4 reads the IPv4 address at the front and gives its length, 0 if
// there is none. What follows it, another digit for one, is for the caller to
// judge.
func frontIPv4(b []byte) (a netip.Addr, length int) {
	var bits uint32
	n := 0
	for part := 0; ; part++ {
		if n >= len(b) || !digit(b[n]) {
			return netip.Addr{}, 0
		}
		value := uint32(b[n] - '0')
		n++
		if n < len(b) && digit(b[n]) {
			if value == 0 { // a leading zero: octal for some
				return netip.Addr{}, 0
			}
			value = value*10 + uint32(b[n]-'0')
			n++
			if n < len(b) && digit(b[n]) {
				value = value*10 + uint32(b[n]-'0')
				n++
			}
			if value > 255 {
				return netip.Addr{}, 0
			}
		}
		bits = bits<<8 | value
		if part == 3 {
			return netip.AddrFrom4([4]byte{byte(bits >> 24), byte(bits >> 16), byte(bits >> 8), byte(bits)}), n
		}
		if n >= len(b) || b[n] != '.' {
			return netip.Addr{}, 0
		}
		n++
	}
}

func parseIPv6(b []byte) (netip.Addr, bool) {
	var a [16]byte
	n, gap := 0, -1 // bytes read, and where "::" stood among them
	if len(b) >= 2 && b[0] == ':' && b[1] == ':' {
		gap, b = 0, b[2:]
	}
	for len(b) > 0 {
		value, i := 0, 0
		for ; i < len(b) && i < 5; i++ {
			d, ok := hexDigit(b[i])
			if !ok {
				break
			}
			value = value<<4 | d
		}
		if i > 0 && i < len(b) && b[i] == '.' && n <= 12 {
			tail, ok := parseIPv4(b)
			if !ok {
				return netip.Addr{}, false
			}
			four := tail.As4()
			n += copy(a[n:], four[:])
			break
		}
		if i == 0 || i > 4 || n == 16 {
			return netip.Addr{}, false
		}
		a[n], a[n+1] = byte(value>>8), byte(value)
		n += 2
		if b = b[i:]; len(b) == 0 {
			break
		}
		if b[0] != ':' || len(b) == 1 {
			return netip.Addr{}, false
		}
		if b = b[1:]; b[0] == ':' {
			if gap >= 0 {
				return netip.Addr{}, false
			}
			gap, b = n, b[1:]
		}
	}
	if gap >= 0 {
		if n == 16 {
			return netip.Addr{}, false // "::" for nothing
		}
		copy(a[16-(n-gap):], a[gap:n])
		clear(a[gap : 16-(n-gap)])
		n = 16
	}
	if n != 16 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16(a), true
}

func hexDigit(c byte) (int, bool) {
	switch {
	case digit(c):
		return int(c - '0'), true
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10, true
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10, true
	}
	return 0, false
}

// maxUser bounds what is taken for a user name: an address in its longest
// legal form, with room to spare.
const maxUser = 400

// plainBytes are the ASCII characters that a user name may hold without a
// further look: no controls, no end of a field, no "=".
var plainBytes = func() (set charset) {
	for c := ' '; c <= '~'; c++ {
		set[c] = !strings.ContainsRune("<>,[]=", c)
	}
	return set
}()

// plainUser says whether a user name can't be confused with the line around
// it: none of the bytes that close a field in one of the formats, no second
// address field, no control characters, valid UTF-8. A login of any other
// user grants nothing.
func plainUser(b []byte) bool {
	if len(b) == 0 || len(b) > maxUser {
		return false
	}
	ascii := true
	for i, c := range b {
		if plainBytes[c] {
			continue
		}
		switch {
		case c == '=':
			if i >= 2 && b[i-1] == 'p' && b[i-2] == 'i' { // ip=, rip=, lip=
				return false
			}
		case c >= utf8.RuneSelf:
			ascii = false
		default:
			return false
		}
	}
	return ascii || plainUTF8(b)
}

// anonymous says whether a word is the name, in any case, under which servers
// let in whoever asks: SASL's mechanism ANONYMOUS, and the user they log for
// it. Whatever password came with it was not looked at, so such a login is
// none. It isn't unparsed either: the line is known, and counting it would let
// strangers drive up the number that tells of an unknown release.
func anonymous(word string) bool {
	return len(word) == len("anonymous") && strings.EqualFold(word, "anonymous")
}

// plainUTF8 says whether text is valid UTF-8 without characters that a
// terminal or a reader takes for something else: controls, line ends,
// invisible and direction marks.
func plainUTF8(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) {
			return false
		}
		b = b[n:]
	}
	return true
}

// hasControl says whether text holds an ASCII control character.
func hasControl(b []byte) bool {
	// Eight bytes at a time, four times before it is looked whether there was one.
	i := 0
	for ; i < len(b)-31; i += 32 {
		if controls(binary.LittleEndian.Uint64(b[i:i+8]))|controls(binary.LittleEndian.Uint64(b[i+8:i+16]))|
			controls(binary.LittleEndian.Uint64(b[i+16:i+24]))|controls(binary.LittleEndian.Uint64(b[i+24:i+32])) != 0 {
			return true
		}
	}
	for ; i < len(b)-7; i += 8 {
		if controls(binary.LittleEndian.Uint64(b[i:i+8])) != 0 {
			return true
		}
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < ' ' || c == 0x7f {
			return true
		}
	}
	return false
}

// controls is 0 if none of eight bytes is a control character. The high bit of a
// byte is set in low if it is below ' ', and in del if it is 0x7f, unless it is
// above ASCII. A borrow may set it in a byte above one that has it rightly, never
// where none has.
func controls(w uint64) uint64 {
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	low := w - ones*' '
	del := (w ^ ones*0x7f) - ones
	return (low | del) &^ w & highs
}
