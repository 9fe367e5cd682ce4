package watcher

import (
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
)

// gz packs a log as gzip(1) does: the packed file keeps the time of the log,
// which is removed.
func (s *stage) gz(name string) *stage {
	s.Helper()
	b, err := os.ReadFile(s.at(name))
	s.do(err)
	info, err := os.Stat(s.at(name))
	s.do(err)
	f, err := os.Create(s.at(name + ".gz"))
	s.do(err)
	z := gzip.NewWriter(f)
	z.Write(b)
	s.do(z.Close()).do(f.Close())
	s.do(os.Chtimes(f.Name(), info.ModTime(), info.ModTime()))
	return s.remove(name)
}

func TestFileResumes(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(s *stage) // while the daemon is down; a and b had been read
		want []string
	}{
		{"in the same file", func(s *stage) { s.append("mail.log", "c\n") }, []string{"c"}},
		{"in the same file, nothing new", func(s *stage) {}, nil},
		{"in the rotated file, then in the new one", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log.1").append("mail.log", "d\n")
		}, []string{"c", "d"}},
		{"in the rotated file, the new one not there yet", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log.1")
		}, []string{"c"}},
		{"in a file rotated by date", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log-20261122").append("mail.log", "d\n")
		}, []string{"c", "d"}},
		{"in a file rotated by date before the extension", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail-20261122.log").append("mail.log", "d\n")
		}, []string{"c", "d"}},
		{"in a file rotated twice, with a whole one between", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log.2").append("mail.log", "d\n")
			s.rename("mail.log", "mail.log.1").append("mail.log", "e\n")
		}, []string{"c", "d", "e"}},
		{"in a gzipped file", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log.1").gz("mail.log.1").append("mail.log", "d\n")
		}, []string{"c", "d"}},
		{"in a gzipped file, with a whole one between", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log.2").gz("mail.log.2")
			s.append("mail.log.1", "d\n").append("mail.log", "e\n")
		}, []string{"c", "d", "e"}},
		{"in a copy, after copytruncate", func(s *stage) {
			s.append("mail.log", "c\n").copy("mail.log", "mail.log.1").truncate("mail.log", 0).append("mail.log", "d\n")
		}, []string{"c", "d"}},
		{"in a copy, after copytruncate and regrown past the place", func(s *stage) {
			s.append("mail.log", "c\n").copy("mail.log", "mail.log.1").truncate("mail.log", 0).append("mail.log", "dddd\neeee\nffff\n")
		}, []string{"c", "dddd", "eeee", "ffff"}},
		{"in a gzipped copy, after copytruncate", func(s *stage) {
			s.append("mail.log", "c\n").copy("mail.log", "mail.log.1").truncate("mail.log", 0).gz("mail.log.1").append("mail.log", "d\n")
		}, []string{"c", "d"}},
		{"a rotated file that is not the one is not read", func(s *stage) {
			s.append("mail.log", "c\n").append("mail.log.1", "x\ny\nz\n")
		}, []string{"c"}},
		{"vanished: a gap, then what is there", func(s *stage) {
			s.remove("mail.log").append("mail.log", "d\n")
		}, []string{"GAP", "d"}},
		{"truncated: a gap, then what is there", func(s *stage) {
			s.truncate("mail.log", 0).append("mail.log", "d\n")
		}, []string{"GAP", "d"}},
		{"truncated and regrown: a gap, then what is there", func(s *stage) {
			s.truncate("mail.log", 0).append("mail.log", "dddd\neeee\n")
		}, []string{"GAP", "dddd", "eeee"}},
		{"a place in the middle of a line is none", func(s *stage) {
			s.position.Offset--
			s.position.Sum = sum([]byte("a\nb"))
		}, []string{"GAP", "a", "b"}},
		{"a place behind the end is none", func(s *stage) { s.position.Offset = 1 << 40 }, []string{"GAP", "a", "b"}},
		{"a place before the start is none", func(s *stage) { s.position.Offset = -2 }, []string{"GAP", "a", "b"}},
		{"a broken gzip file is passed over", func(s *stage) {
			s.remove("mail.log").append("mail.log.1.gz", "\x1f\x8bnonsense").append("mail.log", "d\n")
		}, []string{"GAP", "d"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			s.append("mail.log", "a\nb\n").start().want("a", "b").stop()
			if s.position.Offset != 4 {
				t.Fatalf("position %+v, want one after both lines", s.position)
			}
			tt.do(s)
			s.start().want(tt.want...)
			// Killed now, nothing may be lost; told what was read, nothing comes twice.
			s.ahead += PositionEvery
			s.step().step().want()
			s.stop()
			if _, err := os.Stat(s.path); err == nil {
				s.append("mail.log", "z\n").start()
				if n := len(s.got); n == 0 || s.got[n-1] != "z" {
					t.Errorf("after the next restart handed over %q, want z at the end", s.got)
				}
			}
		})
	}
}

// While a rotated file may still be written to, a restart begins with it.
func TestFileResumesInAFileThatIsStillWritten(t *testing.T) {
	s := newStage(t)
	daemon := s.open("mail.log")
	daemon.WriteString("a\n")
	s.start().want("a").rename("mail.log", "mail.log.1").append("mail.log", "")
	s.ahead += PositionEvery
	s.step().kill()
	daemon.WriteString("b\n")
	s.append("mail.log", "c\n").start().want("b", "c")
	daemon.WriteString("d\n")
	s.append("mail.log", "e\n").step().want("d", "e")
	s.ahead += drain
	s.step().step().stop()
	s.start().want()
}

func TestFileWithoutPositionReplaysTheWindow(t *testing.T) {
	now := time.Now()
	hours := func(from, to int, n int) string {
		var b strings.Builder
		for i := range n {
			at := now.Add(-time.Duration(from)*time.Minute + time.Duration(i)*(time.Duration(from-to)*time.Minute/time.Duration(n)))
			b.WriteString(logged(at, i) + "\n")
		}
		return b.String()
	}
	for _, tt := range []struct {
		name string
		put  func(s *stage)
		most int // lines that may be read for nothing
	}{
		{"one small file", func(s *stage) { s.append("mail.log", hours(100, 1, 300)) }, 300},
		{"one big file", func(s *stage) { s.append("mail.log", hours(2000, 0, 100_000)) }, 3000},
		{"the window begins in a rotated file", func(s *stage) {
			s.append("mail.log.1", hours(2000, 20, 50_000)).append("mail.log", hours(20, 0, 100))
			s.age("mail.log.1", 20*time.Minute)
		}, 2000},
		{"the window begins in a gzipped file", func(s *stage) {
			s.append("mail.log.1", hours(2000, 20, 50_000)).append("mail.log", hours(20, 0, 100))
			s.age("mail.log.1", 20*time.Minute).gz("mail.log.1")
		}, 2000},
		{"older rotated files are left alone", func(s *stage) {
			s.append("mail.log.1", hours(100, 40, 50)).append("mail.log", hours(20, 0, 100)).age("mail.log.1", 40*time.Minute)
		}, 0},
		{"lines without stamp are read rather than missed", func(s *stage) {
			s.append("mail.log", strings.Repeat("no stamp\n", 10_000), hours(29, 0, 100))
		}, 10_000},
		{"a clock that was set back by minutes", func(s *stage) {
			s.append("mail.log", hours(2000, 25, 20_000), hours(33, 0, 1000))
		}, 3000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			tt.put(s)
			want := map[string]bool{}
			for _, name := range []string{"mail.log", "mail.log.1", "mail.log.1.gz"} {
				f, err := os.Open(s.at(name))
				if err != nil {
					continue
				}
				for line := range Lines(f) {
					stamp, _, _ := strings.Cut(string(line), " ")
					if at, err := time.Parse(time.RFC3339, stamp); err == nil && !at.Before(now.Add(-30*time.Minute)) {
						want[string(line)] = true
					}
				}
				f.Close()
			}
			s.start().wantUp()
			if len(want) < 50 {
				t.Fatalf("only %d lines in the window: the test is wrong", len(want))
			}
			extra := 0
			for i, l := range s.got {
				if !want[l] {
					extra++
				}
				if s.live[i] {
					t.Fatalf("replayed line %q counts as live", l)
				}
				delete(want, l)
			}
			if len(want) > 0 {
				t.Errorf("%d lines of the window are missing", len(want))
			}
			if extra > tt.most {
				t.Errorf("%d lines read that are too old, want at most %d", extra, tt.most)
			}
		})
	}
}

// Finding the window reads a few places, not the file.
func TestFileWindowIsFoundFromTheEnd(t *testing.T) {
	s := newStage(t)
	old := strings.Repeat(logged(time.Now().Add(-48*time.Hour), 1)+"\n", 7000)
	f := s.open("mail.log")
	for range 64 {
		f.WriteString(old)
	}
	last := logged(time.Now(), 2)
	f.WriteString(last + "\n")
	s.start()
	if n := len(s.got); n > 1000 || n == 0 || s.got[n-1] != last {
		t.Errorf("%d lines read of a file of 448001, want the last few", n)
	}
}

// What is read because of a position is bounded; behind it the window counts.
func TestFileUnreadRestIsBounded(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().want("a").stop()
	s.truncate("mail.log", maxCatchUp+1<<20) // a hole: as long, and no disk space
	line := logged(time.Now(), 1)
	for range 2000 {
		s.append("mail.log", "\n"+logged(time.Now().Add(-2*time.Hour), 0))
	}
	s.append("mail.log", "\n"+line+"\n").start()
	if s.got[0] != "GAP" || s.got[len(s.got)-1] != line || len(s.got) > 1000 {
		t.Errorf("%d lines, first %.20q, want a gap and the window", len(s.got), s.got[0])
	}
}

// An old log put in the place of the live one, none of whose lines may be
// taken for new ones.
func TestFilePutBackFromThePast(t *testing.T) {
	for name, ago := range map[string]time.Duration{"hours ago": 5 * time.Hour, "weeks ago": 500 * time.Hour, "its last line lies ahead": -2 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			s.append("mail.log", "a\n").start().want("a")
			last := time.Now().Add(-ago)
			for i := range 600 {
				at := last.Add(-time.Duration(600-i) * time.Minute)
				s.append("old", at.UTC().Format(time.Stamp), " mx1 dovecot: imap-login: Login: and so on\n")
			}
			s.rename("old", "mail.log").step().want("GAP")
			s.append("mail.log", "b\n").step().want("b").wantUp()
			s.append("old", "half").copy("mail.log", "old").append("old", "half").copy("old", "mail.log")
			s.step().append("mail.log", " done\nc\n").step()
			if n := len(s.got); n == 0 || s.got[n-1] != "c" {
				t.Errorf("handed over %q, want c at the end", s.got)
			}
		})
	}
}

func TestRotatedNames(t *testing.T) {
	for name, want := range map[string]bool{
		"mail.log.1": true, "mail.log.12.gz": true, "mail.log-20261122": true, "mail.log-20261122-1763776800.gz": true,
		"mail.log.0": true, "mail.log.old": true, "mail.log.2026-11-22T02:05": true, "mail-20261122.log": true, "mail.1.log.gz": true,
		"mail.log": false, "mail.log.gz": false, "mail.logx.1": false, "mail.log1": false, "mail.log.1.bz2": false,
		"mail.log.swp": false, "mail.log.1~": false, "mail2.log": false, "mail.info.1": false, "mail.log.": false, "xmail.log.1": false,
	} {
		if got := rotated(name, "mail.log"); got != want {
			t.Errorf("rotated(%q) = %v, want %v", name, got, want)
		}
	}
}

// A position that holds when a file is saved holds for that file only.
func FuzzPosition(f *testing.F) {
	f.Add("a\nb\n", int64(2), uint64(0))
	f.Add("a\n", int64(-3), uint64(7))
	f.Fuzz(func(t *testing.T, text string, offset int64, sum uint64) {
		s := newStage(t)
		s.append("mail.log", text)
		if offset == unbelieved {
			return
		}
		s.position = relay.Position{Device: 1, Offset: offset, Sum: sum, Time: time.Unix(1, 0)}
		s.start().stop()
		lines := strings.Split(text, "\n")
		want := fmt.Sprint(append([]string{"GAP"}, lines[:len(lines)-1]...))
		if got := fmt.Sprint(s.got); got != want && len(text) < MaxLine {
			t.Errorf("a position that holds nowhere: %s, want %s", got, want)
		}
	})
}

// A big log that appears, and is of now, is read as far back as it matters.
func TestFileBigLogAppears(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().want("a")
	now := time.Now()
	var b strings.Builder
	for i := range 20_000 {
		b.WriteString(logged(now.Add(time.Duration(i-20_000)*time.Second), i) + "\n")
	}
	s.append("new", b.String()).rename("new", "mail.log").step()
	if n := len(s.got); n < 1800 || n > 4000 || s.got[n-1] != logged(now.Add(-time.Second), 19_999) {
		t.Errorf("%d lines read, want those of the last half hour and few more", n)
	}
}

// A rotation goes on between the listing of the rotated logs and their opening:
// under the name of one there is another by then.
func TestARotatedLogIsOpenedUnderTheNameItHasByNow(t *testing.T) {
	s := newStage(t).append("mail.log", "a\n").start()
	s.append("mail.log.1", "one\n").append("mail.log.2", "two\n").append("mail.log.3", "three\n")
	listed := s.w.siblings(time.Time{})
	if len(listed) != 3 {
		t.Fatalf("%d rotated logs listed, want 3", len(listed))
	}
	s.rename("mail.log.3", "mail.log.4").rename("mail.log.2", "mail.log.3").rename("mail.log.1", "mail.log.2").append("mail.log.1", "zero\n")
	for _, l := range listed {
		want := map[string]string{"mail.log.1": "one\n", "mail.log.2": "two\n", "mail.log.3": "three\n"}[filepath.Base(l.path)]
		opened := s.w.open(l)
		if opened == nil {
			t.Errorf("%s was not found again", l.path)
			continue
		}
		b := make([]byte, 64)
		n, _ := opened.ReadAt(b, 0)
		s.w.shut(opened)
		if string(b[:n]) != want {
			t.Errorf("opened for %s: %q, want %q", filepath.Base(l.path), b[:n], want)
		}
	}
}
