package lab

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// Password is everybody's.
const Password = "secret"

// DovecotLog is where Dovecot writes when it logs to a file of its own.
const DovecotLog = "/var/log/dovecot.log"

// DovecotOptions say how the host's Dovecot differs from the usual one.
type DovecotOptions struct {
	Syslog bool     // log through /dev/log to MailLog; else Dovecot writes DovecotLog itself
	Extra  []string // lines at the end of dovecot.conf
	Users  []string // further users
	Unit   string   // the systemd unit it runs in; the host must have a Journal
}

// Dovecot is the host's Dovecot 2.3: POP3 on port 110, IMAP on port 143 of
// 127.0.0.1 and ::1, plain-text logins for alice, bob, alice@local.test and
// bob@local.test. It answers Postfix's AUTH as well.
type Dovecot struct{ *Program }

const dovecotConf = `protocols = pop3 imap
listen = 127.0.0.1, ::1
base_dir = /run/dovecot
state_dir = /var/lib/dovecot
syslog_facility = mail
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain login
auth_failure_delay = 0
mail_location = maildir:/var/mail/dovecot/%u
passdb {
  driver = passwd-file
  args = username_format=%u /etc/dovecot/users
}
userdb {
  driver = static
  args = uid=vmail gid=vmail home=/var/mail/dovecot/%u
}
service auth {
  unix_listener /var/spool/postfix/private/auth {
    mode = 0666
  }
}
service anvil {
  unix_listener anvil-auth-penalty {
    mode = 0
  }
}
`

// Dovecot starts Dovecot and waits until it greets.
func (h *Host) Dovecot(t testing.TB, o DovecotOptions) *Dovecot {
	t.Helper()
	if err := postfixTree(); err != nil { // for the socket of AUTH
		t.Fatal(err)
	}
	if err := os.MkdirAll("/var/mail/dovecot", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown("/var/mail/dovecot", uidVmail, uidVmail); err != nil {
		t.Fatal(err)
	}
	var users strings.Builder
	for _, u := range append([]string{"alice", "bob", "alice@local.test", "bob@local.test"}, o.Users...) {
		fmt.Fprintf(&users, "%s:{PLAIN}%s\n", u, Password)
	}
	conf := dovecotConf
	if o.Syslog {
		conf += "log_path = syslog\n"
	} else {
		conf += "log_path = " + DovecotLog + "\n"
		if _, err := os.Stat(DovecotLog); err != nil { // else it has run before, and goes on in its log
			makeLog(t, DovecotLog)
		}
		h.keep(DovecotLog, func() string { text, _ := os.ReadFile(DovecotLog); return string(text) })
	}
	conf += strings.Join(o.Extra, "\n") + "\n"
	for path, text := range map[string]string{"/etc/dovecot/users": users.String(), "/etc/dovecot/dovecot.conf": conf} {
		if err := os.MkdirAll("/etc/dovecot", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	d := &Dovecot{h.startIn(t, o.Unit, "/usr/sbin/dovecot", "-F", "-c", "/etc/dovecot/dovecot.conf")}
	waitGreeting(t, d.Program, "127.0.0.1:110", "[::1]:110", "127.0.0.1:143", "[::1]:143")
	return d
}

// Rotate does to Dovecot's own log what Syslog.Rotate does to MailLog.
func (d *Dovecot) Rotate(t testing.TB, before func()) {
	t.Helper()
	rotate(t, DovecotLog, before)
	if _, err := command("doveadm", "log", "reopen"); err != nil {
		t.Fatal(err)
	}
}
