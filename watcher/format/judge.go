package format

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
)

// item is one step of a pattern, from left to right.
type item struct {
	kind  itemKind
	text  string // fixed: the text
	runes []rune // words and field: ranges of the characters it may match
	group string // the named group it belongs to; client is the whole of it
}

type itemKind uint8

const (
	fixed  itemKind = iota // this text
	words                  // one of a few texts, all written out
	field                  // characters of one class, once or repeated
	opaque                 // anything else
)

var groups = []string{"client", "user", "service", "session"}

// itemize takes an expression apart into its steps.
func itemize(expr string) ([]item, error) {
	tree, err := syntax.Parse(expr, syntax.Perl)
	if err != nil {
		return nil, errors.New(strings.TrimPrefix(err.Error(), "error parsing regexp: "))
	}
	var seen []string
	if err := vet(tree, &seen); err != nil {
		return nil, err
	}
	return flatten(tree, nil), nil
}

// vet refuses what no pattern may have.
func vet(re *syntax.Regexp, seen *[]string) error {
	switch re.Op {
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return fmt.Errorf("%s: a pattern is matched against the whole message as it is; leave anchors and word boundaries out", re)
	case syntax.OpLiteral:
		if re.Flags&syntax.FoldCase != 0 {
			return fmt.Errorf("%s: servers write their words in one case only, strangers in any; leave (?i) out", re)
		}
	case syntax.OpCapture:
		switch {
		case re.Name == "":
			return fmt.Errorf("%s: a group without a name; write (?:...) for one that only holds things together", re)
		case !slices.Contains(groups, re.Name):
			return fmt.Errorf("the group %q means nothing; the groups are %s", re.Name, strings.Join(groups, ", "))
		case slices.Contains(*seen, re.Name):
			return fmt.Errorf("the group %q stands in it twice; a message must be readable in one way only", re.Name)
		}
		*seen = append(*seen, re.Name)
	}
	for _, sub := range re.Sub {
		if err := vet(sub, seen); err != nil {
			return err
		}
	}
	return nil
}

// flatten appends the steps of an expression.
func flatten(re *syntax.Regexp, to []item) []item {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return to
	case syntax.OpConcat:
		for _, sub := range re.Sub {
			to = flatten(sub, to)
		}
		return to
	case syntax.OpLiteral:
		if n := len(to); n > 0 && to[n-1].kind == fixed {
			to[n-1].text += string(re.Rune)
			return to
		}
		return append(to, item{kind: fixed, text: string(re.Rune)})
	case syntax.OpCapture:
		inner := flatten(re.Sub[0], nil)
		if len(inner) == 1 && inner[0].kind != opaque {
			inner[0].group = re.Name
			// Fixed text in a group is not joined with what surrounds it.
			if inner[0].kind == fixed {
				inner[0].kind, inner[0].runes = words, ranges(inner[0].text)
			}
			return append(to, inner[0])
		}
		if len(inner) > 1 && re.Name == "client" {
			return append(to, item{kind: opaque, group: re.Name})
		}
		for i := range inner {
			inner[i].group = re.Name
		}
		return append(to, inner...)
	}
	if runes, ok := classOf(re); ok {
		return append(to, item{kind: field, runes: runes})
	}
	if runes, ok := wordsOf(re); ok {
		return append(to, item{kind: words, runes: runes})
	}
	it := item{kind: opaque}
	if holdsClient(re) {
		it.group = "client"
	}
	return append(to, it)
}

// ranges gives the characters of a text, each as a range of one.
func ranges(text string) (runes []rune) {
	for _, r := range text {
		runes = append(runes, r, r)
	}
	return runes
}

// classOf reads one class of characters, once or repeated.
func classOf(re *syntax.Regexp) ([]rune, bool) {
	switch re.Op {
	case syntax.OpStar, syntax.OpPlus, syntax.OpRepeat:
		return classOf(re.Sub[0])
	case syntax.OpLiteral: // repeated: x+
		if len(re.Rune) == 1 {
			return ranges(string(re.Rune)), true
		}
	case syntax.OpCharClass:
		return re.Rune, true
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return []rune{0, 0x10ffff}, true
	}
	return nil, false
}

// wordsOf reads a choice of texts that are all written out.
func wordsOf(re *syntax.Regexp) (runes []rune, ok bool) {
	switch re.Op {
	case syntax.OpEmptyMatch:
		return nil, true
	case syntax.OpLiteral:
		return ranges(string(re.Rune)), true
	case syntax.OpCharClass: // pop[23] in a choice
		return re.Rune, true
	case syntax.OpAlternate, syntax.OpConcat, syntax.OpQuest:
		for _, sub := range re.Sub {
			r, ok := wordsOf(sub)
			if !ok {
				return nil, false
			}
			runes = append(runes, r...)
		}
		return runes, true
	}
	return nil, false
}

func holdsClient(re *syntax.Regexp) bool {
	return re.Op == syntax.OpCapture && re.Name == "client" || slices.ContainsFunc(re.Sub, holdsClient)
}

// has says whether ranges hold a character.
func has(runes []rune, r rune) bool {
	for i := 0; i+1 < len(runes); i += 2 {
		if runes[i] <= r && r <= runes[i+1] {
			return true
		}
	}
	return false
}

// judge says why a login pattern can't be trusted, nil if it can.
//
// Strangers choose text that ends up in messages: names, above all. The group
// client must catch the address the server wrote whatever that text is. This
// is decided on the pattern alone, in favour of refusing. Always:
//
//   - the group client stands in the pattern once, outside of any choice or
//     repetition, and is one class of characters;
//   - fixed text stands right before it, ending in a character that client
//     can't match, and right after it comes the end, or fixed text that
//     begins with such a character. So never a part of an address is caught.
//
// And then one of two:
//
//   - before client there are only fixed text and choices of words written
//     out, which are the server's own words: no group user or session. Then
//     nothing that anybody chose comes before the address, and nothing after
//     it can move it; or
//   - every message has one reading. The pattern is made of fixed text,
//     classes and choices of words written out; nothing else is optional or
//     repeated. Call separators the characters that no class and no word of it
//     matches: between any two of these stands fixed text with a separator.
//     Then every match has the same separators in the same order, and a chosen
//     text with a separator in it makes one too many: the message does not
//     match at all.
func (p *pattern) judge() error {
	at := slices.IndexFunc(p.items, func(it item) bool { return it.group == "client" })
	if at < 0 {
		return errors.New("no group client; mark the client address with (?P<client>...)")
	}
	client := p.items[at]
	if client.kind != field {
		return errors.New("the group client must be one class of characters, as in (?P<client>[0-9a-fA-F.:]+), outside of any choice or repetition")
	}
	if at == 0 || p.items[at-1].kind != fixed || has(client.runes, lastRune(p.items[at-1].text)) {
		return errors.New("right before the group client there must be fixed text whose last character the group can't match")
	}
	if at+1 < len(p.items) && (p.items[at+1].kind != fixed || has(client.runes, firstRune(p.items[at+1].text))) {
		return errors.New("right after the group client there must be the end, or fixed text whose first character the group can't match")
	}
	if !slices.ContainsFunc(p.items[:at], item.chosen) {
		return nil
	}
	return p.oneReading()
}

// chosen says whether a stranger may have chosen what stands there. A user or
// a session is chosen even where the pattern knows only a few.
func (it item) chosen() bool {
	return it.kind == field || it.kind == opaque || it.group == "user" || it.group == "session"
}

// oneReading is the second way to be trusted.
func (p *pattern) oneReading() error {
	const remedy = "put the client first, or keep classes apart by characters that none of them matches"
	var all []rune
	for _, it := range p.items {
		if it.kind == opaque {
			return errors.New("the client stands behind text that a stranger may choose, and the pattern has optional or repeated parts, so that a message can be read in two ways; " + remedy)
		}
		all = append(all, it.runes...)
	}
	separator := func(r rune) bool { return !has(all, r) }
	apart := true
	for _, it := range p.items {
		switch {
		case it.kind == fixed:
			apart = apart || strings.ContainsFunc(it.text, separator)
		case !apart:
			return errors.New("the client could be reached through text that a stranger may choose: two parts of the pattern can match the same characters and nothing else stands between them; " + remedy)
		default:
			apart = false
		}
	}
	return nil
}

func firstRune(s string) rune { return []rune(s)[0] }

func lastRune(s string) rune {
	r := []rune(s)
	return r[len(r)-1]
}
