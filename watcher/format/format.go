package format

import (
	"fmt"
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
}

var names = []string{"auto", "courier", "cyrus", "dovecot"}

// Names lists the formats New knows, in alphabetical order.
func Names() []string { return append([]string(nil), names...) }

// New makes a parser for one source.
func New(name string) (Parser, error) {
	switch name {
	case "dovecot":
		return new(dovecot), nil
	case "courier":
		return new(courier), nil
	case "cyrus":
		return new(cyrus), nil
	case "auto":
		return new(auto), nil
	}
	return nil, fmt.Errorf("%q is not a log format popgate reads; choose one of %s", name, strings.Join(names, ", "))
}
