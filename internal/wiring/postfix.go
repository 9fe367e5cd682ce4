package wiring

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"popgate/internal/postconf"
)

// Postfix is what Postfix's configuration says.
type Postfix struct {
	Report
	values   map[string]string // main.cf's, expanded
	run      Runner
	ours     Ours
	services []service
}

// service is one smtpd of master.cf.
type service struct {
	name   string // smtp/inet
	chroot bool
	with   []string // what master.cf sets for it alone: name=value
	values map[string]string
}

// smtpdLists are all of smtpd's restriction lists that may refuse a recipient.
// One that refuses is enough.
var smtpdLists = []string{"smtpd_relay_restrictions", "smtpd_recipient_restrictions", "smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions"}

var postfixNames = append([]string{
	"mail_version", "queue_directory", "mail_owner", "mynetworks", "smtpd_milters", "milter_default_action", "smtpd_milter_maps",
	"receive_override_options", "smtpd_restriction_classes", "smtpd_policy_service_default_action", "compatibility_level",
	"local_transport", "virtual_transport", "relay_transport", "transport_maps", "mydestination", "virtual_alias_domains",
	"virtual_mailbox_domains", "relay_domains",
}, smtpdLists...)

// ReadPostfix looks at this host's Postfix.
func ReadPostfix(ctx context.Context, run Runner, ours Ours) (*Postfix, error) {
	p := &Postfix{run: run, ours: ours}
	p.MTA = "Postfix"
	var err error
	if p.values, err = p.postconf(ctx, nil, postfixNames...); err != nil {
		return nil, err
	}
	p.Version = p.values["mail_version"]
	if err := p.readServices(ctx); err != nil {
		return nil, err
	}
	for i := range p.services {
		if err := p.service(ctx, &p.services[i]); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// postconf gives settings as they would be with others changed.
func (p *Postfix) postconf(ctx context.Context, with []string, names ...string) (map[string]string, error) {
	args := []string{"-x"}
	for _, w := range with {
		args = append(args, "-o", w)
	}
	out, err := p.run(ctx, "", "postconf", append(args, names...)...)
	if err != nil {
		return nil, err
	}
	values := assignments(out)
	if len(values) == 0 {
		return nil, errors.New("postconf: it tells nothing")
	}
	return values, nil
}

// assignments reads "name = value", one a line.
func assignments(text string) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(text) {
		if name, value, found := strings.Cut(line, "="); found {
			values[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return values
}

// readServices reads master.cf.
func (p *Postfix) readServices(ctx context.Context) error {
	out, err := p.run(ctx, "", "postconf", "-M")
	if err != nil {
		return err
	}
	set, err := p.run(ctx, "", "postconf", "-P")
	if err != nil {
		return err
	}
	old := p.values["compatibility_level"] == "0" // then "-" stands for a chroot
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) < 8 || f[7] != "smtpd" {
			continue
		}
		s := service{name: f[0] + "/" + f[1], chroot: f[4] == "y" || f[4] == "-" && old}
		for setting := range strings.Lines(set) {
			if rest, ok := strings.CutPrefix(setting, s.name+"/"); ok {
				if name, value, found := strings.Cut(rest, "="); found {
					s.with = append(s.with, strings.TrimSpace(name)+"="+strings.TrimSpace(value))
				}
			}
		}
		p.services = append(p.services, s)
	}
	if len(p.services) == 0 {
		p.add(Warn, "Postfix master.cf", "it has no smtpd: nobody can send mail to this Postfix")
	}
	return nil
}

// judge gives a judge of a service's lists.
func (p *Postfix) judge(s *service, values map[string]string) *judge {
	return &judge{
		class: func(name string) (string, bool) {
			if !slices.Contains(postconf.Split(values["smtpd_restriction_classes"]), name) {
				return "", false
			}
			return values[name], true
		},
		resolve: func(spec string) (string, string, bool) {
			return postfixAddress(spec, p.values["queue_directory"], s.chroot)
		},
		ours: p.ours,
	}
}

// outcomes judges every list of a service.
func (p *Postfix) outcomes(s *service, values map[string]string) (map[string]outcome, bool) {
	j := p.judge(s, values)
	open, all := true, map[string]outcome{}
	for _, name := range smtpdLists {
		if values[name] == "" && name == "smtpd_relay_restrictions" {
			continue // Postfix before 2.10, or an admin who wants it so: the next list decides
		}
		o := j.list(values[name])
		all[name] = o
		open = open && o.open
	}
	return all, open
}

// settings gives what holds for one service, with further changes.
func (p *Postfix) settings(ctx context.Context, s *service, with ...string) (map[string]string, error) {
	names := append(slices.Clone(postfixNames), postconf.Split(p.values["smtpd_restriction_classes"])...)
	if len(s.with)+len(with) == 0 && len(names) == len(postfixNames) {
		return p.values, nil
	}
	return p.postconf(ctx, append(slices.Clone(s.with), with...), names...)
}

func (p *Postfix) service(ctx context.Context, s *service) error {
	values, err := p.settings(ctx, s)
	if err != nil {
		return err
	}
	s.values = values
	lists, open := p.outcomes(s, values)
	milter := p.milter(s, values)
	if milter != nil {
		p.milterSettings(s, values)
	}
	closed := p.closedDoors(s, values, lists)
	rule := "Postfix " + s.name + " smtpd_relay_restrictions"
	p.strangers(s, values, milter != nil && open)
	switch {
	case open && milter == nil:
		p.add(Fail, rule, "OPEN RELAY: nothing refuses a stranger's recipient at another site (%s), and no milter of popgate's is asked; write reject_unauth_destination at its end, or take the lines of `popgate setup postfix`", opens(lists))
	case open:
		return p.selfClosing(ctx, s, values, rule)
	case milter != nil && closed == 0:
		p.add(Fail, rule, "the milter is asked, but Postfix's own rule stays shut (%s), so that clients with a grant are refused; take the rule of `popgate setup postfix --door milter`, which is open while milter_default_action is tempfail, and receive_override_options and smtpd_milter_maps are empty", lists["smtpd_relay_restrictions"].by)
	}
	return nil
}

// strangers looks for settings that make everybody one of the site's own, and
// so open every rule that is built on them: no restriction list shows it.
func (p *Postfix) strangers(s *service, values map[string]string, milterDecides bool) {
	if everybody := tooWide(postconf.Split(values["mynetworks"])); len(everybody) > 0 && !milterDecides {
		p.add(Fail, "Postfix "+s.name+" mynetworks", "OPEN RELAY: %s are strangers, and permit_mynetworks lets them send anywhere; name the site's own networks alone", strings.Join(everybody, ", "))
	}
	for _, name := range []string{"mydestination", "relay_domains", "virtual_alias_domains", "virtual_mailbox_domains"} {
		for _, word := range postconf.Split(values[name]) {
			if strings.HasPrefix(word, "static:") {
				p.add(Fail, "Postfix "+s.name+" "+name, "OPEN RELAY: %s makes every domain one of the site's own; name its domains", word)
			}
		}
	}
}

// tooWide gives those networks that hold more than anybody's own: all of
// IPv4's or IPv6's addresses, or a good part of them.
func tooWide(networks []string) (all []string) {
	for _, text := range networks {
		if strings.HasPrefix(text, "static:") {
			all = append(all, text)
			continue
		}
		n, err := netip.ParsePrefix(strings.NewReplacer("[", "", "]", "").Replace(text))
		if err != nil {
			continue
		}
		least := 8 // 10.0.0.0/8 is the largest that is anybody's
		if n.Addr().Is6() {
			least = 16
			if fc := netip.MustParsePrefix("fc00::/7"); n.Bits() >= 7 && fc.Contains(n.Addr()) {
				least = 7
			}
		}
		if n.Bits() < least {
			all = append(all, text)
		}
	}
	return all
}

// opens names what lets a stranger's recipient pass.
func opens(lists map[string]outcome) string {
	for _, name := range smtpdLists {
		if o, ok := lists[name]; ok {
			return name + ": " + o.by
		}
	}
	return ""
}

// milter notes popgate's milter of a service.
func (p *Postfix) milter(s *service, values map[string]string) *Door {
	var found *Door
	for _, word := range postconf.Split(values["smtpd_milters"]) {
		spec, action := word, ""
		if inner, ok := strings.CutPrefix(word, "{"); ok {
			parts := postconf.Split(strings.TrimSuffix(inner, "}"))
			if len(parts) == 0 {
				continue
			}
			spec = parts[0]
			for _, part := range parts[1:] {
				if name, value, _ := strings.Cut(strings.Trim(part, "{}"), "="); strings.TrimSpace(name) == "default_action" {
					action = strings.TrimSpace(value)
				}
			}
		}
		network, address, ok := postfixAddress(spec, p.values["queue_directory"], s.chroot)
		if !ok || !p.ours(Milter, network, address) {
			continue
		}
		if action != "" && action != "tempfail" {
			p.add(Fail, "Postfix "+s.name+" smtpd_milters", "default_action=%s of popgate's milter: %s; take it out, or write tempfail", action, whenDown(action))
		}
		found = p.newDoor(s, Milter, spec, network, address)
	}
	return found
}

func (p *Postfix) newDoor(s *service, kind, spec, network, address string) *Door {
	d := Door{Kind: kind, MTA: p.MTA, Version: p.Version, Spec: spec, Network: network, Address: address, User: p.values["mail_owner"]}
	if s.chroot && network == "unix" {
		d.Root = p.values["queue_directory"]
	}
	p.door(d)
	return &d
}

func whenDown(action string) string {
	switch action {
	case "accept":
		return "while popgate is down, Postfix goes on without it"
	case "reject":
		return "while popgate is down, the site's own mail is refused for good"
	default:
		return "while popgate is down, mail must wait and nothing else"
	}
}

// milterSettings looks at what decides whether the milter is asked, and waited
// for.
func (p *Postfix) milterSettings(s *service, values map[string]string) {
	if action := values["milter_default_action"]; action != "tempfail" {
		p.add(Fail, "Postfix "+s.name+" milter_default_action", "it is %s: %s; write milter_default_action = tempfail", action, whenDown(action))
	}
	if slices.Contains(postconf.Split(values["receive_override_options"]), "no_milters") {
		p.add(Fail, "Postfix "+s.name+" receive_override_options", "no_milters: popgate is never asked; take it out")
	}
	if maps := values["smtpd_milter_maps"]; maps != "" {
		p.add(Warn, "Postfix "+s.name+" smtpd_milter_maps", "%s can turn popgate's milter off for some clients; popgate's relay rule stays shut as long as it is set", maps)
	}
}

var reference = regexp.MustCompile(`\$[{(]?(\w+)`)

// selfClosing tries what becomes of an open relay rule when the milter is lost.
func (p *Postfix) selfClosing(ctx context.Context, s *service, values map[string]string, rule string) error {
	tries := []string{"smtpd_milters=", "smtpd_milters=unix:/another", "milter_default_action=accept", "receive_override_options=no_milters", "smtpd_milter_maps=static:DISABLE"}
	for _, raw := range append(slices.Clone(s.with), "smtpd_milters="+p.raw(ctx, "smtpd_milters")) {
		if value, ok := strings.CutPrefix(raw, "smtpd_milters="); ok {
			for _, m := range reference.FindAllStringSubmatch(value, -1) {
				tries = append(tries, m[1]+"=")
			}
		}
	}
	var still []string
	for _, try := range tries {
		with := []string{try}
		if strings.HasPrefix(try, "smtpd_milter_maps") && values["smtpd_milter_maps"] == "static:DISABLE" {
			continue
		}
		changed, err := p.settings(ctx, s, with...)
		if err != nil {
			return fmt.Errorf("postconf with %s: %w", try, err)
		}
		if _, open := p.outcomes(s, changed); open {
			still = append(still, try)
		}
	}
	if len(still) > 0 {
		p.add(Fail, rule, "it does not shut itself: an OPEN RELAY as soon as somebody sets %s; take the rule of `popgate setup postfix --door milter`", strings.Join(still, ", or "))
		return nil
	}
	p.add(OK, rule, "open behind the milter; it shuts itself when the milter is lost (%d ways tried)", len(tries))
	return nil
}

func (p *Postfix) raw(ctx context.Context, name string) string {
	out, err := p.run(ctx, "", "postconf", "-h", name)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(out)
}

// closedDoors looks at the doors in a service's lists, and says how many there
// are.
func (p *Postfix) closedDoors(s *service, values map[string]string, lists map[string]outcome) (n int) {
	asks := func(o outcome) bool { return len(o.asked) > 0 }
	for _, name := range smtpdLists[:2] {
		o, ok := lists[name]
		if !ok {
			continue
		}
		for _, a := range o.asked {
			n++
			d := p.newDoor(s, a.kind, a.spec, a.network, a.address)
			for i := range p.Doors {
				if p.Doors[i].Kind == d.Kind && p.Doors[i].Address == d.Address {
					p.Doors[i].Map = a.name
				}
			}
			p.closedDoor("Postfix "+s.name+" "+name, values, &a)
		}
	}
	if n == 0 {
		return 0
	}
	for _, name := range smtpdLists[:2] {
		if o, ok := lists[name]; ok && !o.open && !asks(o) {
			p.add(Fail, "Postfix "+s.name+" "+name, "%s refuses strangers' recipients there without asking popgate, so that clients with a grant are refused; both lists have to let a recipient pass: take it out of %s, where %s has it, or ask popgate there as well", o.by, name, other(name))
		}
	}
	return n
}

func other(list string) string {
	if list == smtpdLists[0] {
		return smtpdLists[1]
	}
	return smtpdLists[0]
}

// closedDoor looks at one door in a list.
func (p *Postfix) closedDoor(what string, values map[string]string, a *asked) {
	well := true
	if !a.own {
		well = false
		p.add(Warn, what, "popgate is asked about the site's own recipients too: they have to wait while it is down; write permit_auth_destination in front of %s", a.spec)
	}
	if a.proxied {
		well = false
		p.add(Warn, what, "through proxymap one client's wait holds up others; take proxy: off")
	}
	if a.kind == SocketMap && a.name != "postfix" {
		well = false
		p.add(Fail, what, "popgate knows no map %q for Postfix; write socketmap:%s:postfix", a.name, a.spec)
	}
	if a.kind == Policy {
		action, given := a.attribute("default_action")
		if !given {
			action = values["smtpd_policy_service_default_action"]
		}
		word, _, _ := strings.Cut(strings.ToUpper(strings.TrimSpace(action)), " ")
		switch {
		case word == "OK" || word == "PERMIT" || word == "RELAY" || strings.HasPrefix(word, "2"):
			well = false
			p.add(Fail, what, "OPEN RELAY whenever popgate is down: default_action is %q; write a 451, as `popgate setup postfix` does", action)
		case !strings.HasPrefix(word, "4") && !strings.HasPrefix(word, "DEFER"):
			well = false
			p.add(Warn, what, "while popgate is down, default_action %q has clients with a grant refused for good; write a 451, as `popgate setup postfix` does", action)
		}
	}
	if well {
		p.add(OK, what, "a closed door, by %s %s", a.kind, a.spec)
	}
}

// Networks gives what Postfix trusts (mynetworks), as written.
func (p *Postfix) Networks() []string { return postconf.Split(p.values["mynetworks"]) }
