package domains

import (
	"strings"
	"testing"

	"popgate/internal/relay"
)

// A stranger writes as many labels as he likes. None of them may make a
// recipient foreign whose domain stands in a table that can only be asked.
func TestAttackOwnDomainBelowManyLabelsIsNotForeign(t *testing.T) {
	for _, tt := range []struct {
		name, parents, key string
		match              map[string]relay.Match
	}{
		{"parents", "relay_domains", "backup.test", map[string]relay.Match{
			"backup.test": relay.DomainFound, "a.backup.test": relay.DomainFound, "e.d.c.b.a.backup.test": relay.DomainFound,
			strings.Repeat("x.", 100) + "backup.test": relay.DomainFound, "e.d.c.other.test": relay.DomainOther,
			"g.f.e.d.c.other.test": relay.DomainUnsure}},
		{"with dots", "", ".backup.test", map[string]relay.Match{
			"backup.test": relay.DomainOther, "a.backup.test": relay.DomainFound, "e.d.c.b.a.backup.test": relay.DomainFound}},
		{"a key deeper than is asked for", "relay_domains", "4.3.2.1.backup.test", map[string]relay.Match{
			"4.3.2.1.backup.test": relay.DomainFound, "5.4.3.2.1.backup.test": relay.DomainUnsure, "6.5.4.3.2.1.backup.test": relay.DomainUnsure}},
		{"a top-level domain", "relay_domains", "com", map[string]relay.Match{
			"com": relay.DomainFound, "stranger.com": relay.DomainUnsure}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o, m := postfixSite(t, site{t, t.TempDir()}, map[string]string{
				"postconf":                         "mydestination = local.test\nrelay_domains = ldap:x\nparent_domain_matches_subdomains = " + tt.parents + "\n",
				"postmap -q " + tt.key + " ldap:x": "OK\n"})
			s := loaded(t, o)
			for domain, want := range tt.match {
				if got := s.Ask(t.Context(), domain); got != want {
					t.Errorf("%s is %v, want %v", domain, got, want)
				}
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			if n := len(m.calls); n > 1+len(tt.match)*(maxParents+2) {
				t.Errorf("%d questions", n)
			}
		})
	}
}
