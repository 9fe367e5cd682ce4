package domains

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"popgate/internal/postconf"
	"popgate/internal/relay"
)

// postfixLists are the parameters that name Postfix's domains. Only the last
// one is a list of domains to Postfix, whose subdomains may count; the others
// are lists of plain strings.
var postfixLists = []string{"mydestination", "virtual_alias_domains", "virtual_mailbox_domains", "relay_domains"}

// listable are the types of table that postmap -s prints. All others are
// asked.
var listable = []string{"btree", "cdb", "dbm", "hash", "inline", "lmdb", "sdbm", "texthash"}

// tableFiles are the endings a table's file can have.
var tableFiles = []string{"", ".db", ".cdb", ".lmdb", ".dir"}

// parameters reads what postconf prints, one "name = value" a line.
func parameters(text []byte) map[string]string {
	values := map[string]string{}
	for line := range strings.Lines(string(text)) {
		name, value, found := strings.Cut(line, "=")
		if found {
			values[strings.TrimSpace(name)] = strings.TrimSpace(value)
		}
	}
	return values
}

func (s *Set) gatherPostfix(g *gathering) {
	names := append([]string{"-x"}, postfixLists...)
	names = append(names, "parent_domain_matches_subdomains", "config_directory")
	text, _ := s.step(g, "postconf", func() *leaf {
		return &leaf{
			name:    "postconf",
			program: true,
			read:    func(ctx context.Context) ([]byte, error) { return s.o.Run(ctx, "postconf", names...) },
			files:   []string{s.o.MainCF},
			inspect: func(text []byte) (int, error) {
				if _, ok := parameters(text)["mydestination"]; !ok {
					return 0, errors.New("it does not tell mydestination")
				}
				return 1, nil
			},
		}
	})
	values := parameters(text)
	if dir := values["config_directory"]; dir != "" {
		s.leaves["postconf"].files = []string{filepath.Join(dir, "main.cf")}
	}
	parents := slices.Contains(postconf.Split(values["parent_domain_matches_subdomains"]), "relay_domains")
	for _, name := range postfixLists {
		w := &walk{s: s, g: g, list: name}
		if name == "relay_domains" {
			w.domains, w.parents = true, parents
		}
		w.patterns(values[name], 0)
	}
}

// walk goes through one of Postfix's lists in Postfix's order, where the first
// pattern that matches decides and an exclamation mark turns it into a no.
type walk struct {
	s       *Set
	g       *gathering
	list    string // name of the parameter
	domains bool   // a list of domains: subdomains can be meant
	parents bool   // a pattern stands for its subdomains; else ".pattern" does
	barred  barred
}

// barred is what earlier patterns with an exclamation mark have shut out.
type barred struct {
	names []Name
	blind bool // by a list or table; nobody knows which names
}

// bars says whether the domain itself is shut out.
func (b *barred) bars(ascii string) bool {
	for _, n := range b.names {
		if n.Self && n.ASCII == ascii || n.Below && strings.HasSuffix(ascii, "."+n.ASCII) {
			return true
		}
	}
	return false
}

// below says whether anything among the subdomains is shut out.
func (b *barred) below(ascii string) bool {
	for _, n := range b.names {
		if n.ASCII == ascii && n.Below || strings.HasSuffix(n.ASCII, "."+ascii) || strings.HasSuffix(ascii, "."+n.ASCII) && n.Below {
			return true
		}
	}
	return false
}

// maxDepth bounds lists that name lists.
const maxDepth = 5

func (w *walk) patterns(value string, depth int) {
	for _, p := range postconf.Split(value) {
		bare := strings.TrimLeft(p, "!")
		negated := (len(p)-len(bare))%2 == 1
		switch {
		case bare == "":
		case negated && (bare[0] == '/' || strings.Contains(bare, ":")):
			w.barred.blind = true
			w.g.problems = append(w.g.problems, fmt.Sprintf("%s: !%s shuts out domains that can't be told apart here; what follows it counts as uncertain", w.list, bare))
		case negated:
			if n, ok := w.literal(bare); ok {
				w.barred.names = append(w.barred.names, n)
			}
		case bare[0] == '/':
			w.file(bare, depth)
		case strings.Contains(bare, ":"):
			w.table(bare)
		default:
			if n, ok := w.literal(bare); ok {
				w.put(n)
			}
		}
	}
}

// literal reads a pattern that is a domain. One that can't be a domain matches
// none in Postfix either.
func (w *walk) literal(p string) (Name, bool) {
	switch {
	case w.parents:
		p = "+" + strings.TrimPrefix(p, ".")
	case !w.domains && strings.HasPrefix(p, "."), strings.HasPrefix(p, "+"):
		return Name{}, false
	}
	n, err := ParseName(p)
	if err == nil {
		return n, true
	}
	// A public suffix: Postfix would take all domains below it. We don't.
	if n, plain := ParseName(strings.TrimLeft(p, "+.")); plain == nil && w.domains {
		w.g.problems = append(w.g.problems, fmt.Sprintf("%s: %v", w.list, err))
		w.g.put("."+n.ASCII, relay.DomainUnsure)
		return n, true
	}
	return Name{}, false
}

// put enters a name as far as it is not shut out.
func (w *walk) put(n Name) {
	m := relay.DomainFound
	if w.barred.blind {
		m = relay.DomainUnsure
	}
	if n.Self && !w.barred.bars(n.ASCII) {
		Name{Self: true, ASCII: n.ASCII, Unicode: n.Unicode}.put(w.g.names, m)
	}
	if n.Below {
		if w.barred.below(n.ASCII) {
			m = relay.DomainUnsure
		}
		Name{Below: true, ASCII: n.ASCII, Unicode: n.Unicode}.put(w.g.names, m)
	}
}

// file reads a list from a file, which may name further ones.
func (w *walk) file(path string, depth int) {
	if depth == maxDepth {
		w.g.problems = append(w.g.problems, fmt.Sprintf("%s: %s: lists inside lists, more than %d deep", w.list, path, maxDepth))
		w.g.whole = false
		return
	}
	text, _ := w.s.step(w.g, "file "+path, func() *leaf { return textFile(path) })
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			w.patterns(string(line), depth+1)
		}
	}
}

// textFile is a file whose lines others judge.
func textFile(path string) *leaf {
	return &leaf{
		name:    path,
		read:    func(context.Context) ([]byte, error) { return readFile(path) },
		files:   []string{path},
		inspect: countLines,
	}
}

// countLines counts the lines that are neither empty nor comments.
func countLines(text []byte) (n int, err error) {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) > 0 && line[0] != '#' {
			n++
		}
	}
	return n, nil
}

// table takes in a table, or notes that it must be asked.
func (w *walk) table(spec string) {
	spec = strings.TrimPrefix(spec, "proxy:") // a detour of Postfix's own processes
	kind, path, _ := strings.Cut(spec, ":")
	if !slices.Contains(listable, kind) {
		w.g.tables = append(w.g.tables, table{list: w.list, spec: spec, domains: w.domains, parents: w.parents, barred: w.barred})
		return
	}
	text, _ := w.s.step(w.g, "table "+spec, func() *leaf { return listedTable(w.s.o.Run, kind, path) })
	for _, key := range keys(text) {
		if strings.Contains(key, "@") {
			continue // an address in a table that serves for domains as well
		}
		if n, ok := w.literal(key); ok {
			w.put(n)
		}
	}
}

// listedTable is what postmap prints of a table.
func listedTable(run Runner, kind, path string) *leaf {
	spec := kind + ":" + path
	l := &leaf{
		name:    spec,
		read:    func(ctx context.Context) ([]byte, error) { return run(ctx, "postmap", "-s", spec) },
		inspect: countLines,
	}
	if strings.HasPrefix(path, "/") {
		for _, end := range tableFiles {
			l.files = append(l.files, path+end)
		}
	}
	return l
}

// keys gives the keys of what postmap -s prints.
func keys(text []byte) (out []string) {
	for line := range bytes.Lines(text) {
		if key, _, _ := bytes.Cut(bytes.TrimSpace(line), []byte("\t")); len(key) > 0 {
			out = append(out, string(key))
		}
	}
	return out
}
