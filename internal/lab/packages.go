package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// wanted are the packages the lab runs, and what it needs to run them. They
// are unpacked, never installed: Postfix and sendmail exclude each other as
// packages, and a test should leave the machine as it was.
var wanted = []string{
	"postfix",
	"sendmail-bin", "sendmail-cf", "m4",
	"dovecot-core", "dovecot-pop3d", "dovecot-imapd",
	"sasl2-bin", "libsasl2-modules", "libsasl2-modules-db",
	"systemd", "systemd-journal-remote", // journald, journalctl
	"rsyslog", "rsyslog-gnutls", "syslog-ng-core", "busybox",
	"logrotate",
	"netbase", "iproute2",
}

// wantedExim lies in a tree of its own, since it has programs of the same names
// as Postfix's.
var wantedExim = []string{"exim4-daemon-light"}

// cacheDir is where unpacked packages and the built daemon are kept between
// runs.
func cacheDir() (string, error) {
	if dir := os.Getenv("POPGATE_LAB_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "/var/tmp/popgate-lab", nil // no HOME, as under some CI runners
	}
	return filepath.Join(dir, "popgate-lab"), nil
}

// tree gives the folder with the unpacked packages, root and exim, filling it
// if this is the first run on this machine.
var tree = sync.OnceValues(func() (string, error) {
	return cached(func(cache string) error {
		return errors.Join(
			fill(cache, "root", "unpacked", wanted),
			fill(cache, "exim", "unpacked-exim", wantedExim))
	})
})

// cached has the cache filled while nobody else does, and gives its folder.
func cached(fill func(cache string) error) (string, error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return "", err
	}
	unlock, err := lock(filepath.Join(cache, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	return cache, fill(cache)
}

// fill unpacks packages into a folder of the cache, unless its stamp says that
// they are there.
func fill(cache, name, stamp string, packages []string) error {
	root, stamp, list := filepath.Join(cache, name), filepath.Join(cache, stamp), strings.Join(packages, " ")
	if done, err := os.ReadFile(stamp); err == nil && string(done) == list {
		return nil
	}
	// An earlier attempt may have died half way.
	if err := errors.Join(os.RemoveAll(root), os.RemoveAll(stamp)); err != nil {
		return err
	}
	if err := unpackAll(root, filepath.Join(cache, "debs"), packages); err != nil {
		return err
	}
	return os.WriteFile(stamp, []byte(list), 0o644)
}

// lock keeps parallel test processes from filling the same folder.
func lock(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// unpackAll unpacks packages and, round by round, the libraries they need and
// the machine lacks.
func unpackAll(root, debs string, packages []string) error {
	if err := errors.Join(os.RemoveAll(debs), os.MkdirAll(debs, 0o755), os.MkdirAll(root, 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(debs)
	// /bin, /sbin and /lib are links on the machine; what packages put there
	// must come to lie over /usr like the rest.
	for _, name := range []string{"bin", "sbin", "lib"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, "usr", name), 0o755), os.Symlink("usr/"+name, filepath.Join(root, name))); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for round := packages; len(round) > 0; {
		for _, name := range round {
			seen[name] = true
		}
		files, err := download(debs, round)
		if err != nil {
			return err
		}
		var need []string
		for _, deb := range files {
			if err := unpack(deb, root); err != nil {
				return err
			}
			depends, err := command("dpkg-deb", "-f", deb, "Depends")
			if err != nil {
				return err
			}
			need = append(need, libraries(depends)...)
		}
		round = nil
		for _, name := range need {
			if !seen[name] && !installed(name) && !slices.Contains(round, name) {
				round = append(round, name)
			}
		}
	}
	return nil
}

// unpack does what dpkg-deb -x does, but follows the links to folders that are
// there already.
func unpack(deb, root string) error {
	tar := exec.Command("tar", "-x", "-C", root, "--keep-directory-symlink")
	files := exec.Command("dpkg-deb", "--fsys-tarfile", deb)
	pipe, err := files.StdoutPipe()
	if err != nil {
		return err
	}
	tar.Stdin = pipe
	if err := files.Start(); err != nil {
		return err
	}
	err = run(tar)
	if wait := files.Wait(); wait != nil {
		return fmt.Errorf("unpack %s: %w", deb, wait)
	}
	return err
}

// libraries picks the shared libraries out of a Depends field.
func libraries(depends string) (names []string) {
	for dep := range strings.SplitSeq(depends, ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(dep), " ")
		name, _, _ = strings.Cut(name, ":")
		if strings.HasPrefix(name, "lib") && name != "libpam-runtime" {
			names = append(names, name)
		}
	}
	return names
}

func installed(name string) bool {
	status, err := command("dpkg-query", "-W", "-f", "${db:Status-Abbrev}", name)
	return err == nil && strings.HasPrefix(status, "ii")
}

// download fetches packages into an empty folder of their own and gives the
// files' names. A machine whose lists are missing or old gets new ones first.
func download(debs string, names []string) ([]string, error) {
	dir, err := os.MkdirTemp(debs, "")
	if err != nil {
		return nil, err
	}
	fetch := func() error {
		cmd := exec.Command("apt-get", append([]string{"-qq", "-o", "APT::Sandbox::User=root", "download"}, names...)...)
		cmd.Dir = dir
		return run(cmd)
	}
	if err := fetch(); err != nil {
		if _, err := command("apt-get", "-qq", "update"); err != nil {
			return nil, err
		}
		if err := fetch(); err != nil {
			return nil, err
		}
	}
	return filepath.Glob(filepath.Join(dir, "*.deb"))
}

// command runs a program and gives what it printed, trimmed.
func command(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	var out strings.Builder
	cmd.Stdout = &out
	err := run(cmd)
	return strings.TrimSpace(out.String()), err
}

// run runs a program whose error output belongs into the error.
func run(cmd *exec.Cmd) error {
	var errs strings.Builder
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(errs.String()))
	}
	return nil
}
