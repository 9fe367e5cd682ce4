package e2e

import (
	"testing"

	"popgate/internal/lab"
	"popgate/internal/probe"
)

// relayShapes are those that `popgate probe` tries.
var relayShapes = probe.Shapes

// tryShapes sends a message to every shape, each over a connection of its own,
// and says how many recipients were taken.
func tryShapes(t *testing.T, s *site, from string, shapes []string, subject string) (taken int) {
	t.Helper()
	for _, shape := range shapes {
		c := s.SMTP(t, from)
		c.Must(2, "MAIL FROM:<sender@client.test>")
		if r := c.Cmd("RCPT TO:" + probe.Spell(shape, "local.test", "remote.test", "virtual.test")); r.Is(2) {
			taken++
			c.Must(354, "DATA")
			c.Body(subject + " " + shape)
		}
		c.Close()
	}
	return taken
}

// noShapeLeaves tries the shapes as a stranger, and then as a client that may
// relay, of whose enough must leave: this is what would have got through.
func noShapeLeaves(t *testing.T, s *site, enough int) {
	t.Helper()
	tryShapes(t, s, mallet, relayShapes, "stranger")
	s.onlyRelayed(t)
	s.login(t, alice)
	taken := tryShapes(t, s, alice, relayShapes, "client")
	s.drain(t)
	left := len(s.subjects())
	t.Logf("a client's shapes: %d of %d taken, %d left the site", taken, len(relayShapes), left)
	if left < enough {
		t.Errorf("only %d shapes left the site though their sender may relay: these shapes prove little", left)
	}
}

func TestNoRelayShapeOfAStrangerLeavesTheSite(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		noShapeLeaves(t, s, 20)
	})
}

// Without the MTA's macros only the recipient's own text is left to judge by.
func TestNoRelayShapeLeavesTheSiteWithoutMacros(t *testing.T) {
	set := setup{config: []string{"local_domains: [local.test, virtual.test]", "mta: sendmail"}}
	// Postfix taken for sendmail: its mailer names mean something else there.
	on(t, "postfix", set, func(t *testing.T, s *site) {
		tryShapes(t, s, mallet, relayShapes, "stranger")
		s.onlyRelayed(t)
	})
}

// Each of these settings changes what Postfix tells about a recipient. None
// may let a stranger's mail out, and none may cost the site its own.
func TestNoPostfixTransportSettingOpensTheGate(t *testing.T) {
	const remoteSink, localSink = "[127.0.0.1]:2525", "inet:127.0.0.1:2526"
	all := []string{"alice@local.test", "Bob@Local.Test", "alice@virtual.test", "alice@alias.test", "u@backup.test", "u@sub.backup.test"}
	pipe := []string{"dovecot unix - n n - - pipe", "  flags=DRhu user=vmail argv=/usr/bin/tee " + lab.VirtualMail + "/piped"}
	for name, tt := range map[string]struct {
		postfix lab.PostfixOptions
		config  []string
		local   []string // the site's own; nil: all
	}{
		"unchanged":                   {},
		"default_transport = relay":   {postfix: lab.PostfixOptions{Main: []string{"relayhost =", "default_transport = relay:" + remoteSink, "relay_transport = relay:" + remoteSink}}},
		"default_transport = discard": {postfix: lab.PostfixOptions{Main: []string{"default_transport = discard:"}}},
		"sender_dependent_default_transport_maps": {postfix: lab.PostfixOptions{
			Main:  []string{"sender_dependent_default_transport_maps = texthash:/etc/postfix/bysender"},
			Files: map[string]string{"bysender": "@client.test relay:" + remoteSink + "\n"}}},
		"sender_dependent_relayhost_maps": {postfix: lab.PostfixOptions{
			Main:  []string{"sender_dependent_relayhost_maps = texthash:/etc/postfix/bysender"},
			Files: map[string]string{"bysender": "@client.test " + remoteSink + "\n"}}},
		"virtual_transport = lmtp":       {postfix: lab.PostfixOptions{Main: []string{"virtual_transport = lmtp:" + localSink}}},
		"virtual_transport = dovecot":    {postfix: lab.PostfixOptions{Main: []string{"virtual_transport = dovecot"}, Master: pipe}},
		"virtual_transport = relay":      {postfix: lab.PostfixOptions{Main: []string{"virtual_transport = relay:[127.0.0.1]:2526"}}},
		"local_transport = lmtp":         {postfix: lab.PostfixOptions{Main: []string{"local_transport = lmtp:" + localSink}}},
		"relay_transport = smtp":         {postfix: lab.PostfixOptions{Main: []string{"relay_transport = smtp:" + remoteSink}}},
		"mail_name = Acme":               {postfix: lab.PostfixOptions{Main: []string{"mail_name = Acme"}}},
		"mail_name like sendmail's":      {postfix: lab.PostfixOptions{Main: []string{"mail_name = 8.17.1"}}},
		"mail_name = Acme, mta: postfix": {postfix: lab.PostfixOptions{Main: []string{"mail_name = Acme"}}, config: []string{"mta: postfix"}},
		"transport table": {postfix: lab.PostfixOptions{
			Main: []string{"transport_maps = texthash:/etc/postfix/transport", "smtpd_reject_unlisted_recipient = no"},
			Files: map[string]string{"transport": "remote.test relay:" + remoteSink + "\nlocal.test smtp:[127.0.0.1]:2526\nvirtual.test lmtp:" + localSink +
				"\nbackup.test smtp:" + remoteSink + "\n.backup.test smtp:" + remoteSink + "\nother.test discard:\nerr.test error:mailbox unavailable\n"}}},
		"percent hack and owner lists off": {postfix: lab.PostfixOptions{Main: []string{"allow_percent_hack = no", "swap_bangpath = no", "append_at_myorigin = no"}}},
		"domains written in milter.yaml": {config: []string{"local_domains: [local.test, virtual.test, alias.test, +backup.test]",
			"local_domains_from: none"}},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "postfix", setup{postfix: tt.postfix, config: tt.config}, func(t *testing.T, s *site) {
				foreign := append([]string{`<x@other.test>`, `<x@err.test>`, `<x%R@backup.test>`, `<"x@R"@backup.test>`, `<R!x@backup.test>`,
					`<x%R@alias.test>`, `<"x@R"@alias.test>`, `<x@backup.test.R>`}, relayShapes...)
				tryShapes(t, s, mallet, foreign, "stranger")
				s.onlyRelayed(t)

				c := s.SMTP(t, mallet)
				for _, rcpt := range []string{"x@remote.test", "x@other.test", "x@err.test"} {
					if r := c.Send("to "+rcpt, rcpt)[0]; !r.Is(4) && !r.Is(5) {
						t.Errorf("%s from a stranger: %v, want it refused or deferred", rcpt, r)
					}
				}
				for _, rcpt := range all {
					if r := c.Send("to "+rcpt, rcpt)[0]; !r.Is(2) {
						t.Errorf("%s: %v, want the site's own mail taken", rcpt, r)
					}
				}
				s.login(t, alice)
				c = s.SMTP(t, alice)
				if r := c.Send("client", "x@remote.test")[0]; !r.Is(2) {
					t.Errorf("x@remote.test with a grant: %v", r)
				}
				want := []string{"u@backup.test", "u@sub.backup.test", "x@remote.test"}
				if name == "default_transport = discard" {
					want = want[:2]
				}
				s.onlyRelayed(t, want...)
			})
		})
	}
}

// The same for sendmail.
func TestNoSendmailSettingOpensTheGate(t *testing.T) {
	// A mailer whose mail stays inside: the hub is another host of the site's.
	const inside = "define(`SMTP8_MAILER_ARGS', `TCP [127.0.0.1] 2526')dnl"
	fromSendmail := []string{"local_domains: []", "local_domains_from: sendmail"}
	for name, tt := range map[string]struct {
		sendmail lab.SendmailOptions
		config   []string
		local    []string // further recipients that are the site's own
		leaves   []string // those of them that are delivered elsewhere
	}{
		"unchanged":                         {},
		"domains read from sendmail itself": {config: fromSendmail},
		"relay domains read from sendmail": {config: fromSendmail, sendmail: lab.SendmailOptions{M4: []string{"RELAY_DOMAIN(`backup.test')dnl"}},
			local: []string{"u@backup.test"}, leaves: []string{"u@backup.test"}},
		"no smart host": {sendmail: lab.SendmailOptions{M4: []string{"undefine(`SMART_HOST')dnl"},
			MailerTable: []string{"remote.test\tesmtp:[127.0.0.1]", ".test\tsmtp:[127.0.0.1]"}}},
		"smart host by esmtp":     {sendmail: lab.SendmailOptions{M4: []string{"define(`SMART_HOST', `esmtp:[127.0.0.1]')dnl"}}},
		"users on a mail hub":     {sendmail: lab.SendmailOptions{M4: []string{inside, "define(`MAIL_HUB', `smtp8:[127.0.0.1]')dnl"}}},
		"unknown users elsewhere": {sendmail: lab.SendmailOptions{M4: []string{inside, "define(`LUSER_RELAY', `smtp8:[127.0.0.1]')dnl"}}},
		"addresses completed":     {sendmail: lab.SendmailOptions{M4: []string{"FEATURE(`always_add_domain')dnl", "MASQUERADE_AS(`local.test')dnl"}}},
		"relaying for local senders": {sendmail: lab.SendmailOptions{M4: []string{"FEATURE(`relay_local_from')dnl", "FEATURE(`relay_entire_domain')dnl",
			"FEATURE(`loose_relay_check')dnl"}}},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "sendmail", setup{sendmail: tt.sendmail, config: tt.config}, func(t *testing.T, s *site) {
				tryShapes(t, s, mallet, append([]string{`<x%R@backup.test>`, `<"x@R"@backup.test>`, `<R!x@backup.test>`}, relayShapes...), "stranger")
				c := s.SMTP(t, mallet)
				c.Must(2, "MAIL FROM:<alice@local.test>") // a sender of ours proves nothing
				if r := c.Cmd("RCPT TO:<x@remote.test>"); !r.Is(4) && !r.Is(5) {
					t.Errorf("x@remote.test from alice@local.test: %v, want it refused or deferred", r)
				}
				c.Must(2, "RSET")
				s.onlyRelayed(t)

				for _, rcpt := range append([]string{"bob@local.test", "alice@virtual.test"}, tt.local...) {
					if r := c.Send("to "+rcpt, rcpt)[0]; !r.Is(2) {
						t.Errorf("%s: %v, want the site's own mail taken", rcpt, r)
					}
				}
				s.login(t, alice)
				s.relays(t, s.SMTP(t, alice), "client")
				s.onlyRelayed(t, append(tt.leaves, "x@remote.test")...)
			})
		})
	}
}

func TestNoMailertableEntryOpensTheGate(t *testing.T) {
	set := setup{
		config: []string{"local_domains: [local.test, virtual.test, gw.test, uucp.test]"},
		sendmail: lab.SendmailOptions{MailerTable: []string{"gw.test\tesmtp:[127.0.0.1]", "uucp.test\trelay:[127.0.0.1]",
			"remote.test\tesmtp:[127.0.0.1]", "other.test\tsmtp:[127.0.0.1]"}},
	}
	on(t, "sendmail", set, func(t *testing.T, s *site) {
		var shapes []string
		for _, gw := range []string{"gw.test", "uucp.test"} {
			shapes = append(shapes, `<u%R@`+gw+`>`, `<R!u@`+gw+`>`, `<"u@R"@`+gw+`>`, `<u@R@`+gw+`>`, `<@`+gw+`:u@R>`, `<"u%R"@`+gw+`>`, `<u%R%`+gw+`>`,
				`<"R!u"@`+gw+`>`, `<`+gw+`!R!u>`, `<`+gw+`!u@R>`, `<u@`+gw+`@R>`, `<u%`+gw+`@R>`)
		}
		shapes = append(shapes, `<x@other.test>`)
		tryShapes(t, s, mallet, append(shapes, relayShapes...), "stranger")
		s.onlyRelayed(t)

		c := s.SMTP(t, mallet)
		for _, rcpt := range []string{"u@gw.test", "u@uucp.test", "bob@local.test"} {
			if r := c.Send("to "+rcpt, rcpt)[0]; !r.Is(2) {
				t.Errorf("%s: %v, want the site's own mail taken", rcpt, r)
			}
		}
		s.onlyRelayed(t, "u@gw.test", "u@uucp.test")

		s.login(t, alice)
		before := len(s.subjects())
		tryShapes(t, s, alice, shapes, "client")
		s.drain(t)
		if left := len(s.subjects()) - before; left < 10 {
			t.Errorf("only %d of %d shapes left the site though their sender may relay: these shapes prove little", left, len(shapes))
		}
	})
}

// A virtusertable may send one of the site's own addresses elsewhere. Where
// the administrator wrote the domain down that is his wish; where popgate only
// found it, nobody can tell.
func TestAForwardInTheVirtusertable(t *testing.T) {
	forwards := lab.SendmailOptions{VirtDomains: []string{"fwd.test"}, VirtUser: []string{"@fwd.test\t%1@remote.test"},
		Files: map[string]string{"own": "local.test\nvirtual.test\nfwd.test\n"}}
	shapes := []string{`<u%R@fwd.test>`, `<"u@R"@fwd.test>`, `<R!u@fwd.test>`, `<u@R@fwd.test>`, `<"u%R"@fwd.test>`, `<u%other.test@fwd.test>`}
	t.Run("domain written", func(t *testing.T) {
		set := setup{config: []string{"local_domains: [local.test, virtual.test, fwd.test]"}, sendmail: forwards}
		on(t, "sendmail", set, func(t *testing.T, s *site) {
			tryShapes(t, s, mallet, append(shapes, relayShapes...), "stranger")
			s.onlyRelayed(t)
			c := s.SMTP(t, mallet)
			for _, rcpt := range []string{"fwd@virtual.test", "alice@fwd.test"} {
				if r := c.Send("to "+rcpt, rcpt)[0]; !r.Is(2) {
					t.Errorf("%s: %v, want the site's own mail taken", rcpt, r)
				}
			}
			s.onlyRelayed(t, "alice@remote.test", "out@remote.test")
		})
	})
	t.Run("domain found", func(t *testing.T) {
		set := setup{config: []string{"local_domains: [local.test]", "local_domain_files: [/etc/mail/own]"}, sendmail: forwards}
		on(t, "sendmail", set, func(t *testing.T, s *site) {
			tryShapes(t, s, mallet, shapes, "stranger")
			c := s.SMTP(t, mallet)
			for _, rcpt := range []string{"fwd@virtual.test", "alice@fwd.test"} {
				if r := c.Send("to "+rcpt, rcpt)[0]; !r.Is(4) {
					t.Errorf("%s: %v, want 4xx: never refused, never sent on", rcpt, r)
				}
			}
			if r := c.Send("not forwarded", "alice@virtual.test")[0]; !r.Is(2) {
				t.Errorf("alice@virtual.test: %v, want it taken", r)
			}
			s.onlyRelayed(t)
		})
	})
}
