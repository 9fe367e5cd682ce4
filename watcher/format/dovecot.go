package format

import (
	"bytes"

	"popgate/internal/relay"
)

// dovecot reads Dovecot 2.2 to 2.4. Its lines need no memory: each login
// stands in one line, and a logout carries the session id of its login.
//
//	imap-login: Login: user=<U>, method=M, rip=A, lip=B, mpid=N, TLS, session=<S>      2.2, 2.3
//	imap-login: Logged in: user=<U>, method=M, rip=A, lip=B, mpid=N, TLS, session=<S>  2.4
//	imap-login: proxy(U,host:port): Started proxying to <host> (0.1 secs): user=<U>, method=M, rip=A, lip=B, session=<S>
//	imap-login: proxy(U,host:port): Disconnected by client (1s idle, in=4, out=5): user=<U>, ...
//	imap(U)<pid><S>: Disconnected: Logged out in=24 out=775
//	master: Dovecot v2.4.1-4 (7d8c0e5759) starting up for imap, pop3
//	master: Warning: Killed with signal 15 (by pid=1 uid=0 code=kill)
//
// Dovecot writes U and, for trusted front ends, S without escaping, so a user
// or session that holds a field's end is refused, wherever it stands.
//
// A proxied login that failed begins with "proxy(U," as well, and U may be all
// that a good one says. Read to its end such a line can't be bent, but one that
// was cut can, and Dovecot cuts by itself: what is longer than 4096 bytes it
// logs in pieces, each with "imap-login: " before it. So a line about a proxied
// session that may have been cut is no login. Of the pieces behind the first the
// last ends as the line does, which no login does, and the others are of a length
// that no login has.
type dovecot struct {
	// host is that of the last line and the blank after it. It only makes
	// mayMatter and SplitFor quicker.
	host        lastHost
	bareLogouts bool // see BareLogouts
}

func (*dovecot) Gap() {}

var (
	methodChars  = chars(uppers + digits + "-_")
	sessionChars = chars(letters + digits + "+/=")
	destChars    = chars(letters + digits + "._-:[]")
	secondsChars = chars(digits + ".")
	trafficChars = chars(lowers + digits + " =,")
	reasonChars  = chars(letters + digits + " ._:()/'-")
	versionChars = chars(letters + digits + ".-+~")
	// prefixUserChars are those of plainBytes that a log prefix puts nothing
	// around: a user made of them ends at the first ")".
	prefixUserChars = func() (set charset) {
		set = plainBytes
		set['('], set[')'] = false, false
		return set
	}()
)

func (d *dovecot) Parse(m *Message) (e relay.Event, result Result) {
	if result = d.read(m, &e); result == None || result == Unparsed {
		e = relay.Event{}
	}
	return e, result
}

// read is Parse, but that an event which is none may be half filled.
func (d *dovecot) read(m *Message, e *relay.Event) Result {
	file := m.Transport == DovecotFile
	if !file && string(m.Tag) != "dovecot" {
		return None
	}
	s := scanner{m.Text}
	// The first two are most of what is read.
	switch {
	case s.lit("imap("):
		return dovecotLogout(s, e, relay.IMAP, file, d.bareLogouts)
	case s.lit("pop3("):
		return dovecotLogout(s, e, relay.POP3, file, d.bareLogouts)
	}
	word := s.run(&serviceChars)
	switch string(word) {
	case "pop3-login":
		return dovecotLogin(s, m, e, relay.POP3)
	case "imap-login":
		return dovecotLogin(s, m, e, relay.IMAP)
	case "submission-login":
		return dovecotLogin(s, m, e, relay.Submission)
	case "managesieve-login":
		return dovecotLogin(s, m, e, relay.Sieve)
	case "submission":
		if s.lit("(") {
			return dovecotLogout(s, e, relay.Submission, file, d.bareLogouts)
		}
		return None
	case "sieve", "managesieve":
		if s.lit("(") {
			return dovecotLogout(s, e, relay.Sieve, file, d.bareLogouts)
		}
		return None
	case "imap", "pop3":
		return None
	case "master":
		return dovecotMaster(s, e, file)
	}
	if bytes.HasSuffix(word, []byte("-login")) && looksLikeDovecotLogin(s.rest) {
		return Unparsed
	}
	return None
}

// dovecotLogin reads what follows "imap-login".
func dovecotLogin(s scanner, m *Message, e *relay.Event, service relay.Service) Result {
	whole := s.rest
	if !s.lit(": ") || m.Transport == DovecotFile && !s.lit("Info: ") {
		return None
	}
	e.Kind, e.Service = relay.Login, service
	switch {
	case s.lit("Login: ") || s.lit("Logged in: "):
		if method, ok := s.dovecotFields(e, true); ok && len(m.Text) < dovecotPiece {
			return dovecotResult(e, method)
		}
	case s.lit("proxy("):
		if method, ok := s.dovecotProxy(e); ok && (e.Kind == relay.Logout || !dovecotCut(m)) {
			return dovecotResult(e, method)
		}
	}
	if looksLikeDovecotLogin(whole) {
		return Unparsed
	}
	return None
}

// dovecotResult is what a login process's line tells that was read to its end.
func dovecotResult(e *relay.Event, method []byte) Result {
	switch {
	case anonymous(string(method)), anonymous(e.User):
		return None
	case e.Kind == relay.Logout:
		return Logout
	}
	return Login
}

// dovecotProxy reads a line about a proxied session after "proxy(".
func (s *scanner) dovecotProxy(e *relay.Event) (method []byte, ok bool) {
	name, ok := s.until(',')
	if !ok || !s.lit(",") || !s.word(&destChars) || !s.lit("): ") {
		return nil, false
	}
	switch {
	case s.lit("Started proxying to "):
		if !s.lit("remote host") && (!s.lit("<") || !s.word(&destChars) || !s.lit(">")) ||
			!s.lit(" (") || !s.word(&secondsChars) || !s.lit(" secs): ") {
			return nil, false
		}
	case s.lit("Disconnected by client (") || s.lit("Disconnected by server ("):
		if !s.word(&trafficChars) || !s.lit("): ") {
			return nil, false
		}
		e.Kind = relay.Logout
	default:
		return nil, false
	}
	method, ok = s.dovecotFields(e, false)
	return method, ok && e.User == string(name)
}

// dovecotCut says whether a logger may have cut a message of Dovecot's. Of
// BusyBox's, which others build to cut at 1024 bytes, only those are doubted
// that have the length at which it cuts by default: 256 with "<22>", the stamp
// and the tag.
func dovecotCut(m *Message) bool {
	if m.Transport == BusyBox {
		sent := len("<22>Nov 22 02:05:32 dovecot: ") + len(m.Text)
		return len(m.Text) >= shortestCut || 250 <= sent && sent <= 258
	}
	return len(m.Text) >= shortestCut
}

// dovecotFields reads the fields of a login to the end of the message.
func (s *scanner) dovecotFields(e *relay.Event, mpid bool) (method []byte, ok bool) {
	if !s.lit("user=<") {
		return nil, false
	}
	user, ok := s.asciiUser('>', &plainBytes)
	if !ok {
		if user, ok = s.until('>'); !ok || !plainUser(user) {
			return nil, false
		}
	}
	if !s.lit(">, method=") {
		return nil, false
	}
	if method = s.run(&methodChars); len(method) == 0 || !s.lit(", rip=") {
		return nil, false
	}
	client, ok := s.address()
	if !ok || !s.lit(", lip=") {
		return nil, false
	}
	if _, ok := s.address(); !ok {
		return nil, false
	}
	if mpid && (!s.lit(", mpid=") || !s.word(&digitChars)) {
		return nil, false
	}
	s.dovecotSecurity()
	if !s.lit(", session=<") {
		return nil, false
	}
	session := s.run(&sessionChars)
	if len(session) == 0 || !s.lit(">") || !s.done() {
		return nil, false
	}
	e.Client = client
	e.User, e.Session = twoStrings(user, session)
	return method, true
}

// twoStrings copies two texts at the price of one allocation: logins and
// logouts are a good part of what is read.
func twoStrings(a, b []byte) (string, string) {
	var room [128]byte
	both := string(append(append(room[:0], a...), b...))
	return both[:len(a)], both[len(a):]
}

// dovecotSecurity takes ", TLS" or ", secured", and the TLS layer's last word
// when the connection has broken already. That text is held to characters
// which open no further field.
func (s *scanner) dovecotSecurity() {
	if !s.lit(", secured") {
		before := s.rest
		if s.lit(", TLS") && (s.done() || s.rest[0] != ',') {
			s.rest = before
		}
	}
	if s.lit(", TLS: ") || s.lit(", TLS handshaking: ") {
		s.run(&reasonChars)
	}
}

// looksLikeDovecotLogin says whether a login process's line may be a login in
// words this release does not know. A failed login names no mail process, and
// starts with one of the known words.
func looksLikeDovecotLogin(rest []byte) bool {
	s := scanner{rest}
	if !s.lit(": ") {
		return false
	}
	s.lit("Info: ")
	switch {
	case s.lit("proxy("):
		return bytes.Contains(s.rest, []byte("): Started proxying")) || bytes.Contains(s.rest, []byte("): started proxying"))
	case s.lit("Disconnected"), s.lit("Login aborted"), s.lit("Aborted login"), s.lit("ID sent"), s.level():
		return false
	case s.lit("Login: "), s.lit("Logged in: "), s.lit("Login "), s.lit("Logged in "): // the last two: by login_log_format
		return true
	}
	return bytes.Contains(s.rest, []byte("user=<")) && bytes.Contains(s.rest, []byte(", mpid="))
}

// dovecotLogout reads what follows "imap(": the prefix names the user, and in
// one of the forms below the session or the client. Other values of
// mail_log_prefix are not read, for what stands in them can't be told.
//
//	(U)<pid><S>: Disconnected: ...    the default of 2.3 and 2.4
//	(U,A): Disconnected: ...          "%s(%u,%r): "
//	(U): Disconnected: ...            the default of 2.2
func dovecotLogout(s scanner, e *relay.Event, service relay.Service, file, bare bool) Result {
	e.Kind, e.Service = relay.Logout, service
	user, plain := s.asciiUser(')', &prefixUserChars)
	if !plain {
		var ok bool
		if user, ok = s.until(')'); !ok {
			return None
		}
	}
	s.lit(")")
	var session []byte
	if s.lit("<") {
		if !s.word(&digitChars) || !s.lit("><") {
			return None
		}
		session = s.run(&sessionChars)
		if len(session) == 0 || !s.lit(">") {
			return None
		}
	} else if i := bytes.IndexByte(user, ','); i >= 0 {
		var ok bool
		if e.Client, ok = parseAddr(user[i+1:]); !ok {
			return None
		}
		user = user[:i]
	}
	if !plain && (!plainUser(user) || bytes.IndexByte(user, '(') >= 0) || !s.lit(": ") || file && !s.lit("Info: ") {
		return None
	}
	if !s.lit("Disconnected: ") && !s.lit("Disconnected for ") && !s.lit("Logged out") && !s.lit("Connection closed") || hasControl(s.rest) {
		return None
	}
	if !bare {
		e.User, e.Session = twoStrings(user, session)
	}
	return Logout
}

// dovecotMaster reads what follows "master": the server's start and stop, at
// which its sessions are over.
func dovecotMaster(s scanner, e *relay.Event, file bool) Result {
	if !s.lit(": ") {
		return None
	}
	e.Kind = relay.Restart
	if s.lit("Warning: Killed with signal ") {
		if s.word(&digitChars) && s.lit(" (by pid=") && !hasControl(s.rest) {
			return Restart
		}
		return None
	}
	if file && !s.lit("Info: ") || !s.lit("Dovecot v") || !s.word(&versionChars) {
		return None
	}
	if s.lit(" (") && (!s.word(&versionChars) || !s.lit(")")) {
		return None
	}
	if !s.lit(" starting up") || hasControl(s.rest) {
		return None
	}
	return Restart
}
