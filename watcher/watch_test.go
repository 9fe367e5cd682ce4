package watcher

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

// script is a source that plays records.
type script struct {
	records []Record
	end     bool // and then ends by itself, which a source must not
	since   []time.Time
	from    []relay.Position
}

func (s *script) Name() string { return "script" }
func (s *script) Type() string { return "test" }

func (s *script) Records(ctx context.Context, from relay.Position, since time.Time) iter.Seq[Record] {
	s.from, s.since = append(s.from, from), append(s.since, since)
	return func(yield func(Record) bool) {
		for _, r := range s.records {
			if r.Arrived.IsZero() {
				r.Arrived = time.Now()
			}
			if !yield(r) {
				return
			}
		}
		if !s.end {
			<-ctx.Done()
		}
	}
}

// notes keeps in order what a Ledger was told, and what was reported.
type notes struct {
	mu     sync.Mutex
	told   []string
	events []relay.Event
	states []relay.SourceState
}

func (n *notes) note(s string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, s)
}

func (n *notes) Event(ev relay.Event, _ time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, ev.User)
	n.events = append(n.events, ev)
}

func (n *notes) Gap(source string, _ time.Time) { n.note("gap " + source) }

func (n *notes) Position(_ string, p relay.Position) { n.note(fmt.Sprint("position ", p.Offset)) }

func (n *notes) report(s relay.SourceState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.states = append(n.states, s)
}

func (n *notes) reported() []relay.SourceState {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.states)
}

func (n *notes) last() relay.SourceState {
	all := n.reported()
	if len(all) == 0 {
		return relay.SourceState{}
	}
	return all[len(all)-1]
}

// play runs Watch over records until they are used up.
func play(t *testing.T, src Source, during func(n *notes)) *notes {
	n := &notes{}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	parser, err := format.New("dovecot")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(done)
		Watch(ctx, src, Options{Format: "dovecot", Parser: parser, TimeZone: time.UTC, Ledger: n, Report: n.report,
			Unparsed: func(line []byte) { n.note("unparsed") }})
	}()
	synctest.Wait()
	if during != nil {
		during(n)
	}
	stop()
	<-done
	return n
}

func text(s string) Record { return Record{Kind: Line, Text: []byte(s), Live: true} }

func TestWatchHandsOverInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		at := func(r Record, offset int64) Record { r.Position.Offset = offset; return r }
		n := play(t, &script{records: []Record{
			text(logged(now, 1)),
			at(text(logged(now, 2)), 20),
			text("no log line"),
			at(Record{Kind: Gap}, 30),
			text(logged(now, 3)),
			at(Record{Kind: CaughtUp}, 40),
		}}, nil)
		want := []string{"u1", "u2", "position 20", "gap script", "position 30", "u3", "position 40"}
		if !slices.Equal(n.told, want) {
			t.Errorf("told %q, want %q", n.told, want)
		}
		if ev := n.events[0]; ev.Source != "script" || ev.Format != "dovecot" || !ev.Zoned || ev.Time.Unix() != now.Unix() {
			t.Errorf("event %+v lacks what Watch knows", ev)
		}
	})
}

func TestWatchHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		looks := strings.Replace(logged(start, 4), "lip=", "lop=", 1)
		play(t, &script{records: []Record{
			text(logged(start, 1)), text(logged(start.Add(-time.Minute), 2)), text(looks), text(""), {Kind: Gap}, {Kind: CaughtUp},
			{Kind: Down, Err: errors.New("on fire")}, {Kind: Down, Err: errors.New("on fire")}, text(logged(start, 3)), {Kind: CaughtUp},
		}}, func(n *notes) {
			var statuses []string
			for _, s := range n.reported() {
				statuses = append(statuses, s.Status.String()+" "+s.Error)
			}
			if want := []string{"starting ", "up ", "down on fire", "up "}; !slices.Equal(statuses, want) {
				t.Errorf("reported %q, want %q", statuses, want)
			}
			time.Sleep(reportEvery)
			synctest.Wait()
			s := n.last()
			want := relay.SourceState{Name: "script", Type: "test", Status: relay.SourceUp, Since: start, LastLine: start,
				LastLogin: start.Truncate(time.Second), Lines: 5, Logins: 3, Unparsed: 1, Gaps: 1}
			if s.LastLogin = s.LastLogin.In(start.Location()); s != want {
				t.Errorf("health is\n%+v, want\n%+v", s, want)
			}
			reports := len(n.reported())
			time.Sleep(time.Hour)
			synctest.Wait()
			if now := len(n.reported()); now != reports {
				t.Errorf("%d reports while nothing happened", now-reports)
			}
		})
	})
}

// What was passed over is known before the source counts as read: else a
// client whose login was among it would be refused.
func TestWatchTellsOfMissedLinesBeforeItIsUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := play(t, &script{records: []Record{
			{Kind: CaughtUp}, {Kind: Gap}, {Kind: Down, Err: errors.New("on fire")},
			{Kind: Gap, Lost: true, Unread: 100}, {Kind: CaughtUp}, {Kind: Gap, Lost: true, Unread: 20}, {Kind: Gap, Lost: true},
		}}, nil)
		var told []string
		for _, s := range n.reported() {
			told = append(told, fmt.Sprint(s.Status, s.Gaps, s.Missed, s.Skipped))
		}
		want := []string{"starting 0 0 0", "up 0 0 0", "down 1 0 0", "down 2 1 100", "up 2 1 100", "up 3 2 120", "up 4 3 120"}
		if !slices.Equal(told[:len(want)], want) {
			t.Errorf("told %q, want %q", told, want)
		}
	})
}

func TestWatchReportsAtMostEachSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var records []Record
		for i := range 10_000 {
			records = append(records, text(logged(time.Now(), i)), Record{Kind: CaughtUp})
		}
		n := play(t, &script{records: records}, func(*notes) { time.Sleep(time.Minute) })
		if got := len(n.reported()); got != 3 {
			t.Errorf("%d reports, want starting, up and the counts", got)
		}
		if n.last().Logins != 10_000 {
			t.Errorf("%d logins reported, want 10000", n.last().Logins)
		}
	})
}

func TestWatchStartsASourceAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		src := &script{end: true, records: []Record{text(logged(time.Now(), 1)), {Kind: CaughtUp, Position: relay.Position{Offset: 7}}}}
		n := play(t, src, func(n *notes) {
			if s := n.last(); s.Status != relay.SourceDown || s.Error == "" {
				t.Errorf("a source that ended is %v: %s", s.Status, s.Error)
			}
			time.Sleep(1500 * time.Millisecond)
			synctest.Wait()
		})
		if want := []string{"u1", "position 7", "gap script", "u1", "position 7", "gap script"}; !slices.Equal(n.told, want) {
			t.Errorf("told %q, want %q", n.told, want)
		}
		if len(src.from) != 2 || src.from[1].Offset != 7 {
			t.Errorf("started from %+v, want the second time from the position", src.from)
		}
	})
}

func TestWatchDatesEvents(t *testing.T) {
	arrived := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	zoned, yearless := time.RFC3339, time.Stamp
	for _, tt := range []struct {
		name   string
		layout string
		at     time.Duration // the stamp against the arrival
		live   bool
		want   time.Duration // the event's time against the arrival
		event  bool
	}{
		{"a zoned stamp is what it says", zoned, -time.Hour, true, -time.Hour, true},
		{"a zoned stamp ahead is what it says: the ledger judges", zoned, time.Hour, true, time.Hour, true},
		{"a stamp without zone", yearless, -time.Hour, true, -time.Hour, true},
		{"a stamp without zone ahead is the arrival", yearless, time.Hour, true, 0, true},
		{"replayed", zoned, -time.Hour, false, -time.Hour, true},
		{"replayed, without zone", yearless, -time.Hour, false, -time.Hour, true},
		{"replayed, without zone, just now", yearless, 0, false, 0, true},
		{"replayed, ahead: its time can't be told", zoned, time.Hour, false, 0, false},
		{"replayed, without zone, ahead: an old log's day may have come round again", yearless, time.Hour, false, 0, false},
		{"replayed, without zone, half a day ahead", yearless, 12 * time.Hour, false, 0, false},
		{"replayed, ahead by less than a minute", yearless, 30 * time.Second, false, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				line := logged(arrived, 1)
				line = arrived.Add(tt.at).Format(tt.layout) + line[strings.IndexByte(line, ' '):]
				r := text(line)
				r.Live, r.Arrived = tt.live, arrived
				n := play(t, &script{records: []Record{r, {Kind: CaughtUp}}}, nil)
				if got := len(n.events) == 1; got != tt.event {
					t.Fatalf("%q: event %v, want %v", line, got, tt.event)
				}
				if !tt.event {
					if n.last().Unparsed != 1 {
						t.Errorf("not counted as unparsed")
					}
				} else if got := n.events[0].Time.Sub(arrived); got != tt.want {
					t.Errorf("%q: the login was at arrival%+v, want %+v", line, got, tt.want)
				} else if n.events[0].Live != tt.live {
					t.Errorf("live: %v", n.events[0].Live)
				}
			})
		})
	}
}

// The grants of a ledger with a ttl of half an hour, which is all that matters
// to the attacks below.
func granted(n *notes, at time.Time) (users []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, ev := range n.events {
		age := at.Sub(ev.Time)
		if ev.Kind == relay.Login && age < 30*time.Minute && age > -time.Minute {
			users = append(users, ev.User)
		}
	}
	return users
}

// An old log is copied, moved or appended over the live one, whole or in the
// midst of being copied.
func TestWatchOldLogOverTheLiveOneDoesNotGrant(t *testing.T) {
	for _, layout := range []string{time.RFC3339, time.Stamp} {
		for _, tt := range []struct {
			name string
			do   func(path string, old []byte) error
		}{
			{"copied over it", func(path string, old []byte) error { return os.WriteFile(path, old, 0o640) }},
			{"moved over it", func(path string, old []byte) error {
				if err := os.WriteFile(path+".old", old, 0o640); err != nil {
					return err
				}
				return os.Rename(path+".old", path)
			}},
			{"copied slowly", func(path string, old []byte) error {
				f, err := os.Create(path)
				for i := 0; i < len(old) && err == nil; i += 9999 {
					_, err = f.Write(old[i:min(len(old), i+9999)])
				}
				return errors.Join(err, f.Close())
			}},
		} {
			t.Run(tt.name+", stamped "+layout, func(t *testing.T) {
				t.Parallel()
				path := watchedLog(t)
				now := time.Now().UTC()
				// A log of last year, from a day before this day to a day after
				// it, in which today comes round again, ahead of us too.
				var old strings.Builder
				for i := range 3000 {
					at := now.AddDate(-1, 0, 0).Add(time.Duration(i-1500) * time.Minute)
					if layout == time.Stamp && at.Sub(now.AddDate(-1, 0, 0)) < 2*time.Minute {
						continue // stamped like something that may just have happened: nobody can tell
					}
					line := logged(at, 1000+i)
					old.WriteString(at.Format(layout) + line[strings.IndexByte(line, ' '):] + "\n")
				}
				n, stop := watchFile(t, path)
				appendLine(t, path, logged(now, 1))
				wait(t, func() bool { return slices.Contains(granted(n, now), "u1") })
				if err := tt.do(path, []byte(old.String())); err != nil {
					t.Fatal(err)
				}
				wait(t, func() bool { return n.last().Gaps > 0 })
				// Only then comes a login of now.
				appendLine(t, path, logged(time.Now(), 2))
				wait(t, func() bool { return slices.Contains(granted(n, now), "u2") })
				stop()
				if got := granted(n, time.Now()); !slices.Equal(got, []string{"u1", "u2"}) {
					t.Errorf("granted to %d users: %q, want u1 and u2", len(got), shortened(got[:min(len(got), 9)]))
				}
			})
		}
	}
}

// watchedLog makes an empty log.
func watchedLog(t testing.TB) string {
	dir := t.TempDir()
	path := filepath.Join(dir, "mail.log")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, nil, 0o640)); err != nil {
		t.Fatal(err)
	}
	return path
}

// watchFile watches a log for real, as the daemon does.
func watchFile(t testing.TB, path string, options ...func(*Options, *File)) (n *notes, stop func()) {
	t.Helper()
	n = &notes{}
	parser, err := format.New("dovecot")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	src := NewFile(path, time.UTC)
	o := Options{Format: "dovecot", Parser: parser, TimeZone: time.UTC, Ledger: n, Report: n.report, Since: time.Now().Add(-30 * time.Minute)}
	for _, set := range options {
		set(&o, src)
	}
	done := make(chan struct{})
	go func() { defer close(done); Watch(ctx, src, o) }()
	stop = func() { cancel(); <-done }
	t.Cleanup(stop)
	wait(t, func() bool { return n.last().Status != relay.SourceStarting })
	return n, stop
}

func appendLine(t testing.TB, path, line string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err == nil {
		_, err = f.WriteString(line + "\n")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wait waits for a condition, which must come true within ten seconds.
func wait(t testing.TB, for_ func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !for_(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited ten seconds in vain")
		}
	}
}

func TestWatchTellsHowFarBehindALongReadingIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		old := logged(time.Now().Add(-10*time.Minute), 1)
		src := &script{records: slices.Repeat([]Record{text(old)}, flushEvery)}
		play(t, src, func(n *notes) {
			time.Sleep(reportEvery)
			synctest.Wait()
			if s := n.last(); s.Status != relay.SourceStarting || s.Lag < 10*time.Minute || s.Lag > 11*time.Minute || s.Lines != flushEvery {
				t.Errorf("health is %+v, want starting, ten minutes behind", s)
			}
		})
	})
}
