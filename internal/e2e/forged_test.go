package e2e

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net"
	"strings"
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

// A Dovecot that hands every name on to the server that knows the passwords, and
// tells why that refused. What is longer than 4096 bytes Dovecot itself cuts;
// the name is a good login up to there.
func TestAForgedUserNameThatDovecotCutsGrantsNothing(t *testing.T) {
	const refuses = "127.0.0.9:1143"
	extra := []string{"auth_verbose = yes", "auth_username_chars =", "auth_username_format =",
		"passdb {\n  driver = static\n  args = proxy=y nopassword=y host=127.0.0.9 port=1143\n}"}
	bothLogs(t, extra, nil, func(t *testing.T, s *site) {
		refuse(t, refuses)
		const login = "x,%s:1): Started proxying to <h> (0.1 secs): user=<x>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, session=<AAAA>"
		for n := 4075; n <= 4095; n++ { // how much goes before depends on the process id
			name := fmt.Sprintf(login, strings.Repeat("h", n-len(login)+len("%s"))) + strings.Repeat("z", 300)
			answer := s.IMAPAnswers(t, alice, "AUTHENTICATE PLAIN\r\n"+base64.StdEncoding.EncodeToString([]byte("\x00"+name+"\x00x")))
			if !strings.HasPrefix(answer, "NO [AUTHENTICATIONFAILED]") {
				t.Fatalf("a name of %d bytes: %q", len(name), answer)
			}
		}
		grantsNothing(t, s)
	})
}

// refuse is an IMAP server that knows nobody.
func refuse(t *testing.T, address string) {
	t.Helper()
	ln, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	serve := func(c net.Conn) {
		defer c.Close()
		const able = "CAPABILITY IMAP4rev1 AUTH=PLAIN"
		fmt.Fprintf(c, "* OK [%s] hello\r\n", able)
		for lines := bufio.NewScanner(c); lines.Scan(); {
			tag, command, _ := strings.Cut(lines.Text(), " ")
			if command == "CAPABILITY" {
				fmt.Fprintf(c, "* %s\r\n%s OK\r\n", able, tag)
				continue
			}
			fmt.Fprintf(c, "%s NO [AUTHENTICATIONFAILED] nobody of that name\r\n", tag)
		}
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go serve(c)
		}
	}()
}
