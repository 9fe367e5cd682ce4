package domains

import (
	"fmt"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/net/publicsuffix"

	"popgate/internal/relay"
)

// Name is one of the site's domains, in both spellings it can arrive in.
type Name struct {
	Self    bool   // the domain itself
	Below   bool   // any subdomain of it
	ASCII   string // A-label form, lower case
	Unicode string // U-label form; the same as ASCII where there is no other
}

// privateSuffixes are names of one label under which a site may well have
// hosts of its own. Any other single label with its subdomains is a whole
// top-level domain.
var privateSuffixes = []string{"corp", "example", "home", "internal", "intranet", "invalid",
	"lan", "local", "localdomain", "localhost", "private", "test"}

// ParseName reads a domain as local_domains has it: "example.org",
// ".example.org" for any subdomain, "+example.org" for both. It refuses what
// is no domain, and a public suffix with its subdomains ("+co.uk"): that would
// take other people's domains for the site's own.
func ParseName(s string) (Name, error) {
	n := Name{Self: true}
	bare := s
	switch {
	case strings.HasPrefix(s, "."):
		n.Self, n.Below, bare = false, true, s[1:]
	case strings.HasPrefix(s, "+"):
		n.Below, bare = true, s[1:]
	}
	if reason := notADomain(bare); reason != "" {
		return Name{}, fmt.Errorf("%q is not a domain: %s", s, reason)
	}
	ascii := asciiLower(bare)
	if !isASCII(bare) {
		a, err := idna.Lookup.ToASCII(bare)
		if err != nil {
			return Name{}, fmt.Errorf("%q is not a domain: it has no A-label form; check the spelling or write the xn-- form", s)
		}
		ascii = a
	}
	if reason := badLabels(ascii); reason != "" {
		return Name{}, fmt.Errorf("%q is not a domain: %s", s, reason)
	}
	n.ASCII, n.Unicode = ascii, ascii
	if u, err := idna.Lookup.ToUnicode(ascii); err == nil && u != "" {
		n.Unicode = u
	}
	if n.Below && tooWide(ascii) {
		return Name{}, fmt.Errorf("%q would take every domain below %s for this site's own; name the site's domains one by one", s, ascii)
	}
	return n, nil
}

// notADomain gives the reason why s can't be meant as a domain, for the
// mistakes that have a remedy of their own.
func notADomain(s string) string {
	switch {
	case s == "":
		return "there is no name"
	case strings.HasPrefix(s, "*"):
		return "for any subdomain write a leading dot instead of the asterisk"
	case strings.Contains(s, "://"):
		return "it is a URL; write its host only"
	case strings.Contains(s, "@"):
		return "it has an @; write what stands behind it"
	case strings.HasSuffix(s, "."):
		return "leave out the dot at the end"
	case strings.HasPrefix(s, ".") || strings.HasPrefix(s, "+"):
		return "one leading dot or plus sign is enough"
	case numeric(s):
		return "it is an address; addresses belong into trusted_networks"
	default:
		return ""
	}
}

// badLabels checks the letters and lengths of an ASCII domain. The underscore
// is let through: it is no host name, but there is mail for such domains.
func badLabels(ascii string) string {
	if len(ascii) > 253 {
		return "it is longer than 253 characters"
	}
	for label := range strings.SplitSeq(ascii, ".") {
		switch {
		case label == "":
			return "two dots follow each other"
		case len(label) > 63:
			return "a part of it is longer than 63 characters"
		case label[0] == '-' || label[len(label)-1] == '-':
			return "a part of it begins or ends with a hyphen"
		}
		for i := range len(label) {
			if c := label[i]; !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' || c == '_') {
				return fmt.Sprintf("it has a %q", c)
			}
		}
	}
	return ""
}

// tooWide says whether the subdomains of a domain belong to many owners.
func tooWide(ascii string) bool {
	if !strings.Contains(ascii, ".") {
		for _, p := range privateSuffixes {
			if ascii == p {
				return false
			}
		}
		return true
	}
	suffix, icann := publicsuffix.PublicSuffix(ascii)
	return icann && suffix == ascii && ascii != "home.arpa"
}

// put enters the name under every spelling it can arrive in.
func (n Name) put(names map[string]relay.Match, m relay.Match) {
	prefix := ""
	switch {
	case n.Self && n.Below:
		prefix = "+"
	case n.Below:
		prefix = "."
	}
	for _, spelling := range [...]string{n.ASCII, n.Unicode} {
		if key := prefix + spelling; names[key] < m {
			names[key] = m
		}
	}
}

// String gives the name as local_domains would have it, in A-label form.
func (n Name) String() string {
	switch {
	case n.Self && n.Below:
		return "+" + n.ASCII
	case n.Below:
		return "." + n.ASCII
	default:
		return n.ASCII
	}
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// asciiLower folds A to Z only: domain names know no other case (RFC 4343).
func asciiLower(s string) string {
	return strings.Map(func(r rune) rune {
		if 'A' <= r && r <= 'Z' {
			return r + 'a' - 'A'
		}
		return r
	}, s)
}
