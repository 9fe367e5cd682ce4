package format

import (
	"popgate/internal/relay"
)

// uw reads the University of Washington's imapd and ipop3d, imap-2000 to 2007f
// and Panda IMAP. The lines are those of src/imapd/imapd.c and
// src/ipopd/ipop3d.c, the host is that of tcp_name in
// src/osdep/unix/tcp_unix.c.
//
//	Login user=U host=H                    imapd; ipop3d adds " nmsgs=N/N" or " no mailbox"
//	Authenticated user=U host=H[ mech=M]   imapd
//	Auth user=U host=H nmsgs=N/N           ipop3d; also APOP
//	Logout user=U host=H[ nmsgs=N ndele=N]
//
// H is "name [A]" or "[A]". The owner of the client's address chooses name, its
// reverse name; only what stands in brackets counts. U and H are each cut after
// 80 bytes: a name that long, and a host that has lost its bracket, is refused.
// The successes begin with words of their own, so a name in a failure can't
// reach one. Not read: "Admin Login", where it is another's password that was
// checked; "Preauthenticated", "IMAP login to host" and "Login anonymous", where
// none was.
//
// There is one process a connection: its pid and A pair a logout with its login.
type uw struct{}

func (*uw) Gap() {}

// uwFieldMax is where the servers cut a field.
const uwFieldMax = 80

func (*uw) Parse(m *Message) (relay.Event, Result) {
	e := relay.Event{Kind: relay.Login}
	switch string(m.Tag) {
	case "imapd":
		e.Service = relay.IMAP
	case "ipop3d":
		e.Service = relay.POP3
	default:
		return relay.Event{}, None
	}
	s := scanner{m.Text}
	if s.lit("Logout user=") {
		e.Kind = relay.Logout
		if !s.uwSession(m, &e) || s.lit(" nmsgs=") && (!s.word(&digitChars) || !s.lit(" ndele=") || !s.word(&digitChars)) || !s.done() || e.User == "???" {
			return relay.Event{}, None
		}
		return e, Logout
	}
	var ok bool
	var mechanism []byte
	switch imap := e.Service == relay.IMAP; {
	case imap && s.lit("Login user="):
		ok = s.uwSession(m, &e)
	case imap && s.lit("Authenticated user="):
		if ok = s.uwSession(m, &e); ok && s.lit(" mech=") {
			mechanism = s.run(&nameChars)
			ok = len(mechanism) > 0
		}
	case !imap && (s.lit("Login user=") || s.lit("Auth user=") || s.lit("APOP user=")):
		ok = s.uwSession(m, &e) && s.uwMailbox()
	default:
		return relay.Event{}, None
	}
	if !ok || !s.done() {
		return relay.Event{}, Unparsed
	}
	if anonymous(e.User) || anonymous(string(mechanism)) {
		return relay.Event{}, None
	}
	return e, Login
}

// uwSession takes "U host=H".
func (s *scanner) uwSession(m *Message, e *relay.Event) bool {
	user, ok := s.until(' ')
	if !ok || len(user) >= uwFieldMax || !plainUser(user) || !s.lit(" host=") {
		return false
	}
	host := len(s.rest)
	if s.word(&nameChars) && !s.lit(" ") || !s.lit("[") {
		return false
	}
	client, ok := s.address()
	if !ok || !s.lit("]") || host-len(s.rest) > uwFieldMax {
		return false
	}
	e.User, e.Client, e.Session = string(user), client, pidSession(m.PID, client)
	return true
}

// uwMailbox takes what ipop3d writes about the mailbox.
func (s *scanner) uwMailbox() bool {
	return s.lit(" no mailbox") || s.lit(" nmsgs=") && s.word(&digitChars) && s.lit("/") && s.word(&digitChars)
}
