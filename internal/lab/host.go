package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Host is the private host of one test. Its name is mx1.local.test.
//
// Clients may bind any address of 192.0.2.0/24, 198.51.100.0/24,
// 203.0.113.0/24 and 2001:db8::/32: they are routed here but belong to no
// interface, as a stranger's address would.
type Host struct {
	Remote *Sink // where mail for other sites ends
	Local  *Sink // where mail for this site's users ends
	Syslog *Syslog

	journal *Journal   // nil: /dev/log leads to Syslog
	logs    []namedLog // shown when the test fails
}

type namedLog struct {
	name string
	text func() string
}

// keep has a log shown when the test fails.
func (h *Host) keep(name string, text func() string) {
	h.logs = append(h.logs, namedLog{name, text})
}

func (h *Host) dump(t *testing.T) {
	for _, l := range h.logs {
		text := l.text()
		if n := len(text); n > 8000 {
			text = "(cut) " + text[n-8000:]
		}
		t.Logf("--- %s ---\n%s", l.name, text)
	}
}

// work holds what the lab itself needs on the private host.
const work = "/run/lab"

// newHost turns the namespaces this process was started in into a host.
func newHost(t *testing.T, tree string) *Host {
	t.Helper()
	// Anywhere else, what follows would be done to the machine.
	if os.Getpid() != 2 || os.Getppid() != 1 {
		t.Fatal("lab: not the first process after the reaper of a namespace of its own")
	}
	for _, step := range []func() error{func() error { return mounts(tree) }, accounts, network} {
		if err := step(); err != nil {
			t.Fatalf("lab: %v", err)
		}
	}
	h := &Host{}
	h.Remote = newSink(t, "127.0.0.1:2525")
	h.Local = newSink(t, "127.0.0.1:2526")
	h.Syslog = newSyslog(t, "mx1")
	h.keep("/var/log/mail.log", h.Syslog.all.String)
	return h
}

// mounts gives the host folders of its own. The unpacked packages lie over
// /usr and /etc, so that everything is where an administrator has it; what is
// written goes to memory.
func mounts(tree string) error {
	// First of all, and alone: without it the others would be the machine's too.
	if err := mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := errors.Join(
		mount("proc", "/proc", "proc", 0, ""),
		mount("tmpfs", "/run", "tmpfs", 0, "mode=0755"),
		bindDaemon(), // its cache may lie in what is hidden next
		bindExim(tree+"/exim"),
		bindTrixie(),
		mount("overlay", "/usr", "overlay", 0, "lowerdir="+tree+"/root/usr:/usr"),
		overlay("/etc", tree+"/root/etc:/etc"),
		overlay("/var", "/var"),
	); err != nil {
		return err
	}
	for _, dir := range own {
		fresh := filepath.Join(work, "own", dir)
		if err := errors.Join(os.MkdirAll(fresh, 0o755), os.MkdirAll(dir, 0o755), mount(fresh, dir, "", syscall.MS_BIND, "")); err != nil {
			return err
		}
	}
	return devices()
}

// mount is mount(2) with an error that says where.
func mount(source, target, kind string, flags uintptr, data string) error {
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", target, err)
	}
	return nil
}

// overlay makes a folder writable without touching what is below.
func overlay(dir, lower string) error {
	upper, scratch := filepath.Join(work, "upper", dir), filepath.Join(work, "scratch", dir)
	return errors.Join(os.MkdirAll(upper, 0o755), os.MkdirAll(scratch, 0o755),
		mount("overlay", dir, "overlay", 0, "lowerdir="+lower+",upperdir="+upper+",workdir="+scratch))
}

// own are folders that begin empty, whatever the machine has in them: a mail
// server of its own, say, or the state of a popgate.
var own = []string{
	"/etc/postfix", "/etc/mail", "/etc/exim4", "/etc/dovecot", "/etc/popgate",
	"/var/lib/postfix", "/var/lib/dovecot", "/var/lib/popgate",
	"/var/spool/postfix", "/var/spool/mqueue", "/var/spool/exim4",
	"/var/log", "/var/mail",
}

// daemonPath is where the host has popgate.
const daemonPath = "/run/lab/popgate"

// bindDaemon makes the built daemon visible under a path of the host's own.
func bindDaemon() error {
	built := os.Getenv("POPGATE_LAB_DAEMON")
	if built == "" {
		return nil
	}
	return bindFile(built, daemonPath)
}

// bindFile shows a file in another place.
func bindFile(source, target string) error {
	return errors.Join(os.MkdirAll(filepath.Dir(target), 0o755), os.WriteFile(target, nil, 0o755), mount(source, target, "", syscall.MS_BIND, ""))
}

// devices gives the host a /dev in which /dev/log is free.
func devices() error {
	dev := filepath.Join(work, "dev")
	for _, name := range []string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := bindFile("/dev/"+name, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	return errors.Join(os.Symlink("/proc/self/fd", filepath.Join(dev, "fd")), mount(dev, "/dev", "", syscall.MS_BIND|syscall.MS_REC, ""))
}

// The accounts of the packages, in a range no distribution hands out.
const (
	uidPostfix = 61001 + iota
	gidPostdrop
	uidDovecot
	uidDovenull
	uidVmail
	uidPopgate
	uidExim
	gidJournal

	gidAdm = 4 // as on every Debian
)

// accounts writes what the packages' installation would have written.
func accounts() error {
	var passwd, group strings.Builder
	for _, a := range []struct {
		name string
		id   int
	}{{"postfix", uidPostfix}, {"dovecot", uidDovecot}, {"dovenull", uidDovenull}, {"vmail", uidVmail}, {"popgate", uidPopgate}, {"Debian-exim", uidExim}} {
		fmt.Fprintf(&passwd, "%s:x:%d:%d::/nonexistent:/usr/sbin/nologin\n", a.name, a.id, a.id)
		members := ""
		if slices.Contains(popgateUser.Groups, uint32(a.id)) {
			members = "popgate"
		}
		fmt.Fprintf(&group, "%s:x:%d:%s\n", a.name, a.id, members)
	}
	fmt.Fprintf(&group, "postdrop:x:%d:\nsystemd-journal:x:%d:popgate\nadm:x:%d:popgate\n", gidPostdrop, gidJournal, gidAdm)
	// First come, first found: a system Postfix's own lines don't matter.
	return errors.Join(prepend("/etc/passwd", passwd.String()), prepend("/etc/group", group.String()),
		os.WriteFile("/etc/nsswitch.conf", []byte("passwd: files\ngroup: files\nhosts: files\nservices: files\nprotocols: files\naliases: files\n"), 0o644),
		replace("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 mx1.local.test mx1\n"),
		replace("/etc/resolv.conf", "nameserver 127.0.0.1\n"), // answers at once: nobody listens
		syscall.Sethostname([]byte("mx1.local.test")))
}

func prepend(path, text string) error {
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return replace(path, text+string(old))
}

// replace writes a file anew, also where a container mounted the old one.
func replace(path, text string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

// network brings up the loopback and routes the documentation networks to it.
func network() error {
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"route", "add", "local", "192.0.2.0/24", "dev", "lo"},
		{"route", "add", "local", "198.51.100.0/24", "dev", "lo"},
		{"route", "add", "local", "203.0.113.0/24", "dev", "lo"},
		{"-6", "route", "add", "local", "2001:db8::/32", "dev", "lo"},
	} {
		if _, err := command("ip", args...); err != nil {
			return err
		}
	}
	return os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0o644)
}

// NameClient gives the n-th of a few addresses, 203.0.113.101 and on, with a
// name of its own, as its reverse zone would have it and no other zone.
func NameClient(t testing.TB, n int, name string) (client string) {
	t.Helper()
	client = fmt.Sprintf("203.0.113.%d", 101+n)
	old, err := os.ReadFile("/etc/hosts")
	if err := errors.Join(err, os.WriteFile("/etc/hosts", fmt.Appendf(old, "%s %s\n", client, name), 0o644)); err != nil {
		t.Fatal(err)
	}
	return client
}
