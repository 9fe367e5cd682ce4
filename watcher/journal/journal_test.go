package journal

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"popgate/internal/lab"
	"popgate/internal/relay"
	"popgate/watcher"
)

// dovecotLog is Dovecot's logging process. In these tests its place is taken by
// a program that only writes what it is told, from the same path.
const dovecotLog = "/usr/lib/dovecot/log"

// journalStage is a host with journald and a Source that reads it.
type journalStage struct {
	*testing.T
	host    *lab.Host
	journal *lab.Journal
	source  *Source
	dovecot *os.File          // lines for Dovecot's logging process
	each    func(line []byte) // nil: nobody wants them as they are

	mu       sync.Mutex
	got      []string // messages, and GAP, LOST
	live     []bool
	down     []string
	up       int
	position relay.Position
	stop     func()
}

func onJournal(t *testing.T, o lab.JournalOptions, test func(s *journalStage)) {
	t.Parallel()
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		s := &journalStage{T: t, host: h, stop: func() {}}
		s.journal = h.Journal(t, o)
		h.Replace(t, dovecotLog, "/usr/bin/logger")
		s.dovecot = s.journal.Pipe(t, "dovecot.service", 0, dovecotLog, "-t", "dovecot", "-p", "mail.info")
		s.source = s.newSource("dovecot.service")
		test(s)
		s.stop()
	})
}

func (s *journalStage) newSource(units ...string) *Source {
	s.Helper()
	j, err := New(units, "dovecot", Trust{})
	if err != nil {
		s.Fatal(err)
	}
	return j
}

// login has Dovecot's logging process tell of a login.
func (s *journalStage) login(n int) *journalStage {
	s.Helper()
	return s.says(loginMessage(n))
}

func loginMessage(n int) string {
	return fmt.Sprintf("imap-login: Login: user=<u%d>, method=PLAIN, rip=192.0.2.%d, lip=198.51.100.1, mpid=%d, session=<s%dAAAA>", n, n%250+1, n+1000, n)
}

func (s *journalStage) says(message string) *journalStage {
	s.Helper()
	if _, err := s.dovecot.WriteString(message + "\n"); err != nil {
		s.Fatal(err)
	}
	return s
}

// start begins a reading from the last position that was told.
func (s *journalStage) start() *journalStage {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s.mu.Lock()
	from := s.position
	s.up, s.down = 0, nil
	s.mu.Unlock()
	go func() {
		defer close(done)
		for r := range s.source.Records(ctx, from, time.Now().Add(-30*time.Minute)) {
			s.record(r)
		}
	}()
	s.stop = func() { cancel(); <-done; s.stop = func() {} }
	return s
}

func (s *journalStage) record(r watcher.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch r.Kind {
	case watcher.Line:
		if s.each != nil {
			s.each(r.Text)
		}
		s.got, s.live = append(s.got, messageOf(r.Text)), append(s.live, r.Live)
	case watcher.Gap:
		word := "GAP"
		if r.Lost {
			word = "LOST"
		}
		s.got, s.live = append(s.got, word), append(s.live, r.Live)
	case watcher.CaughtUp:
		s.up++
		s.down = nil
	case watcher.Down:
		s.down = append(s.down, r.Err.Error())
	}
	if !r.Position.IsZero() {
		s.position = r.Position
	}
}

func messageOf(line []byte) string {
	_, text, _ := strings.Cut(string(line), `"MESSAGE":"`)
	text, _, _ = strings.Cut(text, `"`)
	return text
}

// waitUp waits until the source is up.
func (s *journalStage) waitUp() *journalStage {
	s.Helper()
	s.until("the source is up", func() bool { return s.up > 0 && s.down == nil })
	return s
}

func (s *journalStage) until(what string, holds func() bool) {
	s.Helper()
	lab.Until(s.T, what, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return holds() })
}

// want waits for these records, and no others.
func (s *journalStage) want(want ...string) *journalStage {
	s.Helper()
	end := time.Now().Add(20 * time.Second)
	for {
		s.mu.Lock()
		got := slices.Clone(s.got)
		s.mu.Unlock()
		if slices.Equal(got, want) {
			break
		}
		if len(got) > len(want) || time.Now().After(end) {
			s.Fatalf("handed over %q, want %q; down: %q", got, want, s.down)
		}
		time.Sleep(2 * time.Millisecond)
	}
	s.mu.Lock()
	s.got, s.live = nil, nil
	s.mu.Unlock()
	return s
}

func (s *journalStage) wantLogins(n ...int) *journalStage {
	s.Helper()
	var want []string
	for _, n := range n {
		want = append(want, loginMessage(n))
	}
	return s.want(want...)
}

// export gives one entry in the journal's export format, claiming to be
// Dovecot's.
func (s *journalStage) export(n int) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		s.Fatal(err)
	}
	id := strings.ReplaceAll(strings.TrimSpace(string(boot)), "-", "")
	now := time.Now().UnixMicro()
	return fmt.Sprintf("__REALTIME_TIMESTAMP=%d\n__MONOTONIC_TIMESTAMP=%d\n_BOOT_ID=%s\n_MACHINE_ID=%s\n_HOSTNAME=mx1\n_TRANSPORT=syslog\n_UID=0\n_GID=0\n_PID=77\n"+
		"_SYSTEMD_UNIT=dovecot.service\n_EXE=%s\n_COMM=log\nSYSLOG_IDENTIFIER=dovecot\nPRIORITY=6\nMESSAGE=%s\n\n", now, now%1e9, id, s.journal.MachineID, dovecotLog, loginMessage(n))
}

// What another machine sent lies beside this machine's journals, and
// journalctl --merge shows it with every field as it was sent.
func TestAnEntryOfAnotherMachineIsNoLogin(t *testing.T) {
	for name, dir := range map[string]string{
		"in the folder of systemd-journal-remote": "/var/log/journal/remote/remote-mx1.journal",
		"beside the machines' folders":            "/var/log/journal/remote-mx1.journal",
		"in a folder of an old machine id":        "/var/log/journal/99999999222233334444555566667777/system.journal",
		"among this machine's own":                "/var/log/journal/MACHINE/remote-mx1.journal",
	} {
		t.Run(name, func(t *testing.T) {
			onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
				file := strings.Replace(dir, "MACHINE", s.journal.MachineID, 1)
				s.login(1).waitJournal("a login", loginMessage(1), 1)
				s.journal.Import(s.T, file, s.export(66))
				s.waitJournal("what was imported", loginMessage(66), 1)
				s.start().waitUp().wantLogins(1)
				s.journal.Import(s.T, strings.Replace(file, ".journal", "2.journal", 1), s.export(67))
				s.login(2).wantLogins(2)
			})
		})
	}
}

// send sends each line of its input to journald's own socket, with the line
// ends of an entry written as |.
const send = `use Socket; $| = 1; socket(S, AF_UNIX, SOCK_DGRAM, 0); while (<STDIN>) { chomp; s/\|/\n/g; send(S, "$_\n", 0, sockaddr_un("/run/systemd/journal/socket")) }`

func TestOnlyTheServersOwnProcessIsBelieved(t *testing.T) {
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		const master = "/usr/sbin/dovecot" // the other program of Dovecot's that is believed
		s.host.Replace(s.T, master, "/usr/bin/perl")
		s.start().waitUp()
		native := "SYSLOG_IDENTIFIER=dovecot|MESSAGE=" + loginMessage(66)
		trusted := "|_SYSTEMD_UNIT=dovecot.service|_EXE=" + dovecotLog + "|_UID=0|_TRANSPORT=syslog|_MACHINE_ID=" + s.journal.MachineID
		attacks := 0
		for _, a := range []struct {
			name, unit string
			uid        uint32
			text       string
			command    []string
		}{
			{"another program of another unit", "evil.service", 0, loginMessage(66), []string{"/usr/bin/logger", "-t", "dovecot", "-p", "mail.info"}},
			{"the right program in another unit", "evil.service", 0, loginMessage(66), []string{dovecotLog, "-t", "dovecot", "-p", "mail.info"}},
			{"another program of the unit, as root", "dovecot.service", 0, loginMessage(66), []string{"/usr/bin/logger", "-t", "dovecot"}},
			{"the right program, run by a user in the unit", "dovecot.service", 5000, loginMessage(66), []string{dovecotLog, "-t", "dovecot"}},
			{"another program's output", "dovecot.service", 0, loginMessage(66), []string{"/usr/bin/systemd-cat", "-t", "dovecot", "cat"}},
			{"the right program's output", "dovecot.service", 0, loginMessage(66), []string{"/usr/bin/systemd-cat", "-t", "dovecot", master, "-pe", "$|=1"}},
			{"another unit, with trusted fields of its own", "evil.service", 5000, native + trusted, []string{"/usr/bin/perl", "-e", send}},
			{"a user's program in the unit, with trusted fields of its own", "dovecot.service", 5000, native + trusted, []string{"/usr/bin/perl", "-e", send}},
			{"the right program, past syslog(3)", "dovecot.service", 0, native + trusted, []string{master, "-e", send}},
			{"a forged notice of dropped entries", "dovecot.service", 0, "_TRANSPORT=driver|MESSAGE_ID=" + suppressed + "|OBJECT_SYSTEMD_UNIT=dovecot.service|" + native, []string{"/usr/bin/perl", "-e", send}},
		} {
			if _, err := s.journal.Pipe(s.T, a.unit, a.uid, a.command[0], a.command[1:]...).WriteString(a.text + "\n"); err != nil {
				s.Fatalf("%s: %v", a.name, err)
			}
			attacks++
			s.waitJournal(a.name, loginMessage(66), attacks)
		}
		s.login(1).wantLogins(1)
	})
}

// waitJournal waits until the journal has a message so many times.
func (s *journalStage) waitJournal(what, message string, times int) {
	s.Helper()
	lab.Until(s.T, "the journal has: "+what, func() bool {
		return strings.Count(s.journal.Control(s.T, "--merge", "-o", "cat", "--output-fields=MESSAGE"), message) >= times
	})
}
