package format

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"popgate/internal/relay"
)

// Result says what a message told.
type Result uint8

const (
	None     Result = iota // nothing that concerns a grant
	Login                  // a password was accepted
	Logout                 // an authenticated session ended
	Restart                // the server started or stopped
	Unparsed               // looks like a login and matches nothing: no event
)

var resultNames = [...]string{"none", "login", "logout", "restart", "unparsed"}

// String gives the word test-log and status use.
func (r Result) String() string {
	if int(r) < len(resultNames) {
		return resultNames[r]
	}
	return "none"
}

// A Parser reads the messages of one server's log in the order in which they
// were written. One value serves one source: it may remember what it saw.
type Parser interface {
	// Parse reads one message. The event's Kind, Client, User, Service and
	// Session are set; the rest is the caller's, who knows the arrival. Only
	// "auto" sets Format as well, to the format it found. The event shares no
	// memory with the message. It is the zero Event unless the result is
	// Login, Logout or Restart.
	Parse(m *Message) (relay.Event, Result)

	// Gap tells that something may have been missed before the next message:
	// reading begins in the middle of a log, a line was dropped, a file was
	// rotated away unread.
	Gap()

	// mayMatter is MayMatter but for lines of the journal.
	mayMatter(line []byte) bool
}

// formats are those New knows, by name.
var formats = map[string]func() Parser{
	"auto":        func() Parser { return new(auto) },
	"courier":     func() Parser { return new(courier) },
	"cyrus":       func() Parser { return new(cyrus) },
	"dbmail":      func() Parser { return new(dbmail) },
	"dovecot":     func() Parser { return new(dovecot) },
	"imapproxy":   func() Parser { return new(imapproxy) },
	"perdition":   func() Parser { return new(perdition) },
	"popa3d":      func() Parser { return new(popa3d) },
	"qpopper":     func() Parser { return new(qpopper) },
	"solid-pop3d": func() Parser { return new(solidPOP3D) },
	"uw":          func() Parser { return new(uw) },
}

// refused are servers whose logs can't serve, and why.
var refused = map[string]string{
	"mailutils": "GNU Mailutils' pop3d and imap4d log no client address with a login, so there is nothing to grant; " +
		"put a proxy in front that logs it (format: perdition), or use another server",
}

// Names lists the formats New knows, in alphabetical order.
func Names() []string { return slices.Sorted(maps.Keys(formats)) }

// New makes a parser for one source.
func New(name string) (Parser, error) {
	if fresh := formats[name]; fresh != nil {
		return fresh(), nil
	}
	if why := refused[name]; why != "" {
		return nil, fmt.Errorf("%q can't be read: %s", name, why)
	}
	return nil, fmt.Errorf("%q is not a log format popgate reads; choose one of %s", name, strings.Join(Names(), ", "))
}

// Alone says of a format's lines that each is understood by itself, and that none
// becomes a login by losing its end. Of the others nothing may be lost, or change
// places, on the way to the reader without notice. A format that nobody has
// looked at for this is one of the others.
func Alone(name string) bool { return name == "cyrus" || name == "dovecot" }

// BareLogouts tells a parser that its caller only counts logouts: it may give
// them without user and session, which saves a copy of both.
func BareLogouts(p Parser) {
	switch p := p.(type) {
	case *dovecot:
		p.bareLogouts = true
	case *auto:
		p.bareLogouts = true
	}
}
