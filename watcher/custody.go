package watcher

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Custody of a log: who could put another file in its place, or write to it.
//
// Whoever can do that can forge a login. So the file and every directory and
// symbolic link on the way to it must belong to root or to the daemon's own
// user; a system account (uid below 1000) that owns the log itself may own
// directories too, for it writes the lines anyway (/var/log/dovecot of user
// dovecot). Nobody else may be able to write to any of them. In a sticky
// directory others can't replace a file, but can put one where there is none:
// what is in it must belong to root, the daemon or the directory's owner. A
// rotated log must belong to root, the daemon or the owner of the log itself. A
// group may write when it is a system group or the daemon's own and the
// machine's passwd and group files show only system accounts in it: Ubuntu's
// /var/log is root:syslog, mode 0775. (Of a directory service's users whose
// first group it is, these files know nothing.)

const firstOrdinaryID = 1000 // UID_MIN of login.defs; what is below belongs to the system

// custody judges ways to log files. The two files are those of the machine,
// except in tests.
type custody struct {
	self          uint32 // the daemon's uid
	passwd, group string
}

func newCustody() custody {
	return custody{self: uint32(os.Geteuid()), passwd: "/etc/passwd", group: "/etc/group"}
}

// Distrust is why a file is not read though it could be.
type Distrust struct{ Path, Why, Remedy string }

func (d *Distrust) Error() string { return fmt.Sprintf("%s %s; %s", d.Path, d.Why, d.Remedy) }

// Open opens a file for the user self when nobody but root and self, and whoever
// owns it as an account of the system, can have written to it or put it where it
// is: as a log is opened.
func Open(path string, self uint32) (*os.File, error) {
	c := newCustody()
	c.self = self
	w, err := c.follow(path)
	if err != nil {
		return nil, err
	}
	fd, _, err := c.openChecked(w)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// place is a name in a directory at which the way to the log may change.
type place struct{ dir, name string }

// way is how a path leads to a file.
type way struct {
	real    string  // the path without symbolic links
	info    stat    // of what is there
	turns   []place // symbolic links on the way, and where the way ends too early
	foreign []place // directories owned by a system account, which must own the log too
	owners  []uint32
}

type stat = syscall.Stat_t

// follow walks the path from the root and checks every step. The way is good
// for its turns even when there is an error.
func (c custody) follow(path string) (way, error) {
	var w way
	if err := c.directory(&w, "/"); err != nil {
		return w, err
	}
	at, links := "/", 0
	rest := strings.Split(path, "/")
	for len(rest) > 0 {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		var st stat
		if err := syscall.Lstat(next, &st); err != nil {
			w.turns = append(w.turns, place{at, name})
			return w, &fs.PathError{Op: "open", Path: next, Err: err}
		}
		switch {
		case st.Mode&syscall.S_IFMT == syscall.S_IFLNK:
			w.turns = append(w.turns, place{at, name})
			if links++; links > 40 {
				return w, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
			}
			if !c.own(st.Uid) {
				return w, &Distrust{next, fmt.Sprintf("is a symbolic link of uid %d, who can point it elsewhere", st.Uid),
					"it must belong to root: chown -h root " + next}
			}
			target, err := os.Readlink(next)
			if err != nil {
				return w, err
			}
			if strings.HasPrefix(target, "/") {
				at = "/"
			}
			rest = append(strings.Split(target, "/"), rest...)
		case len(rest) > 0 && strings.Trim(strings.Join(rest, ""), ".") != "":
			if st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
				w.turns = append(w.turns, place{at, name})
				return w, &fs.PathError{Op: "open", Path: next, Err: syscall.ENOTDIR}
			}
			err := c.directory(&w, next)
			if err == nil {
				err = c.put(at, next, &st)
			}
			if err != nil {
				w.turns = append(w.turns, place{at, name})
				return w, err
			}
			at = next
		default:
			w.real, w.info = next, st
			if err := c.file(&w, next, &st); err != nil {
				w.turns = append(w.turns, place{at, name})
				return w, err
			}
			return w, nil
		}
	}
	return w, fmt.Errorf("%s is a directory; name the log file in it", path)
}

// directory checks one directory on the way.
func (c custody) directory(w *way, dir string) error {
	var st stat
	if err := syscall.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	if !c.own(st.Uid) {
		if st.Uid >= firstOrdinaryID {
			return &Distrust{dir, fmt.Sprintf("belongs to uid %d, who can put another log in its place", st.Uid),
				"it must belong to root: chown root " + dir}
		}
		w.foreign = append(w.foreign, place{dir: dir})
		w.owners = append(w.owners, st.Uid)
	}
	if st.Mode&syscall.S_ISVTX != 0 {
		return nil
	}
	return c.writers(dir, &st, inItsPlace)
}

const inItsPlace = "so that anybody can put another log in its place"

// own says whether an account is root or the daemon's.
func (c custody) own(uid uint32) bool { return uid == 0 || uid == c.self }

// put checks who can have put a file or directory where it is: in a sticky
// directory that others can write to, anybody who found the name free.
func (c custody) put(dir, path string, st *stat) error {
	if c.own(st.Uid) {
		return nil
	}
	var d stat
	if err := syscall.Lstat(dir, &d); err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	if d.Mode&syscall.S_ISVTX == 0 || d.Uid == st.Uid || c.writers(dir, &d, inItsPlace) == nil {
		return nil
	}
	return &Distrust{path, fmt.Sprintf("belongs to uid %d, who may have put it into a directory that others can write to", st.Uid),
		"it must belong to root, or nobody else may write there: chown root " + path + " or chmod go-w " + dir}
}

// file checks the log itself.
func (c custody) file(w *way, path string, st *stat) error {
	if st.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return fmt.Errorf("%s is %s; name a regular file, to which the log is written", path, kindOf(st.Mode))
	}
	if st.Uid >= firstOrdinaryID && st.Uid != c.self {
		return &Distrust{path, fmt.Sprintf("belongs to uid %d, who can write logins into it", st.Uid),
			"it must belong to root or to the account of the logging daemon: chown root " + path}
	}
	if err := c.put(filepath.Dir(path), path, st); err != nil {
		return err
	}
	for i, owner := range w.owners {
		if owner != st.Uid {
			return &Distrust{w.foreign[i].dir, fmt.Sprintf("belongs to uid %d, who can put another log in its place", owner),
				"it must belong to root, or to the log's own owner: chown root " + w.foreign[i].dir}
		}
	}
	return c.writers(path, st, "so that anybody can write logins into it")
}

// writers checks who besides the owner may write.
func (c custody) writers(path string, st *stat, danger string) error {
	if st.Mode&syscall.S_IWOTH != 0 {
		return &Distrust{path, "is writable by everybody, " + danger, "chmod o-w " + path}
	}
	if st.Mode&syscall.S_IWGRP == 0 {
		return nil
	}
	// With an access list the group bits are the widest of all its entries.
	if n, err := syscall.Getxattr(path, "system.posix_acl_access", nil); err == nil && n > 0 {
		return &Distrust{path, "has an access list that lets others write", "setfacl -b " + path + " or chmod g-w " + path}
	}
	if st.Gid >= firstOrdinaryID && st.Gid != uint32(os.Getegid()) {
		return &Distrust{path, fmt.Sprintf("is writable by group %d, which is no system group", st.Gid), "chmod g-w " + path}
	}
	who, err := c.ordinaryMember(st.Gid)
	switch {
	case err != nil:
		return &Distrust{path, fmt.Sprintf("is writable by group %d, and who is in it can't be told (%v)", st.Gid, err), "chmod g-w " + path}
	case who != "":
		return &Distrust{path, fmt.Sprintf("is writable by group %d, to which user %s belongs", st.Gid, who), "chmod g-w " + path}
	}
	return nil
}

// ordinaryMember names a user of the group who is not known to be the system's
// or the daemon's own; empty if the machine's files show none. A member they
// don't have (of a directory service) is ordinary.
func (c custody) ordinaryMember(gid uint32) (found string, err error) {
	ordinary, known := map[string]bool{}, map[string]bool{}
	group := strconv.FormatUint(uint64(gid), 10)
	err = fields(c.passwd, func(f []string) {
		if len(f) < 4 {
			return
		}
		known[f[0]] = true
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if err == nil && (uid < firstOrdinaryID || uint32(uid) == c.self) {
			return
		}
		ordinary[f[0]] = true
		if f[3] == group {
			found = f[0]
		}
	})
	if err != nil {
		return "", err
	}
	err = fields(c.group, func(f []string) {
		if len(f) < 4 || f[2] != group {
			return
		}
		for who := range strings.SplitSeq(f[3], ",") {
			if who = strings.TrimSpace(who); who != "" && (!known[who] || ordinary[who]) {
				found = who
			}
		}
	})
	return found, err
}

// fields calls do for each line of a colon-separated file.
func fields(path string, do func([]string)) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 16<<20) // a group may have many members
	for s.Scan() {
		do(strings.Split(s.Text(), ":"))
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func kindOf(mode uint32) string {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		return "a directory"
	case syscall.S_IFIFO:
		return "a fifo"
	case syscall.S_IFSOCK:
		return "a socket"
	default:
		return "a device"
	}
}

// openChecked opens a file in a directory that has been checked, without ever
// waiting for it and without following a link, and checks what it got.
func (c custody) openChecked(w way) (fd int, st stat, err error) {
	fd, err = syscall.Open(w.real, syscall.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW|syscall.O_CLOEXEC|syscall.O_NOCTTY, 0)
	if err != nil {
		return -1, st, &fs.PathError{Op: "open", Path: w.real, Err: err}
	}
	if err = syscall.Fstat(fd, &st); err == nil {
		err = c.file(&w, w.real, &st)
	}
	if err != nil {
		syscall.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

// explain turns an error of the way into what the administrator can do.
func explain(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: no such file; it is read as soon as it is there", missing(err, path))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied; the popgate user must be in the group that may read it (adm on Debian)", missing(err, path))
	case errors.Is(err, syscall.ELOOP):
		return fmt.Errorf("%s: symbolic links lead in a circle; let the first of them lead to the log", missing(err, path))
	case errors.Is(err, syscall.ENOTDIR):
		return fmt.Errorf("%s: is no directory, and %s is said to be in it; correct the path, or make the directory", missing(err, path), path)
	}
	if _, yes := errors.AsType[*fs.PathError](err); yes { // EIO, ESTALE
		return fmt.Errorf("%w; it is tried again until it can be read", err)
	}
	return err
}

// missing gives the path an error is about.
func missing(err error, path string) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Path
	}
	return path
}
