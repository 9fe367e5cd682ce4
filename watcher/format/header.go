package format

import "bytes"

// Transport is how a line reached the log.
type Transport uint8

const (
	UnknownTransport Transport = iota
	Syslog                     // "Nov 22 02:05:32 host tag[pid]: text": rsyslog, syslog-ng, journalctl -o short
	BusyBox                    // the same with "mail.info" before the tag
	ISO                        // the same after "2026-11-22T02:05:32.540141+00:00"
	RFC3164                    // "<22>Nov 22 02:05:32 host tag[pid]: text", as it is sent; BusyBox sends no host
	RFC5424                    // "<22>1 2026-11-22T02:05:32.540141+00:00 host tag pid - -  text"
	DovecotFile                // "Nov 22 02:05:32 service: Info: text", Dovecot's own file: no host, no tag
	Journal                    // one JSON object, journalctl -o json
)

var transportNames = [...]string{"unknown", "syslog", "busybox", "iso", "rfc3164", "rfc5424", "dovecot-file", "journal"}

// String gives the transport's name.
func (t Transport) String() string {
	if int(t) < len(transportNames) {
		return transportNames[t]
	}
	return transportNames[0]
}

// Message is one line taken apart. Its slices lie in the line, or in memory of
// the Message itself, and are good until the next Split.
type Message struct {
	Transport Transport
	Stamp     Stamp
	Host      []byte
	Tag       []byte // the program's name; nil where the transport has none
	PID       []byte // nil: none
	Text      []byte // in a DovecotFile the level word still stands in it
	Unit      []byte // the systemd unit as the journal itself saw it; nil: unknown. A caller may set it
	// Withheld says that there is a message which is not passed on: in the
	// journal it is not text, has a line end in it, or was too long to be shown;
	// as it was sent by syslog it has a control byte in it. Text is empty then;
	// that there was a message still counts (for Courier).
	Withheld bool

	buf []byte // Text when the JSON string had escapes
}

var (
	hostChars    = chars(letters + digits + "._-:%")
	tagChars     = chars(letters + digits + "._-/+")
	serviceChars = chars(lowers + digits + "-")
	wordChars    = chars(lowers + digits)
)

// Split takes a line, without its line end, apart. It finds the transport by
// itself. False means that this is no log line of a known transport; nothing
// is to be read from it.
func Split(line []byte, m *Message) bool {
	*m = Message{buf: m.buf[:0]}
	if len(line) < stampLen {
		return false
	}
	switch c := line[0]; {
	case c == '{':
		return splitJournal(line, m)
	case c == '<':
		return splitSent(line, m)
	case 'A' <= c && c <= 'S':
		if !looksTraditional(line) {
			return false
		}
		m.Transport, m.Stamp = Syslog, Stamp{text: line[:stampLen], form: traditional}
		return splitHead(line[stampLen:], m)
	case '0' <= c && c <= '9':
		n := isoLen(line)
		if n == 0 {
			return false
		}
		m.Transport, m.Stamp = ISO, Stamp{text: line[:n], form: iso}
		return splitHead(line[n:], m)
	}
	return false
}

// splitHead takes " host tag[pid]: text", or what Dovecot writes to a file of
// its own.
func splitHead(rest []byte, m *Message) bool {
	if len(rest) < 2 || rest[0] != ' ' {
		return false
	}
	rest = rest[1:]
	i := 0
	for i < len(rest) && hostChars[rest[i]] {
		i++
	}
	if i == 0 || i == len(rest) {
		return false
	}
	if rest[i] != ' ' || rest[i-1] == ':' {
		return splitDovecotFile(rest, m)
	}
	m.Host = rest[:i]
	return splitTag(rest[i+1:], m)
}

// splitTag takes "tag[pid]: text", or "mail.info tag[pid]: text".
func splitTag(rest []byte, m *Message) bool {
	i := 0
	for i < len(rest) && tagChars[rest[i]] {
		i++
	}
	if i == 0 || i == len(rest) {
		return false
	}
	switch rest[i] {
	case ':':
		m.Tag, rest = rest[:i], rest[i+1:]
	case '[':
		m.Tag, rest = rest[:i], rest[i+1:]
		s := scanner{rest}
		m.PID = s.run(&digitChars)
		if len(m.PID) == 0 || !s.lit("]:") {
			return false
		}
		rest = s.rest
	case ' ':
		if m.Transport != Syslog || !isPriority(rest[:i]) {
			return false
		}
		m.Transport = BusyBox
		return splitTag(rest[i+1:], m)
	default:
		return false
	}
	if len(rest) == 0 {
		return true
	}
	if rest[0] != ' ' {
		return false
	}
	m.Text = rest[1:]
	return true
}

// isPriority says whether a word is BusyBox's "facility.level".
func isPriority(word []byte) bool {
	s := scanner{word}
	return s.word(&wordChars) && s.lit(".") && s.word(&wordChars) && s.done()
}

// splitDovecotFile takes "imap-login: Info: text" or "imap(user)<1><id>: Info:
// text". The level stands inside the message, so that the parser judges it.
func splitDovecotFile(rest []byte, m *Message) bool {
	s := scanner{rest}
	if !s.word(&serviceChars) || s.done() {
		return false
	}
	switch s.rest[0] {
	case '(':
	case ':':
		if s.rest = s.rest[1:]; !s.lit(" ") || !s.level() {
			return false
		}
	default:
		return false
	}
	m.Transport, m.Text = DovecotFile, rest
	return true
}

// level takes the level word that Dovecot writes after a prefix.
func (s *scanner) level() bool {
	return s.lit("Info: ") || s.lit("Debug: ") || s.lit("Warning: ") || s.lit("Error: ") || s.lit("Fatal: ") || s.lit("Panic: ")
}

// splitSent takes what syslog daemons send each other: a priority, and behind
// it RFC 5424's header or, as RFC 3164 found it in use, that of a file.
func splitSent(line []byte, m *Message) bool {
	n := PriorityLen(line)
	if n == 0 {
		return false
	}
	rest := line[n:]
	ok := false
	switch {
	case bytes.HasPrefix(rest, []byte("1 ")):
		m.Transport = RFC5424
		ok = splitRFC5424(rest[2:], m)
	case looksTraditional(rest):
		m.Transport, m.Stamp = RFC3164, Stamp{text: rest[:stampLen], form: traditional}
		ok = splitRFC3164(rest[stampLen:], m)
	default:
		if n = isoLen(rest); n > 0 {
			m.Transport, m.Stamp = RFC3164, Stamp{text: rest[:n], form: iso}
			ok = splitRFC3164(rest[n:], m)
		}
	}
	if ok && hasLineEnd(m.Text) {
		m.Text, m.Withheld = nil, true
	}
	return ok
}

// hasLineEnd says whether a message has a control byte in it; syslog-ng passes
// them on as they are. Among them is the line end; 0x7f, which Dovecot passes
// on too, ends nothing anywhere.
func hasLineEnd(text []byte) bool {
	for _, c := range text {
		if c < ' ' {
			return true
		}
	}
	return false
}

// PriorityLen gives the length of the "<22>" with which each message that
// syslog daemons send begins, 0 if there is none.
func PriorityLen(b []byte) int {
	if len(b) < len("<0>") || b[0] != '<' {
		return 0
	}
	s := scanner{b[1:]}
	digits := s.run(&digitChars)
	value, ok := number(digits)
	if !ok || len(digits) > 3 || value > 191 || len(digits) > 1 && digits[0] == '0' || !s.lit(">") {
		return 0
	}
	return len(b) - len(s.rest)
}

// splitRFC3164 takes " host tag[pid]: text", or " tag[pid]: text". A host's
// name does not end in a colon, and a tag's word does.
func splitRFC3164(rest []byte, m *Message) bool {
	if len(rest) < 2 || rest[0] != ' ' {
		return false
	}
	rest = rest[1:]
	i := bytes.IndexByte(rest, ' ')
	if i < 0 || rest[i-min(i, 1)] == ':' {
		return splitTag(rest, m)
	}
	s := scanner{rest}
	m.Host = s.run(&hostChars)
	return len(m.Host) == i && i > 0 && splitTag(rest[i+1:], m)
}

// bom is the mark with which the text of an RFC 5424 message says that it is
// UTF-8.
const bom = "\ufeff"

// splitRFC5424 takes "stamp host tag pid msgid structured-data  text". What the
// structured data say is not read: none of the servers writes any.
func splitRFC5424(rest []byte, m *Message) bool {
	n := isoLen(rest)
	if n == 0 {
		return false
	}
	m.Stamp = Stamp{text: rest[:n], form: iso}
	s := scanner{rest[n:]}
	var msgid []byte
	for _, field := range [...]*[]byte{&m.Host, &m.Tag, &m.PID, &msgid} {
		if !s.lit(" ") {
			return false
		}
		*field = s.run(&fieldChars)
		if len(*field) == 0 {
			return false
		}
	}
	for _, field := range [...]*[]byte{&m.Host, &m.PID} {
		if string(*field) == "-" {
			*field = nil
		}
	}
	if !s.lit(" ") || !s.structuredData() {
		return false
	}
	if s.done() {
		return true
	}
	if !s.lit(" ") {
		return false
	}
	if !s.lit(bom) {
		s.lit(" ") // rsyslog keeps the blank that parted tag and text
	}
	m.Text = s.rest
	return true
}

// structuredData takes "-" or elements, such as [meta sequenceId="1"].
func (s *scanner) structuredData() bool {
	if s.lit("-") {
		return true
	}
	n := 0
	for ; s.lit("["); n++ {
		if !s.word(&sdNameChars) {
			return false
		}
		for s.lit(" ") {
			if !s.word(&sdNameChars) || !s.lit(`="`) || !s.quoted() {
				return false
			}
		}
		if !s.lit("]") {
			return false
		}
	}
	return n > 0
}

// quoted takes a value up to its quote, with which it ends. Quote, backslash
// and bracket stand in it only behind a backslash.
func (s *scanner) quoted() bool {
	for i := 0; i < len(s.rest); i++ {
		switch s.rest[i] {
		case '"':
			s.rest = s.rest[i+1:]
			return true
		case ']':
			return false
		case '\\':
			i++
		}
	}
	return false
}

// sdNameChars are the characters of RFC 5424's names.
var sdNameChars = func() (set charset) {
	set = fieldChars
	set['='], set[']'], set['"'] = false, false, false
	return set
}()

// fieldChars are the printable characters of an RFC 5424 header field.
var fieldChars = func() (set charset) {
	for c := '!'; c <= '~'; c++ {
		set[c] = true
	}
	return set
}()
