package format

import (
	"popgate/internal/relay"
)

// cyrus reads Cyrus IMAP. Cyrus logs no end of a session with an address or an
// id that could be paired, so there are logins only.
//
//	login: [name ][A] U MECHANISM[+TLS] User logged in SESSIONID=<S>
//
// The owner of the client's address chooses name, its reverse name, and may
// choose one that looks like an address; only what stands in brackets counts.
// A name of more than one word, or a user of more than one, is refused.
//
// With allowanonymouslogin Cyrus lets the user anonymous in and logs "login: [A]
// anonymous PASSWORD". So what follows that user may be the stranger's, up to
// "plaintext User logged in SESSIONID=<x>", and is not read at all.
type cyrus struct{}

func (*cyrus) Gap() {}

var (
	nameChars      = chars(letters + digits + "._-")
	mechanismChars = chars(uppers + digits + "-_")
)

func (*cyrus) Parse(m *Message) (relay.Event, Result) {
	tag := scanner{m.Tag}
	tag.lit("cyrus/")
	service := relay.POP3
	switch string(tag.rest) {
	case "pop3", "pop3s":
	case "imap", "imaps":
		service = relay.IMAP
	case "cyrus":
		// A transport that cut the service off the tag.
		service = relay.ServiceUnknown
	default:
		return relay.Event{}, None
	}
	s := scanner{m.Text}
	if !s.lit("login: ") {
		return relay.Event{}, None
	}
	if service == relay.ServiceUnknown {
		return relay.Event{}, Unparsed
	}
	return s.cyrusLogin(service)
}

// cyrusLogin reads what follows "login: " to the end of the message.
func (s *scanner) cyrusLogin(service relay.Service) (relay.Event, Result) {
	if s.word(&nameChars) && !s.lit(" ") || !s.lit("[") {
		return relay.Event{}, Unparsed
	}
	client, ok := s.address()
	if !ok || !s.lit("] ") {
		return relay.Event{}, Unparsed
	}
	user, ok := s.until(' ')
	if !ok || !plainUser(user) {
		return relay.Event{}, Unparsed
	}
	if anonymous(string(user)) {
		return relay.Event{}, None
	}
	s.lit(" ")
	mechanism := s.run(&mechanismChars)
	if len(mechanism) == 0 && !s.lit("plaintext") {
		return relay.Event{}, Unparsed
	}
	s.lit("+TLS")
	if !s.lit(" User logged in SESSIONID=<") || !s.word(&nameChars) || !s.lit(">") || !s.done() {
		return relay.Event{}, Unparsed
	}
	if anonymous(string(mechanism)) {
		return relay.Event{}, None
	}
	return relay.Event{Kind: relay.Login, Service: service, User: string(user), Client: client}, Login
}
