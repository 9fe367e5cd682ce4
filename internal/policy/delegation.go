package policy

import (
	"bytes"
	"context"

	"popgate/internal/relay"
)

// Postfix's SMTPD_POLICY_README: lines name=value, each ended by a line feed
// and nothing else, and an empty line. Attributes may come in any order, and
// new ones with every release.

// maxRequest is far above what Postfix sends: some thirty attributes, of which
// the longest are addresses of at most 2048 bytes.
const maxRequest = 32 << 10

// attribute is one of those that are read.
type attribute int

const (
	attrRequest attribute = iota
	attrState
	attrClient
	attrPort
	attrRcpt
	attrSender
	attrQueue
	attrInstance
	attrMethod
	attrUser
	attributes // their number
)

func attributeOf(name []byte) (attribute, bool) {
	switch string(name) {
	case "request":
		return attrRequest, true
	case "protocol_state":
		return attrState, true
	case "client_address":
		return attrClient, true
	case "client_port":
		return attrPort, true
	case "recipient":
		return attrRcpt, true
	case "sender":
		return attrSender, true
	case "queue_id":
		return attrQueue, true
	case "instance":
		return attrInstance, true
	case "sasl_method":
		return attrMethod, true
	case "sasl_username":
		return attrUser, true
	default:
		return 0, false
	}
}

// request holds the values of one question; nil: the attribute was not sent.
type request [attributes][]byte

// parseRequest reads a whole question, its empty line included. A line that is
// no attribute, a NUL, and an attribute of ours sent twice make it none: nobody
// could say which of two client addresses counts. A carriage return is part of
// a value, never of a line's end, so that a client can't end a line with it.
func parseRequest(text []byte) (r request, ok bool) {
	if bytes.IndexByte(text, 0) >= 0 {
		return request{}, false
	}
	for {
		line, rest, found := bytes.Cut(text, []byte{'\n'})
		if !found {
			return request{}, false
		}
		if len(line) == 0 {
			break
		}
		name, value, found := bytes.Cut(line, []byte{'='})
		if !found || len(name) == 0 {
			return request{}, false
		}
		if a, known := attributeOf(name); known {
			if r[a] != nil {
				return request{}, false
			}
			r[a] = value
		}
		text = rest
	}
	if string(r[attrRequest]) != "smtpd_access_policy" || r[attrState] == nil {
		return request{}, false
	}
	return r, r.state() != "RCPT" || len(r[attrRcpt]) > 0
}

func (r *request) state() string { return string(r[attrState]) }

// query is nil for a question that is not about one recipient. At DATA and
// END-OF-MESSAGE a message of several has none, at the others it is not asked
// whether to relay: an OK there would be an answer to something else.
func (r *request) query() *relay.Query {
	if r.state() != "RCPT" {
		return nil
	}
	client, _ := literal(r[attrClient]) // no client is for the rules to judge
	return &relay.Query{
		Door: "policy", Client: client, Rcpt: string(r[attrRcpt]), Sender: string(r[attrSender]), Queue: string(r[attrQueue]),
		AuthType: string(r[attrMethod]), AuthUser: string(r[attrUser]),
	}
}

// delegation is one connection of an smtpd process, on which the questions of
// many SMTP sessions follow each other.
type delegation struct {
	judge    Judge
	waits    relay.Waits
	session  string // client address and port of the question before
	instance string // its message
}

func (d *delegation) whole(read []byte) (length int, ok bool) {
	if len(read) > 0 && read[0] == '\n' {
		return 0, false
	}
	if i := bytes.Index(read, []byte("\n\n")); i >= 0 {
		return i + 2, i+2 <= maxRequest
	}
	return 0, true
}

func (d *delegation) answer(ctx context.Context, to, question []byte) ([]byte, bool) {
	r, ok := parseRequest(question)
	if !ok {
		return d.later(to), false
	}
	q := r.query()
	if q == nil {
		return append(to, "action=DUNNO\n\n"...), true
	}
	q.Waits = d.budget(&r)
	switch ask(ctx, d.judge, q) {
	case open:
		return append(to, "action=OK\n\n"...), true
	case nothing:
		return append(to, "action=DUNNO\n\n"...), true
	default:
		return d.later(to), true
	}
}

// budget finds the session and the message the question belongs to. A session
// that can't be told from the one before has what is left of that one's waits.
func (d *delegation) budget(r *request) *relay.Waits {
	session := string(r[attrClient]) + " " + string(r[attrPort])
	if session != d.session {
		d.session, d.instance, d.waits = session, "", relay.Waits{}
	}
	if instance := string(r[attrInstance]); instance != d.instance {
		d.instance = instance
		d.waits.Begin()
	}
	return &d.waits
}

// later is a reply code, not DEFER_IF_PERMIT, which the reject_unauth_destination
// behind us would overrule for good (access(5)).
func (d *delegation) later(to []byte) []byte {
	to = append(to, "action="...)
	to = append(to, relay.Later.String()...)
	return append(to, "\n\n"...)
}
