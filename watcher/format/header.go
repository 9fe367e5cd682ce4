package format

// Transport is how a line reached the log.
type Transport uint8

const (
	UnknownTransport Transport = iota
	Syslog                     // "Nov 22 02:05:32 host tag[pid]: text": rsyslog, syslog-ng, journalctl -o short
	BusyBox                    // the same with "mail.info" before the tag
	ISO                        // the same after "2026-11-22T02:05:32.540141+00:00"
	RFC5424                    // "<22>1 2026-11-22T02:05:32.540141+00:00 host tag pid - -  text"
	DovecotFile                // "Nov 22 02:05:32 service: Info: text", Dovecot's own file: no host, no tag
	Journal                    // one JSON object, journalctl -o json
)

var transportNames = [...]string{"unknown", "syslog", "busybox", "iso", "rfc5424", "dovecot-file", "journal"}

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
	// Withheld says that the journal has a message which is not passed on: it
	// is not text, has a line end in it, or was too long to be shown. Text is
	// empty then; that there was a message still counts (for Courier).
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
		return splitRFC5424(line, m)
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

// splitRFC5424 takes "<22>1 stamp host tag pid msgid -  text". Structured data
// is not read: none of the servers writes any.
func splitRFC5424(line []byte, m *Message) bool {
	s := scanner{line[1:]}
	if n := len(s.run(&digitChars)); n < 1 || n > 3 || !s.lit(">1 ") {
		return false
	}
	n := isoLen(s.rest)
	if n == 0 {
		return false
	}
	m.Transport, m.Stamp = RFC5424, Stamp{text: s.rest[:n], form: iso}
	s.rest = s.rest[n:]
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
	if string(m.PID) == "-" {
		m.PID = nil
	}
	if !s.lit(" -") {
		return false
	}
	if s.done() {
		return true
	}
	if !s.lit(" ") {
		return false
	}
	s.lit(" ") // rsyslog keeps the blank that parted tag and text
	m.Text = s.rest
	return true
}

// fieldChars are the printable characters of an RFC 5424 header field.
var fieldChars = func() (set charset) {
	for c := '!'; c <= '~'; c++ {
		set[c] = true
	}
	return set
}()
