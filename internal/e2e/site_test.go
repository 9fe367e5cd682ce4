package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"popgate/internal/lab"
)

// Nearly all of a test's time is waiting for others, so more of them run at
// once than there are processors.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("4")
	}
	os.Exit(m.Run())
}

// The clients of these tests. None belongs to the host.
const (
	alice  = "198.51.100.7"
	mallet = "203.0.113.66"
	alice6 = "2001:db8:1::7"
	mall6  = "2001:db8:2::66"
)

// setup says how a test's site differs from the usual one.
type setup struct {
	config   []string // lines of milter.yaml that take the place of the usual ones of the same key
	dovecot  lab.DovecotOptions
	postfix  lab.PostfixOptions
	sendmail lab.SendmailOptions
	exim     lab.EximOptions
	door     *door              // nil: the milter
	hasty    bool               // through a door, with the shortest patience the MTA can be told
	prepare  func(t *testing.T) // on the host, before popgate starts; nil: nothing
}

// milter says whether the MTA asks by milter.
func (set *setup) milter() bool { return set.door == nil }

// site is a host with Dovecot, popgate and one MTA.
type site struct {
	*lab.Host
	mta      string
	setup    setup
	dovecot  *lab.Dovecot
	popgate  *lab.Daemon
	postfix  *lab.Postfix // these are nil where the MTA is another
	sendmail *lab.Sendmail
	exim     *lab.Exim
}

// onBoth runs a test on a site with Postfix and on one with sendmail.
func onBoth(t *testing.T, set setup, test func(t *testing.T, s *site)) {
	for _, mta := range []string{"postfix", "sendmail"} {
		t.Run(mta, func(t *testing.T) { on(t, mta, set, test) })
	}
}

// on runs a test on a site with one MTA.
func on(t *testing.T, mta string, set setup, test func(t *testing.T, s *site)) {
	t.Parallel()
	lab.WithDaemon(t, func(t *testing.T, h *lab.Host) {
		s := &site{Host: h, mta: mta, setup: set}
		s.dovecot = h.Dovecot(t, set.dovecot)
		switch mta {
		case "postfix":
			set.postfix.Milter = set.milter()
			s.postfix = h.Postfix(t, set.postfix)
		case "sendmail":
			set.sendmail.Milter = set.milter()
			s.sendmail = h.Sendmail(t, set.sendmail)
		case "exim":
			s.exim = h.Exim(t, set.exim)
		}
		if set.prepare != nil {
			set.prepare(t)
		}
		s.popgate = h.Popgate(t, s.config())
		test(t, s)
	})
}

// config gives the site's milter.yaml.
func (s *site) config() string {
	listen, socket, group, from, domains := "milter", lab.SendmailSocket, "", "none", "[local.test, virtual.test]"
	switch s.mta {
	case "postfix":
		// What Postfix is responsible for, popgate reads from Postfix itself.
		socket, group, from, domains = lab.PostfixSocket, "socket_group: postfix", "postfix", "[]"
	case "exim":
		group = "socket_group: Debian-exim"
	}
	if d := s.setup.door; d != nil {
		listen, socket = d.listen, d.socket
	}
	log := lab.DovecotLog
	if s.setup.dovecot.Syslog {
		log = lab.MailLog
	}
	usual := []string{
		fmt.Sprintf("listen: {%s: [%q]}", listen, "unix:"+socket),
		"local_domains: " + domains,
		"local_domains_from: " + from,
		fmt.Sprintf("sources: [{file: %s, format: dovecot}]", log),
		// Nobody's login is on its way in most tests.
		"wait_for_login: 0",
	}
	if group != "" {
		usual = append(usual, group)
	}
	key := func(line string) string { k, _, _ := strings.Cut(line, ":"); return k }
	lines := slices.DeleteFunc(usual, func(line string) bool {
		return slices.ContainsFunc(s.setup.config, func(own string) bool { return key(own) == key(line) })
	})
	return strings.Join(append(lines, s.setup.config...), "\n") + "\n"
}

// drain waits until the MTA has delivered or bounced all it took.
func (s *site) drain(t *testing.T) {
	t.Helper()
	switch {
	case s.postfix != nil:
		s.postfix.Drain(t)
	case s.sendmail != nil:
		s.sendmail.Drain(t)
	default:
		s.exim.Drain(t)
	}
}

// login logs in from an address and waits until popgate has the grant.
func (s *site) login(t *testing.T, from string) {
	t.Helper()
	s.POP3(t, from, "alice").Logout()
	s.popgate.WaitGrant(t, from)
}

// answer is what `popgate ask` prints.
type answer struct{ Verdict, Reason string }

// ask asks popgate about a foreign recipient as the site's MTA would.
func (s *site) ask(t *testing.T, client string) answer {
	t.Helper()
	mailer := map[string]string{"postfix": "smtp", "sendmail": "esmtp"}[s.mta]
	out, _ := s.popgate.Run(t, "ask", client, "x@remote.test", "--mailer", mailer, "--addr", "x@remote.test", "--mta", s.mta, "--json")
	var a answer
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		t.Fatalf("popgate ask --json: %v in %q", err, out)
	}
	return a
}

// relays sends a message to another site, which must arrive.
func (s *site) relays(t *testing.T, c *lab.Client, subject string) {
	t.Helper()
	if r := c.Send(subject, "x@remote.test")[0]; !r.Is(2) {
		t.Fatalf("%s: %v, want it relayed", subject, r)
	}
	s.Remote.Wait(t, subject)
}

// refused tries a message to another site, which must be refused for good.
func refused(t *testing.T, c *lab.Client, subject string) {
	t.Helper()
	if r := c.Send(subject, "x@remote.test")[0]; r.Code != 550 || !strings.HasPrefix(r.Text, "5.7.1 ") {
		t.Errorf("%s: %v, want 550 5.7.1", subject, r)
	}
}

// deferred tries a message to another site, which must be refused for now: at
// MAIL, as an MTA does that can't reach popgate, or at RCPT.
func deferred(t *testing.T, c *lab.Client, subject string) {
	t.Helper()
	r := c.Cmd("MAIL FROM:<sender@client.test>")
	if r.Is(2) {
		r = c.Cmd("RCPT TO:<x@remote.test>")
	}
	if !r.Is(4) {
		t.Errorf("%s: %v, want 4xx", subject, r)
	}
	c.Cmd("RSET")
}

// takesLocal sends a message to one of the site's own, which must arrive.
func (s *site) takesLocal(t *testing.T, c *lab.Client, subject string) {
	t.Helper()
	if r := c.Send(subject, "bob@local.test")[0]; !r.Is(2) {
		t.Fatalf("%s: %v, want the site's own mail taken", subject, r)
	}
	s.Local.Wait(t, subject)
}

// onlyRelayed fails if anything else than these recipients was reached, now
// that the queue is empty.
func (s *site) onlyRelayed(t *testing.T, rcpts ...string) {
	t.Helper()
	s.drain(t)
	slices.Sort(rcpts)
	if got := s.Remote.Recipients(); !slices.Equal(got, slices.Compact(rcpts)) {
		t.Errorf("mail left the site for %q, want %q", got, rcpts)
	}
}

// subjects gives the subjects of all that has left the site.
func (s *site) subjects() []string {
	var all []string
	for _, m := range s.Remote.Messages() {
		if m.From != "" {
			all = append(all, m.Subject)
		}
	}
	slices.Sort(all)
	return all
}

// onlySubjects fails if anything else than these messages left the site, now
// that the queue is empty.
func (s *site) onlySubjects(t *testing.T, want ...string) {
	t.Helper()
	s.drain(t)
	slices.Sort(want)
	if got := s.subjects(); !slices.Equal(got, want) {
		t.Errorf("left the site: %q, want %q", got, want)
	}
}
