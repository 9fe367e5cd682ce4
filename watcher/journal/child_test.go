package journal

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"popgate/internal/lab"
)

// instead has a script run in the place of journalctl, until mended. $real is
// the true one.
func (s *journalStage) instead(script string) {
	s.Helper()
	dir := s.TempDir()
	real, path := filepath.Join(dir, "real"), filepath.Join(dir, "journalctl")
	text, err := os.ReadFile(journalctlPath)
	s.check(err)
	s.check(os.WriteFile(real, text, 0o755))
	s.check(os.WriteFile(path, []byte("#!/bin/sh\nreal="+real+"\n"+script), 0o755))
	s.host.Replace(s.T, journalctlPath, path)
}

func (s *journalStage) mended() {
	s.Helper()
	s.check(syscall.Unmount(journalctlPath, syscall.MNT_DETACH))
}

func (s *journalStage) waitDown(words ...string) {
	s.Helper()
	s.until("the source is down for: "+strings.Join(words, ", "), func() bool {
		if len(s.down) == 0 {
			return false
		}
		why := s.down[len(s.down)-1]
		for _, w := range words {
			if !strings.Contains(why, w) {
				return false
			}
		}
		return true
	})
}

// A journalctl that follows and tells nothing is the worst of all: everything
// looks well, and no login is ever seen.
func TestAJournalctlThatTellsNothingIsNoticed(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.login(1).waitJournal("a login", loginMessage(1), 1)
		s.instead(`case "$*" in *--follow*) exec sleep 60;; esac; exec $real "$@"` + "\n")
		s.source.silent = 300 * time.Millisecond
		s.start()
		s.waitDown("--follow does not tell")
		if s.up > 0 {
			s.Error("up before the login was told")
		}
		s.mended()
		s.waitUp().wantLogins(1)
	})
}

func TestWhyTheJournalCantBeRead(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.login(1).start().waitUp().wantLogins(1)
		s.stop()
		s.login(2).waitJournal("a login", loginMessage(2), 1)
		for _, tt := range []struct {
			name  string
			spoil func()
			words []string
			mend  func()
		}{
			{"no journalctl", func() { journalctlPath = "/nowhere/journalctl" }, []string{"/nowhere/journalctl: not there", "install systemd"},
				func() { s.stop(); journalctlPath = "/usr/bin/journalctl"; s.start() }},
			{"a journalctl that may not be run", func() { journalctlPath = "/etc/hosts" }, []string{"/etc/hosts: popgate's user may not run it", "mode should be 0755"},
				func() { s.stop(); journalctlPath = "/usr/bin/journalctl"; s.start() }},
			{"a journalctl that fails", func() { s.instead("echo words of its own >&2; exit 3\n") }, []string{"exit status 3: words of its own"},
				s.mended},
			{"a journalctl that dies while it follows", func() { s.instead(`case "$*" in *--follow*) kill -9 $$;; esac; exec $real "$@"` + "\n") }, []string{"signal: killed"},
				s.mended},
			{"no machine id", func() { s.check(os.WriteFile("/etc/machine-id", nil, 0o644)) }, []string{"/etc/machine-id: holds no machine id", "systemd-machine-id-setup"},
				func() { s.check(os.WriteFile("/etc/machine-id", []byte(s.journal.MachineID+"\n"), 0o644)) }},
			{"no journal", func() { s.check(os.Rename(s.journal.Dir(), "/var/log/elsewhere")) }, []string{"no journal of this machine in /var/log/journal/" + s.journal.MachineID, "does systemd-journald run?"},
				func() { s.check(os.Rename("/var/log/elsewhere", "/var/log/journal/"+s.journal.MachineID)) }},
		} {
			tt.spoil()
			s.start()
			s.waitDown(tt.words...)
			if _, err := s.source.Usable(s.Context()); tt.name != "a journalctl that dies while it follows" && (err == nil || !strings.Contains(err.Error(), tt.words[0])) {
				s.Errorf("%s: Usable says %v", tt.name, err)
			}
			tt.mend()
			s.waitUp()
			s.stop()
		}
		s.wantLogins(2)
	})
}

func TestWhatIsDoubtfulAboutAUnit(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.login(1)
		other := s.journal.Pipe(s.T, "other.service", 0, "/usr/bin/logger")
		fmt.Fprintln(other, "a word")
		s.waitJournal("a word", "a word", 1)
		s.waitJournal("a login", loginMessage(1), 1)
		for unit, want := range map[string]string{"dovecot.service": "", "other.service": "never by a program that is believed", "silent.service": "never logged"} {
			doubts, err := s.newSource(unit).Usable(s.Context())
			if err != nil || (want == "") != (len(doubts) == 0) || want != "" && !strings.Contains(doubts[0], want) {
				s.Errorf("%s: %q, %v; want %q", unit, doubts, err, want)
			}
		}
	})
}

func (s *journalStage) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// What the environment or the working directory of popgate are is no concern of
// journalctl's.
func TestJournalctlHasAnEnvironmentOfItsOwn(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		for name, value := range map[string]string{"PATH": "/tmp", "LD_PRELOAD": "/tmp/evil.so", "SYSTEMD_LOG_LEVEL": "debug", "LC_ALL": "de_DE", "JOURNAL_STREAM": "1:1"} {
			s.check(os.Setenv(name, value)) // of this process, which runs one test only
		}
		s.instead(`env >>/run/environment; pwd >>/run/environment; exec $real "$@"` + "\n")
		s.start().waitUp().login(1).wantLogins(1)
		text, err := os.ReadFile("/run/environment")
		s.check(err)
		for line := range strings.Lines(string(text)) {
			switch line = strings.TrimSpace(line); line {
			case "PATH=/usr/bin:/bin", "LC_ALL=C", "PWD=/", "/":
			default:
				if !strings.HasPrefix(line, "_=") && !strings.HasPrefix(line, "OLDPWD") && !strings.HasPrefix(line, "SHLVL") {
					s.Errorf("journalctl was told %q", line)
				}
			}
		}
	})
}

// A frozen journalctl is as good as none, and one that wakes up again does no
// harm.
func TestAFrozenJournalctlIsReplaced(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.source.proved, s.source.silent = 100*time.Millisecond, 300*time.Millisecond
		s.start().waitUp()
		frozen := children()
		for _, pid := range frozen {
			syscall.Kill(pid, syscall.SIGSTOP)
		}
		s.login(1).wantLogins(1)
		for _, pid := range frozen {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
				s.Errorf("journalctl %d is still there", pid)
			} else if !os.IsNotExist(err) && err != fs.ErrNotExist {
				s.Error(err)
			}
		}
	})
}
