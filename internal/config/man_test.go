package config

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// manItem is a key of milter.yaml(5) with what stands on its line, and the
// default behind it where there is one.
var manItem = regexp.MustCompile(`(?m)^\.It Ic ([a-z_0-9., ]+) : (.*)\n(?:Default\n\.Ql (.*?) \.\n)?`)

func manPage(t *testing.T) [][]string {
	t.Helper()
	data, err := os.ReadFile("../../man/milter.yaml.5")
	if err != nil {
		t.Fatal(err)
	}
	return manItem.FindAllStringSubmatch(string(data), -1)
}

// TestManPageShowsTheRealDefaults makes a configuration of the defaults in
// milter.yaml(5): it must be that of an empty file.
func TestManPageShowsTheRealDefaults(t *testing.T) {
	var text strings.Builder
	opened := ""
	for _, m := range manPage(t) {
		if m[3] == "" {
			continue
		}
		value := strings.ReplaceAll(m[3], `\(dq`, "\x00")
		value = strings.ReplaceAll(strings.ReplaceAll(value, `"`, ""), "\x00", `"`)
		key, sub, nested := strings.Cut(m[1], ".")
		if !nested {
			fmt.Fprintf(&text, "%s: %s\n", key, value)
			continue
		}
		if key != opened {
			fmt.Fprintf(&text, "%s:\n", key)
			opened = key
		}
		fmt.Fprintf(&text, "  %s: %s\n", sub, value)
	}
	c, warnings, err := Parse("milter.yaml.5", []byte(text.String()))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %v in\n%s", err, warnings, text.String())
	}
	got, want := reflect.ValueOf(*unplaced(c)), reflect.ValueOf(*Default())
	for i := range got.NumField() {
		if g, w := got.Field(i).Interface(), want.Field(i).Interface(); !reflect.DeepEqual(normal(g), normal(w)) {
			t.Errorf("%s: the page says\n%+v\nthe default is\n%+v", got.Type().Field(i).Name, g, w)
		}
	}
	for _, key := range places {
		if !regexp.MustCompile(`(?m)^` + key + `(\.[a-z]+)?: `).MatchString(flat(text.String())) {
			t.Errorf("%s is not there with its default", key)
		}
	}
}

// flat writes each nested key with its parent before it.
func flat(text string) string {
	var b strings.Builder
	parent := ""
	for line := range strings.Lines(text) {
		if sub, nested := strings.CutPrefix(line, "  "); nested {
			b.WriteString(parent + "." + sub)
			continue
		}
		parent, _, _ = strings.Cut(line, ":")
		b.WriteString(line)
	}
	return b.String()
}

func TestManPageHasEveryKeyAndNoOther(t *testing.T) {
	every, err := os.ReadFile("testdata/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	known := knownKeys(t, every)
	for _, key := range []string{"tag", "pattern", "logout", "service"} { // below a name of the site's own
		known = append(known, "formats.NAME."+key)
	}
	known = append(known, "sources[].programs", "sources[].users")
	var have []string
	for _, m := range manPage(t) {
		have = append(have, strings.Split(m[1], " , ")...)
	}
	if data, err := os.ReadFile("../../man/milter.yaml.5"); err == nil && strings.Contains(string(data), "{path: P, subdomains: true}") {
		have = append(have, "local_domain_files[].path", "local_domain_files[].subdomains")
	}
	ends := func(key, with string) bool { return key == with || strings.HasSuffix(key, "."+with) }
	for _, key := range known {
		container := slices.ContainsFunc(known, func(k string) bool { return strings.HasPrefix(k, key+".") })
		if !container && !slices.ContainsFunc(have, func(h string) bool { return ends(key, h) }) {
			t.Errorf("milter.yaml(5) does not have %s", key)
		}
	}
	for _, h := range have {
		if !slices.ContainsFunc(known, func(key string) bool { return ends(key, h) }) {
			t.Errorf("milter.yaml(5) has %s, which is no key", h)
		}
	}
}

// TestManPageMarksWhatNeedsARestart compares the mark with what a reload refuses.
func TestManPageMarksWhatNeedsARestart(t *testing.T) {
	other := Address{"unix", "/other", "unix:/other"}
	want := Diff(Default(), &Config{Listen: Listen{
		Push: other, Policy: []Address{other}, Socketmap: []Address{other}, Metrics: other, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
	}, SocketGroup: "other"})
	var got []string
	for _, m := range manPage(t) {
		if strings.HasSuffix(m[2], ", Em restart") {
			got = append(got, m[1])
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("marked\n%v\nrefused by a reload\n%v", got, want)
	}
}

// The page's examples are configurations, in which nothing is doubtful.
func TestManPageExamplesAreRead(t *testing.T) {
	data, err := os.ReadFile("../../man/milter.yaml.5")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile(`(?ms)^\.Bd -literal.*?\n(.*?)^\.Ed`).FindAllStringSubmatch(string(data), -1)
	for _, m := range examples {
		text := strings.ReplaceAll(m[1], `\(dq`, `"`)
		if _, warnings, err := Parse("milter.yaml.5", []byte(text)); err != nil || len(warnings) > 0 {
			t.Errorf("%v %v in\n%s", err, warnings, text)
		}
	}
	if len(examples) < 3 {
		t.Errorf("%d examples, want 3 at least", len(examples))
	}
}
