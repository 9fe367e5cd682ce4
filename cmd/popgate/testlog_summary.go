package main

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"popgate/internal/ledger"
	"popgate/internal/relay"
	"popgate/watcher/format"
)

// summary prints what was found, and what to do next.
func (t *logTest) summary() {
	n, out := &t.count, t.out
	if t.flags.printsLines() {
		fmt.Fprintln(out)
	}
	var rows countRows
	rows.always("lines", n.n, "")
	if len(n.files) > 1 {
		for _, f := range n.files {
			rows.always("  "+quoted(f.name), f.n, f.found())
		}
	}
	rows.always("logins", n.logins, n.formats())
	for service, count := range n.services {
		rows.add("  "+cmp.Or(relay.Service(service).String(), "service not told"), count, "")
	}
	if n.logins > 0 {
		rows.always("would grant now", n.outcomes[ledger.Granted], "by "+quoted(t.by))
		for outcome, count := range n.outcomes {
			if o := ledger.Outcome(outcome); o != ledger.Granted {
				rows.add("  "+o.String(), count, t.why(o))
			}
		}
	}
	rows.always("logouts", n.logouts, "")
	rows.add("starts and stops of the server", n.restarts, "")
	rows.always("unparsed", n.unparsed, t.aboutUnparsed())
	rows.add("of no transport known", n.foreign, "though they may name a login")
	rows.add("longer than 64 KiB", n.long, "dropped whole")
	rows.add("gaps", n.gaps, "where entries are missing in the journal")
	rows.add("without a newline", n.fragments, "the last line: not judged")
	rows.print(out)
	if len(n.last.inOrder()) > 0 && !t.flags.logins {
		t.lastLogins()
	}
	if n.logins == 0 {
		t.whyNone()
	} else {
		t.nextStep()
	}
}

// countRows are counts with a name and a note.
type countRows []struct {
	name, note string
	count      int
}

// add adds a row unless it counts nothing.
func (r *countRows) add(name string, count int, note string) {
	if count > 0 {
		r.always(name, count, note)
	}
}

func (r *countRows) always(name string, count int, note string) {
	*r = append(*r, struct {
		name, note string
		count      int
	}{name, note, count})
}

func (r countRows) print(out io.Writer) {
	name, count := 0, 0
	const widest = 48 // logs' names may be longer
	for _, row := range r {
		name, count = max(name, min(widest, len(row.name))), max(count, len(strconv.Itoa(row.count)))
	}
	for _, row := range r {
		line := fmt.Sprintf("%-*s  %*d  %s", name, row.name, count, row.count, row.note)
		fmt.Fprintln(out, strings.TrimRight(line, " "))
	}
}

// found says in a few words what a log has.
func (c *fileCount) found() string {
	s := fmt.Sprintf("%d %s", c.logins, plural(c.logins, "login"))
	if c.unparsed > 0 {
		s += fmt.Sprintf(", %d unparsed", c.unparsed)
	}
	if c.failed {
		s += ", not read to its end"
	}
	return s
}

// formats names the formats the logins were read in.
func (n *logCount) formats() string {
	var names []string
	for _, f := range n.files {
		if f.logins > 0 && !slices.Contains(names, f.format) {
			names = append(names, f.format)
		}
	}
	if len(names) == 0 {
		return ""
	}
	return "in the format " + strings.Join(names, ", ")
}

func (t *logTest) aboutUnparsed() string {
	if t.count.unparsed > 0 && !t.flags.unparsed {
		return "look like a login and match nothing; --unparsed prints them"
	}
	return ""
}

// why explains what keeps a login from granting.
func (t *logTest) why(o ledger.Outcome) string {
	switch o {
	case ledger.Stale:
		return "older than grant_ttl (" + brief(t.rules.GrantTTL) + ") by now; they granted in their time"
	case ledger.Future:
		return "stamped more than a minute ahead; is the clock of that host right, or its time zone another?"
	case ledger.Never:
		return "from loopback, this host's own or a reserved address, or one in never_grant"
	case ledger.User:
		return "of users in ignore_users"
	case ledger.Service:
		var names []string
		for _, s := range t.rules.Services {
			names = append(names, s.String())
		}
		return "not to one of the services (" + strings.Join(names, ", ") + ")"
	}
	return ""
}

// brief gives a time as a configuration would: 30m, not 30m0s.
func brief(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// lastLogins shows a few, for people to see that they were read right.
func (t *logTest) lastLogins() {
	fmt.Fprintln(t.out, "\nthe last logins")
	w := table(t.out)
	for _, s := range t.count.last.inOrder() {
		at := "-"
		if !s.event.Time.IsZero() {
			at = s.event.Time.In(t.zone).Format("2006-01-02 15:04:05")
		}
		fmt.Fprintf(w, "  %s:%d\t%s\t%s\t%s\t%s\n", s.file, s.line, at, s.event.Client, orDash(s.event.Service.String()), orDash(s.event.User))
	}
	w.Flush()
}

// whyNone helps where no login was found.
func (t *logTest) whyNone() {
	n := &t.count
	if n.n == 0 {
		fmt.Fprintln(t.out, "\nno login was found, for no line was read")
	} else {
		fmt.Fprintln(t.out, "\nno login was found: is this the POP/IMAP server's log, and is the format right?")
	}
	if n.unparsed > 0 {
		fmt.Fprintln(t.out, "  a server whose log format was changed (Dovecot: login_log_format) needs a format of your own: --pattern; docs/formats.md has an example")
	}
	for _, d := range t.journalDoubts() {
		fmt.Fprintf(t.out, "  %s\n", d)
	}
	if len(t.units) > 0 {
		fmt.Fprintln(t.out, "  of the journal count only entries that the format's own programs wrote; --programs and --users name others, as in the configuration")
	}
	for _, name := range slices.Sorted(maps.Keys(n.others)) {
		fmt.Fprintf(t.out, "  --format %s would find %d\n", name, n.others[name])
	}
	if n.tags["imap4d"] > 0 {
		// Only GNU Mailutils has this tag.
		if _, err := format.New("mailutils"); err != nil {
			fmt.Fprintf(t.out, "  %v\n", err)
		}
	}
	if t.custom != nil {
		if count := n.tags[t.custom.Tag]; count > 0 {
			fmt.Fprintf(t.out, "  lines with the tag %s: %d, none of which matches; --none prints them\n", quoted(t.custom.Tag), count)
		} else {
			fmt.Fprintf(t.out, "  no line has the tag %s\n", quoted(t.custom.Tag))
		}
	}
	tags := slices.SortedFunc(maps.Keys(n.tags), func(a, b string) int {
		return cmp.Or(cmp.Compare(n.tags[b], n.tags[a]), cmp.Compare(a, b))
	})
	if len(tags) > 0 {
		shown := make([]string, 0, 8)
		for _, tag := range tags[:min(len(tags), cap(shown))] {
			shown = append(shown, fmt.Sprintf("%s (%d)", cmp.Or(quoted(tag), "no tag"), n.tags[tag]))
		}
		fmt.Fprintf(t.out, "  the programs in it: %s\n", strings.Join(shown, ", "))
	}
}
