package format

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// splitJournal takes one object of journalctl -o json. Field names that start
// with an underscore were set by journald itself, all others by whoever
// logged. A field that is given twice is in dispute, so the line is refused.
func splitJournal(line []byte, m *Message) bool {
	s := jsonScanner{line[1:]}
	m.Transport, m.Withheld = Journal, true
	var seen [7]bool
	for {
		key, escaped, ok := s.str()
		if !ok || escaped || !s.byte(':') {
			return false
		}
		field := fieldOf(key)
		if field >= 0 {
			if seen[field] {
				return false
			}
			seen[field] = true
		}
		if !s.field(field, m) {
			return false
		}
		if s.byte(',') {
			continue
		}
		return s.byte('}') && len(s.rest) == 0 && m.Stamp.form != noStamp
	}
}

const (
	fieldMessage = iota
	fieldTag
	fieldSyslogPID
	fieldPID
	fieldHost
	fieldUnit
	fieldTime
)

func fieldOf(key []byte) int {
	switch string(key) {
	case "MESSAGE":
		return fieldMessage
	case "SYSLOG_IDENTIFIER":
		return fieldTag
	case "SYSLOG_PID":
		return fieldSyslogPID
	case "_PID":
		return fieldPID
	case "_HOSTNAME":
		return fieldHost
	case "_SYSTEMD_UNIT":
		return fieldUnit
	case "__REALTIME_TIMESTAMP":
		return fieldTime
	}
	return -1
}

// field takes a field's value and keeps it where it belongs. Whatever is not
// a string (bytes as numbers, null) is as good as not there.
func (s *jsonScanner) field(field int, m *Message) bool {
	if field < 0 || len(s.rest) == 0 || s.rest[0] != '"' {
		return s.value(0)
	}
	text, escaped, ok := s.str()
	if !ok {
		return false
	}
	if escaped && field != fieldMessage {
		return true // no tag, host, unit or number needs an escape
	}
	switch field {
	case fieldMessage:
		if escaped {
			m.buf = unescape(m.buf[:0], text)
			text = m.buf
		}
		if bytes.IndexByte(text, '\n') < 0 {
			m.Text, m.Withheld = text, false
		}
	case fieldTag:
		m.Tag = text
	case fieldSyslogPID:
		m.PID = text
	case fieldPID:
		if m.PID == nil {
			m.PID = text
		}
	case fieldHost:
		m.Host = text
	case fieldUnit:
		m.Unit = text
	case fieldTime:
		if _, ok := number(text); !ok {
			return false
		}
		m.Stamp = Stamp{text: text, form: micros}
	}
	return true
}

// jsonScanner reads JSON as journalctl writes it: no blanks between tokens.
type jsonScanner struct{ rest []byte }

func (s *jsonScanner) byte(c byte) bool {
	if len(s.rest) == 0 || s.rest[0] != c {
		return false
	}
	s.rest = s.rest[1:]
	return true
}

// str takes a string. The text is as written; escaped says that unescape has
// work to do, and that every escape is a valid one.
func (s *jsonScanner) str() (text []byte, escaped, ok bool) {
	if !s.byte('"') {
		return nil, false, false
	}
	b := s.rest
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case c == '"':
			s.rest = b[i+1:]
			return b[:i], escaped, true
		case c < ' ':
			return nil, false, false
		case c == '\\':
			escaped = true
			if i++; i >= len(b) {
				return nil, false, false
			}
			switch b[i] {
			case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
			case 'u':
				if _, ok := hex4(b[i+1:]); !ok {
					return nil, false, false
				}
				i += 4
			default:
				return nil, false, false
			}
		}
	}
	return nil, false, false
}

// maxDepth bounds arrays in arrays; journalctl writes one level.
const maxDepth = 4

// value takes any value and forgets it.
func (s *jsonScanner) value(depth int) bool {
	if len(s.rest) == 0 || depth > maxDepth {
		return false
	}
	switch s.rest[0] {
	case '"':
		_, _, ok := s.str()
		return ok
	case '[':
		s.rest = s.rest[1:]
		if s.byte(']') {
			return true
		}
		for {
			if !s.value(depth + 1) {
				return false
			}
			if s.byte(']') {
				return true
			}
			if !s.byte(',') {
				return false
			}
		}
	}
	t := scanner{s.rest}
	if t.lit("null") || t.lit("true") || t.lit("false") || t.lit("0") || t.word(&digitChars) {
		s.rest = t.rest
		return true
	}
	return false
}

// unescape appends the text of a string whose escapes str has checked.
func unescape(to, b []byte) []byte {
	for i := 0; i < len(b); i++ {
		if b[i] != '\\' {
			to = append(to, b[i])
			continue
		}
		i++
		switch b[i] {
		case 'b':
			to = append(to, '\b')
		case 'f':
			to = append(to, '\f')
		case 'n':
			to = append(to, '\n')
		case 'r':
			to = append(to, '\r')
		case 't':
			to = append(to, '\t')
		case 'u':
			r, _ := hex4(b[i+1:])
			i += 4
			if utf16.IsSurrogate(r) {
				pair := rune(utf8.RuneError)
				if i+2 < len(b) && b[i+1] == '\\' && b[i+2] == 'u' {
					low, _ := hex4(b[i+3:])
					pair = utf16.DecodeRune(r, low)
				}
				if r = pair; r != utf8.RuneError {
					i += 6
				}
			}
			to = utf8.AppendRune(to, r)
		default:
			to = append(to, b[i])
		}
	}
	return to
}

// hex4 reads four hexadecimal digits.
func hex4(b []byte) (r rune, ok bool) {
	if len(b) < 4 {
		return 0, false
	}
	for _, c := range b[:4] {
		d, ok := hexDigit(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | rune(d)
	}
	return r, true
}
