package domains

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"popgate/internal/relay"
)

// Finding is a setting of the MTA's that takes the ground from under a mailer
// in local_mailers.
type Finding struct {
	Text    string // what, where, and what would be right
	Certain bool   // false: it can't be told from here; an admin should look
}

// Owner tells whose a domain is: *relay.Domains or *Set.
type Owner interface {
	Match(domain string) relay.Match
}

// dangerous are the parameters that send other sites' mail through a transport.
var dangerous = []string{"default_transport", "sender_dependent_default_transport_maps", "transport_maps"}

// PostfixDanger looks for what makes an open relay of a Postfix site by
// configuration: a setting that sends recipients who need not be local through
// a transport that local_mailers takes as proof of a local one. Entries of the
// transport table for the site's own domains are well. A Set as own knows also
// those in tables that can only be asked; own may be nil.
func PostfixDanger(ctx context.Context, run Runner, localMailers []string, own Owner) ([]Finding, error) {
	if run == nil {
		run = Exec
	}
	out, err := run(ctx, "postconf", append([]string{"-x"}, dangerous...)...)
	if err != nil {
		return nil, fmt.Errorf("postconf: %w", err)
	}
	d := danger{ctx: ctx, run: run, local: localMailers, own: own}
	values := parameters(out)
	for _, name := range dangerous {
		d.parameter(name, name, values[name])
	}
	// master.cf can set them for one service only.
	out, err = run(ctx, "postconf", "-Px")
	if err != nil {
		return nil, fmt.Errorf("postconf -P: %w", err)
	}
	for where, value := range parameters(out) {
		if name := where[strings.LastIndexByte(where, '/')+1:]; slices.Contains(dangerous, name) {
			d.parameter(name, "master.cf "+where, value)
		}
	}
	slices.SortFunc(d.found, func(a, b Finding) int { return strings.Compare(a.Text, b.Text) })
	return slices.Compact(d.found), nil
}

type danger struct {
	ctx   context.Context
	run   Runner
	local []string
	own   Owner
	found []Finding
}

// parameter judges one setting; where names it in the finding.
func (d *danger) parameter(name, where, value string) {
	if name == "default_transport" {
		d.transport(where, value, "", true)
		return
	}
	for _, spec := range splitList(value) {
		d.table(name, where, strings.TrimPrefix(spec, "proxy:"))
	}
}

// transport notes a transport that counts as local; entry is the table's key.
func (d *danger) transport(where, value, entry string, certain bool) {
	name, _, _ := strings.Cut(strings.TrimSpace(value), ":")
	if !slices.Contains(d.local, name) {
		return
	}
	if entry != "" {
		where += ": " + entry
	}
	d.found = append(d.found, Finding{fmt.Sprintf(
		"Postfix: %s goes through %q, which local_mailers.postfix takes as proof of a local recipient: every stranger could relay; take %s out of local_mailers and write the site's domains into local_domains",
		where, name, name), certain})
}

func (d *danger) table(name, where, spec string) {
	kind, path, _ := strings.Cut(spec, ":")
	where += " " + spec
	switch {
	case kind == "static":
		d.transport(where, path, "", true)
		return
	case kind == "regexp" || kind == "pcre":
		d.patterns(where, path)
		return
	case !slices.Contains(listable, kind):
		d.unsure(where, "it can't be listed")
		return
	}
	text, err := d.run(d.ctx, "postmap", "-s", spec)
	if err != nil {
		d.unsure(where, err.Error())
		return
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "\t")
		whose := relay.DomainOther
		if name == "transport_maps" {
			whose = d.whose(key)
		}
		if whose < relay.DomainFound {
			d.transport(where, value, key, whose == relay.DomainOther)
		}
	}
}

// whose tells whose the recipients are that an entry of the transport table is
// for.
func (d *danger) whose(key string) relay.Match {
	if d.own == nil || key == "*" {
		return relay.DomainOther
	}
	if _, domain, found := strings.Cut(key, "@"); found {
		key = domain
	}
	if below, found := strings.CutPrefix(key, "."); found {
		key = "any-host." + below
	}
	return d.own.Match(key)
}

// patterns judges a table of patterns by its results: which recipients a
// pattern fits is more than can be told from here.
func (d *danger) patterns(where, path string) {
	data, err := readFile(path)
	if err != nil {
		d.unsure(where, cause(err))
		return
	}
	for _, line := range cfLines(data) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		for _, name := range d.local {
			for _, f := range fields[1:] {
				if f == name || strings.HasPrefix(f, name+":") {
					d.transport(where, name, fields[0], true)
				}
			}
		}
	}
}

func (d *danger) unsure(where, why string) {
	d.found = append(d.found, Finding{fmt.Sprintf(
		"Postfix: %s: %s, so that nobody can tell whether it names a transport of local_mailers.postfix (%s); see to it that it does not",
		where, why, strings.Join(d.local, ", ")), false})
}
