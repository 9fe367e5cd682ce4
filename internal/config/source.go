package config

import (
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"popgate/internal/relay"
)

// The kinds of source. A kind that a release can't run is still a kind: who
// opens sources refuses it.
const (
	KindFile    = "file"
	KindJournal = "journal"
	KindSyslog  = "syslog"
	KindPush    = "push"
)

// Source is one place where logins are read.
type Source struct {
	Name   string // as status shows it; "file:/var/log/mail.log" unless given
	Kind   string // file, journal, syslog or push
	Format string // a format popgate brings, or a key of formats
	Line   int    // in the file, for errors of those who open the source

	Path     string         // file
	Units    []string       // journal
	Programs []string       // journal: the programs of the units that write logins; empty: those of the format
	Users    []string       // journal: who runs them, by name or number; empty: as the format has it
	Listen   Address        // syslog, push
	Zone     string         // time_zone as written; empty: local time
	Location *time.Location // of stamps without a zone; never nil
	Allow    []netip.Prefix // syslog, push: networks that may send
	Hosts    []string       // syslog: host names in the records that count; empty: all
	PeerUIDs []uint32       // syslog on a unix socket: who may send beside root
	TLS      *TLS           // syslog over tls
	Insecure bool           // the admin knows that anybody could forge these logins
	KeyFile  string         // push

	key      string // sources[0]
	formatAt int    // line of format
}

// TLS is what a syslog listener shows and asks for.
type TLS struct {
	Cert, Key string
	ClientCA  string   // empty: clients show no certificate
	Names     []string // names of client certificates that count; empty: all of ClientCA
}

// Equal says whether two sources read the same thing in the same way, so that
// a reload can leave the one that runs in its place.
func (s Source) Equal(t Source) bool {
	s.Location, t.Location = nil, nil // Zone says the same
	s.Line, s.key, s.formatAt = t.Line, t.key, t.formatAt
	return reflect.DeepEqual(s, t)
}

// Format is a log format of the site's own. What it may match is judged by
// those who compile it.
type Format struct {
	Name    string
	Tag     string        // exactly this tag
	Pattern string        // RE2 with the groups client, user, service, session
	Logout  string        // the same of a logout message, client not needed; empty: logouts are not read
	Service relay.Service // of lines whose pattern has no group service
	Line    int           // in the file, for errors of those who compile it
}

// builtinFormats are the formats popgate brings.
var builtinFormats = []string{"auto", "courier", "cyrus", "dbmail", "dovecot", "imapproxy", "perdition", "popa3d", "qpopper", "solid-pop3d", "uw"}

// refusedFormats are those it will not bring, and why.
var refusedFormats = map[string]string{
	"mailutils": "GNU Mailutils' pop3d and imap4d log no client address with a login, so there is nothing to grant; " +
		"put a proxy in front that logs it (format: perdition), or use another server",
}

// sourceOptions are the kinds that each option goes with.
var sourceOptions = []struct {
	key   string
	kinds []string
}{
	{"programs", []string{KindJournal}},
	{"users", []string{KindJournal}},
	{"time_zone", []string{KindFile, KindSyslog}},
	{"allow", []string{KindSyslog, KindPush}},
	{"hosts", []string{KindSyslog}},
	{"peer_uids", []string{KindSyslog}},
	{"tls", []string{KindSyslog}},
	{"insecure", []string{KindSyslog, KindPush}},
	{"key_file", []string{KindPush}},
}

func (c *Config) readSources(v value) {
	items, ok := v.list()
	if !ok {
		return
	}
	if len(items) == 0 {
		v.fail("no source: no login would ever be seen; name at least one")
	}
	c.Sources = nil
	for _, item := range items {
		s := Source{Line: item.n.Line, Location: time.Local, key: item.key}
		if s.read(item) {
			c.Sources = append(c.Sources, s)
		}
	}
}

func (s *Source) read(v value) bool {
	before := len(v.r.errs)
	given, ok := v.fields(
		field{KindFile, func(v value) { s.Path, _ = v.path() }},
		field{KindJournal, func(v value) { v.names(&s.Units, value.unit) }},
		field{KindSyslog, func(v value) { v.syslogAddress(&s.Listen) }},
		field{KindPush, func(v value) { v.address(&s.Listen) }},
		field{"format", func(v value) { s.Format, _ = v.text(); s.formatAt = v.n.Line }},
		field{"programs", func(v value) { v.names(&s.Programs, value.program) }},
		field{"users", func(v value) { v.names(&s.Users, value.account) }},
		field{"name", func(v value) { s.Name = v.sourceName() }},
		field{"time_zone", func(v value) { s.readZone(v) }},
		field{"allow", func(v value) { v.networks(&s.Allow, value.connecting) }},
		field{"hosts", func(v value) { v.names(&s.Hosts, value.host) }},
		field{"peer_uids", func(v value) { v.uids(&s.PeerUIDs) }},
		field{"tls", func(v value) { s.TLS = &TLS{}; s.TLS.read(v) }},
		field{"insecure", func(v value) { v.boolean(&s.Insecure) }},
		field{"key_file", func(v value) { s.KeyFile, _ = v.path() }},
	)
	if !ok {
		return false
	}
	s.pickKind(v, given)
	if _, ok := given["format"]; !ok {
		v.fail("format is missing; add one of %s", strings.Join(builtinFormats, ", "))
	}
	if len(v.r.errs) == before {
		s.check(v, given)
	}
	if s.Name == "" {
		s.Name = s.Kind + ":" + s.Path + strings.Join(s.Units, ",") + s.Listen.Text
	}
	return len(v.r.errs) == before
}

// pickKind finds the one key that says what kind of source this is.
func (s *Source) pickKind(v value, given map[string]value) {
	var kinds []string
	for _, k := range [...]string{KindFile, KindJournal, KindSyslog, KindPush} {
		if _, ok := given[k]; ok {
			kinds = append(kinds, k)
		}
	}
	switch len(kinds) {
	case 0:
		v.fail("nothing to read; add one of file, journal, syslog, push")
		return
	case 1:
		s.Kind = kinds[0]
	default:
		v.fail("%s in one source; a source has exactly one of file, journal, syslog, push", strings.Join(kinds, " and "))
		return
	}
	for _, o := range sourceOptions {
		if k, ok := given[o.key]; ok && !slices.Contains(o.kinds, s.Kind) {
			k.fail("goes with %s only, not with %s", strings.Join(o.kinds, " and "), s.Kind)
		}
	}
}

// check holds what the options of one source must be to each other. Whoever
// can write to a source can grant himself a relay.
func (s *Source) check(v value, given map[string]value) {
	switch s.Kind {
	case KindJournal:
		if len(s.Units) == 0 {
			given[KindJournal].fail("no unit; name the units whose log is read, such as dovecot.service")
		}
	case KindSyslog:
		s.checkSyslog(given)
	case KindPush:
		if s.Listen.Network == "unix" {
			given[KindPush].fail("%q: Dovecot sends its reports over TCP only; write 127.0.0.1:4001, or any free port", s.Listen.Text)
		}
		if s.KeyFile == "" {
			given[KindPush].fail("key_file is missing; it holds the secret that the reports carry")
		}
		if s.Format != "dovecot" {
			given["format"].fail("%q: reports are Dovecot's; write dovecot", clip(s.Format))
		}
	}
	if s.Kind == KindSyslog || s.Kind == KindPush {
		if s.Listen.OffLoopback() && len(s.Allow) == 0 {
			given[s.Kind].fail("%q can be reached from other hosts; name those that may send in allow", s.Listen.Text)
		}
	}
	if s.Kind == KindPush && s.Listen.OffLoopback() && !s.Insecure {
		given[KindPush].fail("%q takes the secret over the network in the clear; listen on 127.0.0.1, or write insecure: true", s.Listen.Text)
	}
}

func (s *Source) checkSyslog(given map[string]value) {
	at := given[KindSyslog]
	switch s.Listen.Network {
	case "udp":
		if !s.Insecure {
			at.fail("%q: whoever can send a UDP datagram could forge a login; use tls or a unix socket, or write insecure: true", s.Listen.Text)
		}
	case "tcp":
		if !s.Insecure {
			at.fail("%q: every local user of the allowed hosts could forge a login; use tls with client_ca, or write insecure: true", s.Listen.Text)
		}
	case "tls":
		if s.TLS == nil {
			at.fail("%q needs tls: {cert: ..., key: ..., client_ca: ...}", s.Listen.Text)
		} else if s.TLS.ClientCA == "" && !s.Insecure {
			given["tls"].fail("without client_ca whoever can connect could forge a login; add it, or write insecure: true")
		}
	}
	if k, ok := given["tls"]; ok && s.Listen.Network != "tls" {
		k.fail("goes with an address that begins tls: only")
	}
	if k, ok := given["peer_uids"]; ok && !s.Listen.local() {
		k.fail("goes with a unix socket only; nobody vouches for a user across a network")
	}
	if k, ok := given["allow"]; ok && s.Listen.local() {
		k.fail("goes with udp, tcp and tls only; a unix socket has peer_uids")
	}
}

// readZone reads the zone of stamps that don't carry one.
func (s *Source) readZone(v value) {
	name, ok := v.text()
	if !ok {
		return
	}
	loc, err := time.LoadLocation(name)
	if err != nil || name == "" {
		v.fail("%q is not a time zone this system knows; write one as Europe/Berlin or UTC", clip(name))
		return
	}
	s.Zone, s.Location = name, loc
}

func (v value) sourceName() string {
	s, ok := v.text()
	if ok && (s == "" || s != strings.TrimSpace(s) || len(s) > 100) {
		v.fail("%q is no name; write 1 to 100 characters without a blank at either end", clip(s))
		return ""
	}
	return s
}

var unitName = regexp.MustCompile(`^[A-Za-z0-9:_.@\\-]+\.(service|scope|socket|slice)$`)

func (v value) unit(s string) bool {
	switch {
	case unitName.MatchString(s):
		return true
	case strings.ContainsAny(s, "*?["):
		v.fail("%q is a pattern; name each unit", clip(s))
	case unitName.MatchString(s + ".service"):
		v.fail("%q is not the full name of a unit; write %s.service", clip(s), s)
	default:
		v.fail("%q is not the name of a unit; write one as dovecot.service", clip(s))
	}
	return false
}

// program takes a path as /proc/PID/exe would give it.
func (v value) program(s string) bool {
	if !filepath.IsAbs(s) || filepath.Clean(s) != s {
		v.fail("%q is not the full path of a program; write one as /usr/sbin/perdition.imap4", clip(s))
		return false
	}
	return true
}

var accountName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$`)

func (v value) account(s string) bool {
	if !accountName.MatchString(s) {
		v.fail("%q is not the name or the number of a user", clip(s))
		return false
	}
	return true
}

var hostName = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,255}$`)

func (v value) host(s string) bool {
	if !hostName.MatchString(s) {
		v.fail("%q is not a host name", clip(s))
		return false
	}
	return true
}

func (v value) uids(to *[]uint32) {
	items, ok := v.list()
	if !ok {
		return
	}
	list := []uint32{}
	for _, item := range items {
		uid := -1
		if item.integer(&uid, 0, 1<<32-2); uid >= 0 {
			list = append(list, uint32(uid))
		}
	}
	*to = list
}

// syslogAddress reads unix:/p, unix-stream:/p, udp:host:port, tcp:host:port or tls:host:port.
func (v value) syslogAddress(to *Address) {
	s, ok := v.text()
	if !ok {
		return
	}
	scheme, rest, _ := strings.Cut(s, ":")
	switch scheme {
	case "udp", "tcp", "tls":
		a, err := parseAddress(rest)
		if err == nil && a.Network != "tcp" {
			v.fail("%q: write %s:host:port", clip(s), scheme)
			return
		}
		if err != nil {
			v.fail("%v", err)
			return
		}
		*to = Address{scheme, a.Address, s}
	case "unix", "local":
		v.address(to)
	case "unix-stream":
		a, err := unixAddress(s, rest)
		if err != nil {
			v.fail("%v", err)
			return
		}
		*to = Address{scheme, a.Address, s}
	default:
		v.fail("%q is not an address for syslog; write unix:/path, unix-stream:/path, udp:host:port, tcp:host:port or tls:host:port", clip(s))
	}
}

func (t *TLS) read(v value) {
	given, ok := v.fields(
		field{"cert", func(v value) { t.Cert, _ = v.path() }},
		field{"key", func(v value) { t.Key, _ = v.path() }},
		field{"client_ca", func(v value) { t.ClientCA, _ = v.path() }},
		field{"names", func(v value) { v.names(&t.Names, value.host) }},
	)
	if !ok {
		return
	}
	for _, key := range [...]string{"cert", "key"} {
		if _, ok := given[key]; !ok {
			v.fail("%s is missing; name its PEM file", key)
		}
	}
	if k, ok := given["names"]; ok && given["client_ca"].n == nil {
		k.fail("goes with client_ca only")
	}
}

var formatName = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

// readFormats reads the site's own formats. Whatever names its mapping holds
// are theirs, so it is no list of fields.
func (c *Config) readFormats(v value) {
	var names []field
	for i := 0; i+1 < len(v.n.Content) && v.n.Tag == "!!map"; i += 2 {
		name := v.n.Content[i].Value
		names = append(names, field{name, func(v value) { c.readFormat(name, v) }})
	}
	seen := v.r.seen
	v.r.seen = nil
	v.fields(names...)
	v.r.seen = seen
	slices.SortFunc(c.Formats, func(a, b Format) int { return strings.Compare(a.Name, b.Name) })
}

func (c *Config) readFormat(name string, v value) {
	f := Format{Name: name, Line: v.n.Line}
	given, ok := v.fields(
		field{"tag", func(v value) { f.Tag, _ = v.text() }},
		field{"pattern", func(v value) { f.Pattern = v.pattern("client") }},
		field{"logout", func(v value) { f.Logout = v.pattern("session") }},
		field{"service", func(v value) {
			if s, ok := v.word("pop3", "imap", "submission", "sieve", "other"); ok {
				f.Service, _ = relay.ParseService(s)
			}
		}},
	)
	if !ok {
		return
	}
	switch {
	case !formatName.MatchString(name):
		v.fail("%q is no name for a format; write up to 32 of a-z, 0-9, _ and -, a letter first", clip(name))
	case slices.Contains(builtinFormats, name):
		v.fail("%q is a format popgate brings; choose another name", name)
	}
	if k, ok := given["tag"]; !ok {
		v.fail("tag is missing; write the program's name as it stands before the colon of its lines")
	} else if f.Tag == "" || strings.ContainsAny(f.Tag, " :[]") {
		k.fail("%q is no tag; write the program's name without pid, colon or blank", clip(f.Tag))
	}
	if _, ok := given["pattern"]; !ok {
		v.fail("pattern is missing; write an RE2 expression for the whole message with the group (?P<client>...)")
	}
	c.Formats = append(c.Formats, f)
}

// patternGroups are the names a custom pattern may give its groups.
var patternGroups = []string{"client", "user", "service", "session"}

// pattern reads an expression that must have the group needed.
func (v value) pattern(needed string) string {
	s, ok := v.text()
	if !ok {
		return ""
	}
	if s == "" {
		v.fail("an empty pattern matches no message; write an RE2 expression for the whole of one")
		return ""
	}
	re, err := regexp.Compile(`\A(?:` + s + `)\z`)
	if err != nil {
		v.fail("not an RE2 expression: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return ""
	}
	count := map[string]int{}
	for _, name := range re.SubexpNames()[1:] {
		count[name]++
		switch {
		case name == "":
		case !slices.Contains(patternGroups, name):
			v.fail("the group %q means nothing; the groups are %s", clip(name), strings.Join(patternGroups, ", "))
		case count[name] == 2:
			v.fail("the group %q stands in it twice; a line must be readable in one way only", name)
		}
	}
	if count[needed] == 0 {
		v.fail("no group %[1]s; mark the %[1]s with (?P<%[1]s>...)", needed)
	}
	return s
}

// checkSources holds what sources, formats and each other must be: it runs
// when the whole file has been read.
func (c *Config) checkSources(r *reader) {
	known := slices.Clone(builtinFormats)
	for _, f := range c.Formats {
		known = append(known, f.Name)
	}
	slices.Sort(known)
	names := map[string]int{}
	for _, s := range c.Sources {
		if why := refusedFormats[s.Format]; why != "" && !slices.Contains(known, s.Format) {
			r.fail(s.formatAt, s.key+".format", "%q can't be read: %s", s.Format, why)
		} else if !slices.Contains(known, s.Format) {
			r.fail(s.formatAt, s.key+".format", "%q is not a log format popgate reads; choose one of %s", clip(s.Format), strings.Join(slices.Compact(known), ", "))
		}
		if first, twice := names[s.Name]; twice {
			r.fail(s.Line, s.key, "the source %q is in line %d already; give one of them another name", s.Name, first)
			continue
		}
		names[s.Name] = s.Line
	}
}
