package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"popgate/internal/lab"
)

// Milter libraries forget who is connected after some answers; a stranger must
// not become somebody by it, nor a client a stranger.
func TestTheVerdictStaysTheSameThroughoutAConnection(t *testing.T) {
	set := setup{postfix: lab.PostfixOptions{TLS: true}, sendmail: lab.SendmailOptions{TLS: true}}
	onBoth(t, set, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.login(t, alice6)
		steps := []struct {
			name string
			do   func(c *lab.Client)
		}{
			{"first", func(*lab.Client) {}},
			{"after an accepted message", func(c *lab.Client) { s.takesLocal(t, c, "local in between") }},
			{"after RSET", func(c *lab.Client) { c.Must(2, "MAIL FROM:<>"); c.Must(2, "RSET"); c.Must(2, "RSET") }},
			{"after EHLO in a transaction", func(c *lab.Client) { c.Must(2, "MAIL FROM:<>"); c.Must(2, "EHLO again.test") }},
			{"after an unknown recipient", func(c *lab.Client) {
				c.Must(2, "MAIL FROM:<>")
				c.Must(5, "RCPT TO:<nobody@virtual.test>")
				c.Must(2, "RSET")
			}},
			{"after nonsense", func(c *lab.Client) { c.Must(5, "XNONSENSE"); c.Must(2, "NOOP") }},
			{"after STARTTLS", func(c *lab.Client) { c.StartTLS() }},
			{"encrypted, after an accepted message", func(c *lab.Client) { s.takesLocal(t, c, "local, encrypted") }},
			{"encrypted, after RSET", func(c *lab.Client) { c.Must(2, "RSET") }},
			{"encrypted, after HELO", func(c *lab.Client) { c.Must(2, "HELO again.test") }},
		}
		var want []string
		for _, from := range []string{alice, mallet, alice6, mall6} {
			c := s.SMTP(t, from)
			for _, step := range steps {
				step.do(c)
				// Twice, since an answer may spoil the next one.
				for _, n := range []string{", once", ", twice"} {
					name := from + " " + step.name + n
					if from == alice || from == alice6 {
						s.relays(t, c, name)
						want = append(want, name)
					} else {
						refused(t, c, name)
					}
				}
			}
		}
		s.onlySubjects(t, want...)
	})
}

func TestRecipientsOfBothKindsInOnePipelinedMessage(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		for _, tt := range []struct {
			from, subject string
			codes         []int
		}{
			{mallet, "from a stranger", []int{250, 250, 550, 250, 550, 354}},
			{alice, "from a client", []int{250, 250, 250, 250, 250, 354}},
			{mallet, "from a stranger again", []int{250, 250, 550, 250, 550, 354}},
		} {
			c := s.SMTP(t, tt.from)
			replies := c.Pipeline("MAIL FROM:<sender@client.test>", "RCPT TO:<alice@local.test>", "RCPT TO:<x@remote.test>",
				"RCPT TO:<alice@virtual.test>", "RCPT TO:<y@remote.test>", "DATA")
			var codes []int
			for _, r := range replies {
				codes = append(codes, r.Code)
			}
			if !slices.Equal(codes, tt.codes) {
				t.Errorf("%s: %v, want %v", tt.subject, replies, tt.codes)
			}
			c.Body(tt.subject)
			s.Local.Wait(t, tt.subject)
		}
		s.drain(t)
		for _, m := range s.Remote.Messages() {
			if m.Subject != "from a client" {
				t.Errorf("left the site: %+v", m)
			}
		}
		s.onlyRelayed(t, "x@remote.test", "y@remote.test")
	})
}

func TestAStrangerWhoseOnlyRecipientIsRefusedGetsNoData(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		c := s.SMTP(t, mallet)
		replies := c.Pipeline("MAIL FROM:<sender@client.test>", "RCPT TO:<x@remote.test>", "DATA")
		if replies[1].Code != 550 || !replies[2].Is(5) {
			t.Errorf("%v, want 550 and no 354", replies)
		}
		s.onlySubjects(t)
	})
}

// `sendmail -bs` gives the milter no client address: nobody knows who asks.
func TestSendmailOnStandardInputIsNotAuthorisedByAccident(t *testing.T) {
	on(t, "sendmail", setup{}, func(t *testing.T, s *site) {
		c := s.sendmail.Stdio(t)
		for _, r := range c.Send("from nowhere", "x@remote.test", "bob@local.test")[:1] {
			if !r.Is(4) {
				t.Errorf("remote recipient: %v, want 4xx", r)
			}
		}
		s.Local.Wait(t, "from nowhere")
		s.onlySubjects(t)
	})
}

// The reply names the client's own address and nothing else the client sent.
func TestNothingTheClientSentComesBackInTheReply(t *testing.T) {
	set := setup{config: []string{`reject: {text: "100% denied for {client}, see {url}", url: "https://mail.local.test/a%20b"}`}}
	onBoth(t, set, func(t *testing.T, s *site) {
		for _, from := range []string{mallet, mall6} {
			c := s.SMTP(t, from)
			c.Must(2, "MAIL FROM:<%s%n{url}@client.test>")
			r := c.Cmd("RCPT TO:<{client}$x@remote.test>")
			want := "100% denied for " + from + ", see https://mail.local.test/a%20b"
			if r.Code != 550 || !strings.HasSuffix(r.Text, want) {
				t.Errorf("%v, want 550 ... %s", r, want)
			}
		}
	})
}

// Answers must not get mixed up between connections, nor one client's grant
// reach another.
func TestManyConnectionsAtOnceEachGetTheirOwnVerdict(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		const clients, messages = 24, 8
		var want []string
		t.Run("clients", func(t *testing.T) {
			for i := range clients {
				from := fmt.Sprintf("198.51.100.%d", 1+i)
				granted := i%2 == 0
				if granted {
					s.login(t, from)
				}
				for n := range messages {
					if granted {
						want = append(want, fmt.Sprintf("%s message %d", from, n))
					}
				}
				t.Run(from, func(t *testing.T) {
					t.Parallel() // with the clients only: this host has no other test
					c := s.SMTP(t, from)
					for n := range messages {
						subject := fmt.Sprintf("%s message %d", from, n)
						replies := c.Send(subject, "bob@local.test", "x@remote.test")
						if !replies[0].Is(2) || replies[1].Is(2) != granted {
							t.Errorf("%s, granted %v: %v", subject, granted, replies)
						}
					}
				})
			}
		})
		s.onlySubjects(t, want...)
		if got := len(s.Local.Messages()); got != clients*messages {
			t.Errorf("%d local messages arrived, want %d", got, clients*messages)
		}
	})
}

// A proxy tells Postfix whom it speaks for. The client counts, not the proxy,
// trusted though it is.
func TestAClientBehindAProxyIsJudgedByItsOwnAddress(t *testing.T) {
	set := setup{
		config:  []string{"trusted_networks: [192.0.2.0/24]"},
		postfix: lab.PostfixOptions{Main: []string{"smtpd_authorized_xclient_hosts = 192.0.2.0/24"}},
	}
	on(t, "postfix", set, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.login(t, alice6)
		const proxy = "192.0.2.50"
		for _, tt := range []struct {
			addr    string
			granted bool
		}{{alice, true}, {mallet, false}, {"IPV6:" + alice6, true}, {"IPV6:" + mall6, false}} {
			c := s.SMTP(t, proxy)
			c.Must(2, "XCLIENT ADDR="+tt.addr+" NAME=[UNAVAILABLE]")
			c.Must(2, "EHLO client.test")
			if tt.granted {
				s.relays(t, c, "behind the proxy "+tt.addr)
			} else {
				refused(t, c, "behind the proxy "+tt.addr)
			}
		}
		s.SMTP(t, mallet).Must(5, "XCLIENT ADDR="+alice)
		s.relays(t, s.SMTP(t, proxy), "the proxy itself")
		s.onlySubjects(t, "behind the proxy "+alice, "behind the proxy IPV6:"+alice6, "the proxy itself")
	})
}
