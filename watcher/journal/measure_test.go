package journal

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"popgate/internal/lab"
	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// measured skips a test whose result is a figure for docs/performance.md.
func measured(t *testing.T) {
	t.Helper()
	if os.Getenv("POPGATE_MEASURE") == "" {
		t.Skip("set POPGATE_MEASURE=1 to measure")
	}
}

// heard notes when each login was heard of.
type heard struct {
	mu sync.Mutex
	at map[string]time.Time
}

func (a *heard) note(user string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.at[user] = time.Now()
}

func (a *heard) Event(ev relay.Event, _ time.Time) { a.note(ev.User) }
func (a *heard) Gap(string, time.Time)             {}
func (a *heard) Position(string, relay.Position)   {}
func (a *heard) of(user string) (time.Time, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	t, ok := a.at[user]
	return t, ok
}

// How long it takes from a line that Dovecot's logging process hands to syslog(3)
// to the event, and to the line that `journalctl -f` prints into a pipe.
func TestMeasureJournalLatency(t *testing.T) {
	measured(t)
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		ours, theirs := &heard{at: map[string]time.Time{}}, &heard{at: map[string]time.Time{}}
		parser, err := format.New("dovecot")
		s.check(err)
		go watcher.Watch(s.Context(), s.source, watcher.Options{Format: "dovecot", Parser: parser, Since: time.Now(), Ledger: ours})
		follow := exec.CommandContext(s.Context(), "journalctl", "-f", "-n0", "-o", "cat", "_SYSTEMD_UNIT=dovecot.service")
		pipe, err := follow.StdoutPipe()
		s.check(err)
		s.check(follow.Start())
		go func() {
			for lines := bufio.NewScanner(pipe); lines.Scan(); {
				_, user, _ := strings.Cut(lines.Text(), "user=<")
				user, _, _ = strings.Cut(user, ">")
				theirs.note(user)
			}
		}()
		logged := map[string]time.Time{}
		for n := range 120 {
			user := fmt.Sprintf("u%d", n)
			logged[user] = time.Now()
			s.login(n)
			lab.Until(s.T, user+" is heard of", func() bool {
				_, one := ours.of(user)
				_, two := theirs.of(user)
				return one && (two || n < 20) // they have to start first
			})
			time.Sleep(time.Duration(n%7) * time.Millisecond)
		}
		for name, a := range map[string]*heard{"popgate": ours, "journalctl -f": theirs} {
			var took []time.Duration
			for n := 20; n < 120; n++ {
				user := fmt.Sprintf("u%d", n)
				at, _ := a.of(user)
				took = append(took, at.Sub(logged[user]))
			}
			slices.Sort(took)
			s.Logf("%s: p50 %v, longest %v", name, took[50], took[99])
		}
	})
}

// What reading a journal of a million logins costs beside journalctl alone.
func TestMeasureJournalReplay(t *testing.T) {
	measured(t)
	onJournal(t, lab.JournalOptions{Conf: []string{"RateLimitIntervalSec=0", "SystemMaxUse=4G"}}, func(s *journalStage) {
		const entries = 1_000_000
		feed := bufio.NewWriterSize(s.dovecot, 1<<16)
		for n := range entries {
			fmt.Fprintln(feed, loginMessage(n))
		}
		s.check(feed.Flush())
		s.waitJournal("all", loginMessage(entries-1), 1)
		cpu := func(who int) time.Duration {
			var u syscall.Rusage
			s.check(syscall.Getrusage(who, &u))
			return time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		for range 3 {
			before := cpu(syscall.RUSAGE_CHILDREN)
			s.check(exec.Command("sh", "-c", "journalctl -o json _SYSTEMD_UNIT=dovecot.service >/dev/null").Run())
			alone := cpu(syscall.RUSAGE_CHILDREN) - before

			parser, err := format.New("dovecot")
			s.check(err)
			own, child, began := cpu(syscall.RUSAGE_SELF), cpu(syscall.RUSAGE_CHILDREN), time.Now()
			ledger := &counter{want: entries, done: make(chan struct{})}
			ctx, stop := context.WithCancel(s.Context())
			var watching sync.WaitGroup
			watching.Go(func() {
				watcher.Watch(ctx, s.source, watcher.Options{Format: "dovecot", Parser: parser, Since: time.Now().Add(-time.Hour), Ledger: ledger})
			})
			<-ledger.done
			took := time.Since(began)
			stop()
			watching.Wait()
			s.Logf("journalctl -o json alone: %v of processor time; popgate: itself %v, its journalctl %v, %v by the clock",
				alone, cpu(syscall.RUSAGE_SELF)-own, cpu(syscall.RUSAGE_CHILDREN)-child, took)
		}
	})
}

// counter waits for so many events.
type counter struct {
	want, got int
	done      chan struct{}
}

func (c *counter) Event(relay.Event, time.Time) {
	if c.got++; c.got == c.want {
		close(c.done)
	}
}
func (c *counter) Gap(string, time.Time)           {}
func (c *counter) Position(string, relay.Position) {}

// What looking at the journal every 20 ms costs while nothing is logged.
func TestMeasureJournalIdle(t *testing.T) {
	measured(t)
	onJournal(t, lab.JournalOptions{}, func(s *journalStage) {
		s.start().waitUp()
		ticks := func(pid string) (n int) {
			text, err := os.ReadFile("/proc/" + pid + "/stat")
			s.check(err)
			var user, system int
			_, rest, _ := strings.Cut(string(text), ") ")
			f := strings.Fields(rest)
			fmt.Sscan(f[11], &user)
			fmt.Sscan(f[12], &system)
			return user + system
		}
		child := fmt.Sprint(children()[0])
		own, theirs := ticks("self"), ticks(child)
		const seconds = 20
		time.Sleep(seconds * time.Second)
		s.Logf("in %d s: popgate %d ms, its journalctl %d ms of processor time", seconds, 10*(ticks("self")-own), 10*(ticks(child)-theirs))
	})
}
