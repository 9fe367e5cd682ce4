package format

import (
	"bytes"
	"net/netip"

	"popgate/internal/relay"
)

// perdition reads Perdition 2, the POP3, IMAP4 and ManageSieve proxy. The lines
// are those of perdition_log_auth and perdition_log_close in perdition.c
// (github.com/horms/perdition), and of Debian's perdition 2.2.
//
//	Auth: A:P->B:Q client-secure=T authorisation_id=NONE authentication_id="U" server="H:Q" protocol=IMAP4 server-secure=T status="ok"
//	Closing session: A:P->B:Q authorisation_id=NONE authentication_id="U" received=N sent=N
//
// A failed login is the same line with status="failed: ...". U is the
// stranger's, quotation marks and all, so what tells the two apart stands
// behind a stranger's text. A line that is read to its end can't be bent, but
// one that was cut can: a name that brings its own end, of the length at which
// some logger cuts, leaves a perfect login of the stranger's own address. So a
// line that may have been cut is not read.
//
// A and P pair the end of a session with its login. Perdition repeats the line
// of a session that is still open each connect_relog seconds; that renews.
type perdition struct{}

func (*perdition) Gap() {}

var lowerDigitChars = chars(lowers + digits)

func (*perdition) Parse(m *Message) (relay.Event, Result) {
	service, ok := perditionTag(m.Tag)
	if !ok {
		return relay.Event{}, None
	}
	s := scanner{m.Text}
	if s.lit("Closing session: ") {
		return s.perditionClose(service)
	}
	if !s.lit("Auth: ") || !bytes.HasSuffix(s.rest, []byte(` status="ok"`)) {
		return relay.Event{}, None
	}
	e := relay.Event{Kind: relay.Login}
	if mayBeCut(m) || !s.perditionOrigin(&e) || !s.lit("client-secure=") || !s.word(&lowerDigitChars) || !s.lit(" ") ||
		!s.perditionUser(&e) || !s.perditionServer(&e) {
		return relay.Event{}, Unparsed
	}
	if anonymous(e.User) {
		return relay.Event{}, None
	}
	return e, Login
}

// perditionTag tells Perdition's tags, the names it is started by, and the
// service in them: "perdition" alone has none.
func perditionTag(tag []byte) (relay.Service, bool) {
	s := scanner{tag}
	if !s.lit("perdition") {
		return relay.ServiceUnknown, false
	}
	switch string(s.rest) {
	case "":
		return relay.ServiceUnknown, true
	case ".pop3", ".pop3s":
		return relay.POP3, true
	case ".imap4", ".imap4s", ".imaps":
		return relay.IMAP, true
	case ".managesieve":
		return relay.Sieve, true
	}
	return relay.ServiceUnknown, false
}

// perditionOrigin takes "A:P->B:Q ".
func (s *scanner) perditionOrigin(e *relay.Event) bool {
	from, ok := s.hostPort()
	if !ok || !s.lit("->") {
		return false
	}
	e.Client, e.Session = from.Addr(), from.String()
	_, ok = s.hostPort()
	return ok && s.lit(" ")
}

// perditionUser takes both identities. The user is the one whose password was
// checked.
func (s *scanner) perditionUser(e *relay.Event) bool {
	if !s.lit("authorisation_id=") {
		return false
	}
	if !s.lit("NONE") {
		if _, ok := s.perditionQuoted(); !ok {
			return false
		}
	}
	if !s.lit(" authentication_id=") {
		return false
	}
	user, ok := s.perditionQuoted()
	e.User = string(user)
	return ok
}

// perditionQuoted takes a name in quotation marks, which are not escaped in it.
func (s *scanner) perditionQuoted() ([]byte, bool) {
	if !s.lit(`"`) {
		return nil, false
	}
	name, ok := s.until('"')
	return name, ok && plainUser(name) && s.lit(`"`)
}

// perditionServer takes the rest of a login.
func (s *scanner) perditionServer(e *relay.Event) bool {
	if !s.lit(` server="`) || !s.word(&destChars) || !s.lit(`" protocol=`) {
		return false
	}
	switch {
	case s.lit("POP3"):
		e.Service = relay.POP3
		s.lit("S")
	case s.lit("IMAP4"):
		e.Service = relay.IMAP
		s.lit("S")
	case s.lit("MANAGESIEVE"):
		e.Service = relay.Sieve
	default:
		return false
	}
	return s.lit(" server-secure=") && s.word(&lowerDigitChars) && s.lit(` status="ok"`) && s.done()
}

// perditionClose takes what follows "Closing session: ".
func (s *scanner) perditionClose(service relay.Service) (relay.Event, Result) {
	e := relay.Event{Kind: relay.Logout, Service: service}
	if !s.perditionOrigin(&e) || !s.perditionUser(&e) || !s.lit(" received=") || !s.word(&digitChars) || !s.lit(" sent=") || !s.word(&digitChars) || !s.done() {
		return relay.Event{}, None
	}
	return e, Logout
}

// hostPort takes an address, a colon and a port. An IPv6 address stands there
// without brackets: the last colon is the one before the port.
func (s *scanner) hostPort() (netip.AddrPort, bool) {
	before := s.rest
	text := s.run(&addressChars)
	if i := bytes.LastIndexByte(text, ':'); i > 0 {
		client, ok := parseAddr(text[:i])
		port, valid := number(text[i+1:])
		if ok && valid && port <= 65535 {
			return netip.AddrPortFrom(client, uint16(port)), true
		}
	}
	s.rest = before
	return netip.AddrPort{}, false
}

const (
	// shortestCut is below the length of a message that the loggers around
	// cut: 480 bytes, header and all, are what RFC 5424 has every receiver
	// take.
	shortestCut = 400
	// busyBoxCut is the same for BusyBox's syslogd, which reads 256 bytes as
	// Debian and others build it, header and all.
	busyBoxCut = 200
)

// mayBeCut says whether a message is so long that a logger may have cut it.
func mayBeCut(m *Message) bool {
	return len(m.Text) >= shortestCut || m.Transport == BusyBox && len(m.Text) >= busyBoxCut
}
