package format

import "bytes"

// SafeWhenCut says whether a message of the server's can't read like a login
// only because its end was cut off on the way. With other formats, and other
// messages, a failed login that is cut behind the right byte can be a perfect
// good one.
//
// Dovecot's and Cyrus's logins end in a mark that stands in no failed one at
// its place, and tell from their first word what they are. What a proxying
// Dovecot says of a session begins with the user's name, whatever it is about.
func SafeWhenCut(p Parser, m *Message) bool {
	switch p := p.(type) {
	case *dovecot:
		return !bytes.Contains(m.Text, []byte("-login: proxy("))
	case *cyrus:
		return true
	case *auto:
		return p.chosen != nil && SafeWhenCut(p.chosen, m)
	}
	return false
}

// Remembers says whether the parser understands a message by those before it.
func Remembers(p Parser) bool {
	switch p := p.(type) {
	case *courier, *popa3d:
		return true
	case *auto:
		return p.chosen == nil || Remembers(p.chosen)
	}
	return false
}
