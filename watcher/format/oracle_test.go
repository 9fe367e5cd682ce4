package format

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"popgate/internal/relay"
)

// This file reads the formats a second time, in another way: anchored RE2, on
// strings, with nothing of the parsers' in it. The fuzz targets hold the two
// against each other on every input.

const (
	reAddr    = `([0-9a-fA-F.:]+)`
	reUser    = `([^\x00-\x1f\x7f<>,\[\]]+)`
	reSession = `([A-Za-z0-9+/=]+)`
	reFields  = `user=<` + reUser + `>, method=([A-Z0-9_-]+), rip=` + reAddr + `, lip=` + reAddr
	reEnd     = `(?:, secured|, TLS)?(?:, TLS(?: handshaking)?: [A-Za-z0-9 ._:()/'-]*)?, session=<` + reSession + `>`
	reDest    = `[A-Za-z0-9._:\[\]-]+`
	reProxy   = `proxy\(([^,]*),` + reDest + `\): `
	reSvc     = `(pop3|imap|submission|managesieve)-login: `
)

func anchored(s string) *regexp.Regexp { return regexp.MustCompile(`\A(?:` + s + `)\z`) }

var (
	oracleLogin  = anchored(reSvc + `(Info: )?(?:Login|Logged in): ` + reFields + `, mpid=[0-9]+` + reEnd)
	oracleProxy  = anchored(reSvc + `(Info: )?` + reProxy + `(?:Started proxying to (?:remote host|<` + reDest + `>) \([0-9.]+ secs\)|(Disconnected by (?:client|server)) \([a-z0-9 =,]+\)): ` + reFields + reEnd)
	oracleLogout = anchored(`(pop3|imap|submission|sieve|managesieve)\(([^)]*)\)(?:<[0-9]+><` + reSession + `>)?: (Info: )?(?:Disconnected: |Disconnected for |Logged out|Connection closed)[^\x00-\x1f\x7f]*`)
	oracleMaster = anchored(`master: (?:(Warning: )Killed with signal [0-9]+ \(by pid=[^\x00-\x1f\x7f]*|(Info: )?Dovecot v[A-Za-z0-9.+~-]+(?: \([A-Za-z0-9.+~-]+\))? starting up[^\x00-\x1f\x7f]*)`)

	oracleCyrusTag = anchored(`(?:cyrus/)?(pop3|imap)s?`)
	oracleCyrus    = anchored(`login: (?:[A-Za-z0-9._-]+ )?\[` + reAddr + `\] ([^\x00-\x20\x7f<>,\[\]]+) (plaintext|[A-Z0-9_-]+)(?:\+TLS)? User logged in SESSIONID=<[A-Za-z0-9._-]+>`)

	oracleInvisible = regexp.MustCompile(`[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]`)
)

var oracleServices = map[string]relay.Service{
	"pop3": relay.POP3, "imap": relay.IMAP, "submission": relay.Submission, "managesieve": relay.Sieve, "sieve": relay.Sieve,
}

func oracleUser(s string) bool {
	return s != "" && len(s) <= 400 && utf8.ValidString(s) && !strings.Contains(s, "ip=") &&
		!strings.ContainsAny(s, "<>,[]") && !oracleInvisible.MatchString(s)
}

func oracleAnonymous(words ...string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.ToLower(w) == "anonymous" })
}

func oracleAddr(s string) (netip.Addr, bool) {
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err == nil && a.Zone() == ""
}

// oracleDovecot gives the event of a message, the zero Event if it has none.
func oracleDovecot(text string, file bool) relay.Event {
	info := func(s string) bool { return (s != "") == file }
	if g := oracleLogin.FindStringSubmatch(text); g != nil {
		client, ok1 := oracleAddr(g[5])
		_, ok2 := oracleAddr(g[6])
		if !info(g[2]) || !oracleUser(g[3]) || oracleAnonymous(g[3], g[4]) || !ok1 || !ok2 {
			return relay.Event{}
		}
		return relay.Event{Kind: relay.Login, Service: oracleServices[g[1]], User: g[3], Client: client, Session: g[7]}
	}
	if g := oracleProxy.FindStringSubmatch(text); g != nil {
		client, ok1 := oracleAddr(g[7])
		_, ok2 := oracleAddr(g[8])
		if !info(g[2]) || !oracleUser(g[5]) || oracleAnonymous(g[5], g[6]) || g[3] != g[5] || !ok1 || !ok2 {
			return relay.Event{}
		}
		e := relay.Event{Kind: relay.Login, Service: oracleServices[g[1]], User: g[5], Client: client, Session: g[9]}
		if g[4] != "" {
			e.Kind = relay.Logout
		}
		return e
	}
	if g := oracleLogout.FindStringSubmatch(text); g != nil {
		e := relay.Event{Kind: relay.Logout, Service: oracleServices[g[1]], User: g[2], Session: g[3]}
		if user, addr, found := strings.Cut(g[2], ","); found && g[3] == "" {
			var ok bool
			if e.Client, ok = oracleAddr(addr); !ok {
				return relay.Event{}
			}
			e.User = user
		}
		if !info(g[4]) || !oracleUser(e.User) || strings.Contains(e.User, "(") {
			return relay.Event{}
		}
		return e
	}
	if g := oracleMaster.FindStringSubmatch(text); g != nil && (g[1] != "" || info(g[2])) {
		return relay.Event{Kind: relay.Restart}
	}
	return relay.Event{}
}

func oracleCyrusEvent(tag, text string) relay.Event {
	service, g := oracleCyrusTag.FindStringSubmatch(tag), oracleCyrus.FindStringSubmatch(text)
	if service == nil || g == nil {
		return relay.Event{}
	}
	client, ok := oracleAddr(g[1])
	if !ok || !oracleUser(g[2]) || oracleAnonymous(g[2], g[3]) {
		return relay.Event{}
	}
	return relay.Event{Kind: relay.Login, Service: oracleServices[service[1]], User: g[2], Client: client}
}

const reOrigin = `ip=\[` + reAddr + `\], port=\[([0-9]+)\]`

var (
	oracleCourierWord   = regexp.MustCompile(`\A(?:LOGIN|LOGIN FAILED|LOGOUT|DISCONNECTED|TIMEOUT|Connection|Disconnected), `)
	oracleCourierTail   = regexp.MustCompile(`, ` + reOrigin + `(?:, [a-z0-9]+=[A-Za-z0-9/]+)*\z`)
	oracleCourierOpened = anchored(`Connection, ` + reOrigin)
	oracleCourierPOP    = anchored(`LOGIN, user=` + reUser + `, ` + reOrigin + `(?:, stls=1)?`)
	oracleCourierIMAP   = anchored(`LOGIN, user=` + reUser + `, ` + reOrigin + `, protocol=IMAP(?:, starttls=1)?`)
	oracleCourierLogout = anchored(`(?:LOGOUT|DISCONNECTED|TIMEOUT), user=` + reUser + `, ` + reOrigin + `(?:, [a-z0-9]+=[A-Za-z0-9/]+)*`)
)

// courierRecord is one message of a log of one host.
type courierRecord struct {
	second    int
	tag, text string
	gap       bool // before it
}

func oracleOrigin(addr, port string) (netip.AddrPort, bool) {
	a, ok := oracleAddr(addr)
	p, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a, uint16(p)), ok && err == nil && len(port) <= 18
}

// oracleCourierEvents judges each record by looking back over the whole log
// before it, instead of keeping state.
func oracleCourierEvents(log []courierRecord) []relay.Event {
	events := make([]relay.Event, len(log))
	for i, r := range log {
		if service := map[string]relay.Service{"pop3d": relay.POP3, "imapd": relay.IMAP}[strings.TrimSuffix(r.tag, "-ssl")]; service != 0 && !oracleCut(r.text) && !oracleRest(log, i) {
			events[i] = oracleCourierEvent(log, i, service)
		}
	}
	return events
}

// oracleCut says whether a record is a piece that has a rest.
func oracleCut(text string) bool {
	if len(text) >= 480 {
		return true
	}
	if !oracleCourierWord.MatchString(text) {
		return false
	}
	// The last address in it must be its tail.
	at := strings.LastIndex(text, ", ip=[")
	if at < 0 {
		return true
	}
	g := oracleCourierTail.FindStringSubmatch(text[at:])
	if g == nil {
		return true
	}
	_, ok := oracleOrigin(g[1], g[2])
	return !ok
}

// oracleRest says whether record i is what is left of the one before it.
func oracleRest(log []courierRecord, i int) bool {
	gap := log[i].gap
	for j := i - 1; j >= 0; j-- {
		if log[j].tag == log[i].tag {
			return gap || oracleCut(log[j].text)
		}
		gap = gap || log[j].gap
	}
	return gap
}

func oracleCourierEvent(log []courierRecord, i int, service relay.Service) relay.Event {
	text := log[i].text
	kind, g := relay.Login, oracleCourierPOP.FindStringSubmatch(text)
	if service == relay.IMAP {
		g = oracleCourierIMAP.FindStringSubmatch(text)
	}
	if g == nil {
		kind, g = relay.Logout, oracleCourierLogout.FindStringSubmatch(text)
	}
	if g == nil || !oracleUser(g[1]) {
		return relay.Event{}
	}
	from, ok := oracleOrigin(g[2], g[3])
	if !ok || kind == relay.Login && (oracleAnonymous(g[1]) || !oracleAdmitted(log, i, from)) {
		return relay.Event{}
	}
	return relay.Event{Kind: kind, Service: service, User: g[1], Client: from.Addr(), Session: from.String()}
}

// oracleAdmitted looks back for the connection a login needs.
func oracleAdmitted(log []courierRecord, i int, from netip.AddrPort) bool {
	own, any, cut, strict := false, false, false, log[i].gap
	gapped := log[i].gap
	for j := i - 1; j >= 0 && !gapped; j-- {
		r := log[j]
		if r.tag == log[i].tag {
			if oracleCut(r.text) {
				if !cut && log[i].second <= r.second+10 {
					strict = true
				}
				cut = true
			} else if g := oracleCourierOpened.FindStringSubmatch(r.text); g != nil && !oracleRest(log, j) {
				any = true
				if f, _ := oracleOrigin(g[1], g[2]); f == from && !cut {
					own = true
				}
			}
		}
		gapped = r.gap
	}
	for _, r := range log[:i] {
		strict = strict || r.gap
	}
	return any && (own || !strict)
}

const reHostPort = `([0-9a-fA-F.:]+):([0-9]+)`

// oracleForms are the shapes of servers that need no memory. The groups
// A and P are address and port, B and Q those of the server, U or V the user, I
// another identity, H the host and M the mechanism.
var oracleForms = []struct {
	format, tag string
	kind        relay.EventKind
	service     relay.Service
	session     string // what makes it: port, pid
	re          *regexp.Regexp
	most        int // bytes of a message
}{
	{"perdition", `perdition(?:\.(?:pop3|imap4)s?|\.imaps|\.managesieve)?`, relay.Login, relay.POP3, "port",
		anchored(oraclePerdition(`POP3S?`)), 399},
	{"perdition", `perdition(?:\.(?:pop3|imap4)s?|\.imaps|\.managesieve)?`, relay.Login, relay.IMAP, "port",
		anchored(oraclePerdition(`IMAP4S?`)), 399},
	{"perdition", `perdition(?:\.(?:pop3|imap4)s?|\.imaps|\.managesieve)?`, relay.Login, relay.Sieve, "port",
		anchored(oraclePerdition(`MANAGESIEVE`)), 399},
	{"perdition", `perdition`, relay.Logout, relay.ServiceUnknown, "port", anchored(oraclePerditionEnd), 1 << 20},
	{"perdition", `perdition\.pop3s?`, relay.Logout, relay.POP3, "port", anchored(oraclePerditionEnd), 1 << 20},
	{"perdition", `perdition\.(?:imap4s?|imaps)`, relay.Logout, relay.IMAP, "port", anchored(oraclePerditionEnd), 1 << 20},
	{"perdition", `perdition\.managesieve`, relay.Logout, relay.Sieve, "port", anchored(oraclePerditionEnd), 1 << 20},
	{"imapproxy", `imapproxyd`, relay.Login, relay.IMAP, "",
		anchored(`LOGIN: '(?:"(?P<U>[^ "'\\]*)"|(?P<V>[^ "'\\]+))' \(` + oracleNamed(reHostPort) + `\) on (?:new|existing) sd \[[0-9]+\]`), 199},
	{"imapproxy", `imapproxyd`, relay.Logout, relay.IMAP, "",
		anchored(`LOGOUT: '(?:"(?P<U>[^ "'\\]*)"|(?P<V>[^ "'\\]+))' from server sd \[[0-9]+\]`), 1 << 20},
	{"solid-pop3d", `solid-pop3d`, relay.Login, relay.POP3, "pid",
		anchored(`(?:mapped )?user (?P<U>[^ ]{1,39}) authenticated (?:through APOP )?- (?P<A>[0-9a-fA-F.:]+)`), 1 << 20},
	{"solid-pop3d", `solid-pop3d`, relay.Logout, relay.POP3, "pid",
		anchored(`(?:session ended|autologout time elapsed) for (?:mapped )?user (?P<U>[^ ]{1,39}) - (?P<A>[0-9a-fA-F.:]+)`), 1 << 20},
	{"uw", `imapd`, relay.Login, relay.IMAP, "pid", anchored(`Login user=` + oracleUW), 1 << 20},
	{"uw", `imapd`, relay.Login, relay.IMAP, "pid", anchored(`Authenticated user=` + oracleUW + `(?: mech=(?P<M>[A-Za-z0-9._-]+))?`), 1 << 20},
	{"uw", `ipop3d`, relay.Login, relay.POP3, "pid", anchored(`(?:Login|Auth|APOP) user=` + oracleUW + `(?: no mailbox| nmsgs=[0-9]+/[0-9]+)`), 1 << 20},
	{"uw", `imapd`, relay.Logout, relay.IMAP, "pid", anchored(`Logout user=` + oracleUW + `(?: nmsgs=[0-9]+ ndele=[0-9]+)?`), 1 << 20},
	{"uw", `ipop3d`, relay.Logout, relay.POP3, "pid", anchored(`Logout user=` + oracleUW + `(?: nmsgs=[0-9]+ ndele=[0-9]+)?`), 1 << 20},
	{"qpopper", `(?:in\.)?q?popper`, relay.Login, relay.POP3, "",
		anchored(`\(v[A-Za-z0-9.+~-]+\) POP login by user "(?P<U>[^"]+)" at \([A-Za-z0-9._:-]+\) (?P<A>[0-9a-fA-F.:]+)(?: \[[A-Za-z0-9._/-]+:[0-9]+\])?`), 399},
	{"dbmail", `dbmail/imap4d`, relay.Login, relay.IMAP, "",
		anchored(`Notice:\[imap\] dbmail_imap_session_handle_auth\(\+[0-9]+\): \[0x[0-9a-z]+\] login accepted: id \[[0-9]+\] user \[(?P<U>[^\]]+)\] from \[` + oracleNamed(reHostPort) + `\]`), 1 << 20},
}

func oracleNamed(hostPort string) string {
	return strings.Replace(strings.Replace(hostPort, "(", "(?P<A>", 1), "([0-9]+)", "(?P<P>[0-9]+)", 1)
}

func oraclePerdition(protocol string) string {
	return `Auth: ` + oracleNamed(reHostPort) + `->(?P<B>[0-9a-fA-F.:]+):(?P<Q>[0-9]+) client-secure=[a-z0-9]+ ` + oracleIDs +
		` server="` + reDest + `" protocol=` + protocol + ` server-secure=[a-z0-9]+ status="ok"`
}

var (
	oracleIDs          = `authorisation_id=(?:NONE|"(?P<I>[^"]+)") authentication_id="(?P<U>[^"]+)"`
	oraclePerditionEnd = `Closing session: ` + oracleNamed(reHostPort) + `->(?P<B>[0-9a-fA-F.:]+):(?P<Q>[0-9]+) ` + oracleIDs + ` received=[0-9]+ sent=[0-9]+`
	oracleUW           = `(?P<U>[^ ]{1,79}) host=(?P<H>(?:[A-Za-z0-9._-]+ )?\[(?P<A>[0-9a-fA-F.:]+)\])`
)

// oracleOther gives the event of a message of one of those servers.
func oracleOther(format, tag, pid, text string) relay.Event {
	for _, form := range oracleForms {
		if form.format != format || !anchored(form.tag).MatchString(tag) || len(text) > form.most {
			continue
		}
		g := form.re.FindStringSubmatch(text)
		if g == nil {
			continue
		}
		if e, ok := oracleFormEvent(form.re, g, pid, form.session); ok {
			e.Kind, e.Service = form.kind, form.service
			if e.Kind == relay.Login && oracleAnonymous(e.User, oracleGroup(form.re, g, "M")) || e.Kind == relay.Logout && e.User == "???" {
				return relay.Event{}
			}
			return e
		}
	}
	return relay.Event{}
}

// oracleGroup gives what a named group caught.
func oracleGroup(re *regexp.Regexp, g []string, name string) string {
	if i := re.SubexpIndex(name); i >= 0 {
		return g[i]
	}
	return ""
}

func oracleFormEvent(re *regexp.Regexp, g []string, pid, session string) (relay.Event, bool) {
	get := func(name string) string { return oracleGroup(re, g, name) }
	e := relay.Event{User: get("U") + get("V")}
	if !oracleUser(e.User) || get("I") != "" && !oracleUser(get("I")) || len(get("H")) > 80 {
		return e, false
	}
	port := get("P")
	if re.SubexpIndex("A") < 0 {
		return e, true
	}
	if port == "" {
		port = "0"
	}
	from, ok := oracleOrigin(get("A"), port)
	if !ok {
		return e, false
	}
	if re.SubexpIndex("B") >= 0 {
		if _, ok := oracleOrigin(get("B"), get("Q")); !ok {
			return e, false
		}
	}
	e.Client = from.Addr()
	switch {
	case session == "port":
		e.Session = from.String()
	case session == "pid" && pid != "":
		e.Session = pid + "/" + e.Client.String()
	}
	return e, true
}

var (
	oraclePopa3dFrom   = anchored(`Session from ` + reAddr)
	oraclePopa3dPassed = anchored(`Authentication passed for ([^ ]+)`)
)

// popa3dRecord is one message of a log of one host.
type popa3dRecord struct {
	second, pid int
	text        string
	gap         bool // before it
}

// oraclePopa3d judges a login by looking back for its session.
func oraclePopa3d(log []popa3dRecord, i int) relay.Event {
	g := oraclePopa3dPassed.FindStringSubmatch(log[i].text)
	if g == nil || !oracleUser(g[1]) || oracleAnonymous(g[1]) {
		return relay.Event{}
	}
	gap := log[i].gap
	for j := i - 1; j >= 0 && !gap; j-- {
		if r := log[j]; r.pid == log[i].pid && !strings.HasPrefix(r.text, "pam_") {
			from := oraclePopa3dFrom.FindStringSubmatch(r.text)
			if from == nil || log[i].second < r.second || log[i].second > r.second+600 {
				return relay.Event{}
			}
			client, ok := oracleAddr(from[1])
			if !ok {
				return relay.Event{}
			}
			return relay.Event{Kind: relay.Login, Service: relay.POP3, User: g[1], Client: client}
		}
		gap = log[j].gap
	}
	return relay.Event{}
}
