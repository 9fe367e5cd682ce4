package format

import (
	"bytes"
	"net/netip"

	"popgate/internal/relay"
)

// solidPOP3D reads solid-pop3d 0.15.
//
//	user U authenticated - A                  also "mapped user U", and "authenticated through APOP"
//	session ended for user U - A              also "mapped user U", and "autologout time elapsed for ..."
//	authentication failed: no such user: U - A
//	user U not found
//
// U is the stranger's, raw, cut to 40 bytes; with blanks in it a line could be
// read in two ways, so such a name is refused. Built with --enable-resolve the
// server writes the client's reverse name as well, which is not read.
//
// There is one process a connection: its pid and A pair a logout with its login.
type solidPOP3D struct{}

func (*solidPOP3D) Gap() {}

// solidUserMax is where the server cuts a name. One that long may be a part
// of another.
const solidUserMax = 40

func (*solidPOP3D) Parse(m *Message) (relay.Event, Result) {
	if string(m.Tag) != "solid-pop3d" {
		return relay.Event{}, None
	}
	s := scanner{m.Text}
	e := relay.Event{Kind: relay.Logout, Service: relay.POP3}
	if s.lit("session ended for ") || s.lit("autologout time elapsed for ") {
		if user, client, ok := s.solidUser(" - "); ok {
			e.User, e.Client, e.Session = string(user), client, pidSession(m.PID, client)
			return e, Logout
		}
		return relay.Event{}, None
	}
	whole := s
	e.Kind = relay.Login
	user, client, ok := s.solidUser(" authenticated - ")
	if !ok {
		s = whole
		user, client, ok = s.solidUser(" authenticated through APOP - ")
	}
	switch {
	case ok && anonymous(string(user)):
		return relay.Event{}, None
	case ok:
		e.User, e.Client, e.Session = string(user), client, pidSession(m.PID, client)
		return e, Login
	case (whole.lit("user ") || whole.lit("mapped user ")) && bytes.Contains(whole.rest, []byte(" authenticated ")):
		return relay.Event{}, Unparsed
	}
	return relay.Event{}, None
}

// solidUser takes "user U", these words and A, to the end of the message.
func (s *scanner) solidUser(words string) (user []byte, client netip.Addr, ok bool) {
	s.lit("mapped ")
	if !s.lit("user ") {
		return nil, client, false
	}
	user, ok = s.until(' ')
	if !ok || len(user) >= solidUserMax || !plainUser(user) || !s.lit(words) {
		return nil, client, false
	}
	client, ok = s.address()
	return user, client, ok && s.done()
}

// pidSession names the session of a process that serves one connection. The
// address is in it because pids come round again. Empty: the pid is unknown.
func pidSession(pid []byte, client netip.Addr) string {
	if len(pid) == 0 {
		return ""
	}
	return string(pid) + "/" + client.String()
}
