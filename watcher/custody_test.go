package watcher

import (
	"errors"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

const stranger = 4711 // a uid and gid that belong to no account of the system

func (s *stage) chown(name string, uid, gid int) *stage {
	s.Helper()
	return s.do(os.Lchown(s.at(name), uid, gid))
}

func (s *stage) chmod(name string, mode os.FileMode) *stage {
	s.Helper()
	return s.do(os.Chmod(s.at(name), mode))
}

func TestFileThatOthersCouldWriteIsNotBelievedAfterARestart(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().want("a")
	s.chmod("mail.log", 0o666).step().wantDown("writable by everybody").kill()
	s.append("mail.log", "forged\n").chmod("mail.log", 0o640).start().want("GAP").wantUp()
	s.append("mail.log", "b\n").step().want("b").stop()
	s.append("mail.log", "c\n").start().want("c")
}

// The log was not believed, and at the restart it is no longer in its place:
// wherever it is now, what it held then is not believed.
func TestFileThatWasNotBelievedIsMovedAwayBeforeTheRestart(t *testing.T) {
	s := newStage(t)
	line := func(n int) string { return logged(time.Now(), n) }
	s.append("mail.log", line(1)+"\n").start().want(line(1))
	s.chmod(".", 0o777).step().wantDown("writable by everybody").kill()
	forged := logged(time.Now(), 666)
	s.append("mail.log", forged+"\n").chmod(".", 0o755).rename("mail.log", "mail.log.1")
	s.start().want("GAP")
	// The logging daemon has not yet been told to reopen.
	s.append("mail.log.1", line(2)+"\n").append("mail.log", line(3)+"\n").step().want(line(2), line(3)).wantUp()
	s.rename("mail.log", "mail.log.2").rename("mail.log.1", "mail.log").step().want()
	s.append("mail.log", line(4)+"\n").step().want(line(4))
}

// The same without a restart: the log is rotated while others could write
// to it, and written to once more afterwards.
func TestFileThatIsNotBelievedIsRotated(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().want("a")
	s.chmod(".", 0o777).step().wantDown("writable by everybody")
	s.append("mail.log", "forged\nforg").rename("mail.log", "mail.log.1").append("mail.log", "")
	s.chmod(".", 0o755).step().want("GAP").wantUp()
	s.append("mail.log.1", "ed\nb\n").append("mail.log", "c\n").step().want("c")
	s.rename("mail.log.1", "mail.log.2").rename("mail.log", "mail.log.1").append("mail.log", "d\n")
	s.step().want("GAP", "b", "d")
}

// Whoever logged in while the log was not believed is a stranger to us, and
// nobody can tell: it must be said. What had been read before is no such case.
func TestFileSaysWhatWasPassedOver(t *testing.T) {
	for _, tt := range []struct {
		name   string
		do     func(s *stage)
		lost   int
		unread int64
	}{
		{"lines written while it was not believed", func(s *stage) {
			s.chmod("mail.log", 0o666).step().append("mail.log", "login\n").chmod("mail.log", 0o640).step()
		}, 1, 6},
		{"nothing was written while it was not believed", func(s *stage) {
			s.chmod("mail.log", 0o666).step().chmod("mail.log", 0o640).step()
		}, 0, 0},
		{"lines written just before it could not be believed", func(s *stage) {
			s.append("mail.log", "login\n").chmod("mail.log", 0o666).step().chmod("mail.log", 0o640).step()
		}, 1, 6},
		{"emptied and filled again while it was not believed", func(s *stage) {
			s.chmod("mail.log", 0o666).step().truncate("mail.log", 0).append("mail.log", "b\n").chmod("mail.log", 0o640).step()
		}, 1, 2},
		{"rotated while it was not believed", func(s *stage) {
			s.chmod("mail.log", 0o666).step().append("mail.log", "login\n").rename("mail.log", "mail.log.1").append("mail.log", "b\n").step()
		}, 1, 8},
		{"rotated while it was not believed, nothing in the new one yet", func(s *stage) {
			s.chmod("mail.log", 0o666).step().rename("mail.log", "mail.log.1").append("mail.log", "").step()
		}, 1, 0},
		{"a rotated log that everybody can write to", func(s *stage) {
			s.rename("mail.log", "mail.log.1").append("mail.log", "b\n").step()
			s.append("mail.log.1", "login\n").chmod("mail.log.1", 0o666).step()
		}, 1, 6},
		{"a restart while it was not believed", func(s *stage) {
			s.chmod("mail.log", 0o666).step().kill().append("mail.log", "login\n").chmod("mail.log", 0o640).start()
		}, 1, 0},
		{"a restart while it was not believed, and it is gone", func(s *stage) {
			s.chmod("mail.log", 0o666).step().kill().remove("mail.log").start()
		}, 1, 0},
		{"a restart, and the place is gone", func(s *stage) {
			s.stop()
			s.truncate("mail.log", 0).append("mail.log", "b\n").start()
		}, 1, 0},
		{"a restart", func(s *stage) {
			s.stop()
			s.append("mail.log", "b\n").start()
		}, 0, 0},
		{"emptied", func(s *stage) { s.truncate("mail.log", 0).append("mail.log", "b\n").step() }, 0, 0},
		{"emptied, half a line in it", func(s *stage) {
			s.append("mail.log", "half").step().truncate("mail.log", 0).append("mail.log", "b\n").step()
		}, 1, 4},
		{"emptied after it was copied, half a line in it", func(s *stage) {
			s.append("mail.log", "half").step().append("mail.log", " done\n").copy("mail.log", "mail.log.1").truncate("mail.log", 0).step()
		}, 0, 0},
		{"rotated", func(s *stage) {
			s.append("mail.log", "b\n").rename("mail.log", "mail.log.1").append("mail.log", "c\n").step()
		}, 0, 0},
		{"an over-long line", func(s *stage) { s.append("mail.log", strings.Repeat("x", MaxLine+1)+"\n").step() }, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			s.append("mail.log", "a\n").start().want("a").wantUp()
			tt.do(s)
			if s.lost != tt.lost || s.unread != tt.unread {
				t.Errorf("%d gaps of unread lines with %d bytes, want %d with %d", s.lost, s.unread, tt.lost, tt.unread)
			}
		})
	}
}

// The log could be written to by others from the start.
func TestFileSaysWhatWasPassedOverBeforeTheFirstReading(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "login\n").chmod("mail.log", 0o666).start().wantDown("writable by everybody")
	s.chmod("mail.log", 0o640).step().want("GAP").wantUp()
	if s.lost != 1 || s.unread != 6 {
		t.Errorf("%d gaps of unread lines with %d bytes, want 1 with 6", s.lost, s.unread)
	}
}

// A log in log/mail.log, which is trusted, is made untrustworthy in many ways.
func TestFileThatOthersCouldReplaceIsDown(t *testing.T) {
	for _, tt := range []struct {
		name  string
		root  bool
		spoil func(s *stage)
		words []string // the reason and the remedy
	}{
		{"directory writable by everybody", false, func(s *stage) { s.chmod("log", 0o777) },
			[]string{"/log is writable by everybody", "chmod o-w "}},
		{"a directory further up writable by everybody", false, func(s *stage) { s.chmod(".", 0o777) },
			[]string{" is writable by everybody", "chmod o-w "}},
		{"log writable by everybody", false, func(s *stage) { s.chmod("log/mail.log", 0o666) },
			[]string{"mail.log is writable by everybody", "chmod o-w "}},
		{"directory of a stranger", true, func(s *stage) { s.chown("log", stranger, 0) },
			[]string{"/log belongs to uid 4711", "chown root "}},
		{"sticky directory of a stranger", true, func(s *stage) { s.chmod("log", 0o777|os.ModeSticky).chown("log", stranger, 0) },
			[]string{"/log belongs to uid 4711"}},
		{"log of a stranger", true, func(s *stage) { s.chown("log/mail.log", stranger, 0) },
			[]string{"mail.log belongs to uid 4711", "chown root "}},
		{"log of a stranger in a sticky directory", true, func(s *stage) {
			s.chmod("log", 0o777|os.ModeSticky).chown("log/mail.log", stranger, 0)
		}, []string{"mail.log belongs to uid 4711"}},
		{"directory writable by a group of strangers", true, func(s *stage) { s.chown("log", 0, stranger).chmod("log", 0o775) },
			[]string{"/log is writable by group 4711", "chmod g-w "}},
		{"log writable by a system group with an ordinary user in it", true, func(s *stage) {
			s.chown("log/mail.log", 0, 777).chmod("log/mail.log", 0o660)
		}, []string{"mail.log is writable by group 777, to which user mallory belongs", "chmod g-w "}},
		{"directory writable by a system group that is an ordinary user's first", true, func(s *stage) {
			s.chown("log", 0, 778).chmod("log", 0o775)
		}, []string{"/log is writable by group 778, to which user carol belongs"}},
		{"directory of a system account that does not own the log", true, func(s *stage) { s.chown("log", 33, 0) },
			[]string{"/log belongs to uid 33", "the log's own owner"}},
		{"symbolic link of a stranger in a sticky directory", true, func(s *stage) {
			s.chmod(".", 0o777|os.ModeSticky).rename("log", "real").do(os.Symlink("real", s.at("log"))).chown("log", stranger, 0)
		}, []string{"/log is a symbolic link of uid 4711", "chown -h root "}},
		{"symbolic link into a directory writable by everybody", false, func(s *stage) {
			s.rename("log", "real").chmod("real", 0o777).do(os.Symlink("real", s.at("log")))
		}, []string{"/real is writable by everybody"}},
		{"symbolic link to a log of a stranger", true, func(s *stage) {
			s.rename("log/mail.log", "other").chown("other", stranger, 0).do(os.Symlink("../other", s.at("log/mail.log")))
		}, []string{"/other belongs to uid 4711"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root {
				asRoot(t)
			}
			s := newStage(t)
			s.do(os.Mkdir(s.at("log"), 0o755)).append("log/mail.log", "a\n")
			s.use(s.at("log/mail.log"))
			s.file.custody.passwd, s.file.custody.group = s.at("passwd"), s.at("group")
			s.append("passwd", "root:x:0:0::/:\nmallory:x:1001:1001::/:\ncarol:x:1002:778::/:\nsyslog:x:104:779::/:\n")
			s.append("group", "logs:x:777:syslog,mallory\nfirst:x:778:\nsyslog:x:779:syslog\n")
			s.start().want("a").wantUp()
			tt.spoil(s)
			if f, err := os.OpenFile(s.file.path, os.O_WRONLY|os.O_APPEND, 0); err == nil {
				s.step() // what is written from now on is not believed
				f.WriteString("forged\n")
				f.Close()
			}
			s.step().want().wantDown(append(tt.words, "source "+s.dir)...)
			// Down from the start as well.
			s.kill().start().step().want().wantDown(tt.words...)
		})
	}
}

func TestFileThatOthersCouldWriteIsNotBelievedAfterwards(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").start().want("a")
	s.chmod("mail.log", 0o666).step().wantDown("writable by everybody")
	s.append("mail.log", "forged\nforg").step().chmod("mail.log", 0o640).step().want("GAP").wantUp()
	s.append("mail.log", "ed\nb\n").step().want("GAP", "b")
}

// The hint of a write comes long before the slow tick on which the way is
// checked: what others can write to is not believed in between either.
func TestFileBecomesWritableBetweenTwoChecks(t *testing.T) {
	hint := func(s *stage) *stage { s.w.recheck = false; s.w.step(); return s }
	for _, tt := range []struct {
		name string
		root bool
		do   func(s *stage)
	}{
		{"writable by everybody", false, func(s *stage) {
			hint(s.chmod("mail.log", 0o666).append("mail.log", "forged\n")).want().wantDown("mail.log is writable by everybody")
			s.chmod("mail.log", 0o640).step().want("GAP")
		}},
		{"given to a stranger", true, func(s *stage) {
			hint(s.chown("mail.log", stranger, 0).append("mail.log", "forged\n")).want().wantDown("mail.log belongs to uid 4711")
			s.chown("mail.log", 0, 0).step().want("GAP")
		}},
		{"given to a group of strangers", true, func(s *stage) {
			hint(s.chmod("mail.log", 0o660)).want()
			hint(s.chown("mail.log", 0, stranger).append("mail.log", "forged\n")).want().wantDown("writable by group 4711")
			s.chown("mail.log", 0, 0).step().want("GAP")
		}},
		{"a rotated log", false, func(s *stage) {
			s.rename("mail.log", "mail.log.1").append("mail.log", "b\n")
			hint(s).want("b")
			hint(s.chmod("mail.log.1", 0o666).append("mail.log.1", "forged\n")).want("GAP").wantUp()
			s.append("mail.log.1", "forged\n").chmod("mail.log.1", 0o640).append("mail.log.1", "forged\n")
			s.rename("mail.log.1", "mail.log.2").rename("mail.log", "mail.log.1").append("mail.log", "c\n").step().want("GAP", "c")
		}},
		{"emptied and filled", false, func(s *stage) {
			hint(s.chmod("mail.log", 0o666).truncate("mail.log", 0).append("mail.log", "forged\n")).want().wantDown("writable by everybody")
			s.chmod("mail.log", 0o640).step().want("GAP")
		}},
		{"no harm: fewer may read and write", false, func(s *stage) {
			hint(s.chmod("mail.log", 0o600).append("mail.log", "b\n")).want("b").wantUp()
		}},
		{"no harm: a system group may write", true, func(s *stage) {
			s.file.custody.passwd, s.file.custody.group = "/dev/null", "/dev/null"
			hint(s.chown("mail.log", 0, 779).chmod("mail.log", 0o660).append("mail.log", "b\n")).want("b").wantUp()
		}},
		{"no harm: given to another system account", true, func(s *stage) {
			hint(s.chown("mail.log", 104, 4).append("mail.log", "b\n")).want("b").wantUp()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root {
				asRoot(t)
			}
			s := newStage(t)
			s.append("mail.log", "a\n").start().want("a").wantUp()
			tt.do(s)
			s.append("mail.log", "z\n")
			hint(s).want("z").wantUp()
		})
	}
}

func TestFileThatCanBeTrusted(t *testing.T) {
	for _, tt := range []struct {
		name string
		root bool
		put  func(s *stage)
	}{
		{"Debian: root:adm 0640 in root:root 0755", true, func(s *stage) { s.chown("log/mail.log", 0, 4) }},
		{"Ubuntu: syslog:adm 0640 in root:syslog 0775", true, func(s *stage) {
			s.chown("log/mail.log", 104, 4).chown("log", 0, 779).chmod("log", 0o775)
		}},
		{"Dovecot's own log in its own directory", true, func(s *stage) {
			s.chown("log/mail.log", 114, 114).chown("log", 114, 114).chmod("log", 0o750)
		}},
		{"sticky directory that everybody may write to", false, func(s *stage) { s.chmod("log", 0o777|os.ModeSticky) }},
		{"symbolic link of the daemon's own", false, func(s *stage) {
			s.rename("log/mail.log", "other").do(os.Symlink(s.at("other"), s.at("log/mail.log")))
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.root {
				asRoot(t)
			}
			s := newStage(t)
			s.do(os.Mkdir(s.at("log"), 0o755)).append("log/mail.log", "a\n")
			s.use(s.at("log/mail.log"))
			s.file.custody.passwd, s.file.custody.group = s.at("passwd"), s.at("group")
			s.append("passwd", "mallory:x:1001:1001::/:\nsyslog:x:104:779::/:\n").append("group", "syslog:x:779:syslog\n")
			tt.put(s)
			s.start().want("a").wantUp()
		})
	}
}

// A group of the daemon's own, as private groups are, may write.
func TestFileInPrivateGroup(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n").chmod("mail.log", 0o660).chmod(".", 0o775)
	s.file.custody.passwd, s.file.custody.group = "/dev/null", "/dev/null"
	s.start().want("a").wantUp()
}

func TestFileWithAccessList(t *testing.T) {
	s := newStage(t)
	s.append("mail.log", "a\n")
	// Version 2; owner rw, user 4711 rw, group r, mask rw, others none.
	acl := "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x06\x00\x67\x12\x00\x00" +
		"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x06\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	if err := syscall.Setxattr(s.path, "system.posix_acl_access", []byte(acl), 0); errors.Is(err, syscall.ENOTSUP) {
		t.Skip("the file system has no access lists")
	} else if err != nil {
		t.Fatal(err)
	}
	s.start().want().wantDown("has an access list", "setfacl -b ")
}

// A rotated log is held to the same rules: one that a stranger put beside the
// log is not read, whatever it holds.
func TestFileSiblingOfAStrangerIsNotRead(t *testing.T) {
	asRoot(t)
	s := newStage(t)
	s.append("mail.log.1", "forged\n").chown("mail.log.1", stranger, 0)
	s.append("mail.log.2", "forged\n").chmod("mail.log.2", 0o666)
	s.append("other", "forged\n").do(os.Symlink("other", s.at("mail.log.3")))
	s.append("mail.log", "a\n").start().want("a")
}

// A group may write only when everybody in it is known to be harmless.
func TestFileWritableByAGroupWithUnknownMembers(t *testing.T) {
	asRoot(t)
	const passwd, group = "root:x:0:0::/:\nsyslog:x:104:779::/:\n", "logs:x:779:syslog\n"
	for _, tt := range []struct {
		name          string
		passwd, group string
		why           string // empty: it may write
	}{
		{"system accounts only", passwd, group, ""},
		{"nobody in it", passwd, "logs:x:779:\n", ""},
		{"a user of a directory service", passwd, "logs:x:779:syslog,ldapuser\n", "to which user ldapuser belongs"},
		{"an account whose uid is no number", "syslog:x:many:1::/:\n", group, "to which user syslog belongs"},
		{"a user whose line is cut short", "syslog:x:104\n", group, "to which user syslog belongs"},
		{"an ordinary user of the same name", passwd + "syslog:x:1004:1::/:\n", group, "to which user syslog belongs"},
		{"no passwd file", "", group, "who is in it can't be told"},
		{"no group file", passwd, "", "who is in it can't be told"},
		{"a member behind very many", passwd, "logs:x:779:" + strings.Repeat("syslog,", 10_000) + "eve\n", "to which user eve belongs"},
		{"a line too long to read", passwd, "logs:x:779:" + strings.Repeat("syslog,", 3_000_000) + "eve\n", "who is in it can't be told"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			s.do(os.Mkdir(s.at("log"), 0o755)).append("log/mail.log", "a\n").use(s.at("log/mail.log"))
			s.file.custody.passwd, s.file.custody.group = s.at("passwd"), s.at("group")
			for name, text := range map[string]string{"passwd": tt.passwd, "group": tt.group} {
				if text != "" {
					s.append(name, text)
				}
			}
			s.chown("log", 0, 779).chmod("log", 0o775).start()
			if tt.why == "" {
				s.want("a").wantUp()
			} else {
				s.want().wantDown("/log is writable by group 779", tt.why, "chmod g-w ")
			}
		})
	}
}

// In a sticky directory anybody can put a log where there is none, and a
// rotated log at any time. A system account that is not the log's is anybody.
func TestFilePutIntoAStickyDirectory(t *testing.T) {
	asRoot(t)
	for _, tt := range []struct {
		name string
		put  func(s *stage)
		want []string
		down string
	}{
		{"the log while it is missing", func(s *stage) {
			s.start().append("log/mail.log", "forged\n").chown("log/mail.log", 33, 33)
		}, nil, "mail.log belongs to uid 33"},
		{"the log while it is rotated", func(s *stage) {
			s.append("log/mail.log", "a\n").start().rename("log/mail.log", "log/mail.log.1")
			s.append("log/mail.log", "forged\n").chown("log/mail.log", 33, 33)
		}, []string{"a"}, "mail.log belongs to uid 33"},
		{"a rotated log beside it", func(s *stage) {
			s.append("log/mail.log", "a\n").append("log/mail.log.1", "forged\n").chown("log/mail.log.1", 33, 33).start()
		}, []string{"a"}, ""},
		{"a rotated log where there is no log", func(s *stage) {
			s.append("log/mail.log.1", "forged\n").chown("log/mail.log.1", 33, 33).start()
		}, nil, "no such file"},
		{"a directory on the way", func(s *stage) {
			s.use(s.at("log/new/mail.log"))
			s.start().do(os.Mkdir(s.at("log/new"), 0o755)).append("log/new/mail.log", "forged\n")
			s.chown("log/new", 33, 33).chown("log/new/mail.log", 33, 33)
		}, nil, "/new belongs to uid 33"},
		{"the directory's owner's own log", func(s *stage) {
			s.chown("log", 33, 33).append("log/mail.log", "a\n").chown("log/mail.log", 33, 33).start()
		}, []string{"a"}, ""},
		{"root's log", func(s *stage) {
			s.append("log/mail.log", "a\n").start()
		}, []string{"a"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newStage(t)
			s.do(os.Mkdir(s.at("log"), 0o755)).chmod("log", 0o777|os.ModeSticky).use(s.at("log/mail.log"))
			tt.put(s)
			s.step().want(tt.want...)
			if tt.down == "" {
				s.wantUp()
			} else {
				s.wantDown(tt.down)
			}
		})
	}
}

// Where only root can put files, a rotated log still is the log's owner's.
func TestFileSiblingOfAnotherSystemAccountIsNotRead(t *testing.T) {
	asRoot(t)
	for owner, want := range map[int][]string{104: {"a", "b"}, 0: {"a", "b"}, 33: {"b"}} {
		s := newStage(t)
		s.append("mail.log.1", "a\n").chown("mail.log.1", owner, 4)
		s.append("mail.log", "b\n").chown("mail.log", 104, 4).start().want(want...).wantUp()
	}
}

func TestFilePathIsADirectory(t *testing.T) {
	s := newStage(t)
	s.use("/")
	s.start().wantDown("/ is a directory")
}

func TestUsable(t *testing.T) {
	s := newStage(t)
	if err := Usable(s.path); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a log that is not there: %v", err)
	}
	s.append("mail.log", "a\n")
	if err := Usable(s.path); err != nil {
		t.Errorf("a good log: %v", err)
	}
	s.chmod("mail.log", 0o666)
	if err := Usable(s.path); err == nil || !strings.Contains(err.Error(), "chmod o-w") {
		t.Errorf("a log everybody can write to: %v", err)
	}
}
