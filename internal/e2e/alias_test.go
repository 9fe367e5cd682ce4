package e2e

import (
	"strings"
	"testing"

	"popgate/internal/lab"
)

// Postfix names the mailer of a recipient before it looks at aliases. An alias
// for a whole domain carries the local part on, x%R@alias.test to x%R@local.test,
// and there Postfix follows it once it trusts the routing. So neither may a
// stranger's shape leave, nor the mail of those domains be lost.
func TestNoWildcardAliasOpensTheGate(t *testing.T) {
	domains := []string{"alias.test", "virtual.test"}
	var shapes []string
	for _, d := range domains {
		for _, s := range []string{`<x%R@D>`, `<"x@R"@D>`, `<R!x@D>`, `<x@R@D>`, `<"x%R"@D>`, `<"R!x"@D>`, `<@D:x@R>`, `<x\@R@D>`,
			`<x%R%L@D>`, `<L!R!x@D>`, `<"x%R+y"@D>`, `<x+%R@D>`, `<"@L:x@R"@D>`, `<"@R:x"@D>`} {
			shapes = append(shapes, strings.ReplaceAll(s, "D", d))
		}
	}
	wildcard := map[string]string{"aliases": "@alias.test @local.test\n@virtual.test @local.test\n"}
	regexp := map[string]string{
		"whole": "/^(.*)@alias\\.test$/ $1@local.test\n/^(.*)@virtual\\.test$/ $1@local.test\n",
		"bare":  "/^(.*)@alias\\.test$/ $1\n/^(.*)@virtual\\.test$/ $1\n",
	}
	for name, o := range map[string]lab.PostfixOptions{
		"unchanged":                     {Files: wildcard},
		"regexp":                        {Main: []string{"virtual_alias_maps = regexp:/etc/postfix/whole"}, Files: regexp},
		"regexp without a domain":       {Main: []string{"virtual_alias_maps = regexp:/etc/postfix/bare"}, Files: regexp},
		"allow_untrusted_routing = yes": {Main: []string{"allow_untrusted_routing = yes"}, Files: wildcard},
		"check_client_access": {Main: []string{"smtpd_relay_restrictions = check_client_access static:OK, reject_unauth_destination"},
			Files: wildcard},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "postfix", setup{postfix: o}, func(t *testing.T, s *site) {
				tryShapes(t, s, mallet, shapes, "stranger")
				s.onlyRelayed(t)
				c := s.SMTP(t, mallet)
				for _, d := range domains {
					for _, user := range []string{"alice", "Bob", "alice+tag"} {
						if r := c.Send("to "+user+"@"+d, user+"@"+d)[0]; !r.Is(2) {
							t.Errorf("%s@%s: %v, want the site's own mail taken", user, d, r)
						}
					}
				}
				s.onlyRelayed(t)
				if name != "allow_untrusted_routing = yes" && name != "check_client_access" {
					return
				}
				// The same from a client that may relay: this is what would have
				// got through.
				s.login(t, alice)
				before := len(s.subjects())
				taken := tryShapes(t, s, alice, shapes, "client")
				s.drain(t)
				left := len(s.subjects()) - before
				t.Logf("a client's shapes: %d of %d taken, %d left the site", taken, len(shapes), left)
				if left < 5 {
					t.Errorf("only %d shapes left the site though their sender may relay: these shapes prove little", left)
				}
			})
		})
	}
}
