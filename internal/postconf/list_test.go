package postconf

import (
	"slices"
	"testing"
)

func TestSplit(t *testing.T) {
	for value, want := range map[string][]string{
		"":                            nil,
		" ,\t\n":                      nil,
		"a, b\n\tc,d":                 {"a", "b", "c", "d"},
		"inet:host:1 { b, c = d }, e": {"inet:host:1", "{ b, c = d }", "e"},
		"${x?{a, b}:{c}} d":           {"${x?{a, b}:{c}}", "d"},
		"{ a, b":                      {"{ a, b "[:6]},
		"} a":                         {"}", "a"},
		"é, ü":                        {"é", "ü"},
	} {
		if got := Split(value); !slices.Equal(got, want) {
			t.Errorf("%q: %q, want %q", value, got, want)
		}
	}
}
