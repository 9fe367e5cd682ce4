package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"popgate/internal/lab"
)

// trouble is a log that can't be read, or must not be.
type trouble struct {
	name  string
	path  string // below /var/log/trouble/
	spoil func(path string) error
	says  []string // status, beside the path
	mend  func(path string) error
}

const badUID = 1500 // an ordinary user's

func makeFile(path string) error { return os.WriteFile(path, nil, 0o644) }

// instead puts a log where something else is.
func instead(path string) error { return errors.Join(os.Remove(path), makeFile(path)) }

var troubles = []trouble{
	{"missing", "missing.log", func(string) error { return nil }, []string{"no such file", "read as soon as it is there"}, makeFile},
	{"its directory missing", "none/mail.log", func(string) error { return nil }, []string{"/none: no such file", "read as soon as it is there"},
		func(path string) error { return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), makeFile(path)) }},
	{"a directory", "directory.log", func(path string) error { return os.Mkdir(path, 0o755) }, []string{"is a directory", "name a regular file"}, instead},
	{"a fifo", "fifo.log", func(path string) error { return syscall.Mkfifo(path, 0o644) }, []string{"is a fifo", "name a regular file"}, instead},
	{"a socket", "socket.log", func(path string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		return l.Close()
	}, []string{"is a socket", "name a regular file"}, instead},
	{"a device", "device.log", func(path string) error { return os.Symlink("/dev/null", path) }, []string{"/dev/null is a device", "name a regular file"}, instead},
	{"unreadable", "unreadable.log", func(path string) error { return os.WriteFile(path, nil, 0o600) },
		[]string{"permission denied", "popgate user must be in the group"}, func(path string) error { return os.Chmod(path, 0o644) }},
	{"in an unreadable directory", "closed/mail.log", func(path string) error {
		return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), makeFile(path), os.Chmod(filepath.Dir(path), 0o700))
	}, []string{"permission denied", "popgate user must be in the group"}, func(path string) error { return os.Chmod(filepath.Dir(path), 0o755) }},
	{"writable by everybody", "open.log", func(path string) error { return errors.Join(makeFile(path), os.Chmod(path, 0o666)) },
		[]string{"anybody can write logins into it", "chmod o-w"}, func(path string) error { return os.Chmod(path, 0o644) }},
	{"in a directory writable by everybody", "shared/mail.log", func(path string) error {
		return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), makeFile(path), os.Chmod(filepath.Dir(path), 0o777))
	}, []string{"anybody can put another log in its place", "chmod o-w"}, func(path string) error { return os.Chmod(filepath.Dir(path), 0o755) }},
	{"another user's", "bobs.log", func(path string) error { return errors.Join(makeFile(path), os.Chown(path, badUID, badUID)) },
		[]string{"belongs to uid 1500", "chown root"}, func(path string) error { return os.Chown(path, 0, 0) }},
	{"in another user's directory", "bob/mail.log", func(path string) error {
		return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), makeFile(path), os.Chown(filepath.Dir(path), badUID, badUID))
	}, []string{"belongs to uid 1500", "chown root"}, func(path string) error { return os.Chown(filepath.Dir(path), 0, 0) }},
	{"another user's symbolic link", "link.log", func(path string) error {
		return errors.Join(makeFile(path+".real"), os.Symlink(path+".real", path), os.Lchown(path, badUID, badUID))
	}, []string{"symbolic link of uid 1500", "chown -h root"}, func(path string) error { return os.Lchown(path, 0, 0) }},
	{"a circle of symbolic links", "circle.log", func(path string) error {
		return errors.Join(os.Symlink(path+".b", path), os.Symlink(path, path+".b"))
	}, []string{"lead in a circle", "let the first of them lead to the log"}, instead},
	{"below a file", "file/mail.log", func(path string) error { return makeFile(filepath.Dir(path)) }, []string{"is no directory", "correct the path"},
		func(path string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.Mkdir(filepath.Dir(path), 0o755), makeFile(path))
		}},
	{"removed", "removed.log", makeFile, []string{"no such file", "read as soon as it is there"}, makeFile},
	{"its directory become a file", "became/mail.log", func(path string) error { return errors.Join(os.Mkdir(filepath.Dir(path), 0o755), makeFile(path)) },
		[]string{"is no directory", "correct the path"}, func(path string) error {
			return errors.Join(os.Remove(filepath.Dir(path)), os.Mkdir(filepath.Dir(path), 0o755), makeFile(path))
		}},
}

// An unreadable source never stops the daemon: status says which and why and
// what would be right, and it heals by itself.
func TestASourceInTroubleIsNamedAndHeals(t *testing.T) {
	const dir = "/var/log/trouble/"
	var sources []string
	for _, tr := range troubles {
		sources = append(sources, fmt.Sprintf("{file: %s%s, format: dovecot}", dir, tr.path))
	}
	set := setup{config: []string{"sources: [" + strings.Join(sources, ", ") + fmt.Sprintf(", {file: %s, format: dovecot}]", lab.DovecotLog)}}
	on(t, "none", set, func(t *testing.T, s *site) {
		mend := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		mend(os.Mkdir(dir, 0o755))
		for _, tr := range troubles {
			mend(tr.spoil(dir + tr.path))
		}
		s.sourceIs(t, dir+"removed.log", "up")
		s.sourceIs(t, dir+"became/mail.log", "up")
		mend(os.Remove(dir + "removed.log"))
		mend(errors.Join(os.RemoveAll(dir+"became"), makeFile(dir+"became")))
		for _, tr := range troubles {
			why := s.sourceIs(t, dir+tr.path, "down")
			lab.Until(t, "status names the trouble: "+tr.name, func() bool { // some were missing first
				why = s.sourceIs(t, dir+tr.path, "down")
				for _, words := range tr.says {
					if !strings.Contains(why, words) {
						return false
					}
				}
				return true
			})
		}
		if out, code := s.popgate.Run(t, "status"); code != 5 || !strings.Contains(out, dir+"missing.log") {
			t.Errorf("status exits %d, want 5 and the sources that are down:\n%s", code, out)
		}
		s.logsIn(t, alice) // the one that is well is read all the same
		s.granted(t, alice)

		for i, tr := range troubles {
			mend(tr.mend(dir + tr.path))
			start := time.Now()
			s.sourceIs(t, dir+tr.path, "up")
			if took := time.Since(start); took > 5*time.Second { // one, on a machine that has nothing else to do
				t.Errorf("%s: mended, it took %v until it was read", tr.name, took)
			}
			client := fmt.Sprintf("198.51.100.%d", 100+i)
			writeLog(t, dir+tr.path, strings.Replace(loginLine(t, alice), "rip="+alice, "rip="+client, 1))
			s.granted(t, client)
		}
		lab.Until(t, "all is well", func() bool { _, code := s.popgate.Run(t, "status"); return code == 0 })
	})
}

// sourceIs waits until a source is in a state, and gives its trouble.
func (s *site) sourceIs(t *testing.T, path, state string) (why string) {
	t.Helper()
	lab.Until(t, path+" is "+state, func() bool {
		st, err := operator.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, src := range st.Sources {
			if src.Name == "file:"+path && src.State == state {
				why = src.Error
				return true
			}
		}
		return false
	})
	return why
}

// A full disk cuts the line that filled it. What is written when there is room
// again follows it in the same line, which is then no login of anybody.
func TestALineCutByAFullDiskGrantsNothingAndTheNextOneCounts(t *testing.T) {
	const dir = "/var/log/full"
	set := setup{config: []string{fmt.Sprintf("sources: [{file: %s/mail.log, format: dovecot}, {file: %s, format: dovecot}]", dir, lab.DovecotLog)}}
	on(t, "none", set, func(t *testing.T, s *site) {
		log := dir + "/mail.log"
		if err := errors.Join(os.Mkdir(dir, 0o755), syscall.Mount("none", dir, "tmpfs", 0, "size=16k,mode=0755"), makeFile(log)); err != nil {
			t.Fatal(err)
		}
		s.sourceIs(t, log, "up")
		s.logsIn(t, alice)
		from := func(client string) string {
			return strings.Replace(loginLine(t, alice), "rip="+alice, "rip="+client, 1)
		}
		writeLog(t, log, from("198.51.100.40"))
		s.granted(t, "198.51.100.40")

		if err := os.WriteFile(dir+"/ballast", make([]byte, 8192), 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(log, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for err == nil {
			_, err = f.WriteString(from("198.51.100.41"))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("the disk is not full: %v", err)
		}
		text, _ := os.ReadFile(log)
		if strings.HasSuffix(string(text), "\n") {
			t.Fatal("the last line was not cut")
		}
		s.granted(t, "198.51.100.41") // by its whole lines
		if err := os.Remove(dir + "/ballast"); err != nil {
			t.Fatal(err)
		}
		writeLog(t, log, from("198.51.100.42")+from("198.51.100.43"))
		s.granted(t, "198.51.100.43")
		if s.shows(t, "198.51.100.42").Client.IsValid() {
			t.Error("a login behind half a line counts")
		}
	})
}
