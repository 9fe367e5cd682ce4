package milter

import (
	"net"
	"net/textproto"

	gomilter "github.com/emersion/go-milter"

	"popgate/internal/relay"
)

// session is what the library calls for one connection, from the first packet
// to the last, through whichever worker has the packet. The library's arguments
// are mostly ignored: it takes off more brackets than there should be, has no
// address for sendmail's IPv6 clients, and has seen no macros. The packet itself,
// which conn still holds, has them all.
type session struct {
	conn *conn
	// query is filled anew for every recipient. What is kept in it between two
	// recipients is the connection's (Client, ClientAddr, Version) or the
	// transaction's (Sender, Queue).
	query    relay.Query
	authType string // of the transaction, from MAIL
	authUser string
	waits    relay.Waits
	refusal  lastRefusal
}

var _ gomilter.Milter = (*session)(nil)

// begin forgets everything that belongs to a transaction, never the client.
func (s *session) begin() {
	s.query.Sender, s.query.Queue = "", ""
	s.authType, s.authUser = "", ""
}

// learn takes over the macros that hold for the connection, from whatever
// stage they come.
func (s *session) learn(m *macroSet) {
	if m.sent(macroClientAddr) {
		s.query.ClientAddr = again(s.query.ClientAddr, m.value(macroClientAddr))
	}
	if m.sent(macroVersion) {
		s.query.Version = again(s.query.Version, m.value(macroVersion))
	}
}

// answer sends the answer to the command at hand, and gives the library none to
// send. The library would make a buffer of 4 KiB for it, which is a fifth of
// what a recipient costs; and an answer that doesn't say it continues is for it
// the end of what it has begun, which is not this connection's alone.
func (s *session) answer(packet []byte) (gomilter.Response, error) {
	s.conn.send(packet)
	return nil, nil
}

// Connect takes the client's address, read out of the packet by conn.
func (s *session) Connect(_, _ string, _ uint16, _ net.IP, _ *gomilter.Modifier) (gomilter.Response, error) {
	s.begin()
	s.query.Client = s.conn.client
	s.learn(s.conn.macrosFor(gomilter.CodeConn))
	return s.answer(proceed)
}

// Helo ends a transaction and what was authenticated in it: after STARTTLS the
// client begins anew.
func (s *session) Helo(string, *gomilter.Modifier) (gomilter.Response, error) {
	s.begin()
	s.learn(s.conn.macrosFor(gomilter.CodeHelo))
	return s.answer(proceed)
}

// MailFrom begins a transaction.
func (s *session) MailFrom(string, *gomilter.Modifier) (gomilter.Response, error) {
	s.begin()
	s.waits.Begin()
	m := s.conn.macrosFor(gomilter.CodeMail)
	s.learn(m)
	s.query.Sender = string(unbracket(s.conn.argument))
	s.query.Queue = string(m.value(macroQueue))
	s.authType, s.authUser = string(m.value(macroAuthType)), string(m.value(macroAuthUser))
	return s.answer(proceed)
}

// RcptTo asks the judge. rcpt, the library's reading of the recipient, serves
// only to save a copy where it is the right one.
func (s *session) RcptTo(rcpt string, _ *gomilter.Modifier) (gomilter.Response, error) {
	defer func() {
		if v := recover(); v != nil {
			// Nobody knows what was half done. The recipient is put off, and
			// the MTA does the same with all that follow when it finds the
			// connection closed.
			s.conn.panicked(v)
			if !s.conn.passed {
				s.conn.send(later)
			}
		}
	}()
	s.conn.passed = false
	q := &s.query
	q.Door, q.Waits = "milter", &s.waits
	s.fillRecipient(rcpt)
	l := s.conn.listener
	d := l.server.judge.Judge(l.judging, q)
	// A connection that waits needn't hold on to them.
	q.Rcpt, q.Mailer, q.Host, q.Addr, q.AuthType, q.AuthUser = "", "", "", "", "", ""
	switch {
	case s.conn.passed:
		return nil, nil
	case d.Verdict == relay.Pass:
		return s.answer(proceed)
	}
	return s.answer(s.refusal.refuse(l.server.judge, d, q.ClientAddress()))
}

// fillRecipient fills in what belongs to this recipient alone.
func (s *session) fillRecipient(rcpt string) {
	q, m := &s.query, s.conn.macrosFor(gomilter.CodeRcpt)
	s.learn(m)
	q.Rcpt = again(rcpt, unbracket(s.conn.argument))
	q.Mailer = word(m.value(macroMailer))
	q.Addr = again(q.Rcpt, m.value(macroAddr))
	q.Host = ending(q.Rcpt, m.value(macroHost))
	if m.sent(macroQueue) {
		q.Queue = again(q.Queue, m.value(macroQueue))
	}
	q.AuthType, q.AuthUser = s.authType, s.authUser
	if m.sent(macroAuthType) || m.sent(macroAuthUser) { // one stage's word, never half of each
		q.AuthType = again(s.authType, m.value(macroAuthType))
		q.AuthUser = again(s.authUser, m.value(macroAuthUser))
	}
}

// again gives b as a string: the one already there, if it reads the same.
func again(old string, b []byte) string {
	if string(b) == old {
		return old
	}
	return string(b)
}

// ending gives b as a string: the end of s, if that reads the same.
func ending(s string, b []byte) string {
	if n := len(s) - len(b); n >= 0 && s[n:] == string(b) {
		return s[n:]
	}
	return string(b)
}

// word gives b as a string, without a copy for the usual mailers.
func word(b []byte) string {
	for _, w := range [...]string{"", "smtp", "esmtp", "local", "virtual", "relay", "error"} {
		if string(b) == w {
			return w
		}
	}
	return string(b)
}

// Header, Headers and BodyChunk are called only for an MTA that can't leave
// them out.
func (s *session) Header(string, string, *gomilter.Modifier) (gomilter.Response, error) {
	return s.answer(proceed)
}

func (s *session) Headers(textproto.MIMEHeader, *gomilter.Modifier) (gomilter.Response, error) {
	return s.answer(proceed)
}

func (s *session) BodyChunk([]byte, *gomilter.Modifier) (gomilter.Response, error) {
	return s.answer(proceed)
}

// Body ends a message. It continues too: "accept", the library's default, is an
// answer we never send.
func (s *session) Body(*gomilter.Modifier) (gomilter.Response, error) {
	s.begin()
	return s.answer(proceed)
}

// Abort comes after RSET, after a message, before QUIT, after STARTTLS: the
// transaction is over, the client is the same.
func (s *session) Abort(*gomilter.Modifier) error {
	s.begin()
	return nil
}
