package config

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
)

func exampleText(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("../../milter.yaml.example")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// commented matches a default: a # with a key right behind it, or with a key or
// dash indented by two blanks.
var commented = regexp.MustCompile(`^#([a-z0-9_]+:|  [a-z0-9_]+:|  - )`)

// uncommented takes the # off the defaults and leaves out everything else.
func uncommented(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if commented.MatchString(line) {
			b.WriteString(line[1:])
		}
	}
	return b.String()
}

func TestExampleAsShippedIsTheDefault(t *testing.T) {
	c, warnings, err := Parse("milter.yaml.example", []byte(exampleText(t)))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %v", err, warnings)
	}
	if !reflect.DeepEqual(c, Default()) {
		t.Errorf("it gives\n%+v\nwant the default", c)
	}
}

func TestExampleShowsTheRealDefaults(t *testing.T) {
	text := uncommented(exampleText(t))
	c, warnings, err := Parse("milter.yaml.example", []byte(text))
	if err != nil || len(warnings) > 0 {
		t.Fatalf("%v %v in\n%s", err, warnings, text)
	}
	got, want := reflect.ValueOf(*unplaced(c)), reflect.ValueOf(*Default())
	for i := range got.NumField() {
		g, w := got.Field(i).Interface(), want.Field(i).Interface()
		if !reflect.DeepEqual(normal(g), normal(w)) {
			t.Errorf("%s: the example says\n%+v\nthe default is\n%+v", got.Type().Field(i).Name, g, w)
		}
	}
	for _, key := range places {
		last := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(`(?m)^(  )?` + last + `:`).MatchString(text) {
			t.Errorf("%s is not shown with its default", key)
		}
	}
}

// normal makes an empty list and no list the same.
func normal(v any) any {
	switch v := v.(type) {
	case Listen:
		if len(v.Policy) == 0 {
			v.Policy = nil
		}
		if len(v.Socketmap) == 0 {
			v.Socketmap = nil
		}
		if len(v.Allow) == 0 {
			v.Allow = nil
		}
		return v
	}
	if r := reflect.ValueOf(v); r.Kind() == reflect.Slice && r.Len() == 0 {
		return nil
	}
	return v
}

// TestExampleNamesEveryKey looks for every key the readers know, those of
// sources and formats among them, and tries the examples that use them.
func TestExampleNamesEveryKey(t *testing.T) {
	text := exampleText(t)
	every, err := os.ReadFile("testdata/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range knownKeys(t, every) {
		last := key[strings.LastIndexByte(key, '.')+1:]
		if !regexp.MustCompile(`\b` + last + `:`).MatchString(text) {
			t.Errorf("the example does not show %s", key)
		}
	}
	var block strings.Builder
	examples := 0
	for line := range strings.Lines(text + "\n") {
		if rest, ok := strings.CutPrefix(line, "## "); ok {
			block.WriteString(rest)
			continue
		}
		if block.Len() > 0 {
			if _, _, err := Parse("example", []byte(block.String())); err != nil {
				t.Errorf("%v in\n%s", err, block.String())
			}
			examples++
			block.Reset()
		}
	}
	if examples < 5 {
		t.Errorf("%d examples tried, want 5 at least", examples)
	}
}
