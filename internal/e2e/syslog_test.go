package e2e

import (
	"testing"

	"popgate/internal/lab"
)

// onSyslog runs a test on a site with Postfix whose Dovecot logs through
// syslog, and whose popgate listens.
func onSyslog(t *testing.T, source string, test func(t *testing.T, s *site)) {
	set := setup{dovecot: lab.DovecotOptions{Syslog: true}, config: []string{"sources: [" + source + "]"}}
	on(t, "postfix", set, test)
}

func TestRsyslogOverTCP(t *testing.T) {
	onSyslog(t, `{syslog: "tcp:127.0.0.1:1514", format: dovecot, hosts: [mx1], insecure: true}`, func(t *testing.T, s *site) {
		deferred(t, s.SMTP(t, mallet), "nobody has been heard yet")
		s.Rsyslog(t, `mail.* action(type="omfwd" target="127.0.0.1" port="1514" protocol="tcp" TCP_Framing="octet-counted" queue.type="LinkedList" action.resumeInterval="1" action.resumeRetryCount="-1")`)
		s.login(t, alice)
		s.relays(t, s.SMTP(t, alice), "over rsyslog")
		deferred(t, s.SMTP(t, mallet), "what was sent before is lost")
		s.onlySubjects(t, "over rsyslog")
	})
}
