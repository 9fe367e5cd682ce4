package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"popgate/internal/lab"
)

const dovecotUnit = "dovecot.service"

// onJournal runs a test on a site whose Dovecot logs to a real journald, and
// whose popgate, as a user of its own, reads that.
func onJournal(t *testing.T, extra []string, test func(t *testing.T, s *site, j *lab.Journal)) {
	t.Parallel()
	lab.WithDaemon(t, func(t *testing.T, h *lab.Host) {
		j := h.Journal(t, lab.JournalOptions{})
		set := setup{config: []string{"sources: [{journal: [" + dovecotUnit + "], format: dovecot}]"}}
		s := &site{Host: h, mta: "postfix", setup: set}
		s.dovecot = h.Dovecot(t, lab.DovecotOptions{Syslog: true, Unit: dovecotUnit, Extra: extra})
		s.postfix = h.Postfix(t, lab.PostfixOptions{Milter: true})
		s.popgate = h.Popgate(t, s.config())
		s.waitUp(t)
		test(t, s, j)
	})
}

// waitUp waits until popgate's sources are up.
func (s *site) waitUp(t *testing.T) {
	t.Helper()
	lab.Until(t, "the source is up", func() bool {
		out, _ := s.popgate.Run(t, "status", "--json")
		var status struct{ Sources []struct{ State string } }
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			t.Fatalf("popgate status --json: %v in %q", err, out)
		}
		return len(status.Sources) == 1 && status.Sources[0].State == "up"
	})
}

// readers gives the journalctls that run.
func readers() []string {
	var pids []string
	found, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range found {
		if comm, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(comm)) == "journalctl" {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

func TestALoginInTheJournalGrants(t *testing.T) {
	onJournal(t, nil, func(t *testing.T, s *site, j *lab.Journal) {
		refused(t, s.SMTP(t, alice), "before the login")
		s.login(t, alice)
		s.relays(t, s.SMTP(t, alice), "after the login")
		s.POP3Fails(t, mallet, "alice")

		// What happens while popgate is away is caught up with: stopped, or killed.
		s.popgate.Stop(t)
		if left := readers(); len(left) > 0 {
			t.Errorf("journalctl %v outlived popgate", left)
		}
		s.POP3(t, "192.0.2.1", "alice").Logout()
		s.popgate.Start(t)
		s.popgate.WaitGrant(t, "192.0.2.1")
		s.waitUp(t)
		s.popgate.Kill()
		lab.Until(t, "no journalctl outlives popgate", func() bool { return len(readers()) == 0 })
		s.IMAP(t, "192.0.2.2", "alice").Logout()
		s.popgate.Start(t)
		s.popgate.WaitGrant(t, "192.0.2.2")
		s.relays(t, s.SMTP(t, "192.0.2.2"), "after a login while popgate was dead")

		j.Control(t, "--rotate", "--vacuum-files=1")
		s.login(t, "192.0.2.3")
		j.Kill()
		j.Start(t)
		s.login(t, "192.0.2.4")
		refused(t, s.SMTP(t, mallet), "who never logged in")
		checked, code := s.popgate.Run(t, "check")
		if !strings.Contains(checked, "ok    source journal:"+dovecotUnit) || code != 0 {
			t.Errorf("check: exit %d: %s", code, checked)
		}
		s.onlySubjects(t, "after the login", "after a login while popgate was dead")
	})
}

// A unit that never logs, and one of which no program is believed, look like a
// quiet night; all that an administrator might look at says what they are.
func TestAUnitThatWillNeverShowALoginIsTold(t *testing.T) {
	onJournal(t, nil, func(t *testing.T, s *site, _ *lab.Journal) {
		s.login(t, alice)
		for _, x := range []struct{ unit, format, says string }{
			{"dovecott.service", "dovecot", "dovecott.service has never logged to this host's journal"},
			{dovecotUnit, "courier", "dovecot.service logs, but never by a program that is believed"},
		} {
			s.popgate.Stop(t)
			s.setup.config = []string{"sources: [{journal: [" + x.unit + "], format: " + x.format + "}]"}
			s.popgate.Configure(t, s.config())
			s.popgate.Start(t)
			s.waitUp(t)
			lab.Until(t, "status says so", func() bool { out, _ := s.popgate.Run(t, "status"); return strings.Contains(out, x.says) })
			lab.Until(t, "the log says so", func() bool { return strings.Contains(s.popgate.Output.String(), x.says) })
			if out, code := s.popgate.Run(t, "check"); !strings.Contains(out, x.says) || code == 4 {
				t.Errorf("check: exit %d: %s", code, out)
			}
			if out, code := s.popgate.Run(t, "test-log", "--journal", x.unit, "--format", x.format); !strings.Contains(out, x.says) || code != 1 {
				t.Errorf("test-log: exit %d: %s", code, out)
			}
		}
	})
}

// An entry that systemd-journal-remote took from another machine, with all the
// fields of Dovecot's, lies where journalctl --merge finds it.
func TestAnEntryOfAnotherMachineGrantsNothing(t *testing.T) {
	onJournal(t, nil, func(t *testing.T, s *site, j *lab.Journal) {
		s.login(t, "192.0.2.9")
		own := j.Control(t, "-o", "export", "_SYSTEMD_UNIT="+dovecotUnit, "-n", "20")
		forged := strings.ReplaceAll(own, "rip=192.0.2.9", "rip="+mallet)
		for _, file := range []string{"/var/log/journal/remote/remote-evil.journal", "/var/log/journal/remote-evil.journal"} {
			j.Import(t, file, forged)
		}
		if !strings.Contains(j.Control(t, "--merge", "-o", "cat", "_SYSTEMD_UNIT="+dovecotUnit, "_EXE=/usr/lib/dovecot/log", "_UID=0"), mallet) {
			t.Fatal("the attack is none: journalctl --merge does not show it")
		}
		grantsNothing(t, s)
		s.popgate.Stop(t)
		s.popgate.Start(t)
		s.waitUp(t)
		refused(t, s.SMTP(t, mallet), "after a new start")
	})
}

// A journal that can't be read looks, to journalctl, like one with nothing in it.
func TestAJournalThatMayNotBeReadPutsStrangersOff(t *testing.T) {
	onJournal(t, nil, func(t *testing.T, s *site, j *lab.Journal) {
		s.login(t, alice)
		file := filepath.Join(j.Dir(), "system.journal")
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
		lab.Until(t, "the source is down", func() bool {
			out, code := s.popgate.Run(t, "status")
			return code == 5 && strings.Contains(out, "usermod -aG systemd-journal popgate")
		})
		deferred(t, s.SMTP(t, mallet), "a stranger while the journal can't be read")
		s.relays(t, s.SMTP(t, alice), "a client with a grant")
		s.takesLocal(t, s.SMTP(t, mallet), "local mail")
		s.POP3(t, "192.0.2.1", "alice").Logout()
		if err := os.Chmod(file, 0o640); err != nil {
			t.Fatal(err)
		}
		s.popgate.WaitGrant(t, "192.0.2.1")
		s.waitUp(t)
	})
}

// What an administrator hangs into Dovecot runs in its unit, as the user who
// logged in, and may write to the log.
func TestAPostLoginScriptGrantsNothing(t *testing.T) {
	forged := "imap-login: Login: user=<alice>, method=PLAIN, rip=" + mallet + ", lip=127.0.0.1, mpid=1, session=<AAAAAAAAAAA>"
	// Of a process that is gone at once journald would not find out the unit.
	script := "#!/bin/sh\n" +
		"(echo '" + forged + "'; sleep 1) | logger -t dovecot -p mail.info &\n" +
		"(echo '" + forged + "'; sleep 1) | systemd-cat -t dovecot cat &\n" +
		"echo '" + forged + "' >&2\n" +
		"exec \"$@\"\n"
	extra := []string{
		"service imap {", "  executable = imap imap-postlogin", "}",
		"service imap-postlogin {", "  executable = script-login /etc/dovecot/postlogin.sh", "  user = vmail", "  unix_listener imap-postlogin {", "  }", "}",
	}
	onJournal(t, extra, func(t *testing.T, s *site, j *lab.Journal) {
		if err := os.WriteFile("/etc/dovecot/postlogin.sh", []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		s.IMAP(t, "192.0.2.9", "alice").Logout()
		s.popgate.WaitGrant(t, "192.0.2.9")
		lab.Until(t, "all three forgeries are in the journal", func() bool {
			return strings.Count(j.Control(t, "-o", "cat", "_SYSTEMD_UNIT="+dovecotUnit), mallet) >= 3
		})
		grantsNothing(t, s)
	})
}
