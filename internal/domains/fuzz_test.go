package domains

import (
	"slices"
	"strings"
	"testing"

	"popgate/internal/relay"
)

// FuzzReadList holds for any file of domains: every name is one, none takes a
// top-level domain with all below it, and none was skipped without a word.
func FuzzReadList(f *testing.F) {
	for _, s := range []string{"example.org\n", "# c\n.example.org # x\n+example.net", "192.0.2\n[192.0.2.1]\nIPv6:2001:db8\n", "müller.example", "+com\n.co.uk\n",
		"a b\n", "\xff\xfe", "x@y\n*.z\n", "..\n+\n.\n-\n", "xn--zzzz\u202e.example"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, text []byte, subdomains bool) {
		names, skipped, err := readList(text, subdomains)
		words := 0
		for line := range strings.Lines(string(text)) {
			if strings.TrimSpace(uncomment(line)) != "" {
				words++
			}
		}
		if n := len(names) + len(skipped); n > words || n < words && err == nil {
			t.Errorf("%d names and %d skipped of %d, error %v", len(names), len(skipped), words, err)
		}
		put := map[string]relay.Match{}
		for _, n := range names {
			checkName(t, n)
			n.put(put, relay.DomainFound)
		}
		d := relay.NewDomains(put)
		for _, n := range names {
			if n.Self && d.Match(n.ASCII) != relay.DomainFound || n.Self && d.Match(n.Unicode) != relay.DomainFound ||
				n.Below && d.Match("x."+n.ASCII) != relay.DomainFound {
				t.Errorf("%v is in the list and not found", n)
			}
		}
		if d.Match("com") == relay.DomainFound && !slices.ContainsFunc(names, func(n Name) bool { return n.Self && n.ASCII == "com" }) {
			t.Error("com was never in it")
		}
		for _, foreign := range []string{"stranger.com", "stranger.co.uk", "stranger.org", "192.0.2.1", ""} {
			if d.Match(foreign) != relay.DomainOther && !strings.Contains(strings.ToLower(string(text)), foreign) {
				t.Errorf("%q is ours by %q", foreign, text)
			}
		}
	})
}

func checkName(t *testing.T, n Name) {
	t.Helper()
	again, err := ParseName(n.String())
	if err != nil || again != n {
		t.Errorf("%+v read again is %+v, %v", n, again, err)
	}
	if !n.Self && !n.Below || badLabels(n.ASCII) != "" || n.Below && tooWide(n.ASCII) {
		t.Errorf("%+v is no domain", n)
	}
}

// FuzzReadCF holds for any sendmail.cf: reading it ends, macros stay bounded,
// and a file it names is a path.
func FuzzReadCF(f *testing.F) {
	for _, s := range []string{cfText, "Cw$j\nDj$w.$m\nDm$m\n", "C{w", "F", "D", "C", "FR-o\n", "Fw-o /x %[^\\#]", "DZ$Z$Z$Z$Z\nCw$Z", " \n\tx\nCw a\n b\n", "D{a}$a\nDa${a}\nCR$a"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cf := readCF(text)
		for _, file := range cf.files {
			if !strings.HasPrefix(file.path, "/") || strings.ContainsAny(file.path, " \t\n") {
				t.Errorf("%+v is no file", file)
			}
		}
		for _, words := range cf.words {
			for _, w := range words {
				if full, ok := cf.expand(w, 5); ok && (len(full) > 1000+len(w) || strings.Contains(full, "$")) {
					t.Errorf("%q became %q", w, full)
				}
			}
		}
	})
}

// FuzzSplitList holds for any Postfix list: its patterns are parts of it in
// their order, and nothing but what parts them is lost.
func FuzzSplitList(f *testing.F) {
	for _, s := range []string{"a, b c", "inline:{a=1, b=2} x", "{{a b}", "}a{ b", "!a,!/b", " , ,", "hash:/x\thash:/y\r\nz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		rest := s
		for _, p := range splitList(s) {
			before, after, found := strings.Cut(rest, p)
			if !found || p == "" || strings.Trim(before, ", \t\r\n") != "" {
				t.Fatalf("%q of %q: %q stands before it", p, s, before)
			}
			rest = after
		}
		if strings.Trim(rest, ", \t\r\n") != "" {
			t.Errorf("%q of %q is lost", rest, s)
		}
	})
}
