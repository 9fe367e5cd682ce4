package format

import (
	"popgate/internal/relay"
)

// dbmail reads DBMail's IMAP server, 3.4 and later. The line is that of
// dbmail_imap_session_handle_auth in src/dm_imapsession.c behind the prefix of
// trace in src/dm_debug.c (github.com/dbmail/dbmail).
//
//	Notice:[imap] dbmail_imap_session_handle_auth(+N): [0xN] login accepted: id [N] user [U] from [A:P]
//
// Its level is notice, which DBMail logs only if told to. DBMail's POP3 server
// logs no address with a login, and nothing logs the end of a session with one.
type dbmail struct{}

func (*dbmail) Gap() {}

func (*dbmail) Parse(m *Message) (relay.Event, Result) {
	if string(m.Tag) != "dbmail/imap4d" {
		return relay.Event{}, None
	}
	s := scanner{m.Text}
	if !s.lit("Notice:[imap] dbmail_imap_session_handle_auth(+") || !s.word(&digitChars) || !s.lit("): [0x") ||
		!s.word(&lowerDigitChars) || !s.lit("] login accepted: ") {
		return relay.Event{}, None
	}
	if !s.lit("id [") || !s.word(&digitChars) || !s.lit("] user [") {
		return relay.Event{}, Unparsed
	}
	user, ok := s.until(']')
	if !ok || !plainUser(user) || !s.lit("] from [") {
		return relay.Event{}, Unparsed
	}
	from, ok := s.hostPort()
	if !ok || !s.lit("]") || !s.done() {
		return relay.Event{}, Unparsed
	}
	if anonymous(string(user)) {
		return relay.Event{}, None
	}
	return relay.Event{Kind: relay.Login, Service: relay.IMAP, User: string(user), Client: from.Addr()}, Login
}
