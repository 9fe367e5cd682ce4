package wiring

import (
	"slices"
	"strings"

	"popgate/internal/postconf"
)

// outcome is what one of smtpd's restriction lists does with a stranger's
// recipient at another site, apart from what popgate says.
type outcome struct {
	decided bool
	open    bool   // decided: taken; else refused or put off
	by      string // the word that decided
	asked   []asked
	own     bool // permit_auth_destination has been met: from here on only foreign recipients
}

// asked is popgate's door in a restriction list.
type asked struct {
	kind, spec       string
	network, address string
	own              bool     // the site's own recipients don't get there
	attributes       []string // of a policy service: name=value
	proxied          bool     // through proxymap
	name             string   // of a socket map
}

// judge walks through restriction lists.
type judge struct {
	class   func(name string) (value string, ok bool) // of smtpd_restriction_classes
	resolve func(spec string) (network, address string, ok bool)
	ours    Ours
}

// closing are the words after which a stranger's foreign recipient is not
// taken.
var closing = []string{"reject_unauth_destination", "defer_unauth_destination", "reject", "defer", "defer_if_permit", "check_relay_domains"}

// list gives the outcome of a whole list: its end takes what nothing refused.
func (j *judge) list(value string) outcome {
	o := j.walk(value, 0)
	if !o.decided {
		o.open, o.by = true, "the end of the list"
	}
	return o
}

func (j *judge) walk(value string, depth int) (o outcome) {
	words := postconf.Split(value)
	for i := 0; i < len(words); i++ {
		w := words[i]
		lower := strings.ToLower(w)
		switch {
		case lower == "warn_if_reject": // what follows refuses nothing
			if i++; i < len(words) && takesArgument(words[i]) {
				i++
			}
		case slices.Contains(closing, lower):
			o.decided, o.by = true, w
			return o
		case lower == "permit":
			o.decided, o.open, o.by = true, true, w
			return o
		case lower == "permit_auth_destination":
			o.own = true
		case lower == "check_policy_service" && i+1 < len(words):
			i++
			j.policy(&o, words[i])
		case takesArgument(w) && i+1 < len(words):
			i++
			if j.table(&o, lower, words[i]) {
				o.decided, o.by = true, w+" "+words[i]
				return o
			}
		default:
			class, ok := j.class(w)
			if !ok || depth > 5 {
				continue
			}
			inner := j.walk(class, depth+1)
			for _, a := range inner.asked {
				a.own = a.own || o.own
				o.asked = append(o.asked, a)
			}
			o.own = o.own || inner.own
			if inner.decided {
				inner.asked, inner.own = o.asked, o.own
				return inner
			}
		}
	}
	return o
}

// takesArgument says whether a restriction is followed by a table.
func takesArgument(word string) bool {
	return strings.HasPrefix(word, "check_") && strings.HasSuffix(word, "_access") || word == "check_policy_service"
}

// policy notes popgate's policy service.
func (j *judge) policy(o *outcome, argument string) {
	spec, attributes := argument, []string(nil)
	if inner, ok := strings.CutPrefix(argument, "{"); ok {
		parts := postconf.Split(strings.TrimSuffix(inner, "}"))
		if len(parts) == 0 {
			return
		}
		spec = parts[0]
		for _, p := range parts[1:] {
			attributes = append(attributes, strings.TrimSpace(strings.Trim(p, "{}")))
		}
	}
	if network, address, ok := j.resolve(spec); ok && j.ours(Policy, network, address) {
		o.asked = append(o.asked, asked{kind: Policy, spec: spec, network: network, address: address, own: o.own, attributes: attributes})
	}
}

// table looks at the table of check_client_access and the like: it may be
// popgate's, or one that has the same answer for all. It says whether that
// decides.
func (j *judge) table(o *outcome, word, spec string) bool {
	bare, proxied := strings.CutPrefix(spec, "proxy:")
	kind, rest, _ := strings.Cut(bare, ":")
	switch {
	case kind == "static":
		switch answer := strings.ToUpper(strings.Trim(rest, "{} ")); {
		case answer == "OK" || answer == "PERMIT" || answer == "RELAY" || answer != "" && strings.Trim(answer, "0123456789") == "":
			// A sender's own address in front of our domain is refused by
			// check_recipient_access alone.
			o.open = true
			return true
		case strings.HasPrefix(answer, "REJECT") || strings.HasPrefix(answer, "DEFER") || strings.HasPrefix(answer, "4") || strings.HasPrefix(answer, "5"):
			return true
		}
	case kind == "socketmap":
		at := strings.LastIndexByte(rest, ':')
		if at < 0 {
			return false
		}
		if network, address, ok := j.resolve(rest[:at]); ok && j.ours(SocketMap, network, address) {
			o.asked = append(o.asked, asked{kind: SocketMap, spec: rest[:at], network: network, address: address, own: o.own, proxied: proxied, name: rest[at+1:]})
		}
	}
	return false
}

// attribute gives the value of a policy service's attribute.
func (a *asked) attribute(name string) (string, bool) {
	for _, s := range a.attributes {
		if key, value, found := strings.Cut(s, "="); found && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value), true
		}
	}
	return "", false
}
