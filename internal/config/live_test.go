package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

func TestDiffNamesWhatCannotChangeLive(t *testing.T) {
	for _, tt := range []struct{ name, before, after, want string }{
		{"nothing changed", "grant_ttl: 30m\n", "grant_ttl: 30m\n", ""},
		{"everything else may change", "", `
control_group: adm
mta: postfix
local_domains: [example.org]
local_domain_files: [/etc/mail/domains]
local_domains_from: none
local_mailers: {postfix: [local]}
remote_mailers: {postfix: [smtp, slow]}
trusted_networks: []
trust_authenticated: false
grant_ttl: 1h
hold_open_logins: 0
ipv6_prefix: 64
max_grants: 10
max_grants_per_user: 5
never_grant: [192.0.2.0/24]
ignore_users: [x]
services: [imap]
wait_for_login: 0
max_waiting: 5
reject: {code: 450}
sources: [{file: /var/log/mail.log, format: cyrus}]
formats: {a: {tag: a, pattern: 'in (?P<client>[0-9.]+)'}}
log: {level: debug}
`, ""},
		{"milter", "", "listen: {milter: []}\n", "listen.milter"},
		{"the same milter written otherwise", "listen: {milter: [unix:/m, localhost:1]}\n", "listen: {milter: [local:/m, 127.0.0.1:1]}\n", ""},
		{"control", "", "listen: {control: unix:/c}\n", "listen.control"},
		{"push", "", "listen: {push: unix:/p}\n", "listen.push"},
		{"policy", "", "listen: {policy: [unix:/p]}\n", "listen.policy"},
		{"socketmap", "", "listen: {socketmap: [unix:/p]}\n", "listen.socketmap"},
		{"metrics", "", "listen: {metrics: unix:/p}\n", "listen.metrics"},
		{"allow", "", "listen: {allow: [192.0.2.0/24]}\n", "listen.allow"},
		{"mode and group", "", "socket_mode: 0600\nsocket_group: mail\n", "socket_mode socket_group"},
		{"state", "", "state_dir: /srv/popgate\n", "state_dir"},
		{"log format", "", "log: {format: json}\n", "log.format"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(Diff(load(t, tt.before), load(t, tt.after)), " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	other := Default()
	other.Store = "other"
	if got := Diff(Default(), other); !slices.Equal(got, []string{"store"}) {
		t.Errorf("another store gave %q", got)
	}
}

func TestSourcesThatStayInPlaceAtAReload(t *testing.T) {
	one := load(t, "sources:\n  - {file: /a, format: dovecot, time_zone: UTC}\n").Sources[0]
	moved := load(t, "\n\n# a comment\nsources:\n  - {file: /b, format: cyrus}\n  - {file: /a, format: dovecot, time_zone: UTC}\n").Sources[1]
	if !one.Equal(moved) {
		t.Error("a source that moved in the file is another one")
	}
	for _, text := range []string{"{file: /a, format: cyrus, time_zone: UTC}", "{file: /a, format: dovecot}", "{file: /b, format: dovecot, time_zone: UTC}",
		"{file: /a, format: dovecot, time_zone: Europe/Berlin}", "{file: /a, format: dovecot, time_zone: UTC, name: x}"} {
		if one.Equal(load(t, "sources: ["+text+"]\n").Sources[0]) {
			t.Errorf("%s is the same source", text)
		}
	}
}

func TestRulesCarryEveryField(t *testing.T) {
	data, err := os.ReadFile("testdata/every-key.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c := load(t, strings.Replace(string(data), "max_grants_per_user: 0", "max_grants_per_user: 7", 1))
	c.HoldOpenLogins, c.TrustAuthenticated = time.Hour, true
	d := relay.NewDomains(map[string]relay.Match{"example.org": relay.DomainWritten})
	v := reflect.ValueOf(*c.Rules(d))
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("Rules leaves %s out", v.Type().Field(i).Name)
		}
	}
	r := c.Rules(d)
	if !r.Ignores("monitor@example.net") || !r.Trusts(netip.MustParseAddr("::ffff:10.1.2.3")) || r.Trusts(netip.MustParseAddr("192.0.2.8")) ||
		!r.Serves(relay.Submission) || r.Serves(relay.IMAP) || r.Domains != d {
		t.Errorf("the rules don't do what the file says: %+v", r)
	}
	if got := r.Reply(relay.Decision{Verdict: relay.Refuse}, netip.MustParseAddr("198.51.100.7")).String(); got != "450 4.7.25 Not from 198.51.100.7, see https://example.org/mail?a=b%20c" {
		t.Errorf("the reply is %q", got)
	}
}

func TestMailersNotGivenKeepTheirDefaults(t *testing.T) {
	c := load(t, "local_mailers: {postfix: [local, dovecot]}\nremote_mailers: {sendmail: []}\n")
	if got, want := c.PostfixMailers, (relay.Mailers{Local: []string{"local", "dovecot"}, Remote: []string{"smtp"}}); !reflect.DeepEqual(got, want) {
		t.Errorf("postfix: %v, want %v", got, want)
	}
	if got, want := c.SendmailMailers, (relay.Mailers{Local: relay.DefaultMailers(relay.Sendmail).Local, Remote: []string{}}); !reflect.DeepEqual(got, want) {
		t.Errorf("sendmail: %v, want %v", got, want)
	}
}

func TestEnhancedCodeFollowsTheCode(t *testing.T) {
	if r := load(t, "reject: {code: 450}\n").Reject; r.Enhanced != "4.7.1" {
		t.Errorf("450 %s", r.Enhanced)
	}
}

func TestWarnings(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"a domain twice", "local_domains: [example.org,\n  Example.ORG]\n", `f: line 2: local_domains[1]: "Example.ORG" is in line 1 already`},
		{"nobody can ask", "listen: {milter: []}\n", "f: line 1: listen: no milter, policy or socketmap address: nobody can ask, unless systemd hands over a socket"},
		{"nobody can be granted", "never_grant: [0.0.0.0/0]\n", "f: line 1: never_grant[0]: 0.0.0.0/0: no IPv4 client can ever be granted anything"},
		{"a hold that holds nothing", "grant_ttl: 1h\nhold_open_logins: 30m\n", "f: line 2: hold_open_logins: 30m is shorter than grant_ttl, so that an open login holds nothing; write 0 for off"},
		{"a URL nobody sees", "reject: {url: 'https://example.org/'}\n", "f: line 1: reject.url: nobody will see it: reject.text has no {url}"},
		{"relay among the remote", "remote_mailers: {postfix: [smtp, relay]}\n", "f: line 1: remote_mailers: relay is also how Postfix carries mail for relay_domains; those domains must be in local_domains, or their mail is refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, warnings, err := Parse("f", []byte(tt.text))
			if err != nil || len(warnings) != 1 || warnings[0].String() != tt.want {
				t.Errorf("got %v, %v, want %q", warnings, err, tt.want)
			}
		})
	}
}

func TestRenamedKeys(t *testing.T) {
	renames := []rename{{"door.ttl", "grant_ttl"}, {"milter", "listen.milter"}, {"log.colour", "log.format"}}
	for _, tt := range []struct{ name, text, warning, err string }{
		{"into another mapping", "milter: [unix:/m]\n", "f: line 1: milter: is called listen.milter now; this name goes away in the next major version", ""},
		{"into a mapping that is there", "listen: {control: unix:/c}\nmilter: [unix:/m]\n", "f: line 2: milter: is called listen.milter now; this name goes away in the next major version", ""},
		{"within its mapping", "log: {level: info, colour: json}\n", "f: line 1: log.colour: is called log.format now; this name goes away in the next major version", ""},
		{"both names", "milter: [unix:/m]\nlisten:\n  milter: [unix:/n]\n", "", "f: line 1: milter: is called listen.milter now, which is given in line 3; remove this one"},
		{"an error in it is told in its line", "milter:\n- m\n", "f: line 1: milter: is called listen.milter now; this name goes away in the next major version",
			`f: line 2: listen.milter[0]: "m" is not an address to listen on; write unix:/path, host:port, inet:port@host or inet6:port@host`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := &reader{file: "f"}
			c := r.parse([]byte(tt.text), renames)
			warnings, err := r.result()
			switch {
			case tt.err == "" && err != nil, tt.err != "" && (err == nil || err.Error() != tt.err):
				t.Errorf("error %v, want %q", err, tt.err)
			case tt.warning != "" && (len(warnings) == 0 || warnings[0].String() != tt.warning):
				t.Errorf("warnings %v, want %q", warnings, tt.warning)
			case tt.err == "" && strings.Contains(tt.text, "milter") && c.Listen.Milter[0].Address != "/m":
				t.Errorf("the value did not arrive: %+v", c.Listen)
			case tt.err == "" && strings.Contains(tt.text, "colour") && c.Log.Format != "json":
				t.Errorf("the value did not arrive: %+v", c.Log)
			}
		})
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "milter.yaml")
	if _, _, err := Load(path); !os.IsNotExist(err) {
		t.Errorf("a missing file gave %v", err)
	}
	if _, _, err := Load(dir); err == nil || err.Error() != dir+": not a regular file" {
		t.Errorf("a directory gave %v", err)
	}
	write := func(text string, mode os.FileMode) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	write("grant_ttl: 5m\n", 0o644)
	if c, warnings, err := Load(path); err != nil || len(warnings) > 0 || c.GrantTTL != 5*time.Minute {
		t.Errorf("%v %v %v", c, warnings, err)
	}
	write("", 0o666)
	if _, warnings, err := Load(path); err != nil || len(warnings) != 1 ||
		warnings[0].String() != path+": mode 0666: any local user may change who can relay; take the right away with chmod o-w" {
		t.Errorf("a file anybody can write gave %v %v", warnings, err)
	}
	write("#"+strings.Repeat("x", maxSize), 0o644)
	if _, _, err := Load(path); err == nil || err.Error() != path+": larger than 1 MiB; this is no popgate configuration" {
		t.Errorf("a huge file gave %v", err)
	}
	write("grant_ttl: 5\n", 0o644)
	if c, _, err := Load(path); c != nil || err == nil || !strings.HasPrefix(err.Error(), path+": line 1: grant_ttl: ") {
		t.Errorf("a broken file gave %v, %v", c, err)
	}
}

// TestFormatsAreThoseOfTheParsers holds the two packages together, which don't
// know each other.
func TestFormatsAreThoseOfTheParsers(t *testing.T) {
	if !slices.Equal(builtinFormats, format.Names()) {
		t.Errorf("configuration %q, parsers %q", builtinFormats, format.Names())
	}
	for name, why := range refusedFormats {
		if _, err := format.New(name); err == nil || err.Error() != strconv.Quote(name)+" can't be read: "+why {
			t.Errorf("the configuration refuses %s because %q, the parsers: %v", name, why, err)
		}
	}
	for _, f := range load(t, readAll(t, "testdata/every-key.yaml")).Formats {
		if _, err := format.NewCustom(format.Custom{Name: f.Name, Tag: f.Tag, Pattern: f.Pattern, Logout: f.Logout, Service: f.Service}); err != nil {
			t.Error(err)
		}
	}
}

func readAll(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
