package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"gopkg.in/yaml.v3"
)

// value is one place in the file: the node and the path of keys to it.
type value struct {
	r   *reader
	n   *yaml.Node
	key string
}

func (v value) fail(format string, args ...any) { v.r.fail(v.n.Line, v.key, format, args...) }
func (v value) warn(format string, args ...any) { v.r.warn(v.n.Line, v.key, format, args...) }

// field is one key of a mapping and what reads its value.
type field struct {
	key  string
	read func(value)
}

// plain refuses what YAML offers and a configuration has no use for: a reader
// of the file should see the value where it counts.
func (v value) plain() bool {
	switch {
	case v.n.Kind == yaml.AliasNode:
		v.fail("*%s is an alias; write the value out", v.n.Value)
	case v.n.Style&yaml.TaggedStyle != 0:
		v.fail("%q is a tag; leave it out", clip(v.n.Tag))
	default:
		return true
	}
	return false
}

// fields reads a mapping. It answers with the place of each key that was
// given, and false if this is no mapping.
func (v value) fields(fs ...field) (given map[string]value, ok bool) {
	if v.r.seen != nil {
		for _, f := range fs {
			v.r.seen(join(v.key, f.key))
		}
	}
	if !v.plain() {
		return nil, false
	}
	if v.n.Kind != yaml.MappingNode {
		empty := ""
		if v.n.ShortTag() == "!!null" {
			empty = "; leave the key out if there are none"
		}
		v.fail("%s where \"key: value\" pairs belong%s", v.shown(), empty)
		return nil, false
	}
	given = map[string]value{}
	for i := 0; i+1 < len(v.n.Content); i += 2 {
		k := v.n.Content[i]
		name := value{v.r, k, join(v.key, keyText(k.Value))}
		if k.Kind != yaml.ScalarNode {
			name.key = v.key
			name.fail("%s where a key belongs", name.shown())
			continue
		}
		if first, twice := given[k.Value]; twice {
			name.fail("given twice; the first is in line %d", first.n.Line)
			continue
		}
		given[k.Value] = name
		f := find(fs, k.Value)
		if f == nil {
			name.fail("unknown key; %s", remedy(k.Value, v.key, fs))
			continue
		}
		f.read(value{v.r, v.n.Content[i+1], name.key})
	}
	return given, true
}

// keyText gives a key as an error's path has it, whatever it is made of.
func keyText(key string) string {
	key = clip(key)
	if quoted := strconv.Quote(key); key == "" || len(quoted) != len(key)+2 {
		return quoted
	}
	return key
}

func find(fs []field, key string) *field {
	for i := range fs {
		if fs[i].key == key {
			return &fs[i]
		}
	}
	return nil
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// list reads a sequence, or answers false.
func (v value) list() ([]value, bool) {
	if !v.plain() {
		return nil, false
	}
	if v.n.Kind != yaml.SequenceNode {
		switch {
		case v.n.Kind == yaml.MappingNode:
			v.fail("a mapping where a list belongs; begin each of its items with a dash")
		case v.n.ShortTag() == "!!null":
			v.fail("nothing where a list belongs; an empty list is []")
		default:
			v.fail("%s where a list belongs; write [%s]", v.shown(), clip(v.n.Value))
		}
		return nil, false
	}
	items := make([]value, len(v.n.Content))
	for i, n := range v.n.Content {
		items[i] = value{v.r, n, fmt.Sprintf("%s[%d]", v.key, i)}
	}
	return items, true
}

// shown gives the value as an error names it.
func (v value) shown() string {
	switch v.n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	case yaml.AliasNode:
		return "an alias"
	}
	switch v.n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!str":
		return strconv.Quote(clip(v.n.Value))
	default:
		return clip(v.n.Value)
	}
}

// clip keeps an error readable when a value is a whole page.
func clip(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// text reads a string. Numbers and the like are no strings: 0660 and 432 would
// be the same to YAML.
func (v value) text() (string, bool) {
	if !v.plain() {
		return "", false
	}
	switch tag := v.n.ShortTag(); {
	case v.n.Kind != yaml.ScalarNode || tag == "!!null":
		v.fail("%s where a text belongs", v.shown())
		return "", false
	case tag != "!!str":
		v.fail("%s is no text as it stands; write \"%s\"", v.shown(), clip(v.n.Value))
		return "", false
	}
	for i := range len(v.n.Value) {
		if c := v.n.Value[i]; c < ' ' || c == 0x7f {
			v.fail("%s has a control character", v.shown())
			return "", false
		}
	}
	return v.n.Value, true
}

// word reads one of a few words.
func (v value) word(words ...string) (string, bool) {
	s, ok := v.text()
	if !ok {
		return "", false
	}
	for _, w := range words {
		if s == w {
			return s, true
		}
	}
	v.fail("%q is not one of %s", clip(s), strings.Join(words, ", "))
	return "", false
}

func (v value) boolean(to *bool) {
	if !v.plain() {
		return
	}
	if v.n.Kind != yaml.ScalarNode || v.n.ShortTag() != "!!bool" {
		v.fail("%s where true or false belongs", v.shown())
		return
	}
	*to = strings.EqualFold(v.n.Value, "true")
}

// integer reads a plain decimal number from least to most.
func (v value) integer(to *int, least, most int) {
	if !v.plain() {
		return
	}
	switch tag := v.n.ShortTag(); {
	case tag == "!!str" && digits(v.n.Value):
		v.fail("%s is text; write %s without quotes", v.shown(), clip(v.n.Value))
		return
	case v.n.Kind != yaml.ScalarNode || tag != "!!int":
		v.fail("%s where a number belongs", v.shown())
		return
	}
	n, err := strconv.Atoi(v.n.Value)
	switch {
	case err != nil && !digits(strings.TrimPrefix(v.n.Value, "-")):
		v.fail("%s is not written as a plain number", v.shown())
	case err != nil, n < least, n > most:
		v.fail("%s is out of range; %d to %d can be set", v.shown(), least, most)
	case v.n.Value != strconv.Itoa(n):
		v.fail("%s is not written as a plain number; write %d", v.shown(), n)
	default:
		*to = n
	}
}

func digits(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// duration reads 10m or 1h30m, from least to most. With off, 0 is allowed too.
func (v value) duration(to *time.Duration, least, most time.Duration, off bool) {
	if !v.plain() {
		return
	}
	if v.n.Kind != yaml.ScalarNode || v.n.ShortTag() == "!!null" {
		v.fail("%s where a duration belongs, such as %s", v.shown(), short(*to))
		return
	}
	s := v.n.Value
	if off && (s == "0" || s == "0s") {
		*to = 0
		return
	}
	d, err := time.ParseDuration(s)
	switch {
	case digits(s) && s != "0":
		v.fail("%[1]s has no unit; write %[1]ss for seconds or %[1]sm for minutes", clip(s))
	case err != nil:
		v.fail("%s is not a duration; write a number and a unit of ms, s, m or h, such as %s", v.shown(), short(*to))
	case d < least || d > most:
		zero := ""
		if off {
			zero = ", or 0 for off"
		}
		v.fail("%s is out of range; %s to %s can be set%s", s, short(least), short(most), zero)
	default:
		*to = d
	}
}

// short writes a duration as a person would: 30m, not 30m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// path reads an absolute path without detours.
func (v value) path() (string, bool) {
	s, ok := v.text()
	if !ok {
		return "", false
	}
	if reason := badPath(s); reason != "" {
		v.fail("%q %s", clip(s), reason)
		return "", false
	}
	return s, true
}

func badPath(s string) string {
	switch {
	case !strings.HasPrefix(s, "/"):
		return "is not an absolute path; begin it with /"
	case len(s) > 1 && strings.HasSuffix(s, "/"):
		return "ends with a slash; leave it out"
	case strings.Contains(s+"/", "/../"):
		return "goes up with \"..\"; write the path it leads to"
	default:
		return ""
	}
}
