package watcher

import (
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"popgate/internal/relay"
)

func TestFileFollowsEveryRotation(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(s *stage)
	}{
		{"appended lines", func(s *stage) {
			s.append("mail.log", "c\nd\n").step().want("c", "d")
		}},
		{"rename and create", func(s *stage) {
			s.rename("mail.log", "mail.log.1").append("mail.log", "c\n").step().want("c")
		}},
		{"rename and create, the last lines unread", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log.1").append("mail.log", "d\n").step().want("c", "d")
		}},
		{"rename, and the daemon writes on until it is told to reopen", func(s *stage) {
			daemon := s.open("mail.log")
			s.rename("mail.log", "mail.log.1").append("mail.log", "").step().want()
			daemon.WriteString("c\n")
			s.step().want("c")
			daemon.WriteString("d\n")
			s.append("mail.log", "e\n").step().want("d", "e")
		}},
		{"rename without create, the daemon writes on", func(s *stage) {
			daemon := s.open("mail.log")
			s.rename("mail.log", "mail.log.1").step().want().wantUp()
			daemon.WriteString("c\n")
			s.step().want("c")
			s.append("mail.log", "d\n").step().want("d")
		}},
		{"two rotations between two looks", func(s *stage) {
			s.append("mail.log", "c\n").rename("mail.log", "mail.log.1").append("mail.log", "d\n").step().want("c", "d")
			s.append("mail.log", "e\n").rename("mail.log.1", "mail.log.2").rename("mail.log", "mail.log.1")
			s.append("mail.log", "f\n").step().want("e", "f")
		}},
		{"copytruncate", func(s *stage) {
			s.copy("mail.log", "mail.log.1").truncate("mail.log", 0).step().want("GAP")
			s.append("mail.log", "c\n").step().want("c")
		}},
		{"copytruncate, lines unread are found in the copy", func(s *stage) {
			s.append("mail.log", "c\nd\n").copy("mail.log", "mail.log.1").truncate("mail.log", 0)
			s.append("mail.log", "e\n").step().want("GAP", "c", "d", "e")
		}},
		{"copytruncate inside an over-long line, what follows it is found in the copy", func(s *stage) {
			s.append("mail.log", strings.Repeat("m", MaxLine+10000)).step()
			s.append("mail.log", "\nc\n").copy("mail.log", "mail.log.1").truncate("mail.log", 0)
			s.append("mail.log", "d\n").step()
			if got := strings.Join(s.got, " "); !strings.HasSuffix(got, "c d") {
				s.T.Errorf("handed over %.200q, want it to end in c and d", got)
			}
			s.got = nil
		}},
		{"truncated and regrown past the old size", func(s *stage) {
			s.truncate("mail.log", 0).append("mail.log", "cccc\ndddd\neeee\n").step().want("GAP", "cccc", "dddd", "eeee")
		}},
		{"truncated and regrown to the same size", func(s *stage) {
			s.truncate("mail.log", 0).append("mail.log", "c\nd\n").step().want("GAP", "c", "d")
		}},
		{"rewritten with the same content: nothing is new", func(s *stage) {
			s.copy("mail.log", "copy").copy("copy", "mail.log").append("mail.log", "c\n").step().want("c")
		}},
		{"deleted, the daemon writes on to the nameless file", func(s *stage) {
			daemon := s.open("mail.log")
			s.remove("mail.log")
			daemon.WriteString("c\n")
			s.step().want("c")
			daemon.WriteString("d\n")
			s.append("mail.log", "e\n").step().want("d", "e")
		}},
		{"another file renamed over it", func(s *stage) {
			s.append("mail.log", "c\n").append("new", "d\n").rename("new", "mail.log").step().want("c", "d")
		}},
		{"renamed away and back", func(s *stage) {
			s.rename("mail.log", "x").step().rename("x", "mail.log").append("mail.log", "c\n").step().want("c")
		}},
		{"moved to another directory", func(s *stage) {
			s.do(os.Mkdir(s.at("old"), 0o755)).append("mail.log", "c\n").rename("mail.log", "old/mail.log")
			s.append("mail.log", "d\n").step().want("c", "d")
		}},
		{"gone for long: down, and up again when it is back", func(s *stage) {
			s.remove("mail.log").step().wantUp()
			s.ahead += absence
			s.step().wantDown("mail.log", "no such file")
			s.append("mail.log", "c\n").step().want("c").wantUp()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			s.append("mail.log", "a\nb\n").start().want("a", "b").wantUp()
			tt.do(s)
			s.step().want().wantUp()
		})
	}
}

func TestFileNotYetThere(t *testing.T) {
	s := newStage(t)
	s.start().wantDown("mail.log: no such file")
	s.append("mail.log", "a\n").step().want("a").wantUp()
}

func TestFileVanishedDirectory(t *testing.T) {
	s := newStage(t)
	s.do(os.Mkdir(s.at("log"), 0o755))
	s.use(s.at("log/mail.log"))
	s.append("log/mail.log", "a\n").start().want("a")
	s.append("log/mail.log", "b\n").rename("log", "gone").step().want("b")
	s.append("gone/mail.log", "c\n").step().want("c")
	s.ahead += absence
	s.step().wantDown("no such file")
	s.do(os.Mkdir(s.at("log"), 0o755)).step()
	s.append("log/mail.log", "d\n").step().want("d").wantUp()
}

func TestFileDirectoryNotYetThere(t *testing.T) {
	s := newStage(t)
	s.use(s.at("a/b/mail.log"))
	s.start().wantDown(s.at("a")+":", "no such file")
	s.do(os.MkdirAll(s.at("a/b"), 0o755)).step().wantDown(s.at("a/b/mail.log"))
	s.append("a/b/mail.log", "a\n").step().want("a").wantUp()
}

func TestFileSymlinkSwap(t *testing.T) {
	s := newStage(t)
	s.append("log-1", "a\n").do(os.Symlink("log-1", s.path))
	s.start().want("a").wantUp()
	s.append("log-1", "b\n").append("log-2", "c\n")
	s.do(os.Symlink("log-2", s.at("link"))).rename("link", "mail.log").step().want("b", "c").wantUp()
	s.do(os.Symlink("log-1", s.at("link"))).rename("link", "mail.log")
	s.append("log-1", "d\n").step().want("d").wantUp()
}

func TestFileUnreadable(t *testing.T) {
	asRoot(t)
	s := newStage(t)
	s.append("mail.log", "a\n").do(os.Chmod(s.path, 0)).do(os.Chmod(s.dir, 0o755))
	s.do(os.Chmod(s.dir+"/..", 0o755))
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	asOther(t, 65533, func() { s.start() })
	s.wantDown("permission denied", "group").want()
	s.do(os.Chmod(s.path, 0o644))
	asOther(t, 65533, func() { s.step() })
	s.want("a").wantUp()
	// What is open stays readable.
	s.do(os.Chmod(s.path, 0)).append("mail.log", "b\n")
	asOther(t, 65533, func() { s.step() })
	s.want("b").wantUp()
}

func TestFileReplacedByWhatIsNoFile(t *testing.T) {
	for _, tt := range []struct {
		name string
		put  func(s *stage)
		why  string
	}{
		{"a fifo", func(s *stage) { s.do(syscall.Mkfifo(s.path, 0o600)) }, "is a fifo; name a regular file"},
		{"a directory", func(s *stage) { s.do(os.Mkdir(s.path, 0o755)) }, "is a directory; name a regular file"},
		{"a symbolic link to itself", func(s *stage) { s.do(os.Symlink("mail.log", s.path)) }, "symbolic links lead in a circle"},
		{"a symbolic link to a device", func(s *stage) { s.do(os.Symlink("/dev/zero", s.path)) }, "is a device; name a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			s.append("mail.log", "a\n").start().want("a")
			s.append("mail.log", "b\n").rename("mail.log", "mail.log.1")
			tt.put(s)
			s.step().want("b").wantDown(tt.why)
			s.remove("mail.log").append("mail.log", "c\n").step().want("c").wantUp()
		})
	}
}

func TestFileFragments(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	for _, tt := range []struct {
		name string
		do   func(s *stage)
	}{
		{"a cut line waits for its newline", func(s *stage) {
			s.append("mail.log", "ab").step().want().append("mail.log", "cd").step().want()
			s.append("mail.log", "ef\ng").step().want("abcdef")
		}},
		{"a fragment is dropped when its file is rotated away", func(s *stage) {
			s.append("mail.log", "half").step().rename("mail.log", "mail.log.1").append("mail.log", "a\n").step().want("GAP", "a")
			s.ahead += drain
			s.step().step().want()
		}},
		{"a fragment is finished in the rotated file", func(s *stage) {
			daemon := s.open("mail.log")
			daemon.WriteString("half")
			s.step().rename("mail.log", "mail.log.1").append("mail.log", "").step().want()
			daemon.WriteString(" done\n")
			s.step().want("half done")
		}},
		{"a fragment is never joined with the next file's first line", func(s *stage) {
			s.append("mail.log", "half").step().truncate("mail.log", 0).append("mail.log", "whole\n").step().want("whole")
		}},
		{"a fragment is dropped when the file is truncated behind it", func(s *stage) {
			s.append("mail.log", "a\nhalf").step().want("a").truncate("mail.log", 0)
			s.append("mail.log", "b\n").step().want("GAP", "b")
		}},
		{"a quiet file with a fragment that nobody follows up is let go", func(s *stage) {
			s.append("mail.log", "half").step().rename("mail.log", "mail.log.1").append("mail.log", "").step().want()
			s.ahead += drain
			s.step().want("GAP")
			if len(s.w.old) != 0 {
				s.Errorf("%d old files still open", len(s.w.old))
			}
		}},
		{"a line of 64 KiB", func(s *stage) { s.append("mail.log", long+"\n").step().want(long) }},
		{"a line of 64 KiB and one byte is dropped whole", func(s *stage) {
			s.append("mail.log", long+"x\na\n").step().want("GAP", "a")
		}},
		{"a long line that arrives in pieces is dropped whole", func(s *stage) {
			s.append("mail.log", long).step().append("mail.log", "xx").step().append("mail.log", long+long+long+long+long).step()
			s.append("mail.log", "login\na\n").step().want("GAP", "a")
		}},
		{"a long line without end, rotated away", func(s *stage) {
			s.append("mail.log", long+long).step().rename("mail.log", "mail.log.1").append("mail.log", "a\n").step().want("GAP", "a")
		}},
		{"after a restart inside a long line its rest is not judged", func(s *stage) {
			s.append("mail.log", "a\n")
			s.ahead += PositionEvery
			s.step().want("a").append("mail.log", long+long).step().stop()
			s.append("mail.log", "login\nb\n").start().want("GAP", "b")
		}},
		{"NUL bytes are part of a line", func(s *stage) { s.append("mail.log", "a\x00b\n\x00\n").step().want("a\x00b", "\x00") }},
		{"a hole that a writer without O_APPEND leaves is no line", func(s *stage) {
			f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_CREATE, 0o640)
			s.do(err)
			f.WriteString("a\n")
			s.step().want("a").truncate("mail.log", 0)
			f.WriteAt([]byte("b\nc\n"), MaxLine+2)
			s.step().want("GAP", "GAP", "c")
			f.Close()
		}},
		{"an empty line and a carriage return", func(s *stage) { s.append("mail.log", "\na\r\n").step().want("", "a\r") }},
		{"many lines in one look", func(s *stage) {
			var want []string
			for i := range 40_000 {
				want = append(want, logged(time.Now(), i))
			}
			s.append("mail.log", strings.Join(want, "\n")+"\n").step().want(want...)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			s.append("mail.log", "").start().wantUp()
			tt.do(s)
			s.step().want()
		})
	}
}

// A log line is written byte by byte, with a rotation at every place in it.
func TestFileLineCutAtEveryByte(t *testing.T) {
	line := logged(time.Now(), 1)
	t.Run("byte by byte", func(t *testing.T) {
		s := newStage(t)
		f := s.open("mail.log")
		s.start()
		for _, c := range []byte(line) {
			f.Write([]byte{c})
			s.step().want()
		}
		f.Write([]byte{'\n'})
		s.step().want(line)
	})
	for _, tt := range []struct {
		name   string
		rotate func(s *stage)
	}{
		{"renamed", func(s *stage) { s.rename("mail.log", "mail.log.1") }},
		{"truncated", func(s *stage) { s.truncate("mail.log", 0) }},
		{"deleted", func(s *stage) { s.remove("mail.log") }},
		{"copied and truncated", func(s *stage) { s.copy("mail.log", "mail.log.1").truncate("mail.log", 0) }},
	} {
		t.Run(tt.name+" at each byte", func(t *testing.T) {
			s := newStage(t)
			for cut := 1; cut <= len(line); cut++ {
				s.append("mail.log", "before\n").start().append("mail.log", line[:cut]).step()
				tt.rotate(s)
				s.append("mail.log", line[cut:]+"\n", "after\n").step().kill()
				for _, l := range s.got {
					if l != "before" && l != "after" && l != "GAP" && l != line[cut:] {
						t.Fatalf("cut at %d: handed over %q", cut, l)
					}
				}
				if s.got[len(s.got)-1] != "after" {
					t.Fatalf("cut at %d: the line after it is missing: %q", cut, s.got)
				}
				s.got, s.position = nil, relay.Position{}
				s.remove("mail.log")
				os.Remove(s.at("mail.log.1"))
			}
		})
	}
}

func TestFileLive(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().append("mail.log", "b\n").step()
	if s.live[0] || !s.live[1] {
		t.Errorf("live %v, want the replayed line not, the appended one yes", s.live)
	}
	s.want("a", "b").append("old", "x\ny\nz\n").copy("old", "mail.log").step()
	s.append("mail.log", "w\n").step()
	for i, live := range s.live {
		if live {
			t.Errorf("%q counts as live right after the file was replaced", s.got[i])
		}
	}
	s.want("GAP", "x", "y", "z", "w")
	s.ahead += doubtful
	s.step().append("mail.log", "v\n").step()
	if len(s.live) != 1 || !s.live[0] {
		t.Errorf("live %v, want true for a line appended later", s.live)
	}
	s.want("v")
}

// An old log that is copied over the live one for a long time is no more live
// at its end than at its start.
func TestFileOldLogIsCopiedSlowlyOverTheLiveOne(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().truncate("mail.log", 0)
	for range 100 {
		s.append("mail.log", "old\n").step()
		s.ahead += doubtful + time.Second // so slowly that each look could be the last
	}
	if i := slices.Index(s.live[1:], true); i >= 0 {
		t.Errorf("line %d of the copy counts as live", i)
	}
	s.got, s.live = nil, nil
	s.truncate("mail.log", 0).append("mail.log", "old\n").step()
	s.ahead += doubtful
	s.step().append("mail.log", "new\n").step()
	if want := []bool{false, false, true}; !slices.Equal(s.live, want) {
		t.Errorf("live %v, want %v: it had stopped growing", s.live, want)
	}
	// A log that never stops growing is live in the end.
	s.truncate("mail.log", 0)
	for range int(copying/time.Second) + 5 {
		s.append("mail.log", "busy\n").step()
		s.ahead += time.Second
	}
	if n := len(s.live); !s.live[n-1] {
		t.Errorf("a busy log is still not live after %v", copying)
	}
}

func TestFileOldFilesAreBounded(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().want("a")
	for range 3 * maxOld {
		s.remove("mail.log").append("mail.log", "b\n").step().want("b")
		if len(s.w.old) > maxOld {
			t.Fatalf("%d old files open", len(s.w.old))
		}
	}
	s.ahead += drain
	s.step()
	if len(s.w.old) != 0 {
		t.Errorf("%d old files open after they were quiet for %v", len(s.w.old), drain)
	}
}

// A log in which something is written all the time still has its way checked.
func TestFileBusyLogIsStillChecked(t *testing.T) {
	path := watchedLog(t)
	n, stop := watchFile(t, path, func(_ *Options, f *File) { f.slow = 50 * time.Millisecond })
	defer stop()
	if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
		t.Fatal(err)
	}
	wait(t, func() bool {
		appendLine(t, path, "busy")
		return n.last().Status == relay.SourceDown
	})
	if why := n.last().Error; !strings.Contains(why, "writable by everybody") {
		t.Errorf("down because %q", why)
	}
}

// A daemon that is told to stop doesn't read a long log to its end first.
func TestFileEndsInTheMidstOfALongLog(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", strings.Repeat("line\n", 1<<20))
	ended := make(chan struct{})
	close(ended)
	s.w = newFollower(s.file, &hints{}, relay.Position{}, time.Time{}, s.record)
	s.w.ended = ended
	if s.w.step() {
		t.Error("it would go on")
	}
	if n := len(s.got); n == 0 || n > Chunk {
		t.Errorf("%d lines read, want one chunk", n)
	}
}

// A disk or file server that fails costs no line that can be read afterwards.
func TestFileReadError(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().want("a").append("mail.log", "b\n")
	null, err := syscall.Open("/dev/null", syscall.O_WRONLY|syscall.O_CLOEXEC, 0)
	s.do(err).do(syscall.Dup3(null, s.w.cur.fd, syscall.O_CLOEXEC)) // reading it is an error now
	syscall.Close(null)
	s.step().want("GAP", "b").wantUp()
	if len(s.down) != 1 || !strings.Contains(s.down[0], "read "+s.path) {
		t.Errorf("told %q, want that reading failed", s.down)
	}
}

// The file was emptied and filled again, and then rotated away, before anybody looked.
func TestFileReplacedAndThenRotated(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\nb\n").start().want("a", "b")
	s.append("mail.log", "c\n").copy("mail.log", "mail.log.2").truncate("mail.log", 0).append("mail.log", "d\n")
	s.rename("mail.log", "mail.log.1").append("mail.log", "e\n").step()
	// The copy may be found twice: as a copy, and as a file nobody has seen.
	if got := strings.Join(s.got, " "); !strings.HasPrefix(got, "GAP c d e") && !strings.HasSuffix(got, "GAP c d e") {
		t.Errorf("handed over %q, want c, d and e in order", s.got)
	}
}
