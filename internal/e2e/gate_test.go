package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"popgate/internal/lab"
)

func TestALoginOpensTheGateForItsAddressOnly(t *testing.T) {
	onBoth(t, setup{config: []string{"wait_for_login: 50ms"}}, func(t *testing.T, s *site) {
		for _, pair := range []struct{ family, client, stranger string }{{"IPv4", alice, mallet}, {"IPv6", alice6, mall6}} {
			client, stranger := s.SMTP(t, pair.client), s.SMTP(t, pair.stranger)
			refused(t, client, pair.family+": before the login")
			s.takesLocal(t, stranger, pair.family+": local mail from a stranger")

			s.login(t, pair.client)
			s.relays(t, client, pair.family+": after the login, same connection")
			s.relays(t, s.SMTP(t, pair.client), pair.family+": after the login, new connection")
			s.takesLocal(t, client, pair.family+": local mail from the client")
			refused(t, stranger, pair.family+": other address, same connection")
			refused(t, s.SMTP(t, pair.stranger), pair.family+": other address, new connection")
		}
		s.onlySubjects(t, "IPv4: after the login, same connection", "IPv4: after the login, new connection",
			"IPv6: after the login, same connection", "IPv6: after the login, new connection")
	})
}

func TestAnIMAPLoginOpensTheGate(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.IMAP(t, alice, "bob@local.test").Logout()
		s.popgate.WaitGrant(t, alice)
		s.relays(t, s.SMTP(t, alice), "after IMAP")
		s.onlySubjects(t, "after IMAP")
	})
}

func TestAnAuthenticatedClientRelaysWithoutALogin(t *testing.T) {
	set := setup{postfix: lab.PostfixOptions{Auth: true, TLS: true}, sendmail: lab.SendmailOptions{Auth: true, TLS: true}}
	onBoth(t, set, func(t *testing.T, s *site) {
		plain, secured := s.SMTP(t, alice), s.SMTP(t, alice)
		secured.StartTLS()
		for _, c := range []*lab.Client{plain, secured} {
			refused(t, c, "before AUTH")
			c.Must(5, "AUTH PLAIN AGFsaWNlAHdyb25n") // alice, "wrong"
			refused(t, c, "after a failed AUTH")
			if r := c.Auth("alice", lab.Password); !r.Is(235) {
				t.Fatalf("AUTH: %v", r)
			}
		}
		s.relays(t, plain, "plain 1")
		s.relays(t, plain, "plain 2")
		s.relays(t, secured, "secured")
		refused(t, s.SMTP(t, alice), "same address, without AUTH")
		s.onlySubjects(t, "plain 1", "plain 2", "secured")
	})
}

func TestATrustedNetworkRelaysWithoutALogin(t *testing.T) {
	onBoth(t, setup{config: []string{"trusted_networks: [192.0.2.0/24]"}}, func(t *testing.T, s *site) {
		s.relays(t, s.SMTP(t, "192.0.2.9"), "trusted")
		refused(t, s.SMTP(t, alice), "not trusted")
		s.onlySubjects(t, "trusted")
	})
}

func TestAnExpiredGrantIsRefused(t *testing.T) {
	onBoth(t, setup{config: []string{"grant_ttl: 4s", "hold_open_logins: 0"}}, func(t *testing.T, s *site) {
		before := time.Now()
		s.login(t, alice)
		c := s.SMTP(t, alice)
		s.relays(t, c, "in time")
		lab.Until(t, "the grant has expired", func() bool { return s.ask(t, alice).Verdict == "refuse" })
		// Dovecot's stamp is cut to the second.
		if lived := time.Since(before); lived < 3*time.Second || lived > 20*time.Second {
			t.Errorf("a grant of 4s lived %v", lived)
		}
		if a := s.ask(t, alice); a.Reason != "expired" {
			t.Errorf("reason %s, want expired", a.Reason)
		}
		refused(t, c, "too late, same connection")
		refused(t, s.SMTP(t, alice), "too late, new connection")

		// A log from before, put in the live one's place, tells nothing new.
		old, err := os.ReadFile(lab.DovecotLog)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(lab.DovecotLog, append(old, old...), 0); err != nil {
			t.Fatal(err)
		}
		s.login(t, "192.0.2.1") // by now the lines before it have been read
		// A stamp that is stale on a line that is being written may be a wrong
		// clock's, so the client may be put off as well.
		if r := c.Send("old log copied over the live one", "x@remote.test")[0]; !r.Is(4) && !r.Is(5) {
			t.Errorf("old log copied over the live one: %v, want it not relayed", r)
		}

		s.login(t, alice)
		s.relays(t, c, "after another login")
		s.onlySubjects(t, "in time", "after another login")
	})
}

func TestARevokedClientIsRefusedUntilItLogsInAgain(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		c := s.SMTP(t, alice)
		s.relays(t, c, "granted")
		s.popgate.Must(t, "revoke", alice)
		refused(t, c, "revoked")

		// The login is still in the log: neither a restart without positions nor
		// the same lines once more may bring it back.
		text, err := os.ReadFile(lab.DovecotLog)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(lab.DovecotLog, append(text, text...), 0o600); err != nil {
			t.Fatal(err)
		}
		s.popgate.Stop(t)
		s.popgate.Start(t)
		s.login(t, "192.0.2.1") // by now the lines before it have been read
		refused(t, s.SMTP(t, alice), "revoked, log read again")

		lab.Until(t, "a login a second later counts", func() bool {
			s.POP3(t, alice, "alice").Logout()
			return s.ask(t, alice).Verdict == "pass"
		})
		s.relays(t, s.SMTP(t, alice), "logged in again")
		s.onlySubjects(t, "granted", "logged in again")
	})
}

func TestABlockedClientIsRefusedThoughItLogsIn(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.popgate.Must(t, "revoke", alice, "--block", "1h")
		s.POP3(t, alice, "alice").Logout()
		s.login(t, "192.0.2.1") // by now the line before it has been read
		refused(t, s.SMTP(t, alice), "blocked")
		s.onlySubjects(t)
	})
}

func TestAnOperatorsGrantRelays(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.popgate.Must(t, "grant", alice, "--ttl", "10m", "--note", "by telephone")
		s.relays(t, s.SMTP(t, alice), "operator")
		if out := s.popgate.Must(t, "show", alice); !strings.Contains(out, "by telephone") {
			t.Errorf("show gives no note: %s", out)
		}
		refused(t, s.SMTP(t, mallet), "stranger")
		s.onlySubjects(t, "operator")
	})
}

// A client that fetches and sends at once is ahead of its login's line.
func TestMailSentInTheMomentOfTheLoginIsTaken(t *testing.T) {
	onBoth(t, setup{config: []string{"wait_for_login: 2s"}}, func(t *testing.T, s *site) {
		var want []string
		for i := range 25 {
			from := fmt.Sprintf("198.51.100.%d", 100+i)
			c := s.SMTP(t, from)
			c.Must(2, "MAIL FROM:<sender@client.test>")
			session := s.POP3(t, from, "alice")
			r := c.Cmd("RCPT TO:<x@remote.test>")
			if !r.Is(2) {
				t.Fatalf("client %d: %v right after its login", i, r)
			}
			c.Must(354, "DATA")
			want = append(want, fmt.Sprintf("client %d", i))
			c.Body(want[i])
			session.Logout()
			c.Close()
		}
		s.onlySubjects(t, want...)
	})
}

func TestAnOpenSessionHoldsItsGrant(t *testing.T) {
	onBoth(t, setup{config: []string{"grant_ttl: 2s"}}, func(t *testing.T, s *site) {
		session := s.holdOpen(t, alice)
		other := s.POP3(t, alice6, "alice")
		other.Logout()
		lab.Until(t, "a grant without session has expired", func() bool { return s.ask(t, alice6).Reason == "expired" })
		lab.Until(t, "two ttls have passed", func() func() bool {
			start := time.Now()
			return func() bool { return time.Since(start) > 4*time.Second }
		}())
		s.relays(t, s.SMTP(t, alice), "held")
		session.Logout()
		lab.Until(t, "the grant ends after the logout", func() bool { return s.ask(t, alice).Verdict == "refuse" })
		refused(t, s.SMTP(t, alice), "released")
		s.onlySubjects(t, "held")
	})
}

// holdOpen logs in to IMAP and gives the session once it holds its grant.
func (s *site) holdOpen(t *testing.T, from string) *lab.Mailbox {
	t.Helper()
	// A source earns trust in its sessions by a paired logout. Dovecot logs it
	// some time after the client has gone, and of a short session even before
	// the login.
	first := s.IMAP(t, from, "bob")
	s.popgate.WaitGrant(t, from)
	first.Logout()
	lab.Until(t, "Dovecot has logged the logout", func() bool {
		text, _ := os.ReadFile(lab.DovecotLog)
		return strings.Contains(string(text), "Logged out")
	})
	session := s.IMAP(t, from, "alice")
	lab.Until(t, "the session holds its grant", func() bool {
		out, _ := s.popgate.Run(t, "show", from, "--json")
		return strings.Contains(out, `"open":true`)
	})
	return session
}
