package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/internal/lab"
)

// logrotate rotates Dovecot's log with the real program, and waits until
// Dovecot writes to the new one.
func (s *site) logrotate(t *testing.T, options []string) {
	t.Helper()
	conf := "/run/logrotate.conf"
	text := fmt.Sprintf("%s {\n\trotate 5\n\tcreate 0640 root adm\n\t%s\n\tpostrotate\n\t\tdoveadm log reopen\n\tendscript\n}\n",
		lab.DovecotLog, strings.Join(options, "\n\t"))
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	before := logs(t)
	lab.Until(t, "logrotate has rotated", func() bool { // not twice to the same name
		out, err := exec.Command("logrotate", "-v", "-f", "-s", "/run/logrotate.state", conf).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "already exists") {
			t.Fatalf("logrotate: %v: %s", err, out)
		}
		return logs(t) != before
	})
	lab.Until(t, "Dovecot writes to the new log", func() bool {
		s.POP3(t, witness, "bob").Logout()
		return strings.Contains(dovecotLog(t), ", rip="+witness+",")
	})
}

// logs names the rotated logs.
func logs(t *testing.T) string {
	t.Helper()
	names, err := filepath.Glob("/var/log/dovecot*")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(names, " ")
}

// logsIn logs in and waits for its line, whoever reads it.
func (s *site) logsIn(t *testing.T, from string) {
	t.Helper()
	s.POP3(t, from, "alice").Logout()
	lab.Until(t, "Dovecot has logged the login", func() bool { return strings.Contains(dovecotLog(t), ", rip="+from+",") })
}

// What Dovecot logged while popgate was down is caught up, however it was
// rotated meanwhile, twice, by the program that does it everywhere.
func TestLoginsInRotatedLogsAreCaughtUp(t *testing.T) {
	const old = "203.0.113.9"
	down := []string{"198.51.100.11", "198.51.100.12", "198.51.100.13"}
	for _, tt := range []struct {
		name    string
		options []string
		wants   string // a rotated log must be called like this
	}{
		{"plain", nil, "dovecot.log.2"},
		{"dateext", []string{"dateext", "dateformat -%Y%m%d-%s"}, "dovecot.log-2*"},
		{"extension", []string{"extension .log"}, "dovecot.2.log"},
		{"compress", []string{"compress"}, "dovecot.log.2.gz"},
		{"compress delaycompress", []string{"compress", "delaycompress"}, "dovecot.log.2.gz"},
		{"dateext compress", []string{"dateext", "dateformat -%Y%m%d-%s", "compress"}, "dovecot.log-2*.gz"},
		{"copytruncate", []string{"copytruncate"}, "dovecot.log.2"},
		{"copytruncate compress", []string{"copytruncate", "compress"}, "dovecot.log.2.gz"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			on(t, "none", setup{config: []string{"log: {level: debug}"}}, func(t *testing.T, s *site) {
				s.logsIn(t, alice)
				s.granted(t, alice)
				s.popgate.Stop(t)
				line := loginLine(t, alice)
				long := time.Now().Add(-2 * time.Hour).Format("Jan 02 15:04:05")
				writeLog(t, lab.DovecotLog, strings.Replace(long+line[len(long):], "rip="+alice, "rip="+old, 1))
				for i, client := range down {
					if i > 0 {
						s.logrotate(t, tt.options)
					}
					s.logsIn(t, client)
				}
				if found, _ := filepath.Glob("/var/log/" + tt.wants); len(found) == 0 {
					t.Fatalf("logrotate made %s, want %s", logs(t), tt.wants)
				}
				s.popgate.Start(t)
				for _, client := range down {
					s.granted(t, client)
				}
				if g := s.shows(t, old); g.Client.IsValid() {
					t.Errorf("a login of two hours ago has a grant until %v", g.Expires)
				}
				if strings.Contains(s.popgate.Output.String(), "client="+alice) {
					t.Errorf("a login from before the saved position was read again:\n%s", s.popgate.Output)
				}

				// Rotated beside a popgate that reads.
				s.logrotate(t, tt.options)
				s.logsIn(t, bobs)
				s.granted(t, bobs)

				// Without a saved position: what was logged within one ttl.
				s.popgate.Kill()
				emptied(t, "/var/lib/popgate")
				s.popgate.Start(t)
				for _, client := range append(down, alice, bobs) {
					s.granted(t, client)
				}
				if g := s.shows(t, old); g.Client.IsValid() {
					t.Errorf("without saved state, a login of two hours ago has a grant until %v", g.Expires)
				}
			})
		})
	}
}

// emptied removes all that is in a directory.
func emptied(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			t.Fatal(err)
		}
	}
}
