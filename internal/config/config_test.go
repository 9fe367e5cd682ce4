package config

import (
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"popgate/internal/domains"
	"popgate/internal/relay"
)

var indexed = regexp.MustCompile(`\[[0-9]+\]`)

// load parses a text that must be right.
func load(t *testing.T, text string) *Config {
	t.Helper()
	c, _, err := Parse("milter.yaml", []byte(text))
	if err != nil {
		t.Fatalf("refused:\n%v", err)
	}
	return c
}

// unplaced takes out where a source or format stood in its file.
func unplaced(c *Config) *Config {
	d := *c
	d.Sources = slices.Clone(c.Sources)
	for i := range d.Sources {
		d.Sources[i].Line, d.Sources[i].formatAt, d.Sources[i].key = 0, 0, ""
	}
	d.Formats = slices.Clone(c.Formats)
	for i := range d.Formats {
		d.Formats[i].Line = 0
	}
	return &d
}

func TestEmptyFileIsTheDefault(t *testing.T) {
	for _, text := range []string{"", "\n", "# nothing but this\n", "---\n", "{}\n", "\xef\xbb\xbf# a byte order mark\n"} {
		if c := load(t, text); !reflect.DeepEqual(c, Default()) {
			t.Errorf("%q gave\n%+v\nwant\n%+v", text, c, Default())
		}
	}
}

func TestFileThatSetsEveryKey(t *testing.T) {
	data, err := os.ReadFile("testdata/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{file: "every-key.yaml"}
	got := unplaced(r.parse(data, nil))
	if len(r.errs)+len(r.warnings) > 0 {
		t.Fatalf("refused or warned:\n%v\n%v", r.errs, r.warnings)
	}
	berlin, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	nets := func(list ...string) (ps []netip.Prefix) {
		for _, s := range list {
			ps = append(ps, netip.MustParsePrefix(s))
		}
		return ps
	}
	want := &Config{
		Listen: Listen{
			Milter: []Address{
				{"unix", "/run/popgate/a.sock", "unix:/run/popgate/a.sock"},
				{"unix", "/run/popgate/b.sock", "local:/run/popgate/b.sock"},
				{"tcp4", "127.0.0.1:9001", "inet:9001@127.0.0.1"},
				{"tcp6", "[::1]:9002", "inet6:9002@[::1]"},
				{"tcp", "192.0.2.1:9003", "inet:192.0.2.1:9003"},
				{"tcp", "[2001:db8::1]:9004", "[2001:db8::1]:9004"},
			},
			Control:   Address{"unix", "/run/popgate/ctl.sock", "unix:/run/popgate/ctl.sock"},
			Push:      Address{"unix", "/run/popgate/push.sock", "unix:/run/popgate/push.sock"},
			Policy:    []Address{{"tcp", "127.0.0.1:9005", "localhost:9005"}},
			Socketmap: []Address{{"unix", "/run/popgate/map.sock", "unix:/run/popgate/map.sock"}},
			Metrics:   Address{"tcp", "127.0.0.1:9006", "127.0.0.1:9006"},
			Allow:     nets("192.0.2.0/24", "2001:db8::/64"),
		},
		ControlGroup: "adm",
		SocketMode:   0o666,
		SocketGroup:  "postfix",
		MTA:          relay.Postfix,
		LocalDomains: []domains.Name{
			{Self: true, ASCII: "example.org", Unicode: "example.org"},
			{Below: true, ASCII: "example.net", Unicode: "example.net"},
			{Self: true, Below: true, ASCII: "xn--mller-kva.example", Unicode: "müller.example"},
		},
		LocalDomainFiles: []domains.File{{Path: "/etc/mail/domains"}, {Path: "/etc/mail/relay-domains", Subdomains: true}},
		LocalDomainsFrom: domains.FromPostfix,
		PostfixMailers:   relay.Mailers{Local: []string{"local", "virtual", "dovecot"}, Remote: []string{"smtp", "slow"}},
		SendmailMailers:  relay.Mailers{Local: []string{"local"}, Remote: []string{"esmtp", "relay"}},
		TrustedNetworks:  nets("192.0.2.7/32", "10.0.0.0/8"),

		GrantTTL:         time.Hour,
		HoldOpenLogins:   0,
		IPv6Prefix:       64,
		MaxGrants:        2000,
		MaxGrantsPerUser: 0,
		NeverGrant:       nets("198.51.100.0/24"),
		IgnoreUsers:      []string{"Monitor", "probe@example.org"},
		Services:         []relay.Service{relay.POP3, relay.Submission},
		WaitForLogin:     1500 * time.Millisecond,
		MaxWaiting:       10,
		Reject: relay.Reject{Code: 450, Enhanced: "4.7.25", Text: "Not from {client}, see {url}",
			URL: "https://example.org/mail?a=b%20c"},
		Sources: []Source{
			{Name: "file:/var/log/mail.log", Kind: KindFile, Format: "dovecot", Path: "/var/log/mail.log", Location: time.Local},
			{Name: "old pop", Kind: KindFile, Format: "acme", Path: "/var/log/pop.log", Zone: "Europe/Berlin", Location: berlin},
			{Name: "journal:dovecot.service,courier-pop.service", Kind: KindJournal, Format: "auto", Programs: []string{"/opt/mail/log"}, Users: []string{"vmail"},
				Units: []string{"dovecot.service", "courier-pop.service"}, Location: time.Local},
			{Name: "syslog:unix:/run/popgate/log.sock", Kind: KindSyslog, Format: "cyrus", PeerUIDs: []uint32{104},
				Listen: Address{"unix", "/run/popgate/log.sock", "unix:/run/popgate/log.sock"}, Location: time.Local},
			{Name: "syslog:udp:0.0.0.0:514", Kind: KindSyslog, Format: "courier", Allow: nets("192.0.2.9/32"), Hosts: []string{"mx1"},
				Listen: Address{"udp", "0.0.0.0:514", "udp:0.0.0.0:514"}, Insecure: true, Location: time.Local},
			{Name: "syslog:tls:[::]:6514", Kind: KindSyslog, Format: "dovecot", Allow: nets("2001:db8::/64"),
				Listen: Address{"tls", "[::]:6514", "tls:[::]:6514"}, Location: time.Local,
				TLS: &TLS{Cert: "/etc/popgate/cert.pem", Key: "/etc/popgate/key.pem", ClientCA: "/etc/popgate/ca.pem", Names: []string{"mx1.example.org"}}},
			{Name: "push:127.0.0.1:4001", Kind: KindPush, Format: "dovecot", KeyFile: "/etc/popgate/push.key",
				Listen: Address{"tcp", "127.0.0.1:4001", "127.0.0.1:4001"}, Location: time.Local},
		},
		Formats: []Format{{Name: "acme", Tag: "acme-pop", Service: relay.POP3,
			Pattern: `login (?P<user>[a-z]+) from (?P<client>[0-9a-f.:]+) id (?P<session>[0-9]+)`, Logout: `logout id (?P<session>[0-9]+)`}},
		Store: "memory",
		Log:   Log{Level: slog.LevelWarn, Format: "json"},
	}
	gv, wv := reflect.ValueOf(*got), reflect.ValueOf(*want)
	for i := range gv.NumField() {
		if g, w := gv.Field(i).Interface(), wv.Field(i).Interface(); !reflect.DeepEqual(g, w) {
			t.Errorf("%s:\n got %+v\nwant %+v", gv.Type().Field(i).Name, g, w)
		}
	}
	again := unplaced(load(t, string(data)))
	if !reflect.DeepEqual(again, got) {
		t.Errorf("read again it gave\n%+v\nfirst\n%+v", again, got)
	}
}

// TestEveryKeyFileIsComplete keeps the claim of the test above true.
func TestEveryKeyFileIsComplete(t *testing.T) {
	data, err := os.ReadFile("testdata/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range knownKeys(t, data) {
		last := key[strings.LastIndexByte(key, '.')+1:]
		if !strings.Contains(string(data), last+":") {
			t.Errorf("every-key.yaml does not set %s", key)
		}
	}
}

// knownKeys gives every key the readers know, as far as the file leads to
// them; the number of a list's item is taken out.
func knownKeys(t *testing.T, data []byte) []string {
	t.Helper()
	var keys []string
	r := &reader{file: "keys", seen: func(key string) {
		key = indexed.ReplaceAllString(key, "[]")
		if !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}}
	r.parse(data, nil)
	if len(r.errs) > 0 {
		t.Fatal(r.errs)
	}
	return keys
}

// TestSuggestionsKnowEveryKey holds the list that remedies are made from
// against the readers.
func TestSuggestionsKnowEveryKey(t *testing.T) {
	data, err := os.ReadFile("testdata/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var top []string
	for _, key := range knownKeys(t, data) {
		if !strings.ContainsAny(key, "[") && key != "listen" && key != "reject" && key != "log" && !strings.Contains(key, "mailers.") && !strings.HasPrefix(key, "formats.") {
			top = append(top, key)
		}
	}
	have := slices.Clone(places)
	slices.Sort(top)
	slices.Sort(have)
	if !slices.Equal(top, have) {
		t.Errorf("places is\n%q\nthe readers know\n%q", have, top)
	}
}

func TestBadConfigurations(t *testing.T) {
	dir := "../../cmd/popgate/testdata/badconfig"
	files, err := filepath.Glob(dir + "/*.yaml")
	if err != nil || len(files) < 40 {
		t.Fatalf("%d files in %s, want 40 at least (%v)", len(files), dir, err)
	}
	covered := map[string]bool{}
	for _, path := range files {
		name := filepath.Base(path)
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(strings.TrimSuffix(path, ".yaml") + ".want")
			if err != nil {
				t.Fatal(err)
			}
			c, _, err := Parse(name, data)
			if err == nil || c != nil {
				t.Fatalf("accepted: %+v", c)
			}
			if got := err.Error() + "\n"; got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
			for _, e := range err.(Errors) {
				covered[indexed.ReplaceAllString(e.Key, "[]")] = true
			}
		})
	}
	data, err := os.ReadFile("testdata/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range knownKeys(t, data) {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(covered)), func(c string) bool { return c == key || strings.HasPrefix(c, key+"[") || strings.HasPrefix(c, key+".") }) {
			t.Errorf("no broken configuration for %s", key)
		}
	}
}

// A broken file must not keep an operator from the daemon, nor lead him to
// another one.
func TestTheControlSocketIsToldOfABrokenFileOnlyWhereItIsCertain(t *testing.T) {
	const own = "listen: {control: unix:/x/own.sock}\n"
	for name, tt := range map[string]struct{ text, want string }{
		"an unknown key elsewhere":          {own + "grant_tll: 5m\n", "/x/own.sock"},
		"a value that can't be meant":       {own + "never_grant: [nonsense]\n", "/x/own.sock"},
		"nothing said, so the default":      {"grant_tll: 5m\n", "/run/popgate/control.sock"},
		"no YAML at all":                    {own + "sources: [\n", ""},
		"listen itself is wrong":            {"listen: {control: nowhere}\n", ""},
		"a key of listen is misspelt":       {"listen: {contrl: unix:/x/own.sock}\n", ""},
		"listen is misspelt":                {"listn: {control: unix:/x/own.sock}\n", ""},
		"listen stands there twice":         {own + own, ""},
		"a second document in the file":     {own + "---\n" + own, ""},
		"a file that is right is right too": {own + "sources: [{file: /x, format: dovecot}]\n", "/x/own.sock"},
	} {
		t.Run(name, func(t *testing.T) {
			if got, ok := Control("milter.yaml", []byte(tt.text)); ok != (tt.want != "") || got.Address != tt.want {
				t.Errorf("%q %v, want %q", got.Address, ok, tt.want)
			}
		})
	}
}
