package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// Machine is a whole Debian, booted: systemd is its process 1, with a journal,
// and Dovecot runs as its package has set it up. popgate is not installed; its
// package is at PackageFile. It shares the private host's network, so clients
// of the host reach its servers, and they the host's sinks. It has no other
// network; what it installs beside popgate comes from its cache.
type Machine struct {
	host   *Host
	root   string // its root folder, as this process sees it
	leader int    // its process 1
}

// PackageFile is where a machine has popgate's package.
const PackageFile = "/root/popgate.deb"

// Booted is Isolated for a test that needs a whole Debian.
func Booted(t *testing.T, body func(t *testing.T, h *Host, m *Machine)) {
	t.Helper()
	if os.Getenv(insideVar) == "" {
		if _, err := ready(); err != nil {
			missing(t, err)
		}
		if _, err := debianRoot(); err != nil {
			missing(t, err)
		}
		if err := machineFiles(); err != nil {
			t.Fatal(err)
		}
	}
	Isolated(t, func(t *testing.T, h *Host) {
		body(t, h, h.boot(t))
	})
}

// machineFiles tells the private hosts where a machine's root and the package
// are.
var machineFiles = sync.OnceValue(func() error {
	d, err := debianRoot()
	if err != nil {
		return err
	}
	deb, err := debianPackage()
	return errors.Join(err, os.Setenv("POPGATE_LAB_MACHINE", d.machine), os.Setenv("POPGATE_LAB_PACKAGE", deb))
})

// bootScript moves itself into a control group and becomes systemd-nspawn,
// which boots the folder of its last argument.
const bootScript = `echo $$ > "$0/cgroup.procs" && exec "$@"`

// boot boots a copy of the machine's root, which lives in memory.
func (h *Host) boot(t *testing.T) *Machine {
	t.Helper()
	m := &Machine{host: h, root: filepath.Join(work, "machine/root")}
	upper, scratch := filepath.Join(work, "machine/upper"), filepath.Join(work, "machine/scratch")
	err := errors.Join(os.MkdirAll(m.root, 0o755), os.MkdirAll(upper, 0o755), os.MkdirAll(scratch, 0o755))
	if err == nil {
		err = mount("overlay", m.root, "overlay", 0, "lowerdir="+os.Getenv("POPGATE_LAB_MACHINE")+",upperdir="+upper+",workdir="+scratch)
	}
	if err != nil {
		t.Fatal(err)
	}
	deb, err := os.ReadFile(os.Getenv("POPGATE_LAB_PACKAGE"))
	if err != nil {
		t.Fatal(err)
	}
	m.Write(t, PackageFile, string(deb))
	m.Write(t, "/etc/hostname", "mx1.local.test\n")
	m.Write(t, "/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 mx1.local.test mx1\n")
	m.Write(t, "/etc/resolv.conf", "nameserver 127.0.0.1\n") // answers at once: nobody listens
	cache, err := cacheDir()
	if err != nil {
		t.Fatal(err)
	}
	group := h.controlGroup(t)
	libraries, _ := filepath.Glob(filepath.Join(cache, "boot/usr/lib/*/systemd"))
	nspawn := exec.Command("/bin/sh", "-c", bootScript, group, filepath.Join(cache, "boot/usr/bin/systemd-nspawn"),
		"--quiet", "--directory="+m.root, "--machine=mx1", "--resolv-conf=off", "--timezone=off",
		"--register=no", "--keep-unit", "--console=pipe", "--boot")
	nspawn.Env = append(os.Environ(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
	nspawn.SysProcAttr = &syscall.SysProcAttr{}
	p := h.launch(t, nspawn)
	Until(t, "the machine is up", func() bool {
		if !p.Running() {
			t.Fatalf("systemd-nspawn has ended: %s", p.Output)
		}
		if m.leader = lastChild(p.cmd.Process.Pid); m.leader == 0 {
			return false
		}
		state, _ := m.Run(t, "systemctl", "is-system-running")
		return slices.Contains([]string{"running", "degraded"}, strings.TrimSpace(state))
	})
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := m.Run(t, "journalctl", "--no-pager", "--lines=200", "-o", "short-precise")
			t.Logf("--- the end of the machine's journal ---\n%s", out)
		}
		syscall.Kill(m.leader, syscall.SIGKILL) // process 1 takes all with it, and at once
		<-p.gone
	})
	return m
}

// controlGroup makes a control group for a machine; what is below it when the
// test ends is removed.
func (h *Host) controlGroup(t *testing.T) string {
	t.Helper()
	const groups = "/sys/fs/cgroup"
	if err := mount("none", groups, "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(groups, "popgate-machine-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // what ran there has been killed
		var dirs []string
		filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			os.Remove(d)
		}
	})
	return dir
}

// lastChild gives the youngest child of a process, or 0.
func lastChild(of int) (pid int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		text, err := os.ReadFile(stat)
		// "pid (name) state ppid ...", and the name may hold anything.
		i := bytes.LastIndexByte(text, ')')
		if err != nil || i < 0 {
			continue
		}
		fields := strings.Fields(string(text[i+1:]))
		if len(fields) < 2 || fields[1] != strconv.Itoa(of) {
			continue
		}
		child, err := strconv.Atoi(filepath.Base(filepath.Dir(stat)))
		if err == nil {
			pid = max(pid, child)
		}
	}
	return pid
}

// Write writes a file on the machine.
func (m *Machine) Write(t testing.TB, path, text string) {
	t.Helper()
	path = filepath.Join(m.root, path)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.Remove(path)); err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Run runs a program on the machine, as root, and gives what it printed and its
// exit code; -1 for one that did not end.
func (m *Machine) Run(t testing.TB, args ...string) (out string, code int) {
	t.Helper()
	// Not the test's own context: it has ended when a failed test is explained.
	ctx, stop := context.WithTimeout(context.Background(), 2*patience)
	defer stop()
	enter := []string{"--target", strconv.Itoa(m.leader), "--mount", "--pid", "--ipc", "--uts", "--cgroup", "--root", "--wd", "--",
		"/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	var both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &both, &both
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		return err.Error(), -1
	}
	return both.String(), cmd.ProcessState.ExitCode()
}

// Must runs a program that must exit with 0, and gives what it printed, without
// the last line feed.
func (m *Machine) Must(t testing.TB, args ...string) string {
	t.Helper()
	out, code := m.Run(t, args...)
	if code != 0 {
		t.Fatalf("%s: exit %d: %s", strings.Join(args, " "), code, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// Unit gives a property of a unit.
func (m *Machine) Unit(t testing.TB, unit, property string) string {
	t.Helper()
	return m.Must(t, "systemctl", "show", "--property="+property, "--value", unit)
}

// Repack makes a package with another version of what is in PackageFile, as a
// later release would be, and gives its path.
func (m *Machine) Repack(t testing.TB, version string) string {
	t.Helper()
	path := fmt.Sprintf("/root/popgate_%s.deb", version)
	m.Must(t, "sh", "-ec", `dir=$(mktemp -d)
dpkg-deb -R "$1" $dir
sed -i "s/^Version: .*/Version: $2/" $dir/DEBIAN/control
dpkg-deb --root-owner-group -Znone -b $dir "$3" >/dev/null
rm -rf $dir`, "repack", PackageFile, version, path)
	return path
}

// Dial connects to a unix socket on the machine.
func (m *Machine) Dial(path string) (net.Conn, error) {
	return net.Dial("unix", fmt.Sprintf("/proc/%d/root%s", m.leader, path))
}
