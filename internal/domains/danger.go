package domains

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"popgate/internal/postconf"
	"popgate/internal/relay"
)

// Finding is a setting of the MTA's that takes the ground from under a mailer
// in local_mailers.
type Finding struct {
	Text    string // what, where, and what would be right
	Mailer  string // which proves nothing any more; empty where it is not certain
	Certain bool   // false: it can't be told from here; an admin should look
	where   string // the setting, with its table
}

// owner tells whose a domain is.
type owner func(ctx context.Context, domain string, w *relay.Waits) relay.Match

// dangerous are the parameters that send other sites' mail through a transport.
var dangerous = []string{"default_transport", "sender_dependent_default_transport_maps", "transport_maps"}

// watch is what is known about such settings, and what it was read from.
type watch struct {
	found   []Finding
	told    []Finding // in the log
	files   []string  // a change of one of these calls for a reading
	mark    string
	at      time.Time // of the last reading
	problem string    // why it failed
	putOff  int       // passes in a row
}

// maxPutOff bounds for how many passes a list that is never the same twice can
// put off what a search has found.
const maxPutOff = 2

// guardTime bounds how long tables are asked whose an entry is.
const guardTime = 10 * time.Second

// guard looks for danger again when a minute has passed, when a file has
// changed, or when our own domains are others. It answers whether a mailer has
// become dangerous, or is so no more. Where Postfix can't be asked, what was
// found before stands. What is found anew while a list settles is put off before
// it is told: the transport of a domain that is just being added looks like one
// for strangers' mail until the domain counts.
func (s *Set) guard(ctx context.Context, now time.Time, news bool) (changed, putOff bool) {
	w := &s.watch
	if len(s.o.LocalMailers) == 0 || w.at.IsZero() && !s.besidePostfix() {
		return false, false
	}
	if len(w.files) == 0 {
		w.files = configFiles(filepath.Dir(s.o.MainCF))
	}
	mark, patience := stamp(w.files), reread
	if w.problem != "" {
		patience = 5 * settle
	}
	if age := now.Sub(w.at); !news && mark == w.mark && age >= 0 && age < patience {
		return false, false
	}
	found, files, err := postfixDanger(ctx, s.o.Run, s.o.LocalMailers, s.Ask)
	if ctx.Err() != nil {
		return false, false
	}
	anew := func(f Finding) bool { return !slices.Contains(w.found, f) }
	if w.putOff < maxPutOff && slices.ContainsFunc(found, anew) && s.settling() {
		return false, true
	}
	start := w.at.IsZero()
	w.mark, w.at = mark, now
	if err != nil {
		if w.problem == "" {
			s.o.Log.Warn("Postfix's configuration can't be checked for transports that would make it an open relay", "error", err)
		}
		w.problem = err.Error()
		return false, false
	}
	if files = append(configFiles(filepath.Dir(s.o.MainCF)), files...); !slices.Equal(files, w.files) {
		w.files, w.mark = files, "" // they may have changed before they were known
	}
	before := tainted(w.found)
	w.found, w.problem = stillCertain(w.found, found), ""
	s.warn(start)
	return !slices.Equal(before, tainted(w.found)), false
}

// stillCertain keeps the certain findings about settings that a new reading
// could not see through: whoever keeps a table from answering must not lift
// them.
func stillCertain(before, found []Finding) []Finding {
	out := slices.Clone(found)
	for _, f := range before {
		unseen := func(n Finding) bool { return !n.Certain && n.where == f.where }
		if f.Certain && !slices.Contains(out, f) && slices.ContainsFunc(found, unseen) {
			out = append(out, f)
		}
	}
	return out
}

// warn logs what is new among the findings. At the start certain ones are the
// caller's matter, and while not all domains are known, uncertain ones mean
// nothing.
func (s *Set) warn(start bool) {
	w, whole := &s.watch, s.view.Load().whole
	var told []Finding
	for _, f := range w.found {
		if !f.Certain && !whole {
			continue
		}
		told = append(told, f)
		switch {
		case slices.Contains(w.told, f):
		case !f.Certain:
			s.o.Log.Warn("Postfix's configuration", "warning", f.Text)
		case !start:
			s.o.Log.Error("Postfix has become an open relay by its configuration; until that is mended its transport proves nothing", "mailer", f.Mailer, "problem", f.Text)
		}
	}
	for _, f := range w.told {
		if f.Certain && !slices.Contains(w.found, f) {
			s.o.Log.Info("a danger in Postfix's configuration is over", "problem", f.Text)
		}
	}
	w.told = told
}

// besidePostfix says whether a Postfix runs here that may ask.
func (s *Set) besidePostfix() bool {
	if s.o.MTA == relay.Sendmail || s.o.From == FromSendmail {
		return false
	}
	return s.o.From == FromPostfix || exists(s.o.MainCF)
}

// tainted names the mailers with a certain finding, in order.
func tainted(found []Finding) (mailers []string) {
	for _, f := range found {
		if f.Certain {
			mailers = append(mailers, f.Mailer)
		}
	}
	slices.Sort(mailers)
	return slices.Compact(mailers)
}

// configFiles are the files of Postfix's in its directory that count here.
func configFiles(dir string) []string {
	return []string{filepath.Join(dir, "main.cf"), filepath.Join(dir, "master.cf")}
}

// postfixDanger looks for what makes an open relay of a Postfix site by
// configuration: a setting that sends recipients who need not be local through
// a transport that local_mailers takes as proof of a local one. Entries of the
// transport table for the site's own domains are well. own may be nil. It
// names the files that it depends on.
func postfixDanger(ctx context.Context, run Runner, localMailers []string, own owner) ([]Finding, []string, error) {
	out, err := run(ctx, "postconf", append([]string{"-x", "config_directory"}, dangerous...)...)
	if err != nil {
		return nil, nil, fmt.Errorf("postconf: %w", err)
	}
	d := danger{ctx: ctx, run: run, local: localMailers}
	if own != nil {
		asking, stop := context.WithTimeout(ctx, guardTime)
		defer stop()
		d.own = func(domain string) relay.Match { return own(asking, domain, nil) }
	}
	values := parameters(out)
	if dir := values["config_directory"]; dir != "" {
		d.files = configFiles(dir)
	}
	for _, name := range dangerous {
		d.parameter(name, name, values[name])
	}
	// master.cf can set them for one service only.
	out, err = run(ctx, "postconf", "-Px")
	if err != nil {
		return nil, nil, fmt.Errorf("postconf -P: %w", err)
	}
	for where, value := range parameters(out) {
		if name := where[strings.LastIndexByte(where, '/')+1:]; slices.Contains(dangerous, name) {
			d.parameter(name, "master.cf "+where, value)
		}
	}
	slices.SortFunc(d.found, func(a, b Finding) int { return strings.Compare(a.Text, b.Text) })
	slices.Sort(d.files)
	return slices.Compact(d.found), slices.Compact(d.files), nil
}

type danger struct {
	ctx   context.Context
	run   Runner
	local []string
	own   func(domain string) relay.Match // nil: nothing is ours
	found []Finding
	files []string
}

// parameter judges one setting; where names it in the finding.
func (d *danger) parameter(name, where, value string) {
	if name == "default_transport" {
		d.transport(where, value, "", true)
		return
	}
	for _, spec := range postconf.Split(value) {
		d.table(name, where, strings.TrimPrefix(spec, "proxy:"))
	}
}

// transport notes a transport that counts as local; entry is the table's key.
func (d *danger) transport(where, value, entry string, certain bool) {
	name, _, _ := strings.Cut(strings.TrimSpace(value), ":")
	if !slices.Contains(d.local, name) {
		return
	}
	f := Finding{Certain: certain, where: where}
	if entry != "" {
		where += ": " + entry
	}
	f.Text = fmt.Sprintf(
		"Postfix: %s goes through %q, which local_mailers.postfix takes as proof of a local recipient: every stranger could relay; take %s out of local_mailers and write the site's domains into local_domains",
		where, name, name)
	if certain {
		f.Mailer = name
	}
	d.found = append(d.found, f)
}

func (d *danger) table(name, where, spec string) {
	kind, path, _ := strings.Cut(spec, ":")
	where += " " + spec
	if strings.HasPrefix(path, "/") {
		for _, end := range tableFiles {
			d.files = append(d.files, path+end)
		}
	}
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
	return d.own(key)
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
	d.found = append(d.found, Finding{where: where, Text: fmt.Sprintf(
		"Postfix: %s: %s, so that nobody can tell whether it names a transport of local_mailers.postfix (%s); see to it that it does not",
		where, why, strings.Join(d.local, ", "))})
}
