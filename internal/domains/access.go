package domains

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"popgate/internal/relay"
)

// accessMap is sendmail's access map, whose RELAY lets mail through to
// destinations that are in no class.
type accessMap struct {
	kind, path string
	optional   bool
	// Of a text map: the columns of key and value, and what parts them; empty:
	// blanks.
	key, value int
	delimiter  string
}

// databases are the kinds that makemap prints, with the endings of their files.
var databases = map[string][]string{
	"hash":  {"", ".db"},
	"btree": {"", ".db"},
	"cdb":   {"", ".cdb"},
	"dbm":   {"", ".dir", ".pag"},
}

// readAccess reads a K line: "access hash -T<TMPF> -o /etc/mail/access". It
// answers false for a kind of map that can't be followed.
func readAccess(words []string) (*accessMap, bool) {
	a := &accessMap{value: 1}
	if len(words) < 3 {
		return nil, false
	}
	a.kind = words[1]
	if _, known := databases[a.kind]; !known && a.kind != "text" {
		return nil, false
	}
	var err error
	for _, word := range words[2:] {
		flag, rest := word[:min(2, len(word))], word[min(2, len(word)):]
		switch {
		case flag == "-o":
			a.optional = true
		case flag == "-k":
			a.key, err = strconv.Atoi(rest)
		case flag == "-v":
			a.value, err = strconv.Atoi(rest)
		case flag == "-z":
			a.delimiter = strings.NewReplacer(`\t`, "\t", `\n`, "\n", `\\`, `\`).Replace(rest)
		case word[0] == '-':
		default:
			a.path = word
		}
		if err != nil || a.key < 0 || a.value < 0 {
			return nil, false
		}
	}
	return a, strings.HasPrefix(a.path, "/")
}

// gatherAccess takes in the destinations that the access map allows. Where the
// map itself can't be read, the text it is made from tells at least whose
// mail must not be refused for good.
func (s *Set) gatherAccess(g *gathering, cf *sendmailCF) {
	a := cf.access
	if a == nil {
		return
	}
	if a.kind == "text" {
		text, _ := s.step(g, "file "+a.path, func() *leaf {
			l := textFile(a.path)
			if a.optional {
				l.read = orAbsent(l.read)
			}
			return l
		})
		putAccess(g, cf, a.rows(text), relay.DomainFound, a.path)
		return
	}
	key, whole := "map "+a.kind+":"+a.path, g.whole
	text, _ := s.step(g, key, func() *leaf { return a.database(s.o.Run) })
	if l := s.leaves[key]; l.known || l.problem == "" {
		putAccess(g, cf, a.rows(text), relay.DomainFound, a.path)
		return
	}
	g.whole = whole
	source := strings.TrimSuffix(a.path, ".db")
	text, _ = s.step(g, "file "+source, func() *leaf { return textFile(source) })
	putAccess(g, cf, a.rows(text), relay.DomainUnsure, source)
	what := "mail to the destinations that " + source + " allows is put off"
	if !g.whole {
		what = "nobody knows which destinations it allows, so that strangers' mail is put off instead of refused"
	}
	g.problems = append(g.problems, fmt.Sprintf("%s: sendmail's access map can't be read: %s; let popgate's user read it and run makemap", a.path, what))
}

// database is what makemap prints of a map.
func (a *accessMap) database(run Runner) *leaf {
	var files []string
	for _, end := range databases[a.kind] {
		files = append(files, a.path+end)
	}
	return &leaf{
		name: a.path,
		read: func(ctx context.Context) ([]byte, error) {
			if a.optional && !slices.ContainsFunc(files, exists) {
				return nil, nil
			}
			return run(ctx, "makemap", "-u", a.kind, a.path)
		},
		files:   files,
		inspect: countLines,
	}
}

// rows gives the keys, in lower case and in their order, with their values. A
// text map has columns; what makemap prints, and what it is made from, has a
// key and all that follows.
func (a *accessMap) rows(text []byte) (rows [][2]string) {
	for line := range bytes.Lines(text) {
		line := strings.TrimRight(string(line), "\r\n")
		if line == "" || line[0] == '#' {
			continue
		}
		columns := strings.Fields(line)
		if a.kind == "text" && a.delimiter != "" {
			columns = strings.Split(line, a.delimiter)
		}
		if n := len(columns); a.key < n && a.value < n {
			rows = append(rows, [2]string{asciiLower(strings.TrimSpace(columns[a.key])), strings.TrimSpace(columns[a.value])})
		}
	}
	return rows
}

// verdicts are what an access map says of destinations.
type verdicts struct {
	of     map[string]string // domain to value; the value of "To:" goes before that without
	tagged map[string]bool
	users  []string // domains of which single users are allowed
}

func judge(rows [][2]string) verdicts {
	v := verdicts{of: map[string]string{}, tagged: map[string]bool{}}
	for _, row := range rows {
		name, tagged := strings.CutPrefix(row[0], "to:")
		if strings.Contains(name, ":") {
			continue // of clients or senders, or an address
		}
		if _, domain, user := strings.Cut(name, "@"); user {
			if strings.EqualFold(row[1], "RELAY") {
				v.users = append(v.users, domain)
			}
			continue
		}
		if _, known := v.of[name]; known && !(tagged && !v.tagged[name]) {
			continue // the first counts in a text map, and there are no others in a database
		}
		v.of[name], v.tagged[name] = row[1], tagged
	}
	return v
}

// putAccess enters the destinations with RELAY, as sendmail's own ruleset takes
// them: with their subdomains, unless one of those has another value. A "To:"
// with OK lets nothing through, but its author may have meant it.
func putAccess(g *gathering, cf *sendmailCF, rows [][2]string, m relay.Match, where string) {
	v := judge(rows)
	mixed := map[string]bool{} // domains some of whose subdomains are not allowed
	for name, value := range v.of {
		if strings.EqualFold(value, "RELAY") {
			continue
		}
		for rest := name; ; {
			_, above, found := strings.Cut(rest, ".")
			if !found {
				break
			}
			mixed[above] = true
			rest = above
		}
	}
	put := func(name string, m relay.Match) {
		n, err := ParseName(name)
		if err != nil || strings.HasPrefix(name, "+") {
			return // an address, or nothing that a recipient can be at
		}
		n.put(g.names, m)
		if !cf.below || !n.Self {
			return
		}
		below := Name{Below: true, ASCII: n.ASCII, Unicode: n.Unicode}
		switch {
		case tooWide(n.ASCII):
			g.problems = append(g.problems, fmt.Sprintf("%s has %q with RELAY: sendmail takes every domain below it for allowed; name the domains one by one", where, name))
			m = relay.DomainUnsure
		case mixed[name]:
			m = relay.DomainUnsure
		}
		below.put(g.names, m)
	}
	for name, value := range v.of {
		switch {
		case strings.EqualFold(value, "RELAY") && strings.HasPrefix(name, "."):
			put(name, relay.DomainUnsure) // depends on a feature
		case strings.EqualFold(value, "RELAY"):
			put(name, m)
		case strings.EqualFold(value, "OK") && v.tagged[name]:
			put(name, relay.DomainUnsure)
		}
	}
	for _, domain := range v.users {
		put(domain, relay.DomainUnsure)
	}
}
