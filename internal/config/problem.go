package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Error is one thing in a configuration that can't be meant as written.
type Error struct {
	File string
	Line int    // from 1; 0: the file as a whole
	Key  string // "sources[0].format"; empty: no one key
	Text string // which value, and what would be right
}

// Error gives the whole in one line.
func (e Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		b.WriteString(": line " + strconv.Itoa(e.Line))
	}
	if e.Key != "" {
		b.WriteString(": " + e.Key)
	}
	return b.String() + ": " + e.Text
}

// Errors are all that is wrong with a file, in the order of its lines.
type Errors []Error

// Error gives one line for each.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Warning is something an admin should look at in a configuration that works.
type Warning Error

// String gives the whole in one line.
func (w Warning) String() string { return Error(w).Error() }

func byLine(a, b Error) int { return cmp.Compare(a.Line, b.Line) }

// reader collects what is wrong while a file is read.
type reader struct {
	file     string
	errs     Errors
	warnings []Warning
	seen     func(key string) // told every key the readers know; for tests
}

func (r *reader) fail(line int, key, format string, args ...any) {
	r.errs = append(r.errs, Error{r.file, line, key, fmt.Sprintf(format, args...)})
}

func (r *reader) warn(line int, key, format string, args ...any) {
	r.warnings = append(r.warnings, Warning{r.file, line, key, fmt.Sprintf(format, args...)})
}

func (r *reader) result() ([]Warning, error) {
	slices.SortStableFunc(r.warnings, func(a, b Warning) int { return byLine(Error(a), Error(b)) })
	if len(r.errs) == 0 {
		return r.warnings, nil
	}
	slices.SortStableFunc(r.errs, byLine)
	return r.warnings, r.errs
}

// syntax are the YAML library's complaints in an admin's words. What is not
// here is passed on as the library says it.
var syntax = []struct{ theirs, ours string }{
	{"mapping values are not allowed in this context",
		"a colon where none can be; check the indentation, and put a value that holds \": \" in quotes"},
	{"found character that cannot start any token",
		"a value can't begin with this character (a tab, @, ` or %); indent with spaces, and put such a value in quotes"},
	{"found a tab character that violates indentation", "a tab in the indentation; use spaces"},
	{"found a tab character where an indentation space is expected", "a tab in the indentation; use spaces"},
	{"did not find expected key", "the indentation does not fit the lines above, or a quote or bracket before it is not closed"},
	{"did not find expected '-' indicator", "the indentation of the list does not fit the lines above"},
	{"did not find expected ',' or ']'", "a list in [ ] is not closed, or a comma is missing"},
	{"did not find expected ',' or '}'", "a mapping in { } is not closed, or a comma is missing"},
	{"did not find expected node content", "a value is missing; there is a comma or bracket in its place"},
	{"could not find expected ':'", "a key without its colon"},
	{"found unexpected end of stream", "the file ends inside quotes; a quote above is not closed"},
	{"found unknown escape character", "a backslash with a letter it can't go with; use single quotes around text with backslashes"},
	{"block sequence entries are not allowed in this context", "a list can't begin on this line; put its first dash on a line of its own"},
	{"control characters are not allowed", "a control character; remove it"},
	{"invalid leading UTF-8 octet", "not UTF-8; save the file as UTF-8"},
	{"invalid trailing UTF-8 octet", "not UTF-8; save the file as UTF-8"},
	{"incomplete UTF-8 octet sequence", "not UTF-8; save the file as UTF-8"},
	{"unknown anchor", "an asterisk makes an alias, which has no use here; put the value in quotes"},
	{"did not find expected alphabetic or numeric character", "a value can't begin with & or *; put it in quotes"},
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// translate gives what the library says about a file that is no YAML at all.
func (r *reader) translate(err error, lines int) {
	line, text := 0, err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		line = min(line, lines) // an end that came too soon is told of the line behind it
		text = m[2]
	}
	for _, s := range syntax {
		if strings.Contains(text, s.theirs) {
			r.fail(line, "", "%s", s.ours)
			return
		}
	}
	r.fail(line, "", "not YAML: %s", text)
}
