package e2e

import (
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"popgate/contrib"
	"popgate/internal/lab"
)

// A door is a way in which an MTA asks popgate while its own relay rule stays
// shut, by the lines that contrib ships.
type door struct {
	name, mta      string
	listen, socket string // of milter.yaml
	lines          string // contrib's
	wire           func(set *setup, lines string)
	unable         int  // the worst class of reply to a remote recipient while popgate can't be asked
	patient        bool // waits long for an answer, whatever contrib's lines say
}

var doors = []*door{
	{
		name: "Postfix policy service", mta: "postfix", listen: "policy", socket: "/var/spool/postfix/popgate/policy.sock",
		wire: wirePostfix, lines: contrib.PostfixPolicy, unable: 4,
	},
	{
		name: "Postfix socket map", mta: "postfix", listen: "socketmap", socket: "/var/spool/postfix/popgate/socketmap.sock",
		wire: wirePostfix, lines: contrib.PostfixSocketMap, unable: 4, patient: true,
	},
	{
		name: "sendmail Local_check_rcpt", mta: "sendmail", listen: "socketmap", socket: "/run/popgate/socketmap.sock",
		wire: func(set *setup, lines string) { set.sendmail.Tail = append(set.sendmail.Tail, lines) }, lines: contrib.SendmailSocketMap, unable: 4, patient: true,
	},
	{
		// sendmail puts a recipient off only when its connection breaks.
		name: "sendmail drac", mta: "sendmail", listen: "socketmap", socket: "/run/popgate/socketmap.sock",
		wire: wireDrac, lines: contrib.SendmailDrac, unable: 5, patient: true,
	},
	{
		name: "Exim", mta: "exim", listen: "socketmap", socket: "/run/popgate/socketmap.sock",
		wire: func(set *setup, lines string) { set.exim.ACL = lines }, lines: contrib.EximSocketMap, unable: 4,
	},
}

func doorCalled(name string) *door {
	return doors[slices.IndexFunc(doors, func(d *door) bool { return d.name == name })]
}

func wirePostfix(set *setup, lines string) { set.postfix.Main = append(set.postfix.Main, lines) }

func wireDrac(set *setup, lines string) { set.sendmail.M4 = append(set.sendmail.M4, lines) }

// hasty shortens the time that contrib's lines have the MTA wait.
var hasty = strings.NewReplacer("timeout=10s", "timeout=1s", "try_limit=2", "try_limit=1", "{5s}", "{1s}")

// throughEachDoor runs a test on a site for each door.
func throughEachDoor(t *testing.T, set setup, test func(t *testing.T, s *site)) {
	through(t, doors, set, test)
}

// through runs a test on a site for each of some doors.
func through(t *testing.T, some []*door, set setup, test func(t *testing.T, s *site)) {
	for _, d := range some {
		t.Run(d.name, func(t *testing.T) {
			set, lines := set, d.lines
			if set.hasty {
				lines = hasty.Replace(lines)
			}
			set.door = d
			d.wire(&set, lines)
			on(t, d.mta, set, test)
		})
	}
}

// turnedAway tries a message to another site, which must not be taken.
func turnedAway(t *testing.T, c *lab.Client, subject string) {
	t.Helper()
	if r := c.Send(subject, "x@remote.test")[0]; !r.Is(4) && !r.Is(5) {
		t.Errorf("%s: %v, want it refused or deferred", subject, r)
	}
}

// unable tries a message to another site while popgate can't be asked.
func (s *site) unable(t *testing.T, c *lab.Client, subject string) {
	t.Helper()
	if r := c.Send(subject, "x@remote.test")[0]; !r.Is(4) && !r.Is(s.setup.door.unable) {
		t.Errorf("%s: %v, want 4xx or %dxx", subject, r, s.setup.door.unable)
	}
}

func TestClosedDoorOpensForTheClientThatHasLoggedIn(t *testing.T) {
	throughEachDoor(t, setup{}, func(t *testing.T, s *site) {
		for _, pair := range [][2]string{{alice, mallet}, {alice6, mall6}} {
			client, stranger := pair[0], pair[1]
			turnedAway(t, s.SMTP(t, client), "before the login, "+client)
			s.login(t, client)
			c := s.SMTP(t, client)
			s.relays(t, c, "after the login, "+client)
			s.takesLocal(t, c, "local in between, "+client)
			s.relays(t, c, "in the same connection, "+client)
			c = s.SMTP(t, stranger)
			turnedAway(t, c, "stranger "+stranger)
			s.takesLocal(t, c, "stranger's local mail, "+stranger)
			turnedAway(t, c, "stranger again "+stranger)
			s.popgate.Must(t, "revoke", client)
			turnedAway(t, s.SMTP(t, client), "revoked, "+client)
		}
		s.onlySubjects(t, "after the login, "+alice, "in the same connection, "+alice, "after the login, "+alice6, "in the same connection, "+alice6)
	})
}

func TestClosedDoorStaysShutAndLocalMailFlowsWhilePopgateIsStopped(t *testing.T) {
	throughEachDoor(t, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		granted, stranger := s.SMTP(t, alice), s.SMTP(t, mallet)
		s.relays(t, granted, "popgate up")
		s.popgate.Kill()
		for name, c := range map[string]*lab.Client{"old granted": granted, "old stranger": stranger, "new granted": s.SMTP(t, alice),
			"new stranger": s.SMTP(t, mallet), "new IPv6 stranger": s.SMTP(t, mall6)} {
			s.unable(t, c, "popgate killed, "+name)
			s.takesLocal(t, c, "local mail, popgate killed, "+name)
		}
		s.popgate.Start(t)
		s.relays(t, s.SMTP(t, alice), "popgate back")
		s.relays(t, granted, "popgate back, old connection")
		turnedAway(t, s.SMTP(t, mallet), "popgate back, stranger")
		s.onlySubjects(t, "popgate up", "popgate back", "popgate back, old connection")
	})
}

// Whom sendmail itself lets relay, popgate is not asked about.
func TestSendmailsOwnPermissionsHoldAtTheClosedDoorWhilePopgateIsStopped(t *testing.T) {
	set := setup{sendmail: lab.SendmailOptions{Auth: true, M4: []string{"RELAY_DOMAIN(`192.0.2')", "RELAY_DOMAIN(`friend.test')"}}}
	through(t, []*door{doorCalled("sendmail Local_check_rcpt")}, set, func(t *testing.T, s *site) {
		named := lab.NameClient(t, 0, "host.friend.test")
		var relayed []string
		for _, state := range []string{"popgate up", "popgate killed"} {
			for _, from := range []string{"127.0.0.1", "192.0.2.9", named} {
				subject := state + ", from " + from
				s.relays(t, s.SMTP(t, from), subject)
				relayed = append(relayed, subject)
			}
			c := s.SMTP(t, mallet)
			subject := state + ", to a relay domain"
			if replies := c.Send(subject, "x@friend.test", "x@sub.friend.test"); !replies[0].Is(250) || !replies[1].Is(250) {
				t.Errorf("%s: %v, want 250", subject, replies)
			}
			relayed = append(relayed, subject)
			want := 550
			if !s.popgate.Running() {
				want = 451
			}
			for _, rcpt := range []string{"x@remote.test", "x%remote.test@friend.test", "x@friend.test.remote.test", "x@notfriend.test"} {
				if r := c.Send(state+", stranger", rcpt)[0]; !r.Is(want) {
					t.Errorf("%s, a stranger to %s: %v, want %d", state, rcpt, r, want)
				}
			}
			if r := c.Auth("alice", lab.Password); !r.Is(235) {
				t.Fatalf("AUTH: %v", r)
			}
			subject = state + ", authenticated"
			s.relays(t, c, subject)
			relayed = append(relayed, subject)
			s.popgate.Kill()
		}
		s.onlySubjects(t, relayed...)
	})
}

// Out of reach are a daemon that hangs and one that can accept no connection.
func TestClosedDoorStaysShutAndLocalMailFlowsWhilePopgateIsOutOfReach(t *testing.T) {
	throughEachDoor(t, setup{hasty: true}, func(t *testing.T, s *site) {
		s.login(t, alice)
		for _, trouble := range []struct {
			name       string
			begin, end func()
		}{
			{"frozen", func() { s.popgate.Freeze(t) }, func() { s.popgate.Thaw(t) }},
			{"out of descriptors", func() { s.popgate.Descriptors(t, 0) }, func() { s.popgate.Descriptors(t, 1024) }},
		} {
			trouble.begin()
			var waiting []*lab.Client
			for _, from := range []string{alice, mallet} {
				c := s.SMTP(t, from)
				s.takesLocal(t, c, trouble.name+", local mail from "+from)
				if !s.setup.door.patient {
					s.unable(t, c, trouble.name+", "+from)
					continue
				}
				c.Must(2, "MAIL FROM:<sender@client.test>")
				c.Say("RCPT TO:<x@remote.test>")
				waiting = append(waiting, c)
			}
			s.takesLocal(t, s.SMTP(t, mallet), trouble.name+", local mail past those who wait")
			for _, c := range waiting {
				if c.Heard() {
					t.Errorf("%s: %v, want the MTA to wait", trouble.name, c.Reply())
				}
			}
			trouble.end()
			for i, c := range waiting {
				if r := c.Reply(); r.Is(2) != (i == 0) {
					t.Errorf("%s and over, client %d: %v", trouble.name, i, r)
				}
				c.Close()
			}
			lab.Until(t, "popgate is back", func() bool {
				c := s.SMTP(t, alice)
				defer c.Close()
				c.Must(2, "MAIL FROM:<sender@client.test>")
				return c.Cmd("RCPT TO:<x@remote.test>").Is(2)
			})
			s.relays(t, s.SMTP(t, alice), trouble.name+" and over")
			turnedAway(t, s.SMTP(t, mallet), trouble.name+" and over, stranger")
		}
		s.onlySubjects(t, "frozen and over", "out of descriptors and over")
	})
}

// Left to themselves, sendmail and Postfix's socket map would wait for 30 and
// 100 seconds.
func TestClosedDoorIsToldSoonThatPopgateHasNoDescriptorLeft(t *testing.T) {
	patient := slices.DeleteFunc(slices.Clone(doors), func(d *door) bool { return !d.patient })
	through(t, patient, setup{}, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.popgate.Descriptors(t, s.popgate.LastDescriptor(t)+1)
		var idle []net.Conn
		defer func() {
			for _, c := range idle {
				c.Close()
			}
		}()
		lab.Until(t, "every descriptor is in use", func() bool {
			c, err := net.Dial("unix", s.setup.door.socket)
			if err != nil {
				t.Fatal(err)
			}
			idle = append(idle, c)
			// One that has never asked is not kept for long.
			if _, err := io.WriteString(c, "9:popgate x,"); err != nil {
				return true
			}
			_, err = c.Read(make([]byte, 1))
			return err != nil
		})
		for _, from := range []string{alice, mallet} {
			begin := time.Now()
			s.unable(t, s.SMTP(t, from), "no descriptor left, "+from)
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("%s: an answer after %v", from, took)
			}
			s.takesLocal(t, s.SMTP(t, from), "no descriptor left, local mail from "+from)
		}
		s.popgate.Descriptors(t, 1024)
		lab.Until(t, "popgate is back", func() bool { return !s.SMTP(t, alice).Send("back", "x@remote.test")[0].Is(4) })
		turnedAway(t, s.SMTP(t, mallet), "back, stranger")
	})
}

func TestNoRelayShapeOfAStrangerPassesAClosedDoor(t *testing.T) {
	throughEachDoor(t, setup{}, func(t *testing.T, s *site) {
		noShapeLeaves(t, s, 15)
	})
}

func TestNoRelayShapePassesAClosedDoorWhilePopgateIsStopped(t *testing.T) {
	throughEachDoor(t, setup{hasty: true}, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.popgate.Kill()
		tryShapes(t, s, mallet, relayShapes, "stranger")
		tryShapes(t, s, alice, relayShapes, "client")
		s.onlyRelayed(t)
	})
}

// Whoever runs the reverse zone of his address can give it any name, that of a
// client's address too.
func TestClosedDoorTakesNoNameForAnAddress(t *testing.T) {
	names := []string{alice, "[" + alice + "]", alice + ".local.test", "IPv6:" + alice6, "friend.test"}
	set := setup{
		// Outside the chroot, which has no hosts file.
		postfix: lab.PostfixOptions{Master: []string{"127.0.0.1:26 inet n - n - - smtpd", "  -o smtpd_peername_lookup=yes"}},
	}
	// contrib's statement for Exim names the address alone.
	asksForNames := slices.DeleteFunc(slices.Clone(doors), func(d *door) bool { return d.mta == "exim" })
	through(t, asksForNames, set, func(t *testing.T, s *site) {
		s.login(t, alice)
		s.login(t, alice6)
		port := "25"
		if s.mta == "postfix" {
			port = "26"
		}
		for i, name := range names {
			from := lab.NameClient(t, i, name)
			c := s.SMTPPort(t, from, port)
			turnedAway(t, c, from+" is called "+name)
			s.takesLocal(t, c, "local mail of one called "+name)
		}
		// They were asked for, else this proves nothing.
		lab.Until(t, s.mta+" has looked up a name", func() bool { return strings.Contains(s.Syslog.String(), "friend.test") })
		s.onlySubjects(t)
	})
}

// What contrib and the manual warn of is true: sendmail's drac takes every
// answer but "not found" for a permission.
func TestDracWithTemporaryFailuresIsAnOpenRelayWhilePopgateIsStopped(t *testing.T) {
	d := doorCalled("sendmail drac")
	trap := strings.Replace(d.lines, "socket ", "socket -T<TMPF> ", 1)
	if trap == d.lines {
		t.Fatalf("no map in %q", d.lines)
	}
	set := setup{door: d}
	d.wire(&set, trap)
	on(t, "sendmail", set, func(t *testing.T, s *site) {
		turnedAway(t, s.SMTP(t, mallet), "popgate up")
		s.popgate.Kill()
		s.relays(t, s.SMTP(t, mallet), "popgate killed")
	})
}
