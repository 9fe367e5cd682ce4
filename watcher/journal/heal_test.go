package journal

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"popgate/internal/lab"
	"popgate/internal/relay"
	"popgate/watcher/format"
)

// children gives the process ids of the journalctls that run.
func children() []int {
	var pids []int
	found, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, path := range found {
		if comm, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(comm)) == "journalctl" {
			var pid int
			fmt.Sscanf(path, "/proc/%d/comm", &pid)
			pids = append(pids, pid)
		}
	}
	return pids
}

func killChildren() {
	for _, pid := range children() {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

func TestAReadingGoesOnWhereTheLastOneEnded(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.login(1).start().waitUp().wantLogins(1)
		s.login(2).wantLogins(2)
		s.stop()
		if n := children(); len(n) > 0 {
			s.Errorf("journalctl %v left behind", n)
		}
		s.login(3).login(4)
		s.waitJournal("what was logged meanwhile", loginMessage(4), 1)
		s.start().waitUp().wantLogins(3, 4)
		s.stop()
		s.start().waitUp().want()
	})
}

func TestOnlyEntriesSeenComingAreLive(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.login(1).login(2).waitJournal("two logins", loginMessage(2), 1)
		s.start().waitUp().login(3)
		s.until("three entries", func() bool { return len(s.got) == 3 })
		if live := fmt.Sprint(s.live); live != "[false false true]" {
			s.Errorf("live %s, want only the last", live)
		}
	})
}

// Whatever happens to the journal and its readers, no login is lost and none is
// told twice.
func TestNothingIsLostWhen(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.start().waitUp()
		n := 0
		for _, tt := range []struct {
			name   string
			happen func()
		}{
			{"the journal is rotated", func() { s.journal.Control(s.T, "--rotate") }},
			{"journald is told by SIGUSR2", func() { s.journal.Signal(s.T, syscall.SIGUSR2) }},
			{"what was read is vacuumed", func() { s.journal.Control(s.T, "--rotate", "--vacuum-files=1") }},
			{"journald restarts", func() { s.journal.Stop(s.T); s.journal.Start(s.T) }},
			{"journald is killed", func() { s.journal.Kill(); s.journal.Start(s.T) }},
			{"the reader is killed", killChildren},
			{"the reader is told to end", func() { syscall.Kill(children()[0], syscall.SIGTERM) }},
			{"all of it at a time", func() {
				killChildren()
				s.journal.Control(s.T, "--rotate")
				s.journal.Kill()
				s.journal.Start(s.T)
			}},
		} {
			s.Log(tt.name)
			for range 2 {
				s.login(n + 1).wantLogins(n + 1)
				tt.happen()
				s.login(n+2).login(n+3).wantLogins(n+2, n+3)
				n += 3
			}
		}
	})
}

// Before /var can be written to, journald keeps its journal in /run; then it
// moves all of it.
func TestAJournalThatMovesIsFollowed(t *testing.T) {
	onJournal(t, lab.JournalOptions{Volatile: true}, func(s *journalStage) {
		s.login(1).start().waitUp().wantLogins(1)
		s.login(2).wantLogins(2)
		if !strings.HasPrefix(s.journal.Dir(), "/run/") {
			s.Fatalf("the journal lies in %s", s.journal.Dir())
		}
		if err := s.journal.MakePersistent(); err != nil {
			s.Fatal(err)
		}
		s.journal.Control(s.T, "--flush")
		lab.Until(s.T, "the journal has moved", func() bool { return strings.HasPrefix(s.journal.Dir(), "/var/") })
		s.login(3).wantLogins(3)
		s.journal.Control(s.T, "--relinquish-var")
		lab.Until(s.T, "the journal has moved back", func() bool { return strings.HasPrefix(s.journal.Dir(), "/run/") })
		s.login(4).want("GAP", loginMessage(4))
		s.stop()
		s.login(5).start().waitUp().wantLogins(5)
	})
}

func TestAPlaceThatIsGoneFallsBackToATime(t *testing.T) {
	foreign := "s=00000000000000000000000000000001;i=1;b=00000000000000000000000000000002;m=1;t=1;x=1"
	for _, tt := range []struct {
		name string
		turn func(s *journalStage, p *relay.Position)
		want string // before the logins
	}{
		{"no cursor at all", func(s *journalStage, p *relay.Position) { *p = relay.Position{} }, ""},
		{"no cursor, nothing had been logged yet", func(s *journalStage, p *relay.Position) { p.Cursor = "" }, "LOST"},
		{"nonsense", func(s *journalStage, p *relay.Position) { p.Cursor = "--file=/etc/shadow" }, "LOST"},
		{"another machine's", func(s *journalStage, p *relay.Position) { p.Cursor = foreign }, "LOST"},
		{"another machine's, of the future", func(s *journalStage, p *relay.Position) {
			p.Cursor, p.Time = strings.Replace(foreign, "t=1;", "t=7fffffffffffff;", 1), time.Now().Add(24*time.Hour)
		}, "LOST"},
		{"read by a clock that was set back since", func(s *journalStage, p *relay.Position) { p.Time = time.Now().Add(24 * time.Hour) }, "nothing"},
		{"another proof's", func(s *journalStage, p *relay.Position) { p.Sum++ }, ""},
		{"vacuumed with unread entries", func(s *journalStage, p *relay.Position) {
			s.journal.Control(s.T, "--rotate", "--vacuum-files=1")
			s.login(2).waitJournal("a later login", loginMessage(2), 1)
		}, "LOST"},
		{"vacuumed after all had been read", func(s *journalStage, p *relay.Position) {
			s.journal.Control(s.T, "--rotate", "--vacuum-files=1")
			s.login(2).waitJournal("a later login", loginMessage(2), 1)
			p.Time = time.Now()
		}, "GAP"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
				s.login(1).start().waitUp().wantLogins(1)
				s.stop()
				if s.position.Cursor == "" || s.position.Sum == 0 {
					s.Fatalf("position %+v", s.position)
				}
				if strings.Contains(tt.name, "cursor, nothing") || tt.name == "nonsense" || tt.name == "another machine's" {
					s.position.Time = time.Now().Add(-10 * time.Minute) // before this host's journal began
				}
				tt.turn(s, &s.position)
				var want []string
				switch {
				case strings.HasPrefix(tt.name, "vacuumed"):
					want = []string{tt.want, loginMessage(2)}
				case tt.want == "":
					want = []string{loginMessage(1)}
				case tt.want != "nothing":
					want = []string{tt.want, loginMessage(1)}
				}
				s.start().waitUp().want(want...)
				s.login(3).wantLogins(3)
			})
		})
	}
}

func TestAMessageThatIsNoTextIsNoLogin(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		texts := make(chan format.Message, 10)
		lines := make(chan string, 10)
		s.each = func(line []byte) {
			var m format.Message
			if !format.Split(line, &m) {
				s.Errorf("no line: %s", line)
			}
			lines <- string(line)
			texts <- m
		}
		s.start().waitUp()
		login := loginMessage(66)
		const master = "/usr/sbin/dovecot"
		s.host.Replace(s.T, master, "/usr/bin/perl")
		raw := s.journal.Pipe(s.T, "dovecot.service", 0, master, "-e",
			`use Socket; $| = 1; socket(S, AF_UNIX, SOCK_DGRAM, 0); while (<STDIN>) { chomp; s/\|/\n/g; s/~/\xff/g; s/!/"x" x 5000/e; send(S, "<22>dovecot: $_", 0, sockaddr_un("/dev/log")) }`)
		for _, tt := range []struct{ name, text, has string }{
			{"bytes", login + "~", `"MESSAGE":[`},
			{"a line feed", "x|" + login, `\n`},
			{"too long", login + "!", `"MESSAGE":null`},
		} {
			if _, err := raw.WriteString(tt.text + "\n"); err != nil {
				s.Fatal(err)
			}
			line, m := <-lines, <-texts
			if !strings.Contains(line, tt.has) || !m.Withheld || len(m.Text) > 0 {
				s.Errorf("%s: withheld %v, text %q in %s", tt.name, m.Withheld, m.Text, line)
			}
		}
	})
}

func TestWhatJournaldSuppressesIsLost(t *testing.T) {
	onJournal(t, lab.JournalOptions{Conf: []string{"RateLimitIntervalSec=1s", "RateLimitBurst=5"}}, func(s *journalStage) {
		other := s.journal.Pipe(s.T, "other.service", 0, "/usr/bin/logger", "-t", "other")
		s.start().waitUp()
		for n := range 2000 {
			fmt.Fprintf(other, "noise %d\n", n)
		}
		lab.Until(s.T, "journald has said so", func() bool {
			fmt.Fprintln(other, "noise")
			time.Sleep(50 * time.Millisecond)
			return strings.Contains(s.journal.Control(s.T, "-o", "cat"), "messages from other.service")
		})
		s.login(1).wantLogins(1) // another unit's loss is not ours
		for n := range 2000 {
			fmt.Fprintf(s.dovecot, "noise %d\n", n)
		}
		lost := func() bool {
			s.mu.Lock()
			defer s.mu.Unlock()
			return strings.Contains(strings.Join(s.got, "\n"), "LOST")
		}
		if lost() {
			s.Error("a loss before journald has said so")
		}
		lab.Until(s.T, "the loss is told", func() bool {
			s.says("noise")
			time.Sleep(50 * time.Millisecond)
			return lost()
		})
	})
}

// ProcSubset=pid hides the boot's id, without which journalctl --follow shows
// nothing, unless it is told --merge.
func TestTheJournalIsReadInsideASandbox(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.login(1).waitJournal("a login", loginMessage(1), 1)
		if err := syscall.Mount("proc", "/proc", "proc", 0, "subset=pid"); err != nil {
			s.Fatal(err)
		}
		if _, err := os.Stat("/proc/sys/kernel/random/boot_id"); err == nil {
			s.Fatal("the boot's id can be read")
		}
		s.start().waitUp().wantLogins(1)
		s.login(2).wantLogins(2)
	})
}
