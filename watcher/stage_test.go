package watcher

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"popgate/internal/relay"
)

// stage is a directory with a log and a follower that is stepped by hand.
type stage struct {
	*testing.T
	dir, path string
	file      *File
	w         *follower
	ahead     time.Duration // how far the follower's clock is ahead
	got       []string      // lines, and GAP for gaps
	live      []bool        // of each in got
	down      []string
	up        bool
	lost      int            // gaps of lines that were passed over
	unread    int64          // bytes of them
	position  relay.Position // the last one that was told
}

func newStage(t *testing.T) *stage {
	s := &stage{T: t, dir: t.TempDir()}
	// Whoever made the temporary directory for us may have let a group in.
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.path = filepath.Join(s.dir, "mail.log")
	s.use(s.path)
	t.Cleanup(s.stop)
	return s
}

func (s *stage) use(path string) {
	s.file = NewFile(path, time.UTC)
	s.file.now = func() time.Time { return time.Now().Add(s.ahead) }
}

// start begins a reading from the last position that was told, and within the last half hour.
func (s *stage) start() *stage {
	s.w = newFollower(s.file, &hints{}, s.position, s.file.now().Add(-30*time.Minute), s.record)
	return s.step()
}

// stop ends the reading the way a daemon does.
func (s *stage) stop() {
	if s.w != nil {
		s.w.toldAt = time.Time{}
		s.w.settle()
		s.w.close()
		s.w = nil
	}
}

// kill ends it without a last word.
func (s *stage) kill() *stage {
	s.w.close()
	s.w = nil
	return s
}

// step takes the step of a slow tick.
func (s *stage) step() *stage {
	s.w.recheck = true
	s.w.step()
	return s
}

func (s *stage) record(r Record) bool {
	switch r.Kind {
	case Line:
		s.got = append(s.got, string(r.Text))
		s.live = append(s.live, r.Live)
	case Gap:
		s.got = append(s.got, "GAP")
		if s.unread += r.Unread; r.Lost {
			s.lost++
		}
		s.live = append(s.live, r.Live)
	case CaughtUp:
		s.up = true
	case Down:
		s.up = false
		s.down = append(s.down, r.Err.Error())
	}
	if !r.Position.IsZero() {
		s.position = r.Position
	}
	return true
}

// want compares what was handed over since the last time.
func (s *stage) want(lines ...string) *stage {
	s.Helper()
	if !slices.Equal(s.got, lines) {
		s.Errorf("handed over %q, want %q", shortened(s.got), shortened(lines))
	}
	s.got, s.live = nil, nil
	return s
}

func shortened(lines []string) []string {
	lines = slices.Clone(lines)
	for i, l := range lines {
		if len(l) > 60 {
			lines[i] = fmt.Sprintf("%.20s...(%d)", l, len(l))
		}
	}
	return lines
}

func (s *stage) wantUp() *stage {
	s.Helper()
	if !s.up {
		s.Errorf("the source is not up: %q", s.down)
	}
	return s
}

// wantDown wants the source down, for a reason that holds these words.
func (s *stage) wantDown(words ...string) *stage {
	s.Helper()
	if s.up || len(s.down) == 0 {
		s.Fatalf("the source is not down")
	}
	for _, word := range words {
		if why := s.down[len(s.down)-1]; !strings.Contains(why, word) {
			s.Errorf("down because %q, want %q in it", why, word)
		}
	}
	return s
}

// at gives a path in the stage's directory.
func (s *stage) at(name string) string { return filepath.Join(s.dir, name) }

func (s *stage) do(err error) *stage {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
	return s
}

// open opens a log as a logging daemon does.
func (s *stage) open(name string) *os.File {
	s.Helper()
	f, err := os.OpenFile(s.at(name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	s.do(err)
	s.Cleanup(func() { f.Close() })
	return f
}

// append writes text to a log, opened for this alone.
func (s *stage) append(name string, text ...string) *stage {
	s.Helper()
	f := s.open(name)
	defer f.Close()
	for _, t := range text {
		_, err := f.WriteString(t)
		s.do(err)
	}
	return s
}

func (s *stage) rename(from, to string) *stage {
	s.Helper()
	return s.do(os.Rename(s.at(from), s.at(to)))
}

func (s *stage) remove(name string) *stage {
	s.Helper()
	return s.do(os.Remove(s.at(name)))
}

func (s *stage) truncate(name string, size int64) *stage {
	s.Helper()
	return s.do(os.Truncate(s.at(name), size))
}

// copy copies one log over another, in place.
func (s *stage) copy(from, to string) *stage {
	s.Helper()
	b, err := os.ReadFile(s.at(from))
	s.do(err)
	return s.do(os.WriteFile(s.at(to), b, 0o640))
}

// age makes a file look as if it had been written some time ago.
func (s *stage) age(name string, d time.Duration) *stage {
	s.Helper()
	t := time.Now().Add(-d)
	return s.do(os.Chtimes(s.at(name), t, t))
}

// asRoot skips a test that has to give files to others; where everything must
// run it fails instead.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") == "true" {
		t.Fatal("CI=true and not root: files can't be given to others")
	}
	t.Skip("needs root: files must be given to others")
}

// asOther runs do with the file permissions of another user.
func asOther(t *testing.T, uid int, do func()) {
	t.Helper()
	asRoot(t)
	if err := syscall.Setfsuid(uid); err != nil {
		t.Fatal(err)
	}
	defer syscall.Setfsuid(0)
	do()
}

// logged gives a line of a log with a stamp.
func logged(at time.Time, n int) string {
	return fmt.Sprintf("%s mx1 dovecot: imap-login: Login: user=<u%d>, method=PLAIN, rip=192.0.2.%d, lip=198.51.100.1, mpid=%d, session=<s%dAAAA>",
		at.UTC().Format(time.RFC3339), n, n%250+1, n+1000, n)
}
