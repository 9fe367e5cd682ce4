package config

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"popgate/internal/domains"
	"popgate/internal/relay"
)

// Config is a configuration that can be run. It is never changed once read.
type Config struct {
	Listen       Listen
	ControlGroup string      // may read at the control socket; empty: none
	SocketMode   fs.FileMode // of milter, policy and socketmap sockets
	SocketGroup  string      // of the same; empty: the daemon's

	MTA                relay.MTA // MTAUnknown: auto
	LocalDomains       []domains.Name
	LocalDomainFiles   []domains.File
	LocalDomainsFrom   domains.From
	PostfixMailers     relay.Mailers
	SendmailMailers    relay.Mailers
	TrustedNetworks    []netip.Prefix
	TrustAuthenticated bool

	GrantTTL         time.Duration
	HoldOpenLogins   time.Duration // 0: off
	IPv6Prefix       int
	MaxGrants        int
	MaxGrantsPerUser int // 0: off
	NeverGrant       []netip.Prefix
	IgnoreUsers      []string // as written
	Services         []relay.Service
	WaitForLogin     time.Duration // 0: off
	MaxWaiting       int
	Reject           relay.Reject

	Sources  []Source
	Formats  []Format // by name
	StateDir string   // empty: keep nothing
	Store    string   // memory
	Log      Log
}

// Log says what is logged and how.
type Log struct {
	Level  slog.Level
	Format string // text or json
}

// Default gives the configuration of an empty file.
func Default() *Config {
	return &Config{
		Listen: Listen{
			Milter:  []Address{{"unix", "/run/popgate/milter.sock", "unix:/run/popgate/milter.sock"}},
			Control: Address{"unix", "/run/popgate/control.sock", "unix:/run/popgate/control.sock"},
		},
		SocketMode:         0o660,
		LocalDomainsFrom:   domains.Auto,
		PostfixMailers:     relay.DefaultMailers(relay.Postfix),
		SendmailMailers:    relay.DefaultMailers(relay.Sendmail),
		TrustedNetworks:    []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		TrustAuthenticated: true,
		GrantTTL:           30 * time.Minute,
		HoldOpenLogins:     12 * time.Hour,
		IPv6Prefix:         128,
		MaxGrants:          1_000_000,
		MaxGrantsPerUser:   1000,
		Services:           []relay.Service{relay.POP3, relay.IMAP},
		WaitForLogin:       500 * time.Millisecond,
		MaxWaiting:         256,
		Reject:             relay.DefaultReject,
		Sources: []Source{{Name: "journal:dovecot.service", Kind: KindJournal, Format: "dovecot",
			Location: time.Local, Units: []string{"dovecot.service"}}},
		StateDir: "/var/lib/popgate",
		Store:    "memory",
		Log:      Log{Level: slog.LevelInfo, Format: "text"},
	}
}

// maxSize bounds a configuration file: whatever is larger is not meant as one.
const maxSize = 1 << 20

// Load reads a file. An error that is no Errors means that the file could not
// be read at all.
func Load(path string) (*Config, []Warning, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, nil, err
	}
	c, warnings, err := Parse(path, data)
	if info.Mode().Perm()&0o002 != 0 {
		warnings = append([]Warning{{File: path, Text: fmt.Sprintf(
			"mode %04o: any local user may change who can relay; take the right away with chmod o-w", info.Mode().Perm())}}, warnings...)
	}
	return c, warnings, err
}

// Control gives the control socket that a file names, or leaves at the default,
// though other things in it are wrong: the daemon runs on by the file of before,
// and it is now that it must be reached. False: where the error lies, the socket
// can't be told.
func Control(name string, data []byte) (Address, bool) {
	r := &reader{file: name}
	c := r.parse(data, renamed)
	for _, e := range r.errs {
		if e.Key == "" || strings.Contains(e.Key, "listen") || strings.Contains(e.Text, "listen") {
			return Address{}, false
		}
	}
	return c.Listen.Control, true
}

// Parse reads the text of a file called name. The error, if any, is an Errors.
func Parse(name string, data []byte) (*Config, []Warning, error) {
	r := &reader{file: name}
	c := r.parse(data, renamed)
	warnings, err := r.result()
	if err != nil {
		return nil, warnings, err
	}
	return c, warnings, nil
}

func (r *reader) parse(data []byte, renames []rename) *Config {
	c := Default()
	if len(data) > maxSize {
		r.fail(0, "", "larger than 1 MiB; this is no popgate configuration")
		return c
	}
	root, ok := r.document(data)
	if !ok || root == nil {
		return c
	}
	if root.Kind == yaml.MappingNode {
		r.succeed(root, renames)
	}
	c.read(value{r, root, ""})
	return c
}

// document gives the one document of the file; nil if it is empty.
func (r *reader) document(data []byte) (root *yaml.Node, ok bool) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	switch err := dec.Decode(&doc); {
	case err == io.EOF:
		return nil, true
	case err != nil:
		r.translate(err, 1+bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")))
		return nil, false
	}
	switch err := dec.Decode(&next); {
	case err == nil:
		r.fail(next.Line, "", "a second document begins here; keep to one, and remove the line ---")
		return nil, false
	case err != io.EOF:
		r.translate(err, 1+bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")))
		return nil, false
	}
	root = doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.ShortTag() == "!!null" && root.Value == "" {
		return nil, true // comments only
	}
	return root, true
}

// read takes over what the file says. Keys that hang together are checked when
// all of them have been read.
func (c *Config) read(v value) {
	given, ok := v.fields(
		field{"listen", c.Listen.read},
		field{"control_group", func(v value) { v.group(&c.ControlGroup) }},
		field{"socket_mode", func(v value) { v.mode(&c.SocketMode) }},
		field{"socket_group", func(v value) { v.group(&c.SocketGroup) }},
		field{"mta", c.readMTA},
		field{"local_domains", c.readLocalDomains},
		field{"local_domain_files", c.readLocalDomainFiles},
		field{"local_domains_from", c.readLocalDomainsFrom},
		field{"local_mailers", c.readLocalMailers},
		field{"remote_mailers", c.readRemoteMailers},
		field{"trusted_networks", func(v value) { v.networks(&c.TrustedNetworks, value.trusted) }},
		field{"trust_authenticated", func(v value) { v.boolean(&c.TrustAuthenticated) }},
		field{"grant_ttl", func(v value) { v.duration(&c.GrantTTL, time.Second, 24*time.Hour, false) }},
		field{"hold_open_logins", func(v value) { v.duration(&c.HoldOpenLogins, time.Second, 7*24*time.Hour, true) }},
		field{"ipv6_prefix", func(v value) { v.integer(&c.IPv6Prefix, 48, 128) }},
		field{"max_grants", func(v value) { v.integer(&c.MaxGrants, 1, 100_000_000) }},
		field{"max_grants_per_user", func(v value) { v.integer(&c.MaxGrantsPerUser, 0, 100_000_000) }},
		field{"never_grant", func(v value) { v.networks(&c.NeverGrant, value.nobody) }},
		field{"ignore_users", func(v value) { v.names(&c.IgnoreUsers, nil) }},
		field{"services", c.readServices},
		field{"wait_for_login", func(v value) { v.duration(&c.WaitForLogin, time.Millisecond, 2*time.Second, true) }},
		field{"max_waiting", func(v value) { v.integer(&c.MaxWaiting, 1, 1_000_000) }},
		field{"reject", c.readReject},
		field{"sources", c.readSources},
		field{"formats", c.readFormats},
		field{"state_dir", c.readStateDir},
		field{"store", c.readStore},
		field{"log", c.readLog},
	)
	if !ok {
		return
	}
	c.checkMailers(given)
	c.checkSources(v.r)
	if hold, ok := given["hold_open_logins"]; ok && c.HoldOpenLogins > 0 && c.HoldOpenLogins < c.GrantTTL {
		hold.warn("%s is shorter than grant_ttl, so that an open login holds nothing; write 0 for off", short(c.HoldOpenLogins))
	}
}

// Rules gives the part of the configuration that decides, over the site's
// domains as they are known now.
func (c *Config) Rules(d *relay.Domains) *relay.Rules {
	users := make([]string, len(c.IgnoreUsers))
	for i, u := range c.IgnoreUsers {
		users[i] = relay.FoldUser(u)
	}
	return &relay.Rules{
		MTA:                c.MTA,
		PostfixMailers:     c.PostfixMailers,
		SendmailMailers:    c.SendmailMailers,
		Domains:            d,
		TrustedNetworks:    c.TrustedNetworks,
		TrustAuthenticated: c.TrustAuthenticated,
		GrantTTL:           c.GrantTTL,
		HoldOpenLogins:     c.HoldOpenLogins,
		IPv6Prefix:         c.IPv6Prefix,
		MaxGrants:          c.MaxGrants,
		MaxGrantsPerUser:   c.MaxGrantsPerUser,
		NeverGrant:         c.NeverGrant,
		IgnoreUsers:        users,
		Services:           c.Services,
		WaitForLogin:       c.WaitForLogin,
		MaxWaiting:         c.MaxWaiting,
		Reject:             c.Reject,
	}
}

// Diff names the keys that differ and can't change while the daemon runs.
func Diff(before, after *Config) []string {
	var keys []string
	note := func(key string, same bool) {
		if !same {
			keys = append(keys, key)
		}
	}
	a, b := &before.Listen, &after.Listen
	note("listen.milter", slices.EqualFunc(a.Milter, b.Milter, Address.equal))
	note("listen.control", a.Control.equal(b.Control))
	note("listen.push", a.Push.equal(b.Push))
	note("listen.policy", slices.EqualFunc(a.Policy, b.Policy, Address.equal))
	note("listen.socketmap", slices.EqualFunc(a.Socketmap, b.Socketmap, Address.equal))
	note("listen.metrics", a.Metrics.equal(b.Metrics))
	note("listen.allow", slices.Equal(a.Allow, b.Allow))
	note("socket_mode", before.SocketMode == after.SocketMode)
	note("socket_group", before.SocketGroup == after.SocketGroup)
	note("state_dir", before.StateDir == after.StateDir)
	note("store", before.Store == after.Store)
	note("log.format", before.Log.Format == after.Log.Format)
	return keys
}
