package relay

import (
	"net/netip"
	"strings"
	"time"
)

// Rules is one immutable reading of the configuration and of the site's
// domains, swapped as a whole under every question. Its zero value grants
// nothing, trusts nobody and knows no domain.
type Rules struct {
	MTA                MTA // what mta: says; MTAUnknown means auto
	PostfixMailers     Mailers
	SendmailMailers    Mailers
	Domains            *Domains
	TrustedNetworks    []netip.Prefix
	TrustAuthenticated bool

	GrantTTL         time.Duration
	HoldOpenLogins   time.Duration // ceiling of an open session from its login; 0: sessions hold nothing
	IPv6Prefix       int           // 48 to 128
	MaxGrants        int
	MaxGrantsPerUser int // 0: no bound
	NeverGrant       []netip.Prefix
	IgnoreUsers      []string // folded by FoldUser
	Services         []Service

	WaitForLogin time.Duration // 0: nobody waits
	MaxWaiting   int

	Reject Reject
}

// Mailers gives the lists that hold for this kind of MTA. The two kinds' lists
// are never merged.
func (r *Rules) Mailers(m MTA) Mailers {
	switch m {
	case Postfix:
		return r.PostfixMailers
	case Sendmail:
		return r.SendmailMailers
	default:
		return DefaultMailers(MTAUnknown)
	}
}

// Kind gives the kind of MTA that asks: what the configuration says, or what
// the macro v tells.
func (r *Rules) Kind(v string) MTA {
	if r.MTA != MTAUnknown {
		return r.MTA
	}
	return DetectMTA(v)
}

// Trusts says whether the client is in trusted_networks.
func (r *Rules) Trusts(client netip.Addr) bool {
	return client.IsValid() && inside(r.TrustedNetworks, client)
}

// MayHold says whether a login from this address may grant at all. own says
// whether the address is one of this host's own.
func (r *Rules) MayHold(client netip.Addr, own func(netip.Addr) bool) bool {
	return !NeverClient(client) && !inside(r.NeverGrant, client) && (own == nil || !own(Canonical(client)))
}

// Ignores says whether logins of this user grant nothing. A bare name in
// ignore_users matches the user in every domain, as it does for a revocation.
func (r *Rules) Ignores(user string) bool {
	for _, u := range r.IgnoreUsers {
		if (&Revocation{User: u}).CoversUser(user) {
			return true
		}
	}
	return false
}

// Serves says whether logins to this service grant.
func (r *Rules) Serves(s Service) bool {
	for _, t := range r.Services {
		if s == t {
			return true
		}
	}
	return false
}

func inside(nets []netip.Prefix, a netip.Addr) bool {
	a = Canonical(a)
	for _, p := range nets {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// Match is what is known about one domain.
type Match uint8

const (
	DomainOther    Match = iota // not one of the site's
	DomainUnsure                // may be: not plain ASCII and not spelled as the configuration spells it
	DomainVanished              // was one of the site's until a short while ago
	DomainFound                 // found in the MTA's own configuration, a file or a table
	DomainWritten               // written in local_domains
)

// Domains are the site's own domains, keyed by lower-case spelling. It is
// immutable once built. The nil *Domains knows none.
type Domains struct {
	exact map[string]Match
	below map[string]Match // any subdomain of the key
}

// NewDomains builds the set. A name starting with "." stands for any
// subdomain, one starting with "+" for the domain and any subdomain. Names are
// compared in ASCII case only, so the caller gives each one in A-label form,
// and may give its U-label form as well. Where a domain is named twice the
// stronger Match counts.
func NewDomains(names map[string]Match) *Domains {
	d := &Domains{exact: map[string]Match{}, below: map[string]Match{}}
	put := func(to map[string]Match, name string, m Match) {
		name = lowerASCII(name)
		if name != "" && to[name] < m {
			to[name] = m
		}
	}
	for name, m := range names {
		switch {
		case strings.HasPrefix(name, "."):
			put(d.below, name[1:], m)
		case strings.HasPrefix(name, "+"):
			put(d.exact, name[1:], m)
			put(d.below, name[1:], m)
		default:
			put(d.exact, name, m)
		}
	}
	return d
}

// Empty says whether no domain is known at all. Vanished ones do not count as
// known: they only soften a refusal.
func (d *Domains) Empty() bool {
	if d == nil {
		return true
	}
	for _, set := range [...]map[string]Match{d.exact, d.below} {
		for _, m := range set {
			if m >= DomainFound {
				return false
			}
		}
	}
	return true
}

// Len gives how many names the set holds.
func (d *Domains) Len() int {
	if d == nil {
		return 0
	}
	return len(d.exact) + len(d.below)
}

// Match says what is known about a domain.
func (d *Domains) Match(domain string) Match {
	ascii := true
	for i := range len(domain) {
		if domain[i] >= 0x80 {
			ascii = false
		}
	}
	best := DomainOther
	if !ascii {
		best = DomainUnsure
	}
	if d == nil || domain == "" {
		return best
	}
	domain = lowerASCII(domain)
	best = max(best, d.exact[domain])
	if len(d.below) == 0 {
		return best
	}
	for rest := domain; ; {
		i := strings.IndexByte(rest, '.')
		if i < 0 {
			return best
		}
		rest = rest[i+1:]
		best = max(best, d.below[rest])
	}
}

// lowerASCII folds A to Z only: domain names know no other case (RFC 4343).
func lowerASCII(s string) string {
	for i := range len(s) {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for j := i; j < len(b); j++ {
				if c := b[j]; 'A' <= c && c <= 'Z' {
					b[j] = c + 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}
