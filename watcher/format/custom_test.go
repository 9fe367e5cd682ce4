package format

import (
	"os"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"popgate/internal/relay"
)

// customFromDocs makes the parser that docs/formats.md shows.
func customFromDocs(t testing.TB) Parser {
	t.Helper()
	doc, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(doc), "```yaml\n")
	if !ok {
		t.Fatal("docs/formats.md: no example")
	}
	example, _, _ = strings.Cut(example, "```")
	var conf struct {
		Formats map[string]struct{ Tag, Pattern, Logout string }
	}
	if err := yaml.Unmarshal([]byte(example), &conf); err != nil {
		t.Fatal(err)
	}
	f, ok := conf.Formats["ourdovecot"]
	if !ok {
		t.Fatal("docs/formats.md: the example has no format ourdovecot")
	}
	p, err := NewCustom(Custom{Name: "ourdovecot", Tag: f.Tag, Pattern: f.Pattern, Logout: f.Logout})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestNewCustomJudgesPatterns(t *testing.T) {
	manual, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	const client = `(?P<client>[0-9a-f.:]+)`
	for _, tt := range []struct {
		name, pattern, want string // want: part of the error; empty: fine
	}{
		{"client before everything else", `login from ` + client + ` user (?P<user>.*)`, ""},
		{"words written out may come before", `(?P<service>pop3|imap): login from ` + client, ""},
		{"optional words may come before", `(?:TLS )?login from ` + client, ""},
		{"blank parts user and client", `login (?P<user>[a-z]+) from ` + client, ""},
		{"the manual's good example", "login (?P<user>[a-z0-9.]+) from (?P<client>[0-9a-f.:]+)", ""},
		{"the manual's bad example", "login (?P<user>.+) from (?P<client>[0-9a-f.:]+)", "could be reached"},
		{"quotes part user and client", `login "(?P<user>[^"]+)" from ` + client, ""},
		{"quotes part user and client, but the client takes them too", `login "(?P<user>[^"]+)" from (?P<client>\S+)`, "could be reached"},
		{"free text before the client", `login (?P<user>.+) from ` + client, "could be reached"},
		{"a few users written out are still chosen", `user=(?P<user>bob|alice), ip=` + client + `, .*`, "could be reached"},
		{"blanks in the user", `login (?P<user>[a-z ]+) from ` + client, "could be reached"},
		{"free text behind makes room for the rest", `user=<(?P<user>[^>]*)>, rip=` + client + `, .*`, "could be reached"},
		{"optional field behind a chosen text", `user (?P<user>[a-z]+), rip=` + client + `, ok(?:, [a-z]+)?`, "read in two ways"},
		{"optional words behind a chosen text", `user (?P<user>[a-z]+), rip=` + client + `, ok(?:, tls)?`, "could be reached"},
		{"optional client", `login(?: from ` + client + `)?`, "one class"},
		{"client in a choice", `login from (?:` + client + `|unknown)`, "one class"},
		{"client of two parts", `login from (?P<client>[0-9]+\.[0-9.]+) ok`, "one class"},
		{"part of an address before the client", `login from [0-9]*` + client, "right before"},
		{"client not parted from the number before", `login from 1` + client, "right before"},
		{"client not parted from what follows", `login from ` + client + `[0-9]* ok`, "right after"},
		{"client not parted from the number behind", `login from ` + client + `1 ok`, "right after"},
		{"no client", `login of (?P<user>[a-z]+)`, "no group client"},
		{"two clients", `login from ` + client + ` ` + client, "stands in it twice"},
		{"unknown group", `login from ` + client + ` (?P<host>[a-z]+)`, `"host" means nothing`},
		{"unnamed group", `(login) from ` + client, "without a name"},
		{"ignoring case", `(?i)login from ` + client, "one case"},
		{"anchor", `^login from ` + client, "anchors"},
		{"word boundary", `login\b from ` + client, "anchors"},
		{"no fixed text", `[a-z]+ ` + client, "no fixed text"},
		{"not RE2", `login from ` + client + `(`, "missing closing"},
		{"empty", ``, "no fixed text"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if strings.HasPrefix(tt.name, "the manual's") && !strings.Contains(string(manual), "`"+tt.pattern+"`") {
				t.Errorf("docs/formats.md does not have it: %s", tt.pattern)
			}
			_, err := NewCustom(Custom{Name: "x", Tag: "x", Pattern: tt.pattern})
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %v, want an error with %q", err, tt.want)
			}
		})
	}
}

func TestCustomReadsNothingElse(t *testing.T) {
	p, err := NewCustom(Custom{
		Name: "acme", Tag: "acme-pop", Service: relay.POP3,
		Pattern: `login (?P<user>[a-z.]+) from (?P<client>[0-9a-f.:]+)`,
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, tag, text, client string
		want                    Result
	}{
		{"login", "acme-pop", "login bob from 192.0.2.7", "192.0.2.7", Login},
		{"other tag", "acme-pop2", "login bob from 192.0.2.7", "", None},
		{"no tag", "", "login bob from 192.0.2.7", "", None},
		{"text before", "acme-pop", "x login bob from 192.0.2.7", "", None},
		{"text behind", "acme-pop", "login bob from 192.0.2.7 failed", "", Unparsed},
		{"no address", "acme-pop", "login bob from 192.0.2.777", "", Unparsed},
		{"forged user", "acme-pop", "login bob from 203.0.113.66 from 192.0.2.7", "", Unparsed},
		{"line end", "acme-pop", "login bob from 192.0.2.7\n", "", Unparsed},
		{"other case", "acme-pop", "LOGIN bob from 192.0.2.7", "", None},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, got := p.Parse(&Message{Tag: []byte(tt.tag), Text: []byte(tt.text)})
			if got != tt.want || got == Login && (e.Client.String() != tt.client || e.User != "bob" || e.Service != relay.POP3) {
				t.Errorf("got %v %+v, want %v %s", got, e, tt.want, tt.client)
			}
		})
	}
}

func TestCustomAnonymousLoginGrantsNothing(t *testing.T) {
	p, err := NewCustom(Custom{
		Name: "acme", Tag: "acme-pop", Logout: `logout from (?P<client>[0-9a-f.:]+) user (?P<user>.*), [A-Z0-9-]+`,
		Pattern: `login from (?P<client>[0-9a-f.:]+) user (?P<user>.*), [A-Z0-9-]+`,
	})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Result{
		"login from 192.0.2.7 user bob, PLAIN":                   Login,
		"login from 192.0.2.7 user anonymous@example.net, PLAIN": Login,
		"login from 203.0.113.66 user archive, ANONYMOUS":        None,
		"login from 203.0.113.66 user anonymous, PLAIN":          None,
		"login from 203.0.113.66 user Anonymous, PLAIN":          None,
		"logout from 203.0.113.66 user archive, ANONYMOUS":       Logout,
	} {
		if e, got := p.Parse(&Message{Tag: []byte("acme-pop"), Text: []byte(text)}); got != want || want == None && e != (relay.Event{}) {
			t.Errorf("%q: %v %+v, want %v", text, got, e, want)
		}
	}
}

func TestCustomRefusesUsersThatEndFields(t *testing.T) {
	p, err := NewCustom(Custom{
		Name: "acme", Tag: "acme-pop",
		Pattern: `login from (?P<client>[0-9a-f.:]+) user (?P<user>.*) session (?P<session>.*)`,
	})
	if err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]Result{
		"login from 192.0.2.7 user bob session 1":     Login,
		"login from 192.0.2.7 user b,ob session 1":    Unparsed,
		"login from 192.0.2.7 user bob session <1>":   Unparsed,
		"login from 192.0.2.7 user bob session 1\x1b": Unparsed,
		"login from 192.0.2.7 user  session 1":        Unparsed,
	} {
		if e, got := p.Parse(&Message{Tag: []byte("acme-pop"), Text: []byte(text)}); got != want {
			t.Errorf("%q: %v %+v, want %v", text, got, e, want)
		}
	}
	p, err = NewCustom(Custom{Name: "acme", Tag: "acme-pop", Pattern: `login from (?P<client>[0-9a-f.:]+) by [^x]*`})
	if err != nil {
		t.Fatal(err)
	}
	if _, got := p.Parse(&Message{Tag: []byte("acme-pop"), Text: []byte("login from 192.0.2.7 by a\nb")}); got != Unparsed {
		t.Errorf("line end in the message: %v", got)
	}
}
