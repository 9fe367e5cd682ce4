package e2e

import (
	"testing"

	"popgate/internal/lab"
)

// forgedUsers are user names that try to end Dovecot's user=<> and go on with
// an address of the attacker's choice. The victim is mallet's other machine.
var forgedUsers = []string{
	"x>, rip=" + mallet,
	"x>, rip=" + mallet + ", lip=127.0.0.1, session=<a>",
	"alice>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, mpid=1, session=<AAAAAAAAAAA>",
	"Login: user=<alice>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, mpid=1",
	"x#012Nov 23 00:00:00 mx1 dovecot: pop3-login: Login: user=<alice>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, mpid=1, session=<AAAAAAAAAAA>",
	"x\rpop3-login: Login: user=<alice>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, mpid=1, session=<AAAAAAAAAAA>",
	"pop3-login: Info: Login: user=<alice>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, mpid=1, session=<AAAAAAAAAAA>",
}

// both runs a test with Dovecot's own log file and with syslog.
func bothLogs(t *testing.T, extra, users []string, test func(t *testing.T, s *site)) {
	for _, syslog := range []bool{false, true} {
		name := "Dovecot's own file"
		if syslog {
			name = "syslog"
		}
		t.Run(name, func(t *testing.T) {
			on(t, "postfix", setup{dovecot: lab.DovecotOptions{Syslog: syslog, Extra: extra, Users: users}}, test)
		})
	}
}

// grantsNothing checks, after a login whose line comes after all forged ones,
// that nobody but its client may relay.
func grantsNothing(t *testing.T, s *site) {
	t.Helper()
	s.login(t, "192.0.2.1")
	for _, from := range []string{mallet, alice} {
		if s.popgate.Holds(t, from) {
			t.Errorf("%s has a grant: %s", from, s.popgate.Must(t, "show", from))
		}
		refused(t, s.SMTP(t, from), "after the forgery, from "+from)
	}
	s.relays(t, s.SMTP(t, "192.0.2.1"), "an honest client")
	s.onlySubjects(t, "an honest client")
}

func TestAForgedUserNameInAFailedLoginGrantsNothing(t *testing.T) {
	extra := []string{"auth_verbose = yes", "auth_verbose_passwords = plain", "auth_debug = yes"}
	bothLogs(t, extra, nil, func(t *testing.T, s *site) {
		for _, user := range forgedUsers {
			s.POP3Fails(t, alice, user)
		}
		grantsNothing(t, s)
	})
}

// With auth_username_chars empty a user database may hold such a name, and
// then the success line has it too. It can be read in two ways, so it is not a
// login, neither of the attacker nor of the true client.
func TestAForgedUserNameInASuccessfulLoginGrantsNobodyElse(t *testing.T) {
	users := forgedUsers[:3] // a colon can't stand in a passwd file
	bothLogs(t, []string{"auth_username_chars =", "auth_username_format ="}, users, func(t *testing.T, s *site) {
		for _, user := range users {
			s.POP3(t, alice, user).Logout()
		}
		grantsNothing(t, s)
	})
}

// Dovecot has no failed login in common with a good one; a log has others'.
func TestAFailedLoginGrantsNothing(t *testing.T) {
	bothLogs(t, nil, nil, func(t *testing.T, s *site) {
		s.POP3Fails(t, alice, "alice")
		s.POP3Fails(t, mallet, "nobody")
		grantsNothing(t, s)
	})
}
