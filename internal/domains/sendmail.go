package domains

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"popgate/internal/relay"
)

// sendmailClasses are the classes that name sendmail's domains.
var sendmailClasses = []string{"w", "R", "VirtHost"}

// sendmailCF is what a sendmail.cf says about them.
type sendmailCF struct {
	words  map[string][]string // class to words
	files  []classFile
	macros map[string]string
	odd    []string // definitions that can't be followed, as they stand
	below  bool     // class R and the access map stand for subdomains too
	access *accessMap
}

// classFile is a file of words of a class.
type classFile struct {
	class, path string
	optional    bool
}

// readCF takes from a sendmail.cf what concerns the classes.
func readCF(text []byte) sendmailCF {
	cf := sendmailCF{words: map[string][]string{}, macros: map[string]string{}}
	for _, line := range cfLines(text) {
		switch line[0] {
		case 'D':
			name, value := cfName(line[1:])
			cf.macros[name] = strings.TrimSpace(value)
		case 'C':
			if class, value := cfName(line[1:]); slices.Contains(sendmailClasses, class) {
				cf.words[class] = append(cf.words[class], strings.Fields(value)...)
			}
		case 'F':
			if class, value := cfName(line[1:]); slices.Contains(sendmailClasses, class) {
				cf.file(class, value, line)
			}
		case 'K':
			if words := strings.Fields(line[1:]); len(words) > 0 && words[0] == "access" {
				a, ok := readAccess(words)
				if cf.access = a; !ok {
					cf.access, cf.odd = nil, append(cf.odd, line)
				}
			}
		case 'R':
			if strings.Contains(line, "@ $* $=R >") {
				cf.below = true
			}
		}
	}
	return cf
}

// cfLines gives the lines that are neither empty nor comments, with those that
// go on behind a blank put together.
func cfLines(text []byte) []string {
	var out []string
	for raw := range bytes.Lines(text) {
		line := strings.TrimRight(string(raw), "\r\n")
		switch {
		case line == "" || line[0] == '#':
		case (line[0] == ' ' || line[0] == '\t') && len(out) > 0:
			out[len(out)-1] += line
		case line[0] != ' ' && line[0] != '\t':
			out = append(out, line)
		}
	}
	return out
}

// cfName takes the name of a macro or class off: one letter, or more in
// braces.
func cfName(s string) (name, rest string) {
	if strings.HasPrefix(s, "{") {
		if name, rest, found := strings.Cut(s[1:], "}"); found {
			return name, rest
		}
	}
	if s == "" {
		return "", ""
	}
	return s[:1], s[1:]
}

// file reads the rest of an F line: "/path", "-o /path", a pattern behind it.
// Programs and maps are not followed.
func (cf *sendmailCF) file(class, value, line string) {
	f := classFile{class: class}
	value = strings.TrimSpace(value)
	if rest, ok := strings.CutPrefix(value, "-o"); ok {
		f.optional, value = true, strings.TrimSpace(rest)
	}
	path, _, _ := strings.Cut(value, " ")
	path, _, _ = strings.Cut(path, "\t")
	if !strings.HasPrefix(path, "/") {
		cf.odd = append(cf.odd, line)
		return
	}
	f.path = path
	cf.files = append(cf.files, f)
}

// expand replaces $x and ${name} by what the macros say; false if one of them
// says nothing.
func (cf *sendmailCF) expand(s string, depth int) (string, bool) {
	var b strings.Builder
	for {
		before, rest, found := strings.Cut(s, "$")
		b.WriteString(before)
		if !found {
			return b.String(), true
		}
		name, after := cfName(rest)
		value, known := cf.macros[name]
		if !known || depth == 0 {
			return "", false
		}
		value, known = cf.expand(value, depth-1)
		if !known || b.Len()+len(value) > 1000 {
			return "", false
		}
		b.WriteString(value)
		s = after
	}
}

func (s *Set) gatherSendmail(g *gathering) {
	text, _ := s.step(g, "file "+s.o.Sendmail, func() *leaf {
		l := textFile(s.o.Sendmail)
		l.must = true
		return l
	})
	cf := readCF(text)
	host, err := s.o.Hostname()
	if _, set := cf.macros["w"]; !set && err == nil {
		cf.macros["w"], _, _ = strings.Cut(host, ".")
	}
	if _, set := cf.macros["j"]; !set && err == nil {
		cf.macros["j"] = host
	}
	cf.words["w"] = append(cf.words["w"], "$j") // sendmail adds its own name itself
	for _, class := range sendmailClasses {
		s.gatherClass(g, &cf, class, []string{class})
	}
	s.gatherAccess(g, &cf)
	for _, line := range cf.odd {
		g.problems = append(g.problems, fmt.Sprintf("%s: %q can't be followed; write its domains into local_domains", s.o.Sendmail, line))
		g.whole = false
	}
}

// gatherClass enters the words of the last class in the chain as those of the
// first: a class can take in others ("CR $={VirtHost}").
func (s *Set) gatherClass(g *gathering, cf *sendmailCF, as string, chain []string) {
	class := chain[len(chain)-1]
	for _, word := range cf.words[class] {
		if other, found := strings.CutPrefix(word, "$="); found {
			if name, rest := cfName(other); rest == "" && slices.Contains(sendmailClasses, name) {
				if !slices.Contains(chain, name) {
					s.gatherClass(g, cf, as, append(slices.Clone(chain), name))
				}
				continue
			}
		}
		s.putWord(g, cf, as, word, s.o.Sendmail)
	}
	for _, f := range cf.files {
		if f.class != class {
			continue
		}
		text, _ := s.step(g, "file "+f.path, func() *leaf {
			l := textFile(f.path)
			if f.optional {
				l.read = orAbsent(l.read)
			}
			return l
		})
		for line := range strings.Lines(string(text)) {
			line, _, _ = strings.Cut(line, "#")
			for _, word := range strings.Fields(line) {
				s.putWord(g, cf, as, word, f.path)
			}
		}
	}
}

// orAbsent reads a file that need not be there.
func orAbsent(read func(context.Context) ([]byte, error)) func(context.Context) ([]byte, error) {
	return func(ctx context.Context) ([]byte, error) {
		data, err := read(ctx)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
}

// putWord enters one word of a class. What is no domain is skipped: sendmail
// compares it with domains, and it will equal none.
func (s *Set) putWord(g *gathering, cf *sendmailCF, class, word, where string) {
	full, known := cf.expand(word, 5)
	if !known {
		if word != "$j" {
			g.problems = append(g.problems, fmt.Sprintf("%s: %q in class %s can't be followed; write the domain into local_domains", where, word, class))
			g.whole = false
		}
		return
	}
	n, err := ParseName(full)
	if err != nil || !n.Self {
		return
	}
	n.Below = class == "R" && cf.below
	if n.Below && tooWide(n.ASCII) {
		g.problems = append(g.problems, fmt.Sprintf("%s: class R has %q: sendmail takes every domain below it for this site's own; name the site's domains one by one", where, full))
		g.put("."+n.ASCII, relay.DomainUnsure)
		n.Below = false
	}
	n.put(g.names, relay.DomainFound)
}
