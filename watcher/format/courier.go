package format

import (
	"bytes"
	"net/netip"

	"popgate/internal/relay"
)

// courier reads Courier's POP and IMAP servers, 1.0 to 1.4.
//
//	Connection, ip=[A], port=[P]
//	LOGIN, user=U, ip=[A], port=[P][, stls=1]                      pop3d, pop3d-ssl
//	LOGIN, user=U, ip=[A], port=[P], protocol=IMAP[, starttls=1]   imapd, imapd-ssl
//	LOGIN FAILED, user=U, ip=[A], port=[P]
//	LOGOUT, user=U, ip=[A], port=[P], top=0, retr=0, ...           also DISCONNECTED, TIMEOUT
//
// A and P pair a logout with its login.
//
// Courier's logger cuts a message that is longer than about 500 bytes and logs
// the rest as a record of its own, under the same tag. The name in a failed
// login is the stranger's to choose, its length included, so the rest may read
// "LOGIN, user=victim, ip=[...], port=[...]", byte for byte a login. Only what
// came before gives it away. So, for each host and tag:
//
//   - a record that is as long as a cut one, or that starts as Courier's
//     records do and lacks their end, is a first piece: the next record is its
//     rest and never read, and so on while the rests are long;
//   - for a while after the last such piece, and for good after a gap, a login
//     counts only if its own Connection record, same address and port, came
//     later than the piece or the gap. The connection that sent the long name
//     was opened before, so its forgery finds no Connection, even where the
//     pieces of several connections should mingle;
//   - the first record after a gap may be the rest of a piece that was missed,
//     and is never read;
//   - before the first Connection of a log no login counts.
//
// One thing is out of reach: a record lost without any notice (syslog over
// UDP) may have been a first piece.
type courier struct {
	logs   []*courierLog
	gapped bool // logs seen from now on are seen after a gap
}

const (
	// longRecord is well below the 505 bytes after which Courier's logger
	// cuts, and well above what a user of maxUser/2 bytes makes.
	longRecord = 480
	// maxLogs bounds the hosts and tags told apart. Logins of others don't
	// count.
	maxLogs = 64
	// maxOpened bounds the connections remembered for one log; the oldest is
	// forgotten, and its login doesn't count.
	maxOpened = 4096
	// settling is for how many seconds after a piece a login needs its own
	// Connection. Pieces of one message are written at once.
	settling = 10
)

// courierLog is what is known about one tag of one host.
type courierLog struct {
	host, tag string
	piece     bool // the next record is the rest of one that was cut
	connected bool // a Connection was seen
	strict    bool // a login needs its own Connection: there was a gap
	pieces    bool // pieces were seen, the last with this stamp
	lastPiece int64
	opened    map[netip.AddrPort]bool
	order     []netip.AddrPort // what opened holds, a ring
	next      int
}

func (c *courier) Gap() { c.logs, c.gapped = nil, true }

// log gives the state of the message's host and tag, nil when there are too
// many.
func (c *courier) log(m *Message) *courierLog {
	for _, l := range c.logs {
		if string(m.Tag) == l.tag && string(m.Host) == l.host {
			return l
		}
	}
	if len(c.logs) == maxLogs {
		return nil
	}
	l := &courierLog{host: string(m.Host), tag: string(m.Tag), piece: c.gapped, strict: c.gapped}
	c.logs = append(c.logs, l)
	return l
}

// cut notes that the record was a piece of a longer one.
func (l *courierLog) cut(at Stamp) {
	l.piece, l.pieces = true, true
	l.lastPiece, _ = at.seconds()
	l.opened, l.order, l.next = nil, nil, 0
}

// settled says whether the last piece is long past.
func (l *courierLog) settled(at Stamp) bool {
	now, ok := at.seconds()
	return !l.pieces || ok && now > l.lastPiece+settling
}

// connect notes a Connection record.
func (l *courierLog) connect(from netip.AddrPort) {
	l.connected = true
	if !l.strict && !l.pieces || l.opened[from] {
		return
	}
	if l.opened == nil {
		l.opened = make(map[netip.AddrPort]bool)
	}
	l.opened[from] = true
	if len(l.order) < maxOpened {
		l.order = append(l.order, from)
		return
	}
	delete(l.opened, l.order[l.next])
	l.order[l.next] = from
	l.next = (l.next + 1) % maxOpened
}

// admits says whether a login from there, at that time, may count.
func (l *courierLog) admits(from netip.AddrPort, at Stamp) bool {
	return l.connected && (l.opened[from] || !l.strict && l.settled(at))
}

func (c *courier) Parse(m *Message) (relay.Event, Result) {
	service := relay.POP3
	switch string(m.Tag) {
	case "pop3d", "pop3d-ssl":
	case "imapd", "imapd-ssl":
		service = relay.IMAP
	default:
		if tellsLoss(m) {
			c.Gap()
		}
		return relay.Event{}, None
	}
	claim := None
	if bytes.HasPrefix(m.Text, []byte("LOGIN, ")) {
		claim = Unparsed
	}
	l := c.log(m)
	switch {
	case l == nil:
		return relay.Event{}, claim
	case isPiece(m):
		l.cut(m.Stamp)
		return relay.Event{}, claim
	case l.piece:
		l.piece = false
		return relay.Event{}, claim
	}
	s := scanner{m.Text}
	if s.lit("Connection, ") {
		// isPiece has seen that the message ends as it must.
		if from, ok := s.courierOrigin(); ok && s.done() {
			l.connect(from)
		}
		return relay.Event{}, None
	}
	e := relay.Event{Service: service}
	if claim == Unparsed {
		s.lit("LOGIN, ")
		from, ok := s.courierSession(&e)
		if !ok || !s.courierLoginEnd(service) || !l.admits(from, m.Stamp) {
			return relay.Event{}, Unparsed
		}
		if anonymous(e.User) {
			return relay.Event{}, None
		}
		e.Kind = relay.Login
		return e, Login
	}
	if s.lit("LOGOUT, ") || s.lit("DISCONNECTED, ") || s.lit("TIMEOUT, ") {
		if _, ok := s.courierSession(&e); ok && s.courierCounters() {
			e.Kind = relay.Logout
			return e, Logout
		}
	}
	return relay.Event{}, None
}

// tellsLoss says whether a message of the logging system itself tells that
// records were dropped.
func tellsLoss(m *Message) bool {
	switch {
	case bytes.HasPrefix(m.Tag, []byte("rsyslogd")):
		return bytes.Contains(m.Text, []byte("rate-limiting")) || bytes.Contains(m.Text, []byte("drop"))
	case string(m.Tag) == "systemd-journald":
		return bytes.HasPrefix(m.Text, []byte("Suppressed "))
	}
	return false
}

// isPiece says whether a record has been cut, so that its rest comes next.
func isPiece(m *Message) bool {
	if m.Withheld || len(m.Text) >= longRecord {
		return true
	}
	s := scanner{m.Text}
	if !s.lit("LOGIN, ") && !s.lit("LOGIN FAILED, ") && !s.lit("Connection, ") && !s.lit("Disconnected, ") &&
		!s.lit("LOGOUT, ") && !s.lit("DISCONNECTED, ") && !s.lit("TIMEOUT, ") {
		return false
	}
	i := bytes.LastIndex(m.Text, []byte(", ip=["))
	if i < 0 {
		return true
	}
	s.rest = m.Text[i+len(", "):]
	_, ok := s.courierOrigin()
	return !ok || !s.courierCounters()
}

// courierSession takes "user=U, ip=[A], port=[P]".
func (s *scanner) courierSession(e *relay.Event) (from netip.AddrPort, ok bool) {
	if !s.lit("user=") {
		return from, false
	}
	user, ok := s.until(',')
	if !ok || !plainUser(user) || !s.lit(", ") {
		return from, false
	}
	if from, ok = s.courierOrigin(); !ok {
		return from, false
	}
	e.User, e.Client, e.Session = string(user), from.Addr(), from.String()
	return from, true
}

// courierOrigin takes "ip=[A], port=[P]".
func (s *scanner) courierOrigin() (from netip.AddrPort, ok bool) {
	if !s.lit("ip=[") {
		return from, false
	}
	client, ok := s.address()
	if !ok || !s.lit("], port=[") {
		return from, false
	}
	port, ok := number(s.run(&digitChars))
	if !ok || port > 65535 || !s.lit("]") {
		return from, false
	}
	return netip.AddrPortFrom(client, uint16(port)), true
}

// courierLoginEnd takes the rest of a login.
func (s *scanner) courierLoginEnd(service relay.Service) bool {
	if service == relay.IMAP {
		if !s.lit(", protocol=IMAP") {
			return false
		}
		s.lit(", starttls=1")
	} else {
		s.lit(", stls=1")
	}
	return s.done()
}

var counterChars = chars(letters + digits + "/")

// courierCounters takes ", name=value" to the end of the message.
func (s *scanner) courierCounters() bool {
	for !s.done() {
		if !s.lit(", ") || !s.word(&wordChars) || !s.lit("=") || !s.word(&counterChars) {
			return false
		}
	}
	return true
}
