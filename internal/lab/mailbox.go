package lab

import (
	"bufio"
	"fmt"
	"net"
	"net/textproto"
	"strings"
	"testing"
)

// Mailbox is a POP3 or IMAP session that is logged in.
type Mailbox struct {
	t    testing.TB
	conn net.Conn
	r    *textproto.Reader
	bye  string
}

// POP3 logs in from an address and returns after the server's +OK.
func (h *Host) POP3(t testing.TB, from, user string) *Mailbox {
	t.Helper()
	m := openMailbox(t, from, "110", "QUIT")
	for _, line := range []string{"USER " + user, "PASS " + Password} {
		if answer := m.cmd(line); !strings.HasPrefix(answer, "+OK") {
			t.Fatalf("POP3 %s: %s", line, answer)
		}
	}
	return m
}

// IMAP logs in from an address and returns after the server's OK.
func (h *Host) IMAP(t testing.TB, from, user string) *Mailbox {
	t.Helper()
	m := openMailbox(t, from, "143", "b LOGOUT")
	if answer := m.cmd("a LOGIN " + user + " " + Password); !strings.HasPrefix(answer, "a OK") {
		t.Fatalf("IMAP login: %s", answer)
	}
	return m
}

// IMAPNamed is IMAP for a front end that Dovecot trusts, which names the
// session.
func (h *Host) IMAPNamed(t testing.TB, from, user, session string) *Mailbox {
	t.Helper()
	m := openMailbox(t, from, "143", "b LOGOUT")
	if answer := m.cmd(fmt.Sprintf("i ID (\"x-session-id\" %q)", session)); !strings.HasPrefix(answer, "i OK") {
		t.Fatalf("IMAP ID: %s", answer)
	}
	if answer := m.cmd("a LOGIN " + user + " " + Password); !strings.HasPrefix(answer, "a OK") {
		t.Fatalf("IMAP login: %s", answer)
	}
	return m
}

// IMAPAnonymous logs in without a password, which Dovecot must have been told to
// allow.
func (h *Host) IMAPAnonymous(t testing.TB, from string) *Mailbox {
	t.Helper()
	m := openMailbox(t, from, "143", "b LOGOUT")
	if answer := m.cmd("a AUTHENTICATE ANONYMOUS Zm9v"); !strings.HasPrefix(answer, "a OK") {
		t.Fatalf("IMAP anonymous login: %s", answer)
	}
	return m
}

// IMAPAnswers gives the answer to one IMAP command in a session of its own,
// without its tag; empty when the server hangs up instead.
func (h *Host) IMAPAnswers(t testing.TB, from, command string) string {
	t.Helper()
	m := openMailbox(t, from, "143", "b LOGOUT")
	defer m.Close()
	fmt.Fprintf(m.conn, "a %s\r\n", command)
	for {
		line, err := m.r.ReadLine()
		if answer, ok := strings.CutPrefix(line, "a "); ok || err != nil {
			return answer
		}
	}
}

// POP3Fails tries to log in with a wrong password. The user name is sent as it
// is.
func (h *Host) POP3Fails(t testing.TB, from, user string) {
	t.Helper()
	m := openMailbox(t, from, "110", "QUIT")
	m.cmd("USER " + user)
	if answer := m.cmd("PASS wrong"); !strings.HasPrefix(answer, "-ERR") {
		t.Fatalf("POP3 login of %q with a wrong password: %s", user, answer)
	}
	m.Close()
}

func openMailbox(t testing.TB, from, port, bye string) *Mailbox {
	t.Helper()
	m := &Mailbox{t: t, conn: dial(t, from, port), bye: bye}
	m.r = textproto.NewReader(bufio.NewReader(m.conn))
	m.line()
	return m
}

func (m *Mailbox) line() string {
	m.t.Helper()
	line, err := m.r.ReadLine()
	if err != nil {
		m.t.Fatalf("mailbox: %v", err)
	}
	return line
}

// cmd sends a line and gives the answer, without IMAP's untagged lines.
func (m *Mailbox) cmd(line string) string {
	m.t.Helper()
	fmt.Fprintf(m.conn, "%s\r\n", line)
	for {
		if answer := m.line(); !strings.HasPrefix(answer, "* ") {
			return answer
		}
	}
}

// Logout ends the session as a client should and waits until the server has
// hung up.
func (m *Mailbox) Logout() {
	m.t.Helper()
	m.cmd(m.bye)
	m.conn.Close()
}

// Close hangs up.
func (m *Mailbox) Close() { m.conn.Close() }
