package format

import (
	"testing"

	"popgate/internal/relay"
)

// What login_log_format makes of a login must not look like a quiet night; what
// a failed login says, with the same format, is no login in other words.
func TestLoginsInAChangedDovecotFormatAreNoticed(t *testing.T) {
	for line, want := range map[string]Result{
		"dovecot: imap-login: Login :: rip=192.0.2.45, lip=192.0.2.1, user=<bob>, PLAIN, session=<PTfT/dNgG5wKTQMS>": Unparsed,
		"dovecot: pop3-login: Logged in - bob 192.0.2.45":                                                            Unparsed,
		"dovecot: imap-login: Login aborted :: rip=192.0.2.45, user=<bob>":                                           None,
		"dovecot: imap-login: Aborted login (auth failed, 1 attempts) :: rip=192.0.2.45, user=<Login: >":             None,
		"dovecot: imap-login: Disconnected :: rip=192.0.2.45, user=<Login :: >":                                      None,
		"dovecot: imap-login: Error: Login :: rip=192.0.2.45":                                                        None,
	} {
		p := new(dovecot)
		if e, got := parseLine(t, p, line); got != want || e != (relay.Event{}) {
			t.Errorf("%s: %v, want %v", line, got, want)
		}
		if want == Unparsed && !MayMatter(p, []byte("Nov 22 02:11:13 mx1 "+line)) {
			t.Errorf("%s: is not even looked at", line)
		}
	}
}
