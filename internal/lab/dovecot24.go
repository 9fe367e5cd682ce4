package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// trixieVar names, in the child process, the unpacked packages of Debian 13.
const trixieVar = "POPGATE_LAB_TRIXIE"

// WithDovecot24 is WithDaemon for tests that start Dovecot24.
func WithDovecot24(t *testing.T, body func(t *testing.T, h *Host)) {
	t.Helper()
	if os.Getenv(insideVar) == "" {
		_, err := ready()
		if err == nil {
			err = trixie()
		}
		if err != nil {
			missing(t, err)
		}
	}
	WithDaemon(t, body)
}

// trixie unpacks Debian 13's Dovecot with all it needs, its C library too, into
// a root of its own, and has the private hosts show it.
var trixie = sync.OnceValue(func() error {
	cache, err := cacheDir()
	if err != nil {
		return err
	}
	unlock, err := lock(filepath.Join(cache, "lock-trixie"))
	if err != nil {
		return err
	}
	defer unlock()
	root, stamp := filepath.Join(cache, "trixie"), filepath.Join(cache, "unpacked-trixie")
	const list = "dovecot-imapd dovecot-pop3d dash"
	if done, err := os.ReadFile(stamp); err != nil || string(done) != list {
		if err := unpackTrixie(root, filepath.Join(cache, "apt-trixie"), strings.Fields(list)); err != nil {
			return fmt.Errorf("packages of Debian 13: %w", err)
		}
		if err := os.WriteFile(stamp, []byte(list), 0o644); err != nil {
			return err
		}
	}
	return os.Setenv(trixieVar, root)
})

// unpackTrixie asks Debian's archive by the machine's own apt, which checks its
// signature, with lists apart from the machine's: nothing is installed there, so
// that apt fetches every package needed.
func unpackTrixie(root, apt string, packages []string) error {
	if err := errors.Join(os.RemoveAll(root), os.RemoveAll(apt), os.MkdirAll(apt+"/state/lists/partial", 0o755), os.MkdirAll(apt+"/cache/archives/partial", 0o755),
		os.WriteFile(apt+"/status", nil, 0o644), os.Mkdir(apt+"/sources", 0o755)); err != nil {
		return err
	}
	defer os.RemoveAll(apt)
	_, own, err := release()
	if err != nil {
		return err
	}
	var sources []string // none: the machine's own are Debian 13's
	if own != "trixie" {
		if _, err := aptSources(apt+"/sources", "trixie", own); err != nil {
			return err
		}
		sources = []string{"-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=" + apt + "/sources"}
	}
	options := append(sources, "-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Languages=none",
		"-o", "Dir::State="+apt+"/state", "-o", "Dir::State::status="+apt+"/status", "-o", "Dir::Cache="+apt+"/cache")
	for _, what := range [][]string{{"update"}, append([]string{"install", "-y", "--no-install-recommends", "--download-only"}, packages...)} {
		if _, err := command("apt-get", append(append([]string{}, options...), what...)...); err != nil {
			return err
		}
	}
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(root, "usr", name), 0o755), os.Symlink("usr/"+name, filepath.Join(root, name))); err != nil {
			return err
		}
	}
	debs, err := filepath.Glob(apt + "/cache/archives/*.deb")
	if err != nil {
		return err
	}
	for _, deb := range debs {
		if err := unpack(deb, root); err != nil {
			return err
		}
	}
	return nil
}

// trixieRoot is where the private host shows it.
const trixieRoot = "/run/lab/trixie"

// shared are the folders and files the chroot has from the host.
var shared = []string{"/dev", "/proc", "/run/popgate", "/var/log", "/var/mail", "/etc/passwd", "/etc/group"}

// bindTrixie shows the packages of Debian 13, writable, if there are any. It is
// called while the machine's own folders can still be seen.
func bindTrixie() error {
	tree := os.Getenv(trixieVar)
	if tree == "" {
		return nil
	}
	return errors.Join(os.MkdirAll(trixieRoot, 0o755), overlay(trixieRoot, tree))
}

// enterTrixie gives Debian 13's root what it shares with the host.
func enterTrixie() error {
	for _, path := range shared {
		to := trixieRoot + path
		info, err := os.Stat(path)
		switch {
		case err != nil:
			return err
		case info.IsDir():
			err = errors.Join(os.MkdirAll(to, 0o755), mount(path, to, "", syscall.MS_BIND|syscall.MS_REC, ""))
		default:
			err = bindFile(path, to)
		}
		if err != nil {
			return err
		}
	}
	if err := bindFile(daemonPath, trixieRoot+daemonPath); err != nil {
		return err
	}
	return errors.Join(os.MkdirAll(trixieRoot+"/etc/dovecot", 0o755), os.MkdirAll(trixieRoot+"/var/lib/dovecot", 0o755),
		os.MkdirAll(trixieRoot+"/run/dovecot", 0o755), os.MkdirAll(trixieRoot+"/tmp", 0o700))
}

const dovecot24Conf = `dovecot_config_version = 2.4.1
dovecot_storage_version = 2.4.1
protocols = pop3 imap
listen = 127.0.0.1, ::1
base_dir = /run/dovecot
state_dir = /var/lib/dovecot
log_path = ` + DovecotLog + `
ssl = no
auth_allow_cleartext = yes
auth_mechanisms = plain login
auth_failure_delay = 0
mail_driver = maildir
mail_path = ~/mail
passdb passwd-file {
  passwd_file_path = /etc/dovecot/users
}
userdb static {
  fields {
    uid = vmail
    gid = vmail
    home = /var/mail/dovecot/%{user}
  }
}
`

// Dovecot24 starts Debian 13's Dovecot 2.4 in place of Dovecot, on the same
// ports and with the same users and log file, and waits until it greets. It
// runs in a root of its own, of which files are the files that differ. The test
// must have been started by WithDovecot24.
func (h *Host) Dovecot24(t testing.TB, o DovecotOptions, files map[string]string) *Dovecot {
	t.Helper()
	if err := errors.Join(os.MkdirAll("/var/mail/dovecot", 0o755), os.Chown("/var/mail/dovecot", uidVmail, uidVmail), os.MkdirAll("/run/popgate", 0o755)); err != nil {
		t.Fatal(err)
	}
	makeLog(t, DovecotLog)
	if err := enterTrixie(); err != nil {
		t.Fatal(err)
	}
	var users strings.Builder
	for _, u := range append([]string{"alice", "bob"}, o.Users...) {
		fmt.Fprintf(&users, "%s:{PLAIN}%s\n", u, Password)
	}
	all := map[string]string{"/etc/dovecot/users": users.String(), "/etc/dovecot/dovecot.conf": dovecot24Conf + strings.Join(o.Extra, "\n") + "\n"}
	for path, text := range files {
		all[path] = text
	}
	for path, text := range all {
		if err := os.WriteFile(trixieRoot+path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.keep(DovecotLog, func() string { text, _ := os.ReadFile(DovecotLog); return string(text) })
	d := &Dovecot{h.start(t, "chroot", trixieRoot, "/usr/sbin/dovecot", "-F", "-c", "/etc/dovecot/dovecot.conf")}
	waitGreeting(t, d.Program, "127.0.0.1:110", "[::1]:110", "127.0.0.1:143", "[::1]:143")
	return d
}
