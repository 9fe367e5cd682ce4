package e2e

import (
	"strings"
	"testing"

	"popgate/internal/lab"
)

// byFeature is a site whose sendmail has these lines and not the two of
// contrib.SendmailMilter.
func byFeature(lines ...string) setup {
	return setup{door: &door{listen: "milter", socket: lab.SendmailSocket}, sendmail: lab.SendmailOptions{M4: lines}}
}

func TestSendmailFeatureIsTheMilterWithItsRelayRule(t *testing.T) {
	for name, line := range map[string]string{
		"no arguments":         "FEATURE(`popgate')dnl",
		"with equates":         "FEATURE(`popgate', `S=local:/run/popgate/milter.sock, T=C:10s;S:10s;R:10s;E:30s')dnl",
		"behind another":       "INPUT_MAIL_FILTER(`other', `S=local:/run/other.sock')dnl\nFEATURE(`popgate')dnl",
		"in front of another":  "FEATURE(`popgate')dnl\nINPUT_MAIL_FILTER(`other', `S=local:/run/other.sock')dnl",
		"listed in the define": "FEATURE(`popgate')dnl\ndefine(`confINPUT_MAIL_FILTERS', `popgate')dnl",
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "sendmail", byFeature(line), func(t *testing.T, s *site) {
				refused(t, s.SMTP(t, alice), "before the login")
				s.login(t, alice)
				s.relays(t, s.SMTP(t, alice), "after the login")
				c := s.SMTP(t, mallet)
				refused(t, c, "stranger")
				s.takesLocal(t, c, "stranger's local mail")
				s.popgate.Kill()
				deferred(t, s.SMTP(t, mallet), "popgate killed, stranger")
				deferred(t, s.SMTP(t, alice), "popgate killed, client")
				s.onlySubjects(t, "after the login")
			})
		})
	}
}

// Whatever takes the filter away takes the relay rule with it.
func TestSendmailRefusesByItselfWhereTheFeatureLostItsFilter(t *testing.T) {
	const feature = "FEATURE(`popgate')dnl"
	for name, lines := range map[string][]string{
		"the line removed":                   nil,
		"the list of filters emptied":        {feature, "define(`confINPUT_MAIL_FILTERS', `')dnl"},
		"the list of filters replaced":       {feature, "MAIL_FILTER(`popgates', `S=local:/run/other.sock')dnl", "define(`confINPUT_MAIL_FILTERS', `popgates')dnl"},
		"the list of filters undefined":      {feature, "undefine(`confINPUT_MAIL_FILTERS')dnl"},
		"F=R":                                {"FEATURE(`popgate', `S=local:/run/popgate/milter.sock, F=R')dnl"},
		"no F":                               {"FEATURE(`popgate', `F=, S=local:/run/popgate/milter.sock')dnl"},
		"a daemon with filters of its own":   {feature, "DAEMON_OPTIONS(`Name=Other, Addr=127.0.0.1, Port=26, InputMailFilters=')dnl"},
		"a daemon whose filters come before": {"DAEMON_OPTIONS(`I=, Name=Other, Addr=127.0.0.1, Port=26')dnl", feature},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "sendmail", byFeature(lines...), func(t *testing.T, s *site) {
				s.login(t, alice)
				s.popgate.Stop(t)
				port := "25"
				if strings.HasPrefix(name, "a daemon") {
					port = "26"
				}
				for _, from := range []string{alice, mallet} {
					c := s.SMTPPort(t, from, port)
					replies := c.Send("local mail from "+from, "x@remote.test", "bob@local.test")
					if replies[0].Code != 550 {
						t.Errorf("%s: %v, want 550", from, replies[0])
					}
					s.Local.Wait(t, "local mail from "+from)
				}
				s.onlySubjects(t)
			})
		})
	}
}
