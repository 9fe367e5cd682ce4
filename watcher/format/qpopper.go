package format

import (
	"popgate/internal/relay"
)

// qpopper reads Qualcomm's Qpopper 4 with its log-login option on and its text
// unchanged. The line is the default of pLog_login in popper/pop_init.c, written
// by do_log_login in popper/pop_log.c.
//
//	(v4.0.9) POP login by user "U" at (NAME) A
//	(v4.0.9) POP login by user "U" at (NAME) A [pop_log.c:244]
//
// It is written after a success only. The owner of the client's address chooses
// NAME, its reverse name, and may choose one that looks like an address; only
// what stands behind it counts. Without the name of the source file the address
// ends the message, so one that may have been cut is not read: half an address
// is another one. Qpopper logs no end of a session that could be paired.
type qpopper struct{}

func (*qpopper) Gap() {}

var (
	hostNameChars   = chars(letters + digits + "._:-")
	sourceFileChars = chars(letters + digits + "._/-")
)

func (*qpopper) Parse(m *Message) (relay.Event, Result) {
	switch string(m.Tag) {
	case "qpopper", "in.qpopper", "popper", "in.popper":
	default:
		return relay.Event{}, None
	}
	s := scanner{m.Text}
	if !s.lit("(v") || !s.word(&versionChars) || !s.lit(") POP login by user ") {
		return relay.Event{}, None
	}
	if mayBeCut(m) || !s.lit(`"`) {
		return relay.Event{}, Unparsed
	}
	user, ok := s.until('"')
	if !ok || !plainUser(user) || !s.lit(`" at (`) || !s.word(&hostNameChars) || !s.lit(") ") {
		return relay.Event{}, Unparsed
	}
	client, ok := s.address()
	if !ok || s.lit(" [") && (!s.word(&sourceFileChars) || !s.lit(":") || !s.word(&digitChars) || !s.lit("]")) || !s.done() {
		return relay.Event{}, Unparsed
	}
	if anonymous(string(user)) {
		return relay.Event{}, None
	}
	return relay.Event{Kind: relay.Login, Service: relay.POP3, User: string(user), Client: client}, Login
}
