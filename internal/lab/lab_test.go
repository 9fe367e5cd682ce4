package lab

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/emersion/go-milter"
)

const stranger = "198.51.100.7"

// startMilter starts a milter that lets everything pass, so that what these
// tests find is the wiring's doing. It is stopped by the function given back.
func startMilter(t *testing.T, path string) (stop func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	server := &milter.Server{NewMilter: func() milter.Milter { return milter.NoOpMilter{} }}
	done := make(chan struct{})
	go func() { server.Serve(ln); close(done) }()
	stop = func() { ln.Close(); <-done }
	t.Cleanup(stop)
	return stop
}

// mta is what the same test needs of either MTA.
type mta struct {
	socket string
	start  func(t *testing.T, h *Host, milter bool) interface{ Drain(testing.TB) }
}

var mtas = map[string]mta{
	"postfix": {PostfixSocket, func(t *testing.T, h *Host, milter bool) interface{ Drain(testing.TB) } {
		return h.Postfix(t, PostfixOptions{Auth: true, TLS: true, Milter: milter})
	}},
	"sendmail": {SendmailSocket, func(t *testing.T, h *Host, milter bool) interface{ Drain(testing.TB) } {
		return h.Sendmail(t, SendmailOptions{Auth: true, TLS: true, Milter: milter})
	}},
}

func TestEximDeliversItsOwnMailAndRefusesStrangersByItself(t *testing.T) {
	t.Parallel()
	Isolated(t, func(t *testing.T, h *Host) {
		e := h.Exim(t, EximOptions{})
		for _, from := range []string{stranger, "2001:db8::7"} {
			c := h.SMTP(t, from)
			subject := "from " + from
			replies := c.Send(subject, "x@remote.test", "bob@local.test", "alice@virtual.test")
			if !replies[0].Is(5) || !replies[1].Is(2) || !replies[2].Is(2) {
				t.Errorf("replies %v, want the remote recipient refused, the others taken", replies)
			}
			h.Local.Wait(t, subject)
		}
		e.Drain(t)
		if got := h.Remote.Recipients(); len(got) > 0 {
			t.Errorf("relayed to %v", got)
		}
	})
}

func TestEximDeliversElsewhereWhatItsACLAccepts(t *testing.T) {
	t.Parallel()
	Isolated(t, func(t *testing.T, h *Host) {
		e := h.Exim(t, EximOptions{ACL: "  accept hosts = " + stranger})
		if r := h.SMTP(t, stranger).Send("accepted", "x@remote.test")[0]; !r.Is(2) {
			t.Errorf("%v, want it taken", r)
		}
		h.Remote.Wait(t, "accepted")
		e.Drain(t)
	})
}

func TestMailPassesAnMTAWhoseMilterIsUpAndWaitsWhileItIsDown(t *testing.T) {
	for name, m := range mtas {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			Isolated(t, func(t *testing.T, h *Host) {
				stop := startMilter(t, m.socket)
				h.Dovecot(t, DovecotOptions{})
				server := m.start(t, h, true)
				for _, from := range []string{stranger, "2001:db8::7"} {
					c := h.SMTP(t, from)
					subject := "from " + from
					for i, r := range c.Send(subject, "bob@local.test", "x@remote.test") {
						if !r.Is(2) {
							t.Errorf("%s, recipient %d: %v, want it taken", from, i, r)
						}
					}
					if m := h.Remote.Wait(t, subject); !slices.Equal(m.To, []string{"x@remote.test"}) {
						t.Errorf("the remote sink got %+v", m)
					}
					if m := h.Local.Wait(t, subject); !slices.Equal(m.To, []string{"bob@local.test"}) && !slices.Equal(m.To, []string{"bob"}) {
						t.Errorf("the local sink got %+v", m)
					}
				}
				server.Drain(t)
				stop()
				c := h.SMTP(t, stranger)
				if r := c.Cmd("MAIL FROM:<a@client.test>"); !r.Is(4) {
					t.Errorf("milter down: %v, want 4xx", r)
				}
			})
		})
	}
}

func TestAnMTAWithoutMilterRefusesStrangersByItself(t *testing.T) {
	for name, m := range mtas {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			Isolated(t, func(t *testing.T, h *Host) {
				h.Dovecot(t, DovecotOptions{})
				server := m.start(t, h, false)
				c := h.SMTP(t, stranger)
				replies := c.Send("no milter", "x@remote.test", "bob@local.test")
				if !replies[0].Is(5) || !replies[1].Is(2) {
					t.Errorf("replies %v, want the remote recipient refused, the local one taken", replies)
				}
				server.Drain(t)
				if got := h.Remote.Recipients(); len(got) > 0 {
					t.Errorf("relayed to %v", got)
				}
			})
		})
	}
}

func TestClientsAuthenticateAndEncrypt(t *testing.T) {
	for name, m := range mtas {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			Isolated(t, func(t *testing.T, h *Host) {
				h.Dovecot(t, DovecotOptions{})
				m.start(t, h, false)
				c := h.SMTP(t, stranger)
				c.StartTLS()
				if r := c.Auth("alice", Password); !r.Is(235) {
					t.Fatalf("AUTH: %v", r)
				}
				for _, r := range c.Send("authenticated", "x@remote.test") {
					if !r.Is(2) {
						t.Errorf("%v, want an authenticated client's mail taken", r)
					}
				}
				h.Remote.Wait(t, "authenticated")
			})
		})
	}
}

func TestDovecotLogsLoginsOfForeignAddresses(t *testing.T) {
	for name, o := range map[string]DovecotOptions{"file": {}, "syslog": {Syslog: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			Isolated(t, func(t *testing.T, h *Host) {
				d := h.Dovecot(t, o)
				file := DovecotLog
				if o.Syslog {
					file = MailLog
				}
				logged := func(text string) {
					Until(t, file+" has "+text, func() bool {
						log, _ := os.ReadFile(file)
						return strings.Contains(string(log), text)
					})
				}
				h.POP3(t, stranger, "alice").Logout()
				logged("rip=" + stranger)
				if o.Syslog {
					h.Syslog.Rotate(t, func() {})
				} else {
					d.Rotate(t, func() {})
				}
				h.IMAP(t, "2001:db8::7", "bob").Logout()
				logged("imap-login: ")
				logged("rip=2001:db8::7")
				h.POP3Fails(t, "203.0.113.9", "alice")
				logged("auth failed")
			})
		})
	}
}

func TestSyslogLinesLookLikeRsyslogs(t *testing.T) {
	for _, tt := range []struct{ name, datagram, want string }{
		{"priority goes, host comes", "<22>Nov 22 02:05:32 dovecot: x\n", "Nov 22 02:05:32 mx1 dovecot: x\n"},
		{"control bytes are escaped", "<22>Nov  2 02:05:32 a: x\ny\x00", "Nov  2 02:05:32 mx1 a: x#012y\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := string(rsyslogLine([]byte(tt.datagram), "mx1")); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestAnOrphanLeavesNoZombie(t *testing.T) {
	t.Parallel()
	Isolated(t, func(t *testing.T, _ *Host) {
		// Whichever of the two ends first, nobody but process 1 can reap the sleep.
		out, err := command("sh", "-c", "sleep 0.05 >/dev/null 2>&1 & echo $!")
		if err != nil {
			t.Fatal(err)
		}
		orphan := "/proc/" + strings.TrimSpace(out)
		Until(t, orphan+" is gone", func() bool { _, err := os.Stat(orphan); return errors.Is(err, fs.ErrNotExist) })
	})
}

func TestWhatATestHasStartedEndsWithIt(t *testing.T) {
	t.Parallel()
	Isolated(t, func(t *testing.T, _ *Host) {
		// As long as it lives, it keeps the test's own output open, and outside
		// would complain of that.
		cmd := exec.Command("setsid", "sh", "-c", "sleep 600 & echo orphan $!")
		cmd.Stdout = os.Stdout
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestOutcome ends as the environment says; the test below runs it.
func TestOutcome(t *testing.T) {
	outcome := os.Getenv("POPGATE_LAB_OUTCOME")
	if outcome == "" {
		t.Skip("run by TestThePrivateHostsOutcomeIsTheTests")
	}
	t.Run("a+b", func(t *testing.T) { // a name with a meaning in a pattern
		Isolated(t, func(t *testing.T, h *Host) {
			switch outcome {
			case "fails":
				t.Error("body failed")
			case "skips":
				t.Skip("body skipped")
			case "dies":
				os.Exit(0)
			}
		})
	})
}

func TestThePrivateHostsOutcomeIsTheTests(t *testing.T) {
	if _, err := ready(); err != nil {
		missing(t, err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for outcome, want := range map[string]string{"passes": "--- PASS: TestOutcome/a+b", "fails": "--- FAIL: TestOutcome/a+b",
		"skips": "--- SKIP: TestOutcome/a+b", "dies": "--- FAIL: TestOutcome/a+b"} {
		t.Run(outcome, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(self, "-test.run=^TestOutcome$", "-test.v")
			cmd.Env = append(os.Environ(), "POPGATE_LAB_OUTCOME="+outcome)
			out, _ := cmd.CombinedOutput()
			// The child's own report is indented deeper than the parent's.
			if !strings.Contains(string(out), "\n    "+want) || cmd.ProcessState.Success() == strings.Contains(want, "FAIL") {
				t.Errorf("want %q and an exit code to match, got %v:\n%s", want, cmd.ProcessState, out)
			}
		})
	}
}
