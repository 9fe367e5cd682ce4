package format

// Entry is what the journal itself says about one of its entries: whose it is,
// and where it stands. journald lets nobody else set a field whose name begins
// with an underscore. What it holds is good as long as the line is. A field
// that the entry does not have, or whose value is not plain text, is empty.
type Entry struct {
	Cursor    []byte // its place in the journal
	Time      []byte // when journald took it in, in microseconds
	Transport []byte // how it reached journald
	Unit      []byte // the systemd unit of the process that wrote it
	UID, EXE  []byte // whose that process was, and what it ran
	Machine   []byte // the machine's id
	MessageID []byte // of messages of a known kind. Not trusted
	Object    []byte // the unit a message of journald is about
	Message   []byte // as written in the line, escapes and all
}

// field gives the place of a field, nil if it is none of an Entry.
func (e *Entry) field(key []byte) *[]byte {
	switch string(key) {
	case "__CURSOR":
		return &e.Cursor
	case "__REALTIME_TIMESTAMP":
		return &e.Time
	case "_TRANSPORT":
		return &e.Transport
	case "_SYSTEMD_UNIT":
		return &e.Unit
	case "_UID":
		return &e.UID
	case "_EXE":
		return &e.EXE
	case "_MACHINE_ID":
		return &e.Machine
	case "MESSAGE_ID":
		return &e.MessageID
	case "OBJECT_SYSTEMD_UNIT":
		return &e.Object
	case "MESSAGE":
		return &e.Message
	}
	return nil
}

// SplitEntry takes one object of journalctl -o json. False means that it is
// none, or that a field of Entry is given twice.
func SplitEntry(line []byte, e *Entry) bool {
	*e = Entry{}
	s := jsonScanner{line}
	if !s.byte('{') {
		return false
	}
	for {
		key, escaped, ok := s.str()
		if !ok || escaped || !s.byte(':') {
			return false
		}
		to := e.field(key)
		switch {
		case to == nil:
			if !s.value(0) {
				return false
			}
		case *to != nil:
			return false
		case len(s.rest) == 0 || s.rest[0] != '"': // null, or numbers: no text
			if !s.value(0) {
				return false
			}
			*to = []byte{}
		default:
			text, escaped, ok := s.str()
			if !ok {
				return false
			}
			if *to = text; escaped && to != &e.Message {
				*to = []byte{}
			}
		}
		if s.byte(',') {
			continue
		}
		return s.byte('}') && len(s.rest) == 0
	}
}
