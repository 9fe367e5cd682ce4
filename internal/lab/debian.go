package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// wantedBoot makes and boots a Debian. It lies in a tree of its own, because
// nothing but its programs is needed of it.
var wantedBoot = []string{"mmdebstrap", "systemd-container", "libsystemd-shared"}

// The packages of a machine on which popgate is installed, those that wait in
// its cache to be installed by a test, and those that build the package.
var (
	wantedMachine = []string{"systemd-sysv", "dbus", "dovecot-pop3d", "dovecot-imapd"}
	wantedLater   = []string{"postfix", "sendmail"} // which exclude each other
	wantedBuild   = []string{"debhelper", "dpkg-dev", "lintian"}
)

// debian is a release of Debian, unpacked and installed in two folders: as it
// is booted, and as the package is built in it.
type debian struct{ machine, build string }

// release is the code name of the Debian that is booted: this machine's own,
// unless POPGATE_LAB_RELEASE names another one.
func release() (name, own string, err error) {
	text, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", "", err
	}
	for line := range strings.Lines(string(text)) {
		if v, found := strings.CutPrefix(strings.TrimSpace(line), "VERSION_CODENAME="); found {
			own = strings.Trim(v, `"`)
		}
	}
	if own == "" {
		return "", "", errors.New("/etc/os-release names no VERSION_CODENAME")
	}
	if name = os.Getenv("POPGATE_LAB_RELEASE"); name == "" {
		name = own
	}
	return name, own, nil
}

// debianRoot gives the installed Debian, making it if this is the first run on
// this machine. It takes a minute.
var debianRoot = sync.OnceValues(func() (debian, error) {
	name, own, err := release()
	if err != nil {
		return debian{}, err
	}
	cache, err := cacheDir()
	if err != nil {
		return debian{}, err
	}
	dir := filepath.Join(cache, "debian-"+name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return debian{}, err
	}
	unlock, err := lock(filepath.Join(dir, "lock"))
	if err != nil {
		return debian{}, err
	}
	defer unlock()
	if err := fill(cache, "boot", "unpacked-boot", wantedBoot); err != nil {
		return debian{}, err
	}
	d := debian{filepath.Join(dir, "machine"), filepath.Join(dir, "build")}
	stamp, recipe := filepath.Join(dir, "made"), fmt.Sprint(wantedMachine, wantedLater, wantedBuild)
	if done, err := os.ReadFile(stamp); err == nil && string(done) == recipe {
		return d, nil
	}
	if err := errors.Join(os.RemoveAll(stamp), os.RemoveAll(d.machine), os.RemoveAll(d.build)); err != nil {
		return debian{}, err
	}
	if err := d.make(cache, dir, name, own); err != nil {
		return debian{}, err
	}
	return d, os.WriteFile(stamp, []byte(recipe), 0o644)
})

// make makes both folders.
func (d debian) make(cache, dir, name, own string) error {
	sources, err := aptSources(dir, name, own)
	if err != nil {
		return err
	}
	options, err := aptOptions()
	if err != nil {
		return err
	}
	args := []string{"--quiet", "--mode=root", "--variant=apt", "--skip=cleanup/apt",
		"--include=" + strings.Join(wantedMachine, ","), `--aptopt=Apt::Install-Recommends "false"`,
		`--customize-hook=chroot "$1" apt-get -qq clean`}
	for _, name := range wantedLater {
		args = append(args, `--customize-hook=chroot "$1" apt-get -qq -y --download-only install `+name)
	}
	for _, o := range options {
		args = append(args, "--aptopt="+o)
	}
	args = append(append(args, name, d.machine), sources...)
	cmd := exec.Command(filepath.Join(cache, "boot/usr/bin/mmdebstrap"), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	if err := run(cmd); err != nil {
		return err
	}
	if _, err := command("cp", "-a", d.machine, d.build); err != nil {
		return err
	}
	cmd = inRoot(d.build, "apt-get -qq -y install "+strings.Join(wantedBuild, " ")+" >/dev/null")
	return run(cmd)
}

// aptSources gives the files with this machine's sources of its own release;
// for another release, copies that name it instead.
func aptSources(dir, name, own string) ([]string, error) {
	var files []string
	for _, pattern := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			text, err := os.ReadFile(f)
			if err != nil {
				return nil, err
			}
			// Not those of others, which name Debian's release as well.
			if !bytes.Contains(text, []byte(own)) || !regexp.MustCompile(`(?m)^(deb\s.*|Components:.*)\smain\b`).Match(text) {
				continue
			}
			if name != own {
				f = filepath.Join(dir, filepath.Base(f))
				if err := os.WriteFile(f, bytes.ReplaceAll(text, []byte(own), []byte(name)), 0o644); err != nil {
					return nil, err
				}
			}
			files = append(files, f)
		}
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("/etc/apt names no source of %s main", own)
	}
	return files, nil
}

// aptOptions gives how this machine reaches its sources.
func aptOptions() (options []string, err error) {
	text, err := command("apt-config", "dump")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(text) {
		if regexp.MustCompile(`^Acquire::(http|https|Check-|Retries|Allow)[^ ]* "[^"]+";`).MatchString(line) {
			options = append(options, strings.TrimSpace(line))
		}
	}
	return options, nil
}

// rootScript shows what a program needs in a root, in a mount namespace of its
// own, and runs a script there.
const rootScript = `set -e
mount -t proc proc "$0/proc"
mount --rbind /dev "$0/dev"
mount -t tmpfs tmp "$0/tmp"
show() {
	[ -n "$1" ] || return 0
	mkdir -p "$2"
	mount --bind "$1" "$2"
}
show "$LAB_GO" "$0/usr/local/go"
show "$LAB_GOCACHE" "$0/var/cache/go"
show "$LAB_SOURCE" "$0/usr/src/build"
exec env -i PATH=/usr/local/go/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
	GOCACHE=/var/cache/go chroot "$0" /bin/sh -c "$1"`

// inRoot is a command that runs a script in a root, as its root user.
func inRoot(root, script string) *exec.Cmd {
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", rootScript, root, script)
	cmd.Env = os.Environ()
	return cmd
}

// Packages builds the Debian package several times from one state of the
// sources, each time in another folder, and gives the packages' paths and what
// lintian has to say of them.
func Packages(t testing.TB, n int) (debs []string, lintian string) {
	t.Helper()
	if _, err := ready(); err != nil {
		missing(t, err)
	}
	if _, err := debianRoot(); err != nil {
		missing(t, err)
	}
	dir := t.TempDir()
	first := filepath.Join(dir, "0")
	if err := sourceTree(first); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		next := filepath.Join(dir, strconv.Itoa(i+1))
		if _, err := command("cp", "-a", first, next); err != nil {
			t.Fatal(err)
		}
		deb, err := buildPackage(next)
		if err != nil {
			t.Fatal(err)
		}
		debs = append(debs, deb)
	}
	d, err := debianRoot()
	if err != nil {
		t.Fatal(err)
	}
	lint := inRoot(d.build, "lintian --allow-root --info --fail-on none /usr/src/build/*.deb")
	lint.Env = append(lint.Env, "LAB_SOURCE="+filepath.Dir(debs[0]))
	out, err := lint.Output()
	if err != nil {
		t.Fatalf("lintian: %v", err)
	}
	return debs, string(out)
}

// sourceTree puts the files git knows, as they are now, and the modules they
// need into a folder, to be built there.
func sourceTree(dir string) error {
	mod, err := command("go", "env", "GOMOD")
	if err != nil {
		return err
	}
	_, err = command("make", "-s", "-C", filepath.Dir(mod), "tree", "DIST="+dir)
	return err
}

// buildPackage builds the package from what sourceTree left in a folder,
// without network.
func buildPackage(dir string) (deb string, err error) {
	d, err := debianRoot()
	if err != nil {
		return "", err
	}
	goRoot, err := command("go", "env", "GOROOT")
	if err != nil {
		return "", err
	}
	goCache, err := command("go", "env", "GOCACHE")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(goCache, 0o755); err != nil {
		return "", err
	}
	// -d: build-essential brings a C compiler, which nothing here needs.
	cmd := inRoot(d.build, "cd /usr/src/build/popgate && dpkg-buildpackage -d -b -us -uc >../log 2>&1 || { tail -n 40 ../log >&2; exit 1; }")
	cmd.Env = append(cmd.Env, "LAB_GO="+goRoot, "LAB_GOCACHE="+goCache, "LAB_SOURCE="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	if err := run(cmd); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return "", fmt.Errorf("the build left %d packages in %s: %w", len(debs), dir, err)
	}
	return debs[0], nil
}

// Piuparts has piuparts install, upgrade and purge the package on a bare machine,
// and gives its report. It fetches piuparts.
func Piuparts(t testing.TB) string {
	t.Helper()
	debs, _ := Packages(t, 1)
	d, err := debianRoot()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// In a copy of the build's root, in memory. piuparts looks for processes that
	// were left behind, by device and inode of their files, and kills them: so its
	// chroot lies on a device of its own, and it sees no process but its own.
	cmd := exec.Command("unshare", "--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "/bin/sh", "-ec", `
mount -t tmpfs tmp "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
mount -t tmpfs tmp "$1/root/tmp"
mkdir "$1/root/srv/machine"
mount --bind "$3" "$1/root/srv/machine"
cp "$4" "$1/root/srv/popgate.deb"
cp /etc/resolv.conf "$1/root/etc/resolv.conf"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive chroot "$1/root" /bin/sh -ec '
apt-get -qq update
apt-get -qq -y install piuparts >/dev/null 2>&1
exec piuparts --existing-chroot=/srv/machine --keep-sources-list --no-eatmydata --skip-logrotatefiles-test /srv/popgate.deb'`,
		"piuparts", dir, d.build, d.machine, debs[0])
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("piuparts: %v\n%s", err, out)
	}
	return string(out)
}

// debianPackage builds the package for the machines of this test process.
var debianPackage = sync.OnceValues(func() (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp(cache, "package-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	if err := sourceTree(dir); err != nil {
		return "", err
	}
	deb, err := buildPackage(dir)
	if err != nil {
		return "", err
	}
	// A parallel test process may be copying the old one: replace, never
	// overwrite.
	path := filepath.Join(cache, "popgate.deb")
	return path, os.Rename(deb, path)
})
