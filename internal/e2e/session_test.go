package e2e

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"popgate/internal/control"
	"popgate/internal/lab"
)

// These tests hold the rules about open sessions against what a real Dovecot
// logs. Their ttl is long enough that a loaded machine is no reason to miss it,
// and what they wait for is always something that is seen to happen: that the
// ttl has passed is told by another client's grant, which nothing holds.

const (
	witness = "192.0.2.200"
	bobs    = "198.51.100.20"
)

// sessions is a site without MTA: popgate is asked directly.
func sessions(t *testing.T, config []string, extra []string, test func(t *testing.T, s *site)) {
	set := setup{config: append([]string{"grant_ttl: 2s"}, config...), dovecot: lab.DovecotOptions{Extra: extra}}
	on(t, "none", set, test)
}

// operator talks to popgate's control socket without a program between: these
// tests ask many times.
var operator = control.NewClient("/run/popgate/control.sock")

// asks asks popgate about a foreign recipient, and knows nothing of an MTA.
func (s *site) asks(t *testing.T, client string) answer {
	t.Helper()
	a, err := operator.Ask(t.Context(), control.AskRequest{Client: netip.MustParseAddr(client), Rcpt: "x@remote.test"})
	if err != nil {
		t.Fatal(err)
	}
	return answer{a.Verdict, a.Reason}
}

// shows gives a client's grant; the zero one if there is none.
func (s *site) shows(t *testing.T, client string) control.Grant {
	t.Helper()
	g, err := operator.Show(t.Context(), netip.MustParseAddr(client))
	if err != nil && !errors.Is(err, control.ErrNotFound) {
		t.Fatal(err)
	}
	return g
}

// granted waits until popgate has a grant for a client.
func (s *site) granted(t *testing.T, client string) {
	t.Helper()
	lab.Until(t, "popgate has a grant for "+client, func() bool { return s.shows(t, client).Client.IsValid() })
}

// opens logs in to a service and gives the session once popgate has its grant.
func (s *site) opens(t *testing.T, service, from, user string) *lab.Mailbox {
	t.Helper()
	before := strings.Count(dovecotLog(t), ", rip="+from+",")
	m := s.enters(t, service, from, user)
	lab.Until(t, "Dovecot has logged the login", func() bool { return strings.Count(dovecotLog(t), ", rip="+from+",") > before })
	s.granted(t, from)
	return m
}

// enters logs in to a service.
func (s *site) enters(t *testing.T, service, from, user string) *lab.Mailbox {
	t.Helper()
	if service == "pop3" {
		return s.POP3(t, from, user)
	}
	return s.IMAP(t, from, user)
}

// leaves logs out and waits until Dovecot has logged it.
func (s *site) leaves(t *testing.T, service string, m *lab.Mailbox) {
	t.Helper()
	before := loggedOut(t, service)
	m.Logout()
	lab.Until(t, "Dovecot has logged the logout", func() bool { return loggedOut(t, service) > before })
}

var logouts = regexp.MustCompile(`(?m) (imap|pop3)\([^)]*\)<\d+><[^>]*>: Info: (Disconnected: )?Logged out`)

// loggedOut counts a service's logouts in the log.
func loggedOut(t *testing.T, service string) (n int) {
	t.Helper()
	for _, m := range logouts.FindAllStringSubmatch(dovecotLog(t), -1) {
		if m[1] == service {
			n++
		}
	}
	return n
}

func dovecotLog(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(lab.DovecotLog)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(text)
}

// loginLine gives the line of a client's last login, with its newline.
func loginLine(t *testing.T, client string) string {
	t.Helper()
	var last string
	for line := range strings.Lines(dovecotLog(t)) {
		if strings.Contains(line, "-login: Info: Login: ") && strings.Contains(line, ", rip="+client+",") {
			last = line
		}
	}
	if last == "" {
		t.Fatalf("no login of %s in the log", client)
	}
	return last
}

// writeLog appends to a log as its own writer would.
func writeLog(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteString(text)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// pairs has Dovecot show that it logs a service's logouts too.
func (s *site) pairs(t *testing.T, service string) {
	t.Helper()
	s.leaves(t, service, s.opens(t, service, witness, "bob"))
}

// ttlPasses waits until a login made now has come to its end, or one made
// before whose session is over.
func (s *site) ttlPasses(t *testing.T) {
	t.Helper()
	s.leaves(t, "imap", s.opens(t, "imap", witness, "bob"))
	s.expires(t, witness)
}

func (s *site) expires(t *testing.T, client string) {
	t.Helper()
	lab.Until(t, "the grant of "+client+" has ended", func() bool { return s.asks(t, client) == answer{"refuse", "expired"} })
}

// isOpen says whether popgate takes a client's session for open.
func (s *site) isOpen(t *testing.T, client string) bool {
	t.Helper()
	return s.shows(t, client).Open
}

// holds fails unless a client's open session holds its grant.
func (s *site) holds(t *testing.T, client, when string) {
	t.Helper()
	if a := s.asks(t, client); a.Verdict != "pass" || !s.isOpen(t, client) {
		t.Errorf("%s: %s is answered %v, want its session to hold its grant\n%s", when, client, a, dovecotLog(t))
	}
}

// closes waits until popgate has read that a session is over, at which its
// client may still relay for a while.
func (s *site) closes(t *testing.T, client, why string) {
	t.Helper()
	lab.Until(t, "popgate knows: "+why, func() bool { return !s.isOpen(t, client) })
}

func TestAnOpenSessionMaySendUntilATTLAfterItsLogout(t *testing.T) {
	on(t, "postfix", setup{config: []string{"grant_ttl: 3s"}}, func(t *testing.T, s *site) {
		clients := map[string]string{"imap": alice, "pop3": alice6}
		open := map[string]*lab.Mailbox{}
		for service, client := range clients {
			s.pairs(t, service)
			open[service] = s.opens(t, service, client, "alice")
		}
		var want []string
		for _, when := range []string{"one ttl", "two ttls"} {
			s.ttlPasses(t)
			for service, client := range clients {
				want = append(want, service+" after "+when)
				s.relays(t, s.SMTP(t, client), want[len(want)-1])
			}
		}
		for service, client := range clients {
			s.leaves(t, service, open[service])
			s.closes(t, client, service+" logout")
			want = append(want, service+" logged out")
			s.relays(t, s.SMTP(t, client), want[len(want)-1])
		}
		for service, client := range clients {
			s.expires(t, client)
			refused(t, s.SMTP(t, client), service+" logged out long ago")
		}
		s.onlySubjects(t, want...)
	})
}

// What one service logs says nothing about the other.
func TestASessionHoldsOnlyWhereItsServicesLogoutsAreSeen(t *testing.T) {
	sessions(t, nil, nil, func(t *testing.T, s *site) {
		s.pairs(t, "imap")
		s.opens(t, "imap", alice, "alice")
		s.opens(t, "pop3", bobs, "bob")
		s.expires(t, bobs)
		s.holds(t, alice, "an IMAP session, where IMAP logouts were seen")
	})
}

// A server that logs no logout that can be paired holds nothing.
func TestWithoutSessionIdsInItsLogoutsNoSessionHolds(t *testing.T) {
	sessions(t, nil, []string{`mail_log_prefix = "%s(%u): "`}, func(t *testing.T, s *site) {
		first := s.opens(t, "imap", witness, "bob")
		first.Logout()
		lab.Until(t, "Dovecot has logged the logout", func() bool { return strings.Contains(dovecotLog(t), "imap(bob): Info: Disconnected: Logged out") })
		s.opens(t, "imap", alice, "alice")
		s.expires(t, alice)
	})
}

// killed ends the mail process of a client's session, which then logs no
// logout.
func killed(t *testing.T, client string) {
	t.Helper()
	m := regexp.MustCompile(`, mpid=(\d+),`).FindStringSubmatch(loginLine(t, client))
	if m == nil {
		t.Fatalf("no mail process in %q", loginLine(t, client))
	}
	pid, _ := strconv.Atoi(m[1])
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	lab.Until(t, "Dovecot has noticed", func() bool {
		return strings.Contains(dovecotLog(t), fmt.Sprintf("child %d killed with signal 9", pid))
	})
}

func TestTheCeilingEndsASessionWhoseLogoutNeverCame(t *testing.T) {
	sessions(t, []string{"hold_open_logins: 6s"}, nil, func(t *testing.T, s *site) {
		s.pairs(t, "imap")
		s.opens(t, "imap", alice, "alice")
		s.opens(t, "imap", bobs, "bob")
		killed(t, bobs)
		s.popgate.Kill()
		s.popgate.Start(t)
		s.ttlPasses(t)
		s.holds(t, alice, "below the ceiling")
		s.holds(t, bobs, "below the ceiling, its mail process killed")
		// A new login of an open session's client has a ceiling of its own.
		s.opens(t, "imap", "198.51.100.30", "alice")
		s.expires(t, alice)
		s.expires(t, bobs)
		s.holds(t, "198.51.100.30", "a session begun later")
	})
}

func TestALoginReadAgainOpensNoSessionThatIsOver(t *testing.T) {
	sessions(t, nil, nil, func(t *testing.T, s *site) {
		s.pairs(t, "imap")
		for _, restart := range []bool{false, true} {
			m := s.opens(t, "imap", alice, "alice")
			s.leaves(t, "imap", m)
			s.closes(t, alice, "logout")
			if restart {
				s.popgate.Stop(t)
				s.popgate.Start(t)
			}
			writeLog(t, lab.DovecotLog, loginLine(t, alice))
			s.opens(t, "imap", bobs, "bob") // by now the line before it has been read
			if s.isOpen(t, alice) {
				t.Errorf("popgate started again %v: the login, read once more, has opened the session anew", restart)
			}
			s.expires(t, alice)
			// Older than a ttl, it opens nothing and grants nothing.
			writeLog(t, lab.DovecotLog, loginLine(t, alice))
			s.opens(t, "imap", "198.51.100.30", "bob")
			// That somebody's login was written just now with an old stamp puts all off.
			if a := s.asks(t, alice); a != (answer{"defer", "not_ready"}) {
				t.Errorf("popgate started again %v: an old login read once more is answered %v", restart, a)
			}
			s.expires(t, alice)
		}
	})
}

func TestTheServersEndIsItsSessionsEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, s *site)
	}{
		{"doveadm stop", func(t *testing.T, s *site) {
			doveadm(t, "stop")
			lab.Until(t, "Dovecot is gone", func() bool { return !s.dovecot.Running() })
		}},
		{"kill -9 of everything", func(t *testing.T, s *site) { s.dovecot.Kill() }},
		{"kill -9 while popgate is down", func(t *testing.T, s *site) {
			s.popgate.Kill()
			s.dovecot.Kill()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sessions(t, nil, nil, func(t *testing.T, s *site) {
				s.pairs(t, "imap")
				s.opens(t, "imap", alice, "alice")
				s.holds(t, alice, "before")
				tt.end(t, s)
				s.dovecot = s.Dovecot(t, s.setup.dovecot)
				if !s.popgate.Running() {
					s.popgate.Start(t)
				}
				s.opens(t, "imap", bobs, "bob")
				s.closes(t, alice, "the server has started anew")
				s.expires(t, alice)
				s.holds(t, bobs, "a session of the new server")
			})
		})
	}
}

func doveadm(t *testing.T, args ...string) {
	t.Helper()
	if out, err := exec.Command("doveadm", args...).CombinedOutput(); err != nil {
		t.Fatalf("doveadm %v: %v: %s", args, err, out)
	}
}

// At a reload Dovecot lets its sessions go on.
func TestAReloadOfTheServerEndsNoSession(t *testing.T) {
	sessions(t, nil, nil, func(t *testing.T, s *site) {
		s.pairs(t, "imap")
		m := s.opens(t, "imap", alice, "alice")
		doveadm(t, "reload")
		lab.Until(t, "Dovecot has reloaded", func() bool { return strings.Contains(dovecotLog(t), "SIGHUP received") })
		s.ttlPasses(t)
		s.holds(t, alice, "after the reload")
		s.leaves(t, "imap", m)
		s.expires(t, alice)
	})
}

// Where lines may be missing a logout may be among them.
func TestAGapInTheLogEndsWhatItsSessionsHold(t *testing.T) {
	for _, tt := range []struct {
		name string
		gap  func(t *testing.T, s *site)
	}{
		{"a line too long to be read", func(t *testing.T, s *site) { writeLog(t, lab.DovecotLog, strings.Repeat("x", 80<<10)+"\n") }},
		{"emptied before it was read", func(t *testing.T, s *site) {
			s.popgate.Freeze(t)
			if err := os.Truncate(lab.DovecotLog, 0); err != nil {
				t.Fatal(err)
			}
			s.popgate.Thaw(t)
		}},
		{"emptied while popgate was down", func(t *testing.T, s *site) {
			s.popgate.Stop(t)
			if err := os.Truncate(lab.DovecotLog, 0); err != nil {
				t.Fatal(err)
			}
			s.popgate.Start(t)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sessions(t, nil, nil, func(t *testing.T, s *site) {
				s.pairs(t, "imap")
				m := s.opens(t, "imap", alice, "alice")
				s.holds(t, alice, "before")
				tt.gap(t, s)
				s.closes(t, alice, "lines may be missing")
				lab.Until(t, "the grant has ended", func() bool { return s.asks(t, alice).Verdict != "pass" })
				s.opens(t, "imap", bobs, "bob")
				s.ttlPasses(t)
				s.holds(t, bobs, "a session begun after the gap")
				s.leaves(t, "imap", m)
				s.opens(t, "imap", "198.51.100.30", "bob")
				if a := s.asks(t, alice); a.Verdict == "pass" {
					t.Errorf("the logout of a session that was given up brings its grant back: %v", a)
				}
			})
		})
	}
}

func TestOpenSessionsOutliveARestartOfPopgate(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(t *testing.T, s *site)
	}{
		{"stop", func(t *testing.T, s *site) { s.popgate.Stop(t) }},
		{"kill -9", func(t *testing.T, s *site) { s.popgate.Kill() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sessions(t, nil, nil, func(t *testing.T, s *site) {
				s.pairs(t, "imap")
				s.opens(t, "imap", alice, "alice")
				m := s.opens(t, "imap", bobs, "bob")
				s.ttlPasses(t)
				tt.end(t, s)
				s.leaves(t, "imap", m)
				s.popgate.Start(t)
				s.holds(t, alice, "popgate is back")
				s.closes(t, bobs, "the logout while it was down")
				s.opens(t, "imap", "198.51.100.30", "bob")
				s.ttlPasses(t)
				s.holds(t, alice, "a ttl later")
				s.holds(t, "198.51.100.30", "begun since")
				s.expires(t, bobs)
			})
		})
	}
}

// That a server logs its logouts is not forgotten when nobody happens to be
// logged in while popgate starts anew.
func TestThatLogoutsAreSeenOutlivesARestartOfPopgate(t *testing.T) {
	sessions(t, nil, nil, func(t *testing.T, s *site) {
		s.pairs(t, "imap")
		s.expires(t, witness)
		s.popgate.Stop(t)
		s.popgate.Start(t)
		s.opens(t, "imap", alice, "alice")
		s.opens(t, "pop3", bobs, "bob")
		s.expires(t, bobs)
		s.holds(t, alice, "the first session since the restart")
	})
}

// Whoever is logged in when the first logout is seen need not log in again.
func TestTheFirstLogoutSeenCountsForTheSessionsThatAreOpen(t *testing.T) {
	sessions(t, nil, nil, func(t *testing.T, s *site) {
		s.opens(t, "imap", alice, "alice")
		s.pairs(t, "imap")
		s.ttlPasses(t)
		s.holds(t, alice, "begun before the first logout was seen")
	})
}

func TestARevocationEndsWhatAnOpenSessionHolds(t *testing.T) {
	for _, tt := range []struct{ name, what string }{{"of the address", alice}, {"of the user", "--user=alice"}} {
		t.Run(tt.name, func(t *testing.T) {
			sessions(t, nil, nil, func(t *testing.T, s *site) {
				s.pairs(t, "imap")
				m := s.opens(t, "imap", alice, "alice")
				s.holds(t, alice, "before")
				s.popgate.Must(t, "revoke", tt.what)
				if a := s.asks(t, alice); a.Verdict != "refuse" {
					t.Errorf("revoked, its session open: %v", a)
				}
				s.popgate.Kill()
				s.popgate.Start(t)
				s.leaves(t, "imap", m)
				s.opens(t, "imap", bobs, "bob")
				if a := s.asks(t, alice); a.Verdict != "refuse" {
					t.Errorf("the logout of a revoked session: %v", a)
				}
				// Stamps are cut to the second: a login of the revocation's own second is not later.
				s.ttlPasses(t)
				s.leaves(t, "imap", s.opens(t, "imap", alice, "alice"))
				s.expires(t, alice)
			})
		})
	}
}

func TestOneOfAClientsSessionsMayEnd(t *testing.T) {
	sessions(t, nil, nil, func(t *testing.T, s *site) {
		s.pairs(t, "imap")
		s.pairs(t, "pop3")
		first := s.opens(t, "imap", alice, "alice")
		second := s.opens(t, "imap", alice, "bob")
		third := s.opens(t, "pop3", alice, "alice")
		s.leaves(t, "imap", second)
		s.ttlPasses(t)
		s.holds(t, alice, "the later of two IMAP sessions is over")
		s.leaves(t, "imap", first)
		s.ttlPasses(t)
		s.holds(t, alice, "both IMAP sessions are over, a POP3 session is open")
		s.leaves(t, "pop3", third)
		s.expires(t, alice)
	})
}

func TestAReloadMayShortenOrForbidHolding(t *testing.T) {
	for _, tt := range []struct{ name, hold string }{{"forbidden", "0"}, {"shorter", "5s"}} {
		t.Run(tt.name, func(t *testing.T) {
			sessions(t, []string{"hold_open_logins: 1h"}, nil, func(t *testing.T, s *site) {
				s.pairs(t, "imap")
				m := s.opens(t, "imap", alice, "alice")
				s.holds(t, alice, "before")
				s.popgate.Configure(t, strings.Replace(s.config(), "hold_open_logins: 1h", "hold_open_logins: "+tt.hold, 1))
				s.popgate.Must(t, "reload")
				s.expires(t, alice)
				s.leaves(t, "imap", m)
				s.opens(t, "imap", bobs, "bob")
				if a := s.asks(t, alice); a.Verdict != "refuse" {
					t.Errorf("a logout beyond the ceiling: %v", a)
				}
			})
		})
	}
}

// A front end that Dovecot trusts may name the session. Whoever is behind one
// and names another's gains nothing: an id that is used anew ends what it held.
func TestASessionNamedLikeAnothersHoldsNothingForIt(t *testing.T) {
	sessions(t, nil, []string{"login_trusted_networks = 203.0.113.0/24"}, func(t *testing.T, s *site) {
		s.pairs(t, "imap")
		s.opens(t, "imap", alice, "alice")
		m := regexp.MustCompile(`session=<([^>]+)>`).FindStringSubmatch(loginLine(t, alice))
		if m == nil {
			t.Fatalf("no session in %q", loginLine(t, alice))
		}
		thief := s.IMAPNamed(t, mallet, "bob", m[1])
		s.granted(t, mallet)
		if line := loginLine(t, mallet); !strings.Contains(line, "session=<"+m[1]+">") {
			t.Fatalf("Dovecot did not take the name: %q", line)
		}
		s.leaves(t, "imap", thief)
		s.expires(t, mallet)
		s.expires(t, alice)
	})
}

// Ids are a source's own: what another log says of the same one is another's.
func TestTheSameSessionIdInAnotherLogIsAnotherSession(t *testing.T) {
	const other = "/var/log/other.log"
	two := fmt.Sprintf("sources: [{file: %s, format: dovecot}, {file: %s, format: dovecot}]", lab.DovecotLog, other)
	sessions(t, []string{two}, nil, func(t *testing.T, s *site) {
		if err := os.WriteFile(other, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		s.pairs(t, "imap")
		m := s.opens(t, "imap", alice, "alice")
		writeLog(t, other, strings.Replace(loginLine(t, alice), "rip="+alice, "rip="+bobs, 1))
		s.granted(t, bobs)
		session := regexp.MustCompile(`session=<([^>]+)>`).FindStringSubmatch(loginLine(t, alice))[1]
		stamp := loginLine(t, alice)[:len("Nov 23 00:00:00 ")]
		writeLog(t, other, stamp+"imap(alice)<77><"+session+">: Info: Disconnected: Logged out in=1 out=1\n")
		s.expires(t, bobs)
		s.holds(t, alice, "a session of its id has ended in another log")
		s.leaves(t, "imap", m)
		s.expires(t, alice)
	})
}
