package domains

import (
	"slices"
	"strings"
	"testing"

	"popgate/internal/postconf"
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
	for _, s := range []string{cfText, "Cw$j\nDj$w.$m\nDm$m\n", "C{w", "F", "D", "C", "FR-o\n", "Fw-o /x %[^\\#]", "DZ$Z$Z$Z$Z\nCw$Z", "Kaccess hash -T<TMPF> -o /etc/mail/access\n", "Kaccess text -k99999999999999999999 -v -z /x\nKaccess", " \n\tx\nCw a\n b\n", "D{a}$a\nDa${a}\nCR$a"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		cf := readCF(text)
		for _, file := range cf.files {
			if !strings.HasPrefix(file.path, "/") || strings.ContainsAny(file.path, " \t\n") {
				t.Errorf("%+v is no file", file)
			}
		}
		if a := cf.access; a != nil {
			if !strings.HasPrefix(a.path, "/") || a.key < 0 || a.value < 0 {
				t.Errorf("%+v is no map", a)
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

// FuzzAccessMap holds for any access map: only a name with RELAY is ours, and
// no top-level domain with all below it.
func FuzzAccessMap(f *testing.F) {
	for _, s := range []string{"to:a.test\tRELAY\nb.a.test\tREJECT\n", "com RELAY\n", "To:x@y RELAY\n@ relay\n. RELAY\n.x RELAY\n+x.test RELAY\n", "to:to:x RELAY\nto: RELAY\n\tRELAY\n", "to:\xff RELAY\nm\u00fcller.example RELAY\n"} {
		f.Add([]byte(s), "", 0, 1)
		f.Add([]byte(s), "\t", 1, 0)
	}
	f.Fuzz(func(t *testing.T, text []byte, delimiter string, key, value int) {
		a := accessMap{kind: "text", delimiter: delimiter, key: max(key, 0), value: max(value, 0)}
		rows := a.rows(text)
		g := &gathering{names: map[string]relay.Match{}}
		putAccess(g, &sendmailCF{below: true}, rows, relay.DomainFound, "map")
		for name, m := range g.names {
			n, err := ParseName(name)
			bare := strings.TrimPrefix(name, ".")
			if m == relay.DomainFound && (err != nil || n.Below && tooWide(n.ASCII) || !slices.ContainsFunc(rows, func(row [2]string) bool {
				of, err := ParseName(strings.TrimPrefix(row[0], "to:"))
				return err == nil && strings.EqualFold(row[1], "RELAY") && (of.ASCII == bare || of.Unicode == bare)
			})) {
				t.Errorf("%q is ours by %q", name, text)
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
		for _, p := range postconf.Split(s) {
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
