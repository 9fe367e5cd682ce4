package e2e

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"popgate/internal/lab"
)

// probed is what `popgate probe --json` prints.
type probed struct {
	Open    bool
	Closed  bool
	Warning string
	Local   struct{ Outcome, Reply string }
	Tries   []struct{ Sender, Rcpt, Outcome, Reply string }
}

func (p *probed) count(outcome string) (n int) {
	for _, t := range p.Tries {
		if t.Outcome == outcome {
			n++
		}
	}
	return n
}

func (s *site) probe(t *testing.T, args ...string) (p probed, code int) {
	t.Helper()
	out, code := s.popgate.Run(t, append([]string{"probe", "127.0.0.1:25", "--local", "alice@local.test", "--also-local", "virtual.test", "--remote", "remote.test",
		"--sender", "sender@client.test", "--json"}, args...)...)
	if code < 2 || code == 5 {
		if err := json.Unmarshal([]byte(out), &p); err != nil {
			t.Fatalf("probe --json: %v in %q", err, out)
		}
	}
	return p, code
}

// closed probes a site that must be found closed.
func (s *site) closed(t *testing.T, what string, args ...string) probed {
	t.Helper()
	p, code := s.probe(t, args...)
	if code != 0 || p.Open || !p.Closed || len(p.Tries) < 60 {
		t.Errorf("%s: exit %d, open: %v, %d tries", what, code, p.Open, len(p.Tries))
		for _, try := range p.Tries {
			if try.Outcome == "taken" {
				t.Logf("taken: %s from %s: %s", try.Rcpt, try.Sender, try.Reply)
			}
		}
	}
	return p
}

func TestProbeFindsAClosedSiteClosedAndDeliversNothing(t *testing.T) {
	onBoth(t, setup{}, func(t *testing.T, s *site) {
		p := s.closed(t, "by the milter", "--from", mallet)
		if p.Local.Outcome != "taken" || p.Warning != "" || p.count("refused") < 50 {
			t.Errorf("%+v, %q, %d refused", p.Local, p.Warning, p.count("refused"))
		}
		// It can tell: the same from a client that may relay, or is trusted.
		s.login(t, alice)
		if p, code := s.probe(t, "--from", alice); code != 1 || !p.Open || p.count("taken") < 10 {
			t.Errorf("with a grant: exit %d, open: %v, %d taken", code, p.Open, p.count("taken"))
		}
		if p, code := s.probe(t, "--from", "127.0.0.1"); code != 1 || !strings.Contains(p.Warning, "loopback") {
			t.Errorf("from loopback: exit %d, warning %q", code, p.Warning)
		}
		s.popgate.Kill()
		if p, code := s.probe(t, "--from", mallet); code != 5 || p.Open || p.Closed || p.Local.Outcome != "deferred" || p.count("deferred") < 50 {
			t.Errorf("popgate killed: exit %d, local %q, %d put off", code, p.Local.Outcome, p.count("deferred"))
		}
		s.onlyRelayed(t)
		if got := s.Local.Recipients(); len(got) > 0 {
			t.Errorf("delivered to %q", got)
		}
	})
}

func TestProbeFindsTheClosedDoorsClosed(t *testing.T) {
	through(t, doors[:4], setup{}, func(t *testing.T, s *site) {
		s.closed(t, "popgate up", "--from", mallet)
		if s.setup.door.listen == "policy" {
			return // while popgate is down, Postfix waits a second at each recipient
		}
		s.popgate.Kill()
		// A door in whose words "no" and "down" are the same refuses.
		if p, code := s.probe(t, "--from", mallet); p.Open || code != map[bool]int{true: 0, false: 5}[p.Closed] {
			t.Errorf("popgate killed: exit %d, open: %v, closed: %v", code, p.Open, p.Closed)
		}
	})
}

// Each of these is an open relay in its own way.
func TestProbeFindsAnOpenPostfix(t *testing.T) {
	shut := setup{door: &door{listen: "milter", socket: "/run/popgate/other.sock"}}
	on(t, "postfix", shut, func(t *testing.T, s *site) {
		s.closed(t, "by itself", "--from", mallet)
		for name, main := range map[string][]string{
			"everybody may relay":                {"permit_mynetworks, defer_if_reject, check_client_access static:OK, reject"},
			"whoever says he is one of us":       {"check_sender_access inline:{alice@local.test=OK}, reject_unauth_destination"},
			"the null sender may relay":          {"check_sender_access inline:{<>=OK}, reject_unauth_destination"},
			"a recipient whose text looks local": {"check_recipient_access regexp:/etc/postfix/lax, reject_unauth_destination"},
			"whoever is in a network too wide":   {"permit_mynetworks, reject_unauth_destination", "mynetworks = 0.0.0.0/0"},
		} {
			t.Run(name, func(t *testing.T) {
				lines := append([]string{rule + " = " + main[0]}, main[1:]...)
				s.postfix.Configure(t, lab.PostfixOptions{Main: lines, Files: map[string]string{"lax": "/local\\.test/ OK\n"}})
				if p, code := s.probe(t, "--from", mallet); code != 1 || !p.Open {
					t.Errorf("exit %d, open: %v", code, p.Open)
				}
			})
		}
		// Open, though nothing is taken: the plain address is put off, or refused for
		// its domain, and the others are names that nobody has.
		for name, table := range map[string]string{
			"an open relay that greylists":             "/@/ 450 4.2.0 Greylisted",
			"an open relay that looks for the null MX": "/@remote\\.test/ 556 5.1.10 Domain does not accept mail (nullMX)",
		} {
			t.Run(name, func(t *testing.T) {
				s.postfix.Configure(t, lab.PostfixOptions{Main: []string{rule + " = check_client_access static:OK, reject", "smtpd_recipient_restrictions = check_recipient_access regexp:/etc/postfix/first, " +
					"check_recipient_access regexp:/etc/postfix/odd, check_client_access static:OK, reject"}, Files: map[string]string{"first": table + "\n", "odd": "/[%!=:;, \"]|@.*@|^[^@]*$/ 550 5.1.1 User unknown\n"}})
				if p, code := s.probe(t, "--from", mallet); p.Closed || code != 1 && code != 5 {
					t.Errorf("exit %d, closed: %v, open: %v", code, p.Closed, p.Open)
				}
			})
		}
		s.postfix.Configure(t, lab.PostfixOptions{Main: []string{"smtpd_authorized_xclient_hosts = 127.0.0.0/8"}})
		s.closed(t, "as a stranger by XCLIENT", "--from", mallet, "--xclient")
		if p, code := s.probe(t, "--from", "127.0.0.9", "--xclient"); code != 1 || !p.Open {
			t.Errorf("as loopback by XCLIENT: exit %d, open: %v", code, p.Open)
		}
		s.postfix.Stop(t)
		if _, code := s.probe(t, "--from", mallet); code != 3 {
			t.Errorf("nobody there: exit %d, want 3", code)
		}
		out, _ := exec.Command(lab.PopgatePath, "probe", "127.0.0.1", "--local", "x").CombinedOutput()
		if !strings.Contains(string(out), "write HOST:PORT") {
			t.Errorf("no port: %s", out)
		}
	})
}

func TestProbeFindsAnOpenSendmail(t *testing.T) {
	for name, lines := range map[string][]string{
		"promiscuous relay":                         {"FEATURE(`promiscuous_relay')dnl"},
		"relaying for whoever says he is one of us": {"FEATURE(`relay_local_from')dnl"},
		"relaying for a network too wide":           {"RELAY_DOMAIN(`203.0')dnl"},
		"the percent hack":                          {"FEATURE(`loose_relay_check')dnl", "RELAY_DOMAIN(`local.test')dnl"},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "sendmail", byFeature(lines...), func(t *testing.T, s *site) {
				if p, code := s.probe(t, "--from", mallet); code != 1 || !p.Open {
					t.Errorf("exit %d, open: %v", code, p.Open)
				}
			})
		})
	}
}
