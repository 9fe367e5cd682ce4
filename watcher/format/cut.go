package format

import "bytes"

// SafeWhenCut says whether a message of the server's can't read like a login
// only because its end was cut off on the way. With other formats, and other
// messages, a failed login that is cut behind the right byte can be a perfect
// good one.
//
// Dovecot's and Cyrus's logins end in a mark that stands in no failed one at
// its place, and tell from their first word what they are. What a proxying
// Dovecot says of a session begins with the user's name, whatever it is about.
func SafeWhenCut(p Parser, m *Message) bool {
	switch p := p.(type) {
	case *dovecot:
		return !bytes.Contains(m.Text, []byte("-login: proxy("))
	case *cyrus:
		return true
	case *auto:
		return p.chosen != nil && SafeWhenCut(p.chosen, m)
	}
	return false
}

// Remembers says whether the parser understands a message by those before it.
func Remembers(p Parser) bool {
	switch p := p.(type) {
	case *courier, *popa3d:
		return true
	case *auto:
		return p.chosen == nil || Remembers(p.chosen)
	}
	return false
}

// lengths are those at which daemons, or the networks of old, cut a message:
// BusyBox 256 or what it was built with, sysklogd and RFC 3164 1024, RFC 5426
// 480, 1180 and 2048, rsyslog 8192, syslog-ng 8192 and 65536.
var lengths = [...]int{256, 480, 512, 1024, 1180, 2048, 4096, 8192, 16384, 32768, 65536}

// CutLength says whether a message that long as it was sent, with its priority
// and all, may have been cut.
func CutLength(sent int) bool {
	for _, limit := range lengths {
		// A limit may count a NUL or line end at the end, and a blank.
		if limit-3 <= sent && sent <= limit+1 {
			return true
		}
	}
	return false
}

// SentLen is how long the server's own syslog call made the message: without a
// host, with a short stamp, and but for its priority.
func (m *Message) SentLen() int {
	n := len("Nov 22 02:05:32 ") + len(m.Tag) + len(": ") + len(m.Text)
	if len(m.PID) > 0 {
		n += len("[]") + len(m.PID)
	}
	return n
}

// dovecotPiece is below the length of the pieces in which Dovecot logs what is
// longer than 4096 bytes, and well above that of a login.
const dovecotPiece = 4000

// writtenCut says whether a message that was read where some daemon wrote it
// had a length at which daemons cut, as it came from the server or, with the
// server's host, from another daemon. Priorities have three to five bytes.
// Those that write the usual line themselves cut at a thousand bytes at the
// least, and the journal nothing. Dovecot cuts by
// itself.
func writtenCut(m *Message) bool {
	own := m.SentLen()
	if len(m.Text) >= dovecotPiece {
		return true
	}
	if m.Transport == Journal || m.Transport != BusyBox && own < 1000 {
		return false
	}
	for n := own + len("<6>"); n <= own+len("<134>"); n++ {
		if CutLength(n) || CutLength(n+len(m.Host)+len(" ")) {
			return true
		}
	}
	return false
}
