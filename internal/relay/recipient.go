package relay

import (
	"cmp"
	"strings"
)

// Recipient says whose a recipient is. The zero Recipient is the safe one.
type Recipient uint8

const (
	Unsure  Recipient = iota // neither clearly this site's nor clearly another's
	Local                    // this host is responsible for it
	Foreign                  // clearly another site's
)

var recipientNames = [...]string{"unsure", "local", "foreign"}

// String gives the word used in log and JSON.
func (r Recipient) String() string {
	if int(r) < len(recipientNames) {
		return recipientNames[r]
	}
	return "unsure"
}

// MTA is the kind of mail server that asks, which decides what its mailer
// names mean.
type MTA uint8

const (
	MTAUnknown MTA = iota
	Postfix
	Sendmail
)

var mtaNames = [...]string{"unknown", "postfix", "sendmail"}

// String gives the word used in configuration, log and JSON.
func (m MTA) String() string {
	if int(m) < len(mtaNames) {
		return mtaNames[m]
	}
	return "unknown"
}

// ParseMTA reads "postfix" or "sendmail"; the second result is false for
// anything else.
func ParseMTA(word string) (MTA, bool) {
	for i, n := range mtaNames {
		if i > 0 && n == word {
			return MTA(i), true
		}
	}
	return MTAUnknown, false
}

// DetectMTA reads the milter macro v: "Postfix 3.7.11" or "8.17.1.9". Anything
// else, such as Postfix with a changed mail_name, is unknown.
func DetectMTA(v string) MTA {
	if strings.HasPrefix(v, "Postfix ") {
		return Postfix
	}
	rest, found := strings.CutPrefix(v, "8.")
	if !found {
		return MTAUnknown
	}
	minor, patch, found := strings.Cut(rest, ".")
	if !found || !leadingDigits(minor) || patch == "" || !isDigit(patch[0]) {
		return MTAUnknown
	}
	return Sendmail
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }

func leadingDigits(s string) bool {
	for i := range len(s) {
		if !isDigit(s[i]) {
			return false
		}
	}
	return s != ""
}

// Mailers are the delivery agents of one kind of MTA that prove whose a
// recipient is. A name in neither list proves nothing.
type Mailers struct {
	Local, Remote []string
}

// DefaultMailers gives the lists that hold for an unchanged installation. The
// name relay is in neither: in both MTAs it says how mail leaves, not whose it
// is.
func DefaultMailers(m MTA) Mailers {
	switch m {
	case Postfix:
		return Mailers{Local: []string{"local", "virtual"}, Remote: []string{"smtp"}}
	case Sendmail:
		return Mailers{Local: []string{"local", "cyrus", "cyrusv2", "cyrusbb", "procmail"},
			Remote: []string{"esmtp", "smtp", "smtp8", "dsmtp", "relay"}}
	default:
		return Mailers{Local: []string{"local"}}
	}
}

// virtualAliasHost is how Postfix's {rcpt_host} begins for a recipient in a
// virtual alias domain: the mailer is error, yet the mail is accepted.
const virtualAliasHost = "5.1.1 User unknown in virtual alias table"

// Resolution is what the MTA itself made of a recipient, from its macros.
type Resolution struct {
	MTA    MTA
	Mailer string // {rcpt_mailer}; empty: the MTA sent no macros for this recipient
	Host   string // {rcpt_host}
	Addr   string // {rcpt_addr}
}

// barred are the bytes a strict address has nowhere: controls, the blank, and
// what some MTA or a shell behind it takes for more than a letter.
var barred = func() (t [256]bool) {
	for c := range byte(' ' + 1) {
		t[c] = true
	}
	for _, c := range []byte("\x7f" + `%!"\,;:()<>[]/|'^$`) {
		t[c] = true
	}
	return t
}()

// Strict splits an address that can be read in one way only into local part
// and domain. It answers false for everything that some MTA routes by its
// local part (source routes, percent hack, UUCP paths, quoting) and for every
// address that is not plain ASCII before the @.
func Strict(address string) (domain string, ok bool) {
	at := strings.IndexByte(address, '@')
	if at <= 0 || strings.IndexByte(address[at+1:], '@') >= 0 {
		return "", false
	}
	for i := range at {
		if barred[address[i]] || address[i] >= 0x80 {
			return "", false
		}
	}
	domain = address[at+1:]
	for i := range len(domain) {
		if barred[domain[i]] {
			return "", false
		}
	}
	if domain == "" || domain[len(domain)-1] == '.' {
		return "", false
	}
	return domain, true
}

// unrouted says whether a local part is unquoted ASCII without any byte by which
// an MTA routes, though it may hold others that the strict rule forbids.
func unrouted(local string) bool {
	for i := range len(local) {
		if c := local[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`%!"\,;:()<>[]/@`, c) >= 0 {
			return false
		}
	}
	return local != ""
}

// routed says whether a local part names a way on. The MTA names a mailer before
// it looks at aliases; one for a whole domain (@ours.test -> @local.test) carries
// such a local part into a domain where the MTA follows it.
func routed(address string) bool {
	local := address
	if at := strings.LastIndexByte(address, '@'); at >= 0 {
		local = address[:at]
	}
	return strings.ContainsAny(local, "%!@")
}

// LastDomain gives what stands after the last @, whether or not the address
// is strict; empty if there is none. It proves nothing: it serves only to
// notice that an address might be this site's own, so that it is not refused
// for good.
func LastDomain(address string) string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return ""
	}
	return strings.TrimRight(address[at+1:], ".")
}

// Whose answers from the MTA's own resolution and the site's domains whose a
// recipient is. rcpt is the raw recipient without its angle brackets.
func (r *Rules) Whose(rcpt string, res *Resolution) Recipient {
	mailers := r.Mailers(res.MTA)
	if res.Mailer != "" {
		here := contains(mailers.Local, res.Mailer) ||
			res.MTA == Postfix && res.Mailer == "error" && strings.HasPrefix(res.Host, virtualAliasHost)
		if here && !routed(cmp.Or(res.Addr, rcpt)) {
			return Local
		}
		if domain, ok := Strict(res.Addr); ok && r.Domains.Match(domain) >= DomainFound {
			return Local
		}
	}
	remote := res.Mailer != "" && contains(mailers.Remote, res.Mailer)
	if domain, ok := Strict(rcpt); ok {
		switch m := r.Domains.Match(domain); {
		case m == DomainVanished, m == DomainUnsure:
			return Unsure
		case m == DomainWritten:
			return Local
		case m == DomainFound:
			// The MTA took the recipient of one of our domains elsewhere (a
			// virtusertable forward, say). It began as ours, so it isn't
			// refused for good; it leaves for another site, so it isn't passed.
			if to, ok := Strict(res.Addr); remote && (!ok || r.Domains.Match(to) < DomainFound) {
				return Unsure
			}
			return Local
		}
	} else if strings.EqualFold(rcpt, "postmaster") {
		return Local // RFC 5321, section 4.5.1
	}
	switch {
	case r.Domains.Empty():
		return Unsure
	case remote && res.MTA != MTAUnknown:
		if domain, ok := Strict(res.Addr); ok && r.Domains.Match(domain) != DomainOther {
			return Unsure
		}
		// o'brien@ours is no relay shape: a forward of it isn't refused for good.
		if local, domain, ok := strings.Cut(rcpt, "@"); ok && unrouted(local) && r.Domains.Match(domain) != DomainOther {
			return Unsure
		}
		return Foreign
	case res.Mailer != "":
		return Unsure
	}
	// No macros: only the raw recipient is known. One that has no domain, or
	// ends in one of ours without being strict, may be meant for this host.
	domain := LastDomain(rcpt)
	if strings.IndexByte(rcpt, '@') < 0 || r.Domains.Match(domain) != DomainOther {
		return Unsure
	}
	return Foreign
}

func contains(list []string, s string) bool {
	for _, l := range list {
		if l == s {
			return true
		}
	}
	return false
}
