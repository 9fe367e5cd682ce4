package push

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"unicode/utf8"

	"popgate/internal/relay"
)

// reportAttributes is what Dovecot 2.3 must be told to send; how 2.4 writes it
// stands in docs/dovecot.md.
const reportAttributes = "auth_policy_request_attributes = login=%{requested_username} remote=%{rip} protocol=%s session_id=%{session} mech=%m " +
	"host=%{passdb:host:no} nologin=%{passdb:nologin:no}"

// readReport reads the body of one of Dovecot's reports about a login. The zero
// event is a report that concerns no grant. An error is a report that may be
// about a login and can't be read as one; it repeats nothing a client sent.
//
// Dovecot quotes what clients sent, such as login and device_id, but a report
// that could be read in two ways is none all the same: a key that stands in it
// twice, in whatever case, is an error, as is one of another type than Dovecot
// gives it.
func readReport(body []byte) (relay.Event, error) {
	o, err := readObject(body)
	if err != nil {
		return relay.Event{}, err
	}
	success, reject := o.boolean("success"), o.boolean("policy_reject")
	protocol := o.word("protocol")
	if o.err != nil {
		return relay.Event{}, o.err
	}
	if !success || reject || protocol != "pop3" && protocol != "imap" {
		return relay.Event{}, nil
	}
	t := told{client: o.word("remote"), user: o.word("login"), session: o.word("session_id"), service: protocol}
	mech, host, nologin := o.word("mech"), o.word("host"), "no"
	if _, ok := o.values["nologin"]; ok { // 2.4 can't tell
		nologin = o.word("nologin")
	}
	switch {
	case o.err != nil:
		return relay.Event{}, fmt.Errorf("%w; have Dovecot send what docs/dovecot.md says, for 2.3 %s", o.err, reportAttributes)
	case mech == "":
		return relay.Event{}, errors.New("mech is empty, so that an anonymous login can't be told apart")
	case strings.EqualFold(mech, "ANONYMOUS"):
		return relay.Event{}, nil
	case host != "no":
		// Proxied: the password is checked by the server behind, if it is checked
		// here at all.
		return relay.Event{}, nil
	case nologin != "no":
		return relay.Event{}, nil // the password was right, and the login is refused
	}
	ev, err := t.event()
	if errors.Is(err, errNobody) {
		return relay.Event{}, nil
	}
	return ev, err
}

// Bounds of what a login may bring along. They are kept with its grant.
const (
	maxUser    = 255
	maxSession = 128
)

// errNobody is a login that needed no password.
var errNobody = errors.New("user anonymous is nobody")

// told is a login as it is told, in words.
type told struct{ client, user, service, session string }

// event makes the event of a login that was told, without its time.
func (t *told) event() (relay.Event, error) {
	ev := relay.Event{Kind: relay.Login, User: t.user, Session: t.session, Zoned: true}
	a, err := netip.ParseAddr(t.client)
	if err != nil || a.Zone() != "" {
		return relay.Event{}, fmt.Errorf("client address %s is no full IPv4 or IPv6 address", quoteShort(t.client))
	}
	ev.Client = relay.Canonical(a)
	var ok bool
	if ev.Service, ok = relay.ParseService(strings.TrimSuffix(t.service, "s")); !ok || strings.HasSuffix(t.service, "s") && ev.Service != relay.POP3 && ev.Service != relay.IMAP {
		return relay.Event{}, fmt.Errorf("service %s is none of pop3, imap, submission, sieve, other", quoteShort(t.service))
	}
	switch {
	case t.user == "":
		return relay.Event{}, errors.New("the user is missing")
	case strings.EqualFold(t.user, "anonymous"):
		return relay.Event{}, errNobody
	case len(t.user) > maxUser || !plainText(t.user):
		return relay.Event{}, fmt.Errorf("the user is longer than %d bytes, no UTF-8, or holds control characters", maxUser)
	case len(t.session) > maxSession || !plainText(t.session):
		return relay.Event{}, fmt.Errorf("the session is longer than %d bytes, no UTF-8, or holds control characters", maxSession)
	}
	return ev, nil
}

// plainText says whether text can be stored and printed as it is.
func plainText(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 || r == utf8.RuneError }) < 0
}

// quoteShort shows a stranger's word.
func quoteShort(s string) string {
	const most = 60
	if len(s) > most {
		return fmt.Sprintf("%+q...", s[:most])
	}
	return fmt.Sprintf("%+q", s)
}

// Bounds of a JSON object.
const (
	maxKeys  = 64
	maxDepth = 8
)

// object is a JSON object whose keys all differ, by more than upper and lower
// case. What is nested in it is passed over. err is the first thing about it
// that is not as it was asked for.
type object struct {
	values map[string]any // string, bool, or nil for everything else
	err    error
}

// word gives the string under a key, which must be there.
func (o *object) word(key string) string {
	v, ok := o.values[key]
	if !ok {
		o.fail("%s is missing", key)
		return ""
	}
	s, ok := v.(string)
	if !ok {
		o.fail("%s is no string", key)
	}
	return s
}

// boolean gives what is under a key, which must be true or false itself.
func (o *object) boolean(key string) bool {
	b, ok := o.values[key].(bool)
	if !ok {
		o.fail("%s is neither true nor false", key)
	}
	return b
}

func (o *object) fail(text, key string) {
	if o.err == nil {
		o.err = fmt.Errorf(text, key)
	}
}

// readObject reads one JSON object and nothing after it. encoding/json itself
// would take the last of two equal keys, and "Remote" for "remote".
func readObject(body []byte) (*object, error) {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("no JSON object")
	}
	o := &object{values: map[string]any{}}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		key, ok := t.(string)
		if err != nil || !ok {
			return nil, errors.New("broken JSON")
		}
		folded := strings.ToLower(key)
		if seen[folded] {
			return nil, errors.New("a key stands in it twice")
		}
		if seen[folded] = true; len(seen) > maxKeys {
			return nil, fmt.Errorf("more than %d keys", maxKeys)
		}
		if o.values[key], err = readValue(d); err != nil {
			return nil, err
		}
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("broken JSON")
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("something follows the JSON object")
	}
	return o, nil
}

// readValue gives a string or a bool; nil stands for every other value.
func readValue(d *json.Decoder) (any, error) {
	for depth := 0; ; {
		t, err := d.Token()
		if err != nil {
			return nil, errors.New("broken JSON")
		}
		switch t {
		case json.Delim('{'), json.Delim('['):
			depth++
		case json.Delim('}'), json.Delim(']'):
			depth--
			t = nil
		}
		switch {
		case depth > maxDepth:
			return nil, fmt.Errorf("nested deeper than %d", maxDepth)
		case depth > 0:
			continue
		}
		switch t.(type) {
		case string, bool:
			return t, nil
		}
		return nil, nil
	}
}
