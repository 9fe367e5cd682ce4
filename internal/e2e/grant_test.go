package e2e

import (
	"testing"

	"popgate/internal/lab"
)

func TestALoginThatTheRulesExcludeGrantsNothing(t *testing.T) {
	set := setup{config: []string{"services: [imap]", "ignore_users: [Bob]", "never_grant: [198.51.100.128/25, 2001:db8:9::/48]"}}
	onBoth(t, set, func(t *testing.T, s *site) {
		s.POP3(t, "198.51.100.1", "alice").Logout()
		s.IMAP(t, "198.51.100.2", "bob").Logout()
		s.IMAP(t, "198.51.100.3", "bob@local.test").Logout()
		s.IMAP(t, "198.51.100.129", "alice").Logout()
		s.IMAP(t, "2001:db8:9::1", "alice").Logout()
		s.IMAP(t, "127.0.0.9", "alice").Logout()
		s.IMAP(t, alice, "alice").Logout()
		s.popgate.WaitGrant(t, alice) // by now the lines before it have been read
		for _, from := range []string{"198.51.100.1", "198.51.100.2", "198.51.100.3", "198.51.100.129", "2001:db8:9::1"} {
			refused(t, s.SMTP(t, from), "excluded, "+from)
		}
		if s.popgate.Holds(t, "127.0.0.9") {
			t.Error("a loopback address has a grant")
		}
		s.relays(t, s.SMTP(t, alice), "not excluded")
		s.onlySubjects(t, "not excluded")
	})
}

func TestAnIPv6GrantCoversItsPrefixOnly(t *testing.T) {
	onBoth(t, setup{config: []string{"ipv6_prefix: 64"}}, func(t *testing.T, s *site) {
		s.login(t, "2001:db8:1:2::7")
		s.relays(t, s.SMTP(t, "2001:db8:1:2:ffff::8"), "same /64")
		refused(t, s.SMTP(t, "2001:db8:1:3::7"), "next /64")
		refused(t, s.SMTP(t, "2001:db8:1:1:ffff:ffff:ffff:ffff"), "/64 before")
		s.onlySubjects(t, "same /64")
	})
}

// A client whose grant there was no room for did log in: that is not the
// refusal a stranger gets, and who that is can't be told any more.
func TestWithoutRoomForItsGrantAClientIsDeferred(t *testing.T) {
	onBoth(t, setup{config: []string{"max_grants: 2"}}, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.login(t, alice6)
		s.POP3(t, "198.51.100.9", "bob").Logout()
		lab.Until(t, "popgate has no room", func() bool { return s.ask(t, "198.51.100.9").Reason == "full" })
		deferred(t, s.SMTP(t, "198.51.100.9"), "no room")
		s.relays(t, s.SMTP(t, alice), "granted before")
		s.takesLocal(t, s.SMTP(t, mallet), "local mail all the same")
		s.onlySubjects(t, "granted before")
	})
}

// A server that restarts has closed its sessions without a line for each.
func TestARestartOfDovecotEndsTheSessionsThatHoldGrants(t *testing.T) {
	on(t, "postfix", setup{config: []string{"grant_ttl: 3s"}}, func(t *testing.T, s *site) {
		s.holdOpen(t, alice)
		s.dovecot.Kill() // no time for last words
		s.dovecot = s.Dovecot(t, s.setup.dovecot)
		lab.Until(t, "the grant has ended", func() bool { return s.ask(t, alice).Reason == "expired" })
		refused(t, s.SMTP(t, alice), "session gone with its server")
		s.onlySubjects(t)
	})
}
