package format

import (
	"bytes"

	"popgate/internal/relay"
)

// imapproxy reads up-imapproxy 1.2. The lines are those of Get_Server_conn in
// imapcommon.c, and of Debian's imapproxy 1.2.8.
//
//	LOGIN: 'U' (A:P) on new sd [N]           also "on existing sd"
//	LOGIN: 'U' (A:P) failed: ...             and, before either, "no previous connection: ..."
//	LOGOUT: 'U' from server sd [N]
//
// U is written as the client sent it, in quotation marks if it sent any, and
// with AUTHENTICATE LOGIN it may hold any byte: "x' (203.0.113.66:1) on new sd
// [4]" for one. A line that is read to its end can't be bent by that, one that
// some logger has cut can. So no message is read that is long enough to have
// been cut by any logger, BusyBox's included, and no name with a blank or an
// apostrophe. A refusal ends in text of the backend's, with line ends in it.
//
// N is used again as soon as it is free, so logouts pair with no login.
type imapproxy struct{}

func (*imapproxy) Gap() {}

func (*imapproxy) Parse(m *Message) (relay.Event, Result) {
	if string(m.Tag) != "imapproxyd" {
		return relay.Event{}, None
	}
	s := scanner{m.Text}
	if s.lit("LOGOUT: '") {
		user, ok := s.imapproxyUser()
		if !ok || !s.lit("' from server sd [") || !s.word(&digitChars) || !s.lit("]") || !s.done() {
			return relay.Event{}, None
		}
		return relay.Event{Kind: relay.Logout, Service: relay.IMAP, User: string(user)}, Logout
	}
	if !s.lit("LOGIN: '") {
		return relay.Event{}, None
	}
	if len(m.Text) < busyBoxCut {
		if e, ok := s.imapproxyLogin(); ok {
			if anonymous(e.User) {
				return relay.Event{}, None
			}
			return e, Login
		}
	}
	// The words of a refusal stand behind the name, so they are searched for:
	// this only decides what is counted.
	if bytes.Contains(m.Text, []byte(") on new sd [")) || bytes.Contains(m.Text, []byte(") on existing sd [")) {
		return relay.Event{}, Unparsed
	}
	return relay.Event{}, None
}

func (s *scanner) imapproxyLogin() (relay.Event, bool) {
	user, ok := s.imapproxyUser()
	if !ok || !s.lit("' (") {
		return relay.Event{}, false
	}
	from, ok := s.hostPort()
	if !ok || !s.lit(") on ") || !s.lit("new") && !s.lit("existing") || !s.lit(" sd [") || !s.word(&digitChars) || !s.lit("]") || !s.done() {
		return relay.Event{}, false
	}
	return relay.Event{Kind: relay.Login, Service: relay.IMAP, User: string(user), Client: from.Addr()}, true
}

// imapproxyUser takes a name up to the apostrophe, and its quotation marks off.
func (s *scanner) imapproxyUser() ([]byte, bool) {
	user, ok := s.until('\'')
	if n := len(user); n >= 2 && user[0] == '"' && user[n-1] == '"' {
		user = user[1 : n-1]
	}
	return user, ok && plainUser(user) && !bytes.ContainsAny(user, ` "\`)
}
