package e2e

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"popgate/internal/lab"
)

func TestAStoppedDaemonDefersMail(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.popgate.Stop(t)
		for _, from := range []string{alice, mallet} {
			deferred(t, s.SMTP(t, from), "popgate stopped, "+from)
		}
		s.popgate.Start(t)
		s.relays(t, s.SMTP(t, alice), "popgate back")
		refused(t, s.SMTP(t, mallet), "popgate back, stranger")
		s.onlySubjects(t, "popgate back")
	})
}

func TestADaemonKilledInsideATransactionDefersMail(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		granted, stranger := s.SMTP(t, alice), s.SMTP(t, mallet)
		for _, c := range []*lab.Client{granted, stranger} {
			c.Must(2, "MAIL FROM:<sender@client.test>")
		}
		s.popgate.Kill()
		for _, c := range []*lab.Client{granted, stranger} {
			if r := c.Cmd("RCPT TO:<x@remote.test>"); !r.Is(4) {
				t.Errorf("popgate killed after MAIL: %v, want 4xx", r)
			}
			c.Close()
		}
		s.popgate.Start(t)
		s.relays(t, s.SMTP(t, alice), "a new connection recovers")
		s.onlySubjects(t, "a new connection recovers")
	})
}

// A daemon that hangs is not there either, and comes back without a trace.
func TestADaemonThatHangsDefersMail(t *testing.T) {
	set := setup{
		postfix:  lab.PostfixOptions{Main: []string{"milter_connect_timeout = 2s", "milter_command_timeout = 2s"}},
		sendmail: lab.SendmailOptions{Timeouts: "T=C:2s;S:2s;R:2s;E:10s"},
	}
	onBoth(t, set, func(t *testing.T, s *site) {
		s.login(t, alice)
		granted, stranger := s.SMTP(t, alice), s.SMTP(t, mallet)
		granted.Must(2, "MAIL FROM:<sender@client.test>")
		stranger.Must(2, "MAIL FROM:<sender@client.test>")
		s.popgate.Freeze(t)
		for _, c := range []*lab.Client{granted, stranger} {
			if r := c.Cmd("RCPT TO:<x@remote.test>"); !r.Is(4) {
				t.Errorf("popgate hangs: %v, want 4xx", r)
			}
			c.Close()
		}
		deferred(t, s.SMTP(t, alice), "popgate hangs, new connection")
		s.popgate.Thaw(t)
		s.relays(t, s.SMTP(t, alice), "popgate goes on")
		refused(t, s.SMTP(t, mallet), "popgate goes on, stranger")
		s.onlySubjects(t, "popgate goes on")
	})
}

func TestAGrantSurvivesRestartAndKill9(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		for _, end := range []struct {
			name string
			do   func()
		}{{"restart", func() { s.popgate.Stop(t) }}, {"kill -9", func() { s.popgate.Kill() }}} {
			end.do()
			s.popgate.Start(t)
			s.relays(t, s.SMTP(t, alice), "after "+end.name)
			refused(t, s.SMTP(t, mallet), "stranger after "+end.name)
		}
		s.onlySubjects(t, "after restart", "after kill -9")
	})
}

// A login while popgate is down stands in the log when it comes back.
func TestALoginWhileTheDaemonIsDownCounts(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.popgate.Kill()
		s.POP3(t, alice, "alice").Logout()
		lab.Until(t, "Dovecot has logged it", func() bool {
			text, _ := os.ReadFile(lab.DovecotLog)
			return strings.Contains(string(text), "Login: user=<alice>")
		})
		s.popgate.Start(t)
		s.popgate.WaitGrant(t, alice)
		s.relays(t, s.SMTP(t, alice), "logged in meanwhile")
		s.onlySubjects(t, "logged in meanwhile")
	})
}

// While the log can't be read a stranger and a client look the same.
func TestWithoutItsLogPopgateDefersWhatItCannotTell(t *testing.T) {
	set := setup{config: []string{"sources: [{file: /var/log/elsewhere/mail.log, format: dovecot}]"}}
	onBoth(t, set, func(t *testing.T, s *site) {
		c := s.SMTP(t, mallet)
		deferred(t, c, "no log")
		s.takesLocal(t, c, "local mail without log")
		s.onlySubjects(t)
	})
}

func TestALoginAfterLogRotationCounts(t *testing.T) {
	for _, syslog := range []bool{false, true} {
		name := "Dovecot's own file"
		if syslog {
			name = "syslog"
		}
		t.Run(name, func(t *testing.T) {
			on(t, "postfix", setup{dovecot: lab.DovecotOptions{Syslog: syslog}}, func(t *testing.T, s *site) {
				s.login(t, alice)
				rotate := s.dovecot.Rotate
				if syslog {
					rotate = s.Syslog.Rotate
				}
				rotate(t, func() { s.login(t, "198.51.100.8") })
				s.login(t, "198.51.100.9")
				for _, from := range []string{alice, "198.51.100.8", "198.51.100.9"} {
					s.relays(t, s.SMTP(t, from), "logged in from "+from)
				}
				refused(t, s.SMTP(t, mallet), "stranger")
			})
		})
	}
}

// Each of these settings takes popgate out of the way. The relay rule of the
// README must then be shut, for strangers and clients alike.
func TestPostfixClosesItselfWhenPopgateIsTakenOut(t *testing.T) {
	const other = "inet:127.0.0.1:9"
	for name, o := range map[string]lab.PostfixOptions{
		"the milter line removed":          {Main: []string{"smtpd_milters ="}},
		"another milter in its place":      {Main: []string{"smtpd_milters = " + other, "milter_default_action = accept"}},
		"default action accept":            {Main: []string{"milter_default_action = accept"}},
		"no_milters in main.cf":            {Main: []string{"receive_override_options = no_milters"}},
		"a milter map":                     {Main: []string{"smtpd_milter_maps = inline:{198.51.100.7=DISABLE, 203.0.113.66=DISABLE}"}},
		"no_milters in master.cf":          {Master: []string{"127.0.0.1:26 inet n - y - - smtpd", "  -o receive_override_options=no_milters"}},
		"an emptied milter in master.cf":   {Master: []string{"127.0.0.1:26 inet n - y - - smtpd", "  -o smtpd_milters="}},
		"another default in master.cf":     {Master: []string{"127.0.0.1:26 inet n - y - - smtpd", "  -o milter_default_action=accept"}},
		"the milter line removed, by name": {Main: []string{"popgate =", "smtpd_milters ="}},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "postfix", setup{postfix: o}, func(t *testing.T, s *site) {
				s.login(t, alice)
				s.popgate.Stop(t)
				for _, from := range []string{alice, mallet} {
					c := s.SMTP(t, from)
					if o.Master != nil {
						c = s.SMTPPort(t, from, "26")
					}
					replies := c.Send("local mail from "+from, "x@remote.test", "bob@local.test")
					if replies[0].Code != 554 {
						t.Errorf("%s: %v, want 554", from, replies[0])
					}
					s.Local.Wait(t, "local mail from "+from)
				}
				s.onlySubjects(t)
			})
		})
	}
}

func TestReloadKeepsTheGateOpenAndABrokenFileChangesNothing(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.popgate.Configure(t, s.config()+"no_such_key: 1\n")
		if _, code := s.popgate.Run(t, "reload"); code == 0 {
			t.Error("reload of a broken file exits with 0")
		}
		s.relays(t, s.SMTP(t, alice), "broken file")
		s.popgate.Configure(t, s.config()+"trusted_networks: [203.0.113.0/24]\n")
		s.popgate.Signal(t, syscall.SIGHUP)
		lab.Until(t, "the new rules hold", func() bool { return s.ask(t, mallet).Reason == "trusted" })
		s.relays(t, s.SMTP(t, mallet), "trusted since the reload")
		s.relays(t, s.SMTP(t, alice), "granted before the reload")
		s.onlySubjects(t, "broken file", "trusted since the reload", "granted before the reload")
	})
}

// Domains come and go in Postfix's configuration without a word to popgate. In
// between it may not know, but it must not refuse for good.
func TestADomainThatIsNewOrGoneIsNeverRefused(t *testing.T) {
	set := setup{postfix: lab.PostfixOptions{Main: []string{"relay_domains = gone.test"}}}
	on(t, "postfix", set, func(t *testing.T, s *site) {
		if r := s.SMTP(t, mallet).Send("before", "u@gone.test")[0]; !r.Is(2) {
			t.Fatalf("u@gone.test: %v, want it taken", r)
		}
		s.postfix.Configure(t, lab.PostfixOptions{Milter: true, Main: []string{"relay_domains = new.test"}})
		s.popgate.Must(t, "reload")
		c := s.SMTP(t, mallet)
		lab.Until(t, "popgate knows the new domain", func() bool {
			for _, rcpt := range []string{"u@gone.test", "u@new.test"} {
				c.Must(2, "MAIL FROM:<sender@client.test>")
				r := c.Cmd("RCPT TO:<" + rcpt + ">")
				c.Must(2, "RSET")
				if r.Is(5) {
					t.Fatalf("%s: %v, want it taken or deferred", rcpt, r)
				}
				if rcpt == "u@new.test" {
					return r.Is(2)
				}
			}
			return false
		})
		if r := c.Send("gone", "u@gone.test")[0]; !r.Is(4) {
			t.Errorf("u@gone.test: %v, want it deferred", r)
		}
		refused(t, c, "a stranger all the while")
		s.onlySubjects(t, "before")
	})
}

// Whoever purges the package and forgets the MTA's configuration has a mail
// server that puts mail off, before its restart and after.
func TestAPurgedPackageLeavesNoRelayWhereTheMTAStillNamesIt(t *testing.T) {
	purged := func(t *testing.T, s *site) {
		s.login(t, alice)
		before := s.SMTP(t, mallet)
		s.popgate.Stop(t)
		for _, dir := range []string{"/run/popgate", "/var/spool/postfix/popgate"} {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
		// The milter's MTA puts off at MAIL already.
		away := func(c *lab.Client, who string) {
			t.Helper()
			mail := c.Cmd("MAIL FROM:<sender@client.test>")
			if r := c.Cmd("RCPT TO:<x@remote.test>"); r.Is(2) || !mail.Is(2) && !mail.Is(4) {
				t.Errorf("%s: %v, %v", who, mail, r)
			}
			c.Close()
		}
		away(before, "on a connection from before")
		away(s.SMTP(t, mallet), "on a new one")
		if s.sendmail != nil {
			s.sendmail.Restart(t)
		} else {
			command(t, "postfix", "reload")
		}
		away(s.SMTP(t, mallet), "after the MTA's restart")
		away(s.SMTP(t, alice), "a client that had a grant")
		s.onlyRelayed(t)
	}
	onBoth(t, setup{}, purged)
	through(t, doors[:3], setup{hasty: true}, purged)
}
