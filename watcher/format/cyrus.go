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
	e := relay.Event{Kind: relay.Login, Service: service}
	if service == relay.ServiceUnknown || !s.cyrusLogin(&e) {
		return relay.Event{}, Unparsed
	}
	return e, Login
}

// cyrusLogin reads what follows "login: " to the end of the message.
func (s *scanner) cyrusLogin(e *relay.Event) bool {
	if s.word(&nameChars) && !s.lit(" ") || !s.lit("[") {
		return false
	}
	client, ok := s.address()
	if !ok || !s.lit("] ") {
		return false
	}
	user, ok := s.until(' ')
	if !ok || !plainUser(user) {
		return false
	}
	s.lit(" ")
	if !s.lit("plaintext") && !s.word(&mechanismChars) {
		return false
	}
	s.lit("+TLS")
	if !s.lit(" User logged in SESSIONID=<") || !s.word(&nameChars) || !s.lit(">") || !s.done() {
		return false
	}
	e.Client, e.User = client, string(user)
	return true
}
