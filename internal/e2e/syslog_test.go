package e2e

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"popgate/internal/lab"
)

// onSyslog runs a test on a site with Postfix whose Dovecot logs through
// syslog, and whose popgate listens.
func onSyslog(t *testing.T, sources string, test func(t *testing.T, s *site)) {
	set := setup{dovecot: lab.DovecotOptions{Syslog: true}, config: []string{sources}}
	on(t, "postfix", set, test)
}

// example is one of docs/syslog.md: what popgate is told, and what the daemon.
type example struct{ title, sources, daemon, conf string }

var exampleSection = regexp.MustCompile("(?s)^([^\n]+)\n.*?```yaml\n(.*?)```.*?```(rsyslog|syslog-ng|busybox)\n(.*?)```")

func examples(t *testing.T) []example {
	t.Helper()
	text, err := os.ReadFile("../../docs/syslog.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []example
	for section := range strings.SplitSeq(string(text), "\n## ") {
		if m := exampleSection.FindStringSubmatch(section); m != nil {
			all = append(all, example{m[1], m[2], m[3], m[4]})
		}
	}
	return all
}

// send starts the example's daemon.
func (x example) send(t *testing.T, s *site) *lab.Syslogd {
	t.Helper()
	switch x.daemon {
	case "rsyslog":
		return s.Rsyslog(t, x.conf)
	case "syslog-ng":
		return s.SyslogNG(t, x.conf)
	}
	return s.BusyBoxSyslogd(t, strings.Fields(x.conf)[2:]...)
}

// Each example of docs/syslog.md: before its daemon sends nobody is refused,
// and its Dovecot's logins grant.
func TestTheExamplesOfSyslogGrant(t *testing.T) {
	all := examples(t)
	if len(all) < 9 {
		t.Errorf("docs/syslog.md has %d examples", len(all))
	}
	for _, x := range all {
		t.Run(x.title, func(t *testing.T) {
			onSyslog(t, "sources:"+strings.TrimPrefix(x.sources, "sources:"), func(t *testing.T, s *site) {
				if strings.Contains(x.sources, "tls:") {
					// It is down until they are there.
					s.Certificates(t, "/etc/popgate/tls", "popgate.example.org", "/etc/ssl/mx1", "mx1.example.org")
				}
				deferred(t, s.SMTP(t, mallet), "nobody has been heard yet")
				x.send(t, s)
				s.Logs(t, 0, "test", "the daemon is there")
				s.login(t, alice)
				s.IMAP(t, alice6, "bob").Logout()
				s.popgate.WaitGrant(t, alice6)
				s.relays(t, s.SMTP(t, alice), "by syslog")
				deferred(t, s.SMTP(t, mallet), "what was sent before is lost")
				s.popgate.Must(t, "status")
				s.onlySubjects(t, "by syslog")
			})
		})
	}
}

// The examples but the last take what any local user has logged for what the
// server has logged, and say so; the last one does not.
func TestALocalUserForgesALogin(t *testing.T) {
	const forged = "pop3-login: Login: user=<alice>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, mpid=1, session=<AAAAAAAAAAA>"
	for _, x := range examples(t) {
		guarded := x.title == "Only what the server wrote"
		if !guarded && x.title != "rsyslog over a unix socket" {
			continue
		}
		t.Run(x.title, func(t *testing.T) {
			onSyslog(t, "sources:"+strings.TrimPrefix(x.sources, "sources:"), func(t *testing.T, s *site) {
				x.send(t, s)
				s.Logs(t, 65534, "dovecot", forged)
				s.login(t, alice) // by now the line before it has been read
				if got := s.popgate.Holds(t, mallet); got == guarded {
					t.Errorf("a login forged by a local user grants: %v", got)
				}
				out, _ := s.popgate.Run(t, "check")
				if !strings.Contains(out, "logins can be forged by every local user") {
					t.Errorf("popgate check does not say so:\n%s", out)
				}
			})
		})
	}
}

// rsyslog ends and starts again, and popgate does: nobody is refused for what
// may have been lost, and all is well again by itself.
func TestSyslogHealsWhenEitherEndRestarts(t *testing.T) {
	for _, x := range examples(t) {
		if x.title != "rsyslog over TCP" {
			continue
		}
		onSyslog(t, "sources:"+strings.TrimPrefix(x.sources, "sources:"), func(t *testing.T, s *site) {
			daemon := x.send(t, s)
			s.login(t, alice)
			daemon.Stop(t)
			lab.Until(t, "popgate notices that nobody sends", func() bool { _, code := s.popgate.Run(t, "status"); return code == 5 })
			deferred(t, s.SMTP(t, mallet), "nobody sends")
			s.relays(t, s.SMTP(t, alice), "granted before")
			x.send(t, s)
			s.login(t, "198.51.100.8")
			s.popgate.Must(t, "status")
			s.popgate.Stop(t)
			s.POP3(t, "198.51.100.9", "bob").Logout() // rsyslog keeps it
			s.popgate.Start(t)
			s.popgate.WaitGrant(t, "198.51.100.9")
			s.popgate.Must(t, "status")
			s.onlySubjects(t, "granted before")
		})
	}
}

// BusyBox cuts messages. A stranger who knows where has a failed login end
// behind the byte up to which it reads like a good one.
func TestAFailedLoginCutByBusyBoxToAPerfectOne(t *testing.T) {
	const log = "/var/log/busybox.log"
	set := `sources: [{syslog: "udp:127.0.0.1:1514", format: acme, insecure: true}]
formats: {acme: {tag: acme, service: pop3, pattern: 'session [a-z]+ of (?P<user>[a-z]+) from (?P<client>[0-9.]+)'}}`
	onSyslog(t, set, func(t *testing.T, s *site) {
		s.BusyBoxSyslogd(t, "-L", "-R", "127.0.0.1:1514", "-O", log)
		last := func() string {
			text, _ := os.ReadFile(log)
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			_, text2, _ := strings.Cut(lines[len(lines)-1], " acme: ")
			return text2
		}
		s.Logs(t, 0, "acme", strings.Repeat("x", 4000))
		lab.Until(t, "BusyBox has cut a message", func() bool { return strings.HasSuffix(last(), "xxx") })
		room := len(last())
		if room >= 4000 {
			t.Fatalf("BusyBox did not cut: %d bytes", room)
		}
		t.Logf("BusyBox leaves %d bytes of the message", room)
		perfect := "session %s of eve from " + mallet
		perfect = fmt.Sprintf(perfect, strings.Repeat("x", room-len(perfect)+len("%s")))
		s.Logs(t, 0, "acme", perfect+" failed: no such user")
		lab.Until(t, "the rest has been cut off", func() bool { return last() == perfect })
		s.Logs(t, 0, "acme", "session x of alice from "+alice)
		s.popgate.WaitGrant(t, alice)
		if s.popgate.Holds(t, mallet) {
			t.Error("a failed login, cut, grants")
		}
	})
}
