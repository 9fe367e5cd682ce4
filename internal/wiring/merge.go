package wiring

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"

	"popgate/internal/postconf"
)

// Setting is a line of main.cf.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Plan is what makes Postfix ask popgate at one door.
type Plan struct {
	Settings []Setting `json:"settings"`
	Notes    []string  `json:"notes,omitempty"` // what the admin should know
	Door     Door      `json:"door"`            // where popgate must listen
}

// Listener is an address that popgate's configuration names.
type Listener struct{ Network, Address string }

// Plan merges the lines that contrib has for a door into this Postfix's own
// settings. listening is where popgate listens for that door.
func (p *Postfix) Plan(ctx context.Context, kind, lines string, listening []Listener) (*Plan, error) {
	if len(p.services) == 0 {
		return nil, errors.New("master.cf has no smtpd")
	}
	plan := &Plan{}
	first := &p.services[0]
	plan.Door = p.place(first, kind, listening)
	for _, s := range p.services {
		if s.chroot != first.chroot {
			plan.Notes = append(plan.Notes, fmt.Sprintf("some smtpd of master.cf live in the chroot and some don't: the socket's path is right for %s", first.name))
			break
		}
	}
	fresh := assignmentsOf(lines)
	own, err := p.explicit(ctx)
	if err != nil {
		return nil, err
	}
	if kind == Milter {
		p.planMilter(plan, fresh, own)
	}
	if err := p.planLists(plan, kind, fresh[smtpdLists[0]], own); err != nil {
		return nil, err
	}
	for _, s := range p.services {
		for _, with := range s.with {
			if name, _, _ := strings.Cut(with, "="); slices.ContainsFunc(plan.Settings, func(n Setting) bool { return n.Name == name }) {
				plan.Notes = append(plan.Notes, fmt.Sprintf("master.cf sets %s for %s alone, which stays as it is", name, s.name))
			}
		}
	}
	return plan, nil
}

// planLists puts popgate into each list that would refuse by itself.
func (p *Postfix) planLists(plan *Plan, kind, contribs string, own map[string]string) error {
	words := postconf.Split(contribs)
	for i, w := range words {
		words[i] = p.respell(flat(w), kind, plan.Door.Spec)
	}
	first := &p.services[0]
	relay, given := own[smtpdLists[0]]
	recipient := own[smtpdLists[1]]
	j := p.judge(first, first.values)
	switch {
	case !given || relay == "" && !j.list(first.values[smtpdLists[1]]).decided:
		plan.set(smtpdLists[0], joined(words))
	case relay != "":
		merged, err := merge(j, relay, words)
		if err != nil {
			return fmt.Errorf("%s: %w", smtpdLists[0], err)
		}
		plan.set(smtpdLists[0], merged)
		if slices.Contains(postconf.Split(merged), "defer_unauth_destination") {
			plan.Notes = append(plan.Notes, fmt.Sprintf("%s ends in defer_unauth_destination, so that strangers are put off (454); reject_unauth_destination in its place refuses them", smtpdLists[0]))
		}
	}
	if o := j.list(first.values[smtpdLists[1]]); recipient != "" && !o.open {
		merged, err := merge(j, recipient, words)
		if err != nil {
			return fmt.Errorf("%s: %w", smtpdLists[1], err)
		}
		plan.set(smtpdLists[1], merged)
		plan.Notes = append(plan.Notes, fmt.Sprintf("%s refuses by itself (%s), so popgate is asked there too", smtpdLists[1], o.by))
	}
	return nil
}

func (plan *Plan) set(name, value string) {
	plan.Settings = append(plan.Settings, Setting{name, value})
}

// planMilter puts popgate's milter in front of those that are there.
func (p *Postfix) planMilter(plan *Plan, fresh, own map[string]string) {
	list := []string{plan.Door.Spec}
	present := own["smtpd_milters"]
	if present == "$popgate" {
		present = own["popgate"]
	}
	for _, w := range postconf.Split(present) {
		spec, _, _ := strings.Cut(strings.TrimSpace(strings.Trim(w, "{}")), ",")
		network, address, ok := postfixAddress(strings.TrimSpace(spec), p.values["queue_directory"], p.services[0].chroot)
		if !ok || !p.ours(Milter, network, address) {
			list = append(list, w)
		}
	}
	plan.set("popgate", joined(list))
	plan.set("smtpd_milters", fresh["smtpd_milters"])
	plan.set("milter_default_action", fresh["milter_default_action"])
	if len(list) > 1 {
		plan.Notes = append(plan.Notes, fmt.Sprintf("the milters that were there stay, behind popgate's (%s); while one of them is down mail waits, unless it has a default_action of its own: { %s, default_action=accept }",
			joined(list[1:]), list[1]))
	}
	for _, name := range []string{"receive_override_options", "smtpd_milter_maps"} {
		if p.values[name] != "" {
			plan.Notes = append(plan.Notes, fmt.Sprintf("%s is %q: as long as it is set, the relay rule stays shut", name, p.values[name]))
		}
	}
}

// place decides where Postfix looks for popgate: where popgate listens, if
// smtpd can get there, else below the queue directory.
func (p *Postfix) place(s *service, kind string, listening []Listener) Door {
	queue := p.values["queue_directory"]
	d := Door{Kind: kind, MTA: p.MTA, Version: p.Version, Network: "unix", User: p.values["mail_owner"], Map: "postfix"}
	if s.chroot {
		d.Root = queue
	}
	listening = append(slices.Clone(listening), Listener{"unix", filepath.Join(queue, "popgate", kind+".sock")})
	for _, l := range listening {
		below, inside := strings.CutPrefix(l.Address, queue+"/")
		switch {
		case l.Network == "tcp":
			host, port, err := net.SplitHostPort(l.Address)
			if err != nil {
				continue
			}
			if strings.Contains(host, ":") {
				host = "[" + host + "]"
			}
			d.Network, d.Spec, d.Root = "tcp", "inet:"+host+":"+port, ""
		case inside && kind == Milter && s.chroot:
			d.Spec = "unix:/" + below
		case inside && kind == Milter:
			d.Spec = "unix:" + l.Address
		case inside:
			d.Spec = "unix:" + below
		case !s.chroot:
			d.Spec = "unix:" + l.Address
		default:
			continue // out of the chroot's reach
		}
		d.Address = l.Address
		break
	}
	return d
}

// respell puts another address into contrib's words.
func (p *Postfix) respell(word, kind, spec string) string {
	if kind == Milter {
		return word // it names the variable
	}
	return strings.Replace(word, "unix:popgate/"+kind+".sock", spec, 1)
}

// merge puts popgate's words of contrib's list into a site's own: in front of
// what refuses strangers' recipients, and nowhere twice.
func merge(j *judge, list string, contribs []string) (string, error) {
	words := withoutOurs(j, postconf.Split(list))
	at := -1
	for i, w := range words {
		if slices.Contains(closing, strings.ToLower(w)) && (i == 0 || !strings.EqualFold(words[i-1], "warn_if_reject")) {
			at = i
			break
		}
	}
	if at < 0 {
		return "", fmt.Errorf("%q has no reject_unauth_destination or the like in front of which popgate could stand; write it out and try again", list)
	}
	if o := j.list(joined(words)); o.open {
		return "", fmt.Errorf("%q takes strangers' recipients by itself (%s): mend that first", list, o.by)
	}
	var fresh []string
	for _, w := range contribs {
		if w == "permit_auth_destination" && slices.Contains(words[:at], w) {
			continue
		}
		if !slices.Contains([]string{"permit_mynetworks", "permit_sasl_authenticated", "reject_unauth_destination"}, w) {
			fresh = append(fresh, w)
		}
	}
	return joined(slices.Insert(words, at, fresh...)), nil
}

// withoutOurs takes popgate's words out of a list.
func withoutOurs(j *judge, words []string) (out []string) {
	for i := 0; i < len(words); i++ {
		w := words[i]
		if strings.HasPrefix(w, "${") && strings.Contains(w, "popgate") {
			continue
		}
		if i+1 < len(words) && takesArgument(w) {
			var o outcome
			if w == "check_policy_service" {
				j.policy(&o, words[i+1])
			} else {
				j.table(&o, w, words[i+1])
			}
			if len(o.asked) > 0 {
				i++
				continue
			}
			out = append(out, w, words[i+1])
			i++
			continue
		}
		out = append(out, w)
	}
	return out
}

// joined gives a list as one line. A comma stands between its parts, but not
// between a restriction and what belongs to it.
func joined(words []string) string {
	var b strings.Builder
	for i, w := range words {
		switch {
		case i == 0:
		case takesArgument(words[i-1]) || strings.EqualFold(words[i-1], "warn_if_reject"):
			b.WriteByte(' ')
		default:
			b.WriteString(", ")
		}
		b.WriteString(flat(w))
	}
	return b.String()
}

// flat makes one line of a word that goes over several.
func flat(word string) string { return strings.Join(strings.Fields(word), " ") }

// assignmentsOf reads lines of main.cf, which go on behind a blank.
func assignmentsOf(text string) map[string]string {
	return assignments(strings.NewReplacer("\n ", " ", "\n\t", " ").Replace(text))
}

// explicit gives what main.cf itself says, unexpanded, of what a plan changes.
func (p *Postfix) explicit(ctx context.Context) (map[string]string, error) {
	out, err := p.run(ctx, "", "postconf", "-n")
	if err != nil {
		return nil, err
	}
	return assignments(out), nil
}
