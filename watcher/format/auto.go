package format

import (
	"bytes"

	"popgate/internal/relay"
)

// auto is the parser that finds out which server writes the log. In the
// journal it decides by the trusted unit, elsewhere by a tag that belongs to
// one server only; "pop3d", "imapd" and "popper" belong to several, so they
// decide nothing, whatever the line says. It decides once: what comes later, perhaps
// from somebody who would like another grammar, changes nothing.
type auto struct {
	chosen Parser
	name   string // the format chosen
	// courier sees every message before the choice, for its defence lives on
	// what came before.
	courier courier

	bareLogouts bool // see BareLogouts
}

func (a *auto) Gap() {
	if a.chosen != nil {
		a.chosen.Gap()
		return
	}
	a.courier.Gap()
}

func (a *auto) Parse(m *Message) (relay.Event, Result) {
	if a.chosen == nil {
		switch a.name = serverOf(m); a.name {
		case "":
			a.courier.Parse(m)
			return relay.Event{}, None
		case "courier":
			a.chosen = &a.courier
		default:
			a.chosen = formats[a.name]()
		}
		if a.bareLogouts {
			BareLogouts(a.chosen)
		}
	}
	e, result := a.chosen.Parse(m)
	if e.Kind != relay.NoEvent {
		e.Format = a.name
	}
	return e, result
}

// serverOf names the server a message gives away, if it does.
func serverOf(m *Message) string {
	if m.Transport == Journal || m.Unit != nil {
		return serverOfUnit(m.Unit)
	}
	if m.Transport == DovecotFile {
		return "dovecot"
	}
	switch string(m.Tag) {
	case "dovecot", "popa3d", "solid-pop3d", "qpopper":
		return string(m.Tag)
	case "in.qpopper":
		return "qpopper"
	case "ipop3d":
		return "uw"
	case "imapproxyd":
		return "imapproxy"
	case "dbmail/imap4d", "dbmail/pop3d":
		return "dbmail"
	case "pop3d-ssl", "imapd-ssl", "authdaemond", "courierd", "courieresmtp", "courieresmtpd":
		return "courier"
	}
	if bytes.HasPrefix(m.Tag, []byte("cyrus/")) || string(m.Tag) == "cyrus" {
		return "cyrus"
	}
	if _, ok := perditionTag(m.Tag); ok {
		return "perdition"
	}
	return ""
}

// serverOfUnit goes by the unit alone: where units can be had a tag proves
// nothing, for any local user can log under any tag, and what a user logs has
// a unit of his session's or none.
func serverOfUnit(unit []byte) string {
	name, ok := bytes.CutSuffix(unit, []byte(".service"))
	switch {
	case !ok:
		return ""
	case string(name) == "dovecot", string(name) == "perdition", string(name) == "imapproxy", string(name) == "popa3d", string(name) == "solid-pop3d":
		return string(name)
	case bytes.HasPrefix(name, []byte("courier-")):
		return "courier"
	case string(name) == "cyrus-imapd", string(name) == "cyrus-imap", string(name) == "cyrus":
		return "cyrus"
	}
	return ""
}
