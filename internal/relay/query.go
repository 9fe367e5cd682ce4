package relay

import (
	"net/netip"
	"strconv"
	"strings"
)

// Query is one question: may this client send to this recipient? The doors
// fill it with what the MTA told, unjudged.
type Query struct {
	Door       string     // which door asks: milter, policy, socketmap, control
	Client     netip.Addr // the address given at CONNECT; zero: none
	ClientAddr string     // the macro {client_addr} at RCPT; empty: not sent
	Rcpt       string     // the raw recipient without its angle brackets
	Sender     string     // the raw sender, for the log only
	Queue      string     // the MTA's queue id, for the log only
	Version    string     // the macro v, from whatever stage it came
	Mailer     string     // {rcpt_mailer}; empty: not sent
	Host       string     // {rcpt_host}
	Addr       string     // {rcpt_addr}
	AuthType   string     // {auth_type} of this transaction
	AuthUser   string     // {auth_authen} of this transaction
	Waits      *Waits     // what this connection may still wait; nil: never
}

// Waits is one connection's budget of waiting for a login. The door keeps it
// for the life of the connection, calls Begin at every MAIL, and hands it to
// the gate with each question. It is used by one goroutine at a time.
type Waits struct {
	Transaction bool  // this transaction has waited
	Count       uint8 // waits in this connection
	Asker       Asker // nil: nobody can do anything meanwhile
}

// Asker is a door's connection that can do something about an answer that has to
// wait.
type Asker interface {
	// Blocks is told before an answer has to wait, for whatever it is, by the
	// goroutine that waits: there may be others to answer meanwhile.
	Blocks()
	// Passes is told once the answer that waits is known to be Pass, by whoever
	// brought that about and before the goroutine that waits has noticed. To tell
	// the MTA here saves the time until then. It must not block.
	Passes()
}

// Block tells the door that an answer is about to wait. It may be called more
// than once for one answer.
func (w *Waits) Block() {
	if w != nil && w.Asker != nil {
		w.Asker.Blocks()
	}
}

// Begin starts a new transaction.
func (w *Waits) Begin() { w.Transaction = false }

// Authenticated says whether the client authenticated in this transaction:
// both macros are there and the mechanism is not ANONYMOUS (RFC 4505).
func (q *Query) Authenticated() bool {
	return q.AuthType != "" && q.AuthUser != "" && !strings.EqualFold(q.AuthType, "ANONYMOUS")
}

// ClientAddress gives the client address, or the zero Addr when there is none,
// when it can't be read, or when CONNECT and {client_addr} name two different
// ones: then nobody knows who is asking.
func (q *Query) ClientAddress() netip.Addr {
	client := Canonical(q.Client)
	if q.ClientAddr == "" {
		return client
	}
	if a, err := ParseClient(q.ClientAddr); err == nil && (a == client || !q.Client.IsValid()) {
		return a
	}
	return netip.Addr{}
}

// Reject is the reply to a refused recipient.
type Reject struct {
	Code     int    // 4xx or 5xx, never 421
	Enhanced string // RFC 3463, its first digit the code's
	Text     string // with the placeholders {client} and {url}
	URL      string // what {url} stands for
}

// DefaultReject is the reply of an unchanged configuration.
var DefaultReject = Reject{Code: 550, Enhanced: "5.7.1",
	Text: "Relaying denied for {client}: fetch your mail (POP or IMAP) first, then send again"}

// Later is the reply where nobody can tell: it refuses nobody for good and lets
// nobody through.
var Later = Reply{Code: 451, Enhanced: "4.7.1", Text: "Relaying cannot be decided at the moment, try again later"}

// Reply is an SMTP reply (RFC 5321, RFC 3463).
type Reply struct {
	Code     int
	Enhanced string
	Text     string
}

// String gives the reply as one line.
func (r Reply) String() string { return strconv.Itoa(r.Code) + " " + r.Enhanced + " " + r.Text }

// Reply gives what the client is told. Nothing a client sent goes into it but
// its own address, and the reason only as far as it tells the client nothing
// about the cache: a client without a grant and one whose grant has expired
// read the same. The zero Reply belongs to a pass.
func (r *Rules) Reply(d Decision, client netip.Addr) Reply {
	switch d.Verdict {
	case Pass:
		return Reply{}
	case Refuse:
		name := "your address"
		if client.IsValid() {
			name = client.String()
		}
		return Reply{Code: r.Reject.Code, Enhanced: r.Reject.Enhanced, Text: fill(r.Reject.Text, name, r.Reject.URL)}
	default:
		return Later
	}
}

// fill puts values in the place of the placeholders. What is in a value is never
// taken for one.
func fill(text, client, url string) string {
	b := make([]byte, 0, len(text)+len(client)+len(url))
	for {
		before, rest, found := strings.Cut(text, "{")
		b = append(b, before...)
		switch {
		case !found:
			return string(b)
		case strings.HasPrefix(rest, "client}"):
			b, rest = append(b, client...), rest[len("client}"):]
		case strings.HasPrefix(rest, "url}"):
			b, rest = append(b, url...), rest[len("url}"):]
		default:
			b = append(b, '{')
		}
		text = rest
	}
}
