package config

import (
	"regexp"
	"slices"

	"gopkg.in/yaml.v3"

	"popgate/internal/relay"
)

var mailerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$`)

// neverLocal are mailers that prove no recipient local in either MTA, and why.
// Whoever counts them among the local ones has an open relay, or takes mail in
// only to lose it.
var neverLocal = map[string]string{
	"smtp":    "it carries mail to other sites: every stranger could relay",
	"esmtp":   "it carries mail to other sites: every stranger could relay",
	"smtp8":   "it carries mail to other sites: every stranger could relay",
	"dsmtp":   "it carries mail to other sites: every stranger could relay",
	"smtps":   "it carries mail to other sites: every stranger could relay",
	"uucp":    "it carries mail to other sites: every stranger could relay",
	"relay":   "it says how mail leaves, not whose it is: every stranger could relay; write the domains into local_domains",
	"error":   "it refuses mail: other people's would be taken and bounced",
	"retry":   "it puts mail off, whoever it is for",
	"discard": "it throws mail away, whoever it is for; write the domains into local_domains",
}

func (c *Config) readLocalMailers(v value) {
	v.mailers(&c.PostfixMailers.Local, &c.SendmailMailers.Local, func(item value, name string) bool {
		if why, never := neverLocal[name]; never {
			item.fail("%q is never local: %s", name, why)
			return false
		}
		return true
	})
}

func (c *Config) readRemoteMailers(v value) {
	v.mailers(&c.PostfixMailers.Remote, &c.SendmailMailers.Remote, func(item value, name string) bool {
		if name == "local" || name == "virtual" {
			item.fail("%q delivers to this site's own users: their mail would be refused", name)
			return false
		}
		return true
	})
}

// mailers reads {postfix: [...], sendmail: [...]}. The kind that is not given
// keeps its defaults.
func (v value) mailers(postfix, sendmail *[]string, check func(value, string) bool) {
	if v.n.Kind == yaml.SequenceNode {
		v.fail("a list where each MTA's own list belongs, as their mailers mean different things; write {postfix: [...]} or {sendmail: [...]}")
		return
	}
	name := func(item value, s string) bool {
		if !mailerName.MatchString(s) {
			item.fail("%q is not the name of a mailer; write the word before the first colon of the transport", clip(s))
			return false
		}
		return check(item, s)
	}
	v.fields(
		field{"postfix", func(v value) { v.names(postfix, name) }},
		field{"sendmail", func(v value) { v.names(sendmail, name) }},
	)
}

// checkMailers sees to it that no name proves both.
func (c *Config) checkMailers(given map[string]value) {
	at, ok := given["local_mailers"]
	if !ok {
		if at, ok = given["remote_mailers"]; !ok {
			return
		}
	}
	for _, m := range [...]struct {
		mta   relay.MTA
		lists relay.Mailers
	}{{relay.Postfix, c.PostfixMailers}, {relay.Sendmail, c.SendmailMailers}} {
		for _, name := range m.lists.Local {
			if slices.Contains(m.lists.Remote, name) {
				at.fail("%q is both local and remote for %s; leave it in one of local_mailers.%s and remote_mailers.%s",
					name, m.mta, m.mta, m.mta)
			}
		}
	}
	if slices.Contains(c.PostfixMailers.Remote, "relay") {
		at.warn("relay is also how Postfix carries mail for relay_domains; those domains must be in local_domains, or their mail is refused")
	}
}
