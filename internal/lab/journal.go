package lab

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// JournalOptions say how the host's journald differs from Debian's.
type JournalOptions struct {
	Volatile bool     // no permanent journal, until MakePersistent and journalctl --flush
	Conf     []string // lines of journald.conf
}

// Journal is the host's systemd-journald. /dev/log leads to it, and a process
// started in a unit has its entries marked with that unit, as under systemd.
// The sockets belong to the lab and outlive journald, as they outlive it under
// systemd: what is logged while it restarts is not lost.
type Journal struct {
	*Program
	MachineID string
	host      *Host
	cgroup    string // the folder that stands for the root of the units
	sockets   []*os.File
}

const (
	journalSockets = "/run/systemd/journal"
	journaldPath   = "/usr/lib/systemd/systemd-journald"
	journaldConf   = "/etc/systemd/journald.conf"
)

// Journal starts journald and waits until it has a journal. Every host has a
// machine id of its own.
func (h *Host) Journal(t testing.TB, o JournalOptions) *Journal {
	t.Helper()
	var id [16]byte
	rand.Read(id[:])
	j := &Journal{MachineID: hex.EncodeToString(id[:]), host: h}
	if err := errors.Join(
		replace("/etc/machine-id", j.MachineID+"\n"),
		os.MkdirAll(journalSockets, 0o755),
		os.MkdirAll(filepath.Dir(journaldConf), 0o755),
		j.units(t),
		j.listen(),
	); err != nil {
		t.Fatalf("lab: %v", err)
	}
	h.journal = j
	if !o.Volatile {
		// What systemd-journal-flush.service leaves behind at boot.
		if err := errors.Join(os.WriteFile(journalSockets+"/flushed", nil, 0o644), j.MakePersistent()); err != nil {
			t.Fatal(err)
		}
	}
	if err := journalFolder(filepath.Join("/run/log/journal", j.MachineID)); err != nil {
		t.Fatal(err)
	}
	j.Configure(t, o.Conf...)
	j.Start(t)
	return j
}

// MakePersistent makes the folder of the permanent journal; journald uses it
// from the next flush on.
func (j *Journal) MakePersistent() error {
	return journalFolder(filepath.Join("/var/log/journal", j.MachineID))
}

// Dir gives the folder journald writes to at the moment.
func (j *Journal) Dir() string {
	for _, root := range []string{"/run/log/journal", "/var/log/journal"} {
		dir := filepath.Join(root, j.MachineID)
		if _, err := os.Stat(filepath.Join(dir, "system.journal")); err == nil {
			return dir
		}
	}
	return ""
}

// journalFolder makes a folder for journal files as systemd's tmpfiles do:
// what is made in it belongs to group systemd-journal.
func journalFolder(dir string) error {
	const mode = 0o755 | os.ModeSetgid
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := errors.Join(os.MkdirAll(d, 0o755), os.Chown(d, 0, gidJournal), os.Chmod(d, mode)); err != nil {
			return err
		}
	}
	return nil
}

// units makes a folder of the control groups in which that of a unit is
// /system.slice/NAME, as journald sees it.
func (j *Journal) units(t testing.TB) error {
	root := filepath.Join(work, "cgroup")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := mount("none", root, "cgroup2", 0, ""); err != nil {
		return err
	}
	dir, err := os.MkdirTemp(root, "popgate-lab-")
	if err != nil {
		return err
	}
	j.cgroup = dir
	t.Cleanup(func() { // the programs have been killed by now
		for _, pattern := range []string{"system.slice/*", "system.slice", "."} {
			found, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, d := range found {
				os.Remove(d)
			}
		}
	})
	return nil
}

// unit opens the control group of a unit.
func (j *Journal) unit(t testing.TB, name string) *os.File {
	t.Helper()
	dir := filepath.Join(j.cgroup, "system.slice", name)
	if name == "" {
		dir = j.cgroup
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// listen makes journald's sockets.
func (j *Journal) listen() error {
	for _, s := range []struct{ name, network string }{{"stdout", "unix"}, {"socket", "unixgram"}, {"dev-log", "unixgram"}} {
		path := filepath.Join(journalSockets, s.name)
		var socket interface{ File() (*os.File, error) }
		var err error
		if s.network == "unix" {
			var l *net.UnixListener
			if l, err = net.ListenUnix(s.network, &net.UnixAddr{Name: path, Net: s.network}); err == nil {
				l.SetUnlinkOnClose(false)
				socket = l
			}
		} else {
			socket, err = net.ListenUnixgram(s.network, &net.UnixAddr{Name: path, Net: s.network})
		}
		if err != nil {
			return err
		}
		f, err := socket.File()
		if err != nil {
			return err
		}
		j.sockets = append(j.sockets, f)
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	if err := os.Remove("/dev/log"); err != nil {
		return err
	}
	return os.Symlink(journalSockets+"/dev-log", "/dev/log")
}

// Configure writes journald.conf; journald reads it at its next start.
func (j *Journal) Configure(t testing.TB, lines ...string) {
	t.Helper()
	text := "[Journal]\nReadKMsg=no\nAudit=no\nForwardToWall=no\n" + strings.Join(lines, "\n") + "\n"
	if err := os.WriteFile(journaldConf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Start starts journald again after Stop or Kill.
func (j *Journal) Start(t testing.TB) {
	t.Helper()
	root := j.unit(t, "")
	defer root.Close()
	// The shell's own id is that of what it becomes; unshare makes the folder
	// that this process is in the root of all the names of control groups.
	cmd := exec.Command("sh", "-c", "LISTEN_PID=$$ exec unshare -C "+journaldPath)
	cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(j.sockets)))
	cmd.ExtraFiles = j.sockets
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(root.Fd())}
	j.Program = j.host.launch(t, cmd)
	Until(t, "journald has a journal, and can be told to rotate it", func() bool { return j.Running() && j.Dir() != "" && controllable() })
}

// controllable says whether journald listens to journalctl, for which it makes a
// socket of its own at each start.
func controllable() bool {
	c, err := net.Dial("unix", filepath.Join(journalSockets, "io.systemd.journal"))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

// Control runs journalctl as root, which talks to journald: --rotate, --flush,
// --vacuum-files=1 and so on. It gives what it printed.
func (j *Journal) Control(t testing.TB, args ...string) string {
	t.Helper()
	out, err := command("journalctl", args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Pipe starts a program inside a unit, as some user (0 is root), and gives its
// standard input. It lives until the end of the test: of a process that has
// gone when journald looks, journald notes little.
func (j *Journal) Pipe(t testing.TB, unit string, uid uint32, name string, args ...string) *os.File {
	t.Helper()
	group := j.unit(t, unit)
	defer group.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd()), Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	j.host.launch(t, cmd)
	t.Cleanup(func() { w.Close() })
	return w
}

// Import writes entries in the journal's export format into a file, as
// systemd-journal-remote does with what other machines send.
func (j *Journal) Import(t testing.TB, file, entries string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/lib/systemd/systemd-journal-remote", "--output="+file, "-")
	cmd.Stdin = strings.NewReader(entries)
	if err := run(cmd); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(file, 0o640), os.Chown(file, 0, gidJournal)); err != nil {
		t.Fatal(err)
	}
}

// Replace shows one program in the place of another, to all of the host.
func (h *Host) Replace(t testing.TB, path, program string) {
	t.Helper()
	if err := mount(program, path, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
}
