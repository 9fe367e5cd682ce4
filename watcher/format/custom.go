package format

import (
	"bytes"
	"fmt"
	"regexp"

	"popgate/internal/relay"
)

// Custom describes a format of the site's own.
type Custom struct {
	Name    string        // as in the configuration; used in errors only
	Tag     string        // the program's name, exactly
	Pattern string        // RE2 of a whole login message, with the groups client, user, service, session
	Logout  string        // RE2 of a whole logout message; empty: logouts are not read
	Service relay.Service // of messages whose pattern has no group service
}

// custom is a parser made of a site's own patterns. A message of a length at
// which syslog daemons cut is no login of it: that it failed may stand in what
// was cut off, behind a name that was long enough for that.
type custom struct {
	tag           []byte
	service       relay.Service
	login, logout *pattern
}

// NewCustom compiles a format of the site's own. It refuses a login pattern in
// which text that a stranger may have chosen could move the group client; see
// judge for how that is decided.
func NewCustom(c Custom) (Parser, error) {
	p := &custom{tag: []byte(c.Tag), service: c.Service}
	if c.Tag == "" {
		return nil, fmt.Errorf("format %q: no tag; write the program's name as it stands before the colon of its lines", c.Name)
	}
	var err error
	if p.login, err = compile(c.Pattern); err == nil {
		err = p.login.judge()
	}
	if err != nil {
		return nil, fmt.Errorf("format %q: pattern: %w", c.Name, err)
	}
	if c.Logout == "" {
		return p, nil
	}
	if p.logout, err = compile(c.Logout); err != nil {
		return nil, fmt.Errorf("format %q: logout: %w", c.Name, err)
	}
	return p, nil
}

func (*custom) Gap() {}

func (p *custom) Parse(m *Message) (relay.Event, Result) {
	if !bytes.Equal(m.Tag, p.tag) || m.Withheld {
		return relay.Event{}, None
	}
	claim := None
	if p.login.mayMatch(m.Text) {
		claim = Unparsed
		e := relay.Event{Kind: relay.Login, Service: p.service}
		if p.login.read(m.Text, &e) {
			// The pattern may have no group for the mechanism, so the word is
			// looked for wherever it stands.
			if anonymous(e.User) || bytes.Contains(m.Text, []byte("ANONYMOUS")) {
				return relay.Event{}, None
			}
			if writtenCut(m) {
				return relay.Event{}, Unparsed
			}
			return e, Login
		}
	}
	if p.logout != nil && p.logout.mayMatch(m.Text) {
		e := relay.Event{Kind: relay.Logout, Service: p.service}
		if p.logout.read(m.Text, &e) {
			return e, Logout
		}
	}
	return relay.Event{}, claim
}

// pattern is a compiled expression and the literal text without which it
// can't match, so that RE2 is run on likely messages only.
type pattern struct {
	re      *regexp.Regexp
	items   []item
	literal []byte
	front   bool // literal is how every match begins
}

// shortestLiteral is how much fixed text a pattern must have in one piece.
const shortestLiteral = 4

func compile(expr string) (*pattern, error) {
	items, err := itemize(expr)
	if err != nil {
		return nil, err
	}
	// Ours are the only anchors: the message is matched from end to end.
	re, err := regexp.Compile(`\A(?:` + expr + `)\z`)
	if err != nil {
		return nil, err
	}
	p := &pattern{re: re, items: items}
	for i, it := range items {
		if it.kind == fixed && len(it.text) > len(p.literal) {
			p.literal, p.front = []byte(it.text), i == 0
		}
	}
	if len(p.literal) < shortestLiteral {
		return nil, fmt.Errorf("no fixed text of at least %d characters in one piece; write out the words that every such message has", shortestLiteral)
	}
	return p, nil
}

func (p *pattern) mayMatch(text []byte) bool {
	if p.front {
		return bytes.HasPrefix(text, p.literal)
	}
	return bytes.Contains(text, p.literal)
}

// read matches a message and fills in what the groups caught. A user or a
// session that could be confused with the text around it is refused, as in
// every other format.
func (p *pattern) read(text []byte, e *relay.Event) bool {
	if hasControl(text) {
		return false
	}
	at := p.re.FindSubmatchIndex(text)
	if at == nil {
		return false
	}
	for i, name := range p.re.SubexpNames() {
		if name == "" || at[2*i] < 0 {
			continue
		}
		got, ok := text[at[2*i]:at[2*i+1]], true
		switch name {
		case "client":
			e.Client, ok = parseAddr(got)
		case "user":
			e.User, ok = string(got), plainUser(got)
		case "session":
			e.Session, ok = string(got), plainUser(got)
		case "service":
			e.Service = foldService(got)
		}
		if !ok {
			return false
		}
	}
	return true
}

// foldService gives the service for a server's word for it.
func foldService(word []byte) relay.Service {
	switch string(word) {
	case "pop3", "pop3s", "pop3d", "pop3d-ssl", "POP3", "pop3-login", "pop", "POP":
		return relay.POP3
	case "imap", "imaps", "imapd", "imapd-ssl", "IMAP", "imap-login", "imap4", "IMAP4":
		return relay.IMAP
	case "submission", "submissions", "submission-login":
		return relay.Submission
	case "sieve", "managesieve", "managesieve-login":
		return relay.Sieve
	}
	return relay.ServiceOther
}
