package state

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"popgate/internal/relay"
)

// files is what is done to the state directory. Tests put a disk in its place
// that fails, tears writes and loses power.
type files interface {
	create(name string) (file, error) // empties what was there
	open(name string) (io.ReadCloser, error)
	rename(from, to string) error
	remove(name string) error
	list() ([]string, error)
	syncDir() error
}

type file interface {
	io.WriterAt
	Sync() error
	Close() error
}

// Open takes the state directory into use, making it if it isn't there. It
// fails when the directory is not this user's alone or another daemon has it;
// never because of what is in its files.
func Open(dir string, o Options) (*State, error) {
	if o.Snapshot == nil {
		return nil, errors.New("state: Options.Snapshot is required")
	}
	s := &State{o: o, dir: dir, files: o.files, lock: func() error { return nil },
		wake: make(chan struct{}, 1), urgent: make(chan struct{}, 1), idle: make(chan struct{}, 1),
		positions: map[string]relay.Position{}, moved: map[string]struct{}{}}
	if s.files == nil {
		if err := private(dir); err != nil {
			return nil, err
		}
		lock, err := lockDir(dir)
		if err != nil {
			return nil, err
		}
		s.lock, s.files = lock.Close, directory(dir)
	}
	if o.Fault != nil {
		s.files = faulty{s.files, o.Fault}
	}
	return s, nil
}

// private makes sure that nobody else can read or replace the files.
func private(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("state_dir %s: can't be made: %w; make it, owned by the popgate user, with mode 0700", dir, bare(err))
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("state_dir %s: %w", dir, bare(err))
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.IsDir():
		return fmt.Errorf("state_dir %s: is not a directory", dir)
	case ok && int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("state_dir %s: owned by uid %d, but popgate runs as uid %d and must own it; chown -R it to that user, or start popgate as the one it belongs to", dir, stat.Uid, os.Geteuid())
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("state_dir %[1]s: mode %#[2]o lets other users in; chmod 0700 %[1]s", dir, info.Mode().Perm())
	}
	return nil
}

// lockDir keeps a second daemon out for as long as the file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, fmt.Errorf("state_dir %s: can't be written: %w; the popgate user must be able to make files in it", dir, bare(err))
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("state_dir %s: can't be locked: %w", dir, err)
		}
		holder := "another popgate"
		var pid [16]byte
		n, _ := f.ReadAt(pid[:], 0)
		if p, err := strconv.Atoi(strings.TrimSpace(string(pid[:n]))); err == nil {
			holder += " (pid " + strconv.Itoa(p) + ")"
		}
		return nil, fmt.Errorf("state_dir %s: in use by %s; each daemon needs a state_dir of its own", dir, holder)
	}
	// The number is only for the message above: a failure to write it is no harm.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	}
	return f, nil
}

// bare takes the path off an error whose text names it already.
func bare(err error) error {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err
	}
	if l, ok := errors.AsType[*os.LinkError](err); ok {
		return l.Err
	}
	return err
}

// directory is the real thing.
type directory string

func (d directory) path(name string) string { return filepath.Join(string(d), name) }

func (d directory) create(name string) (file, error) {
	return os.OpenFile(d.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
}

// open opens a file that only this user or root can have put there.
func (d directory) open(name string) (io.ReadCloser, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("is not a regular file")
	}
	if err == nil {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
			err = fmt.Errorf("owned by uid %d, not by popgate's", stat.Uid)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (d directory) rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }
func (d directory) remove(name string) error     { return os.Remove(d.path(name)) }

func (d directory) list() ([]string, error) {
	entries, err := os.ReadDir(string(d))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, err
}

func (d directory) syncDir() error {
	f, err := os.Open(string(d))
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// faulty asks before each operation whether it shall fail.
type faulty struct {
	files
	fault func(op, name string) error
}

func (f faulty) create(name string) (file, error) {
	if err := f.fault("create", name); err != nil {
		return nil, err
	}
	to, err := f.files.create(name)
	if err != nil {
		return nil, err
	}
	return faultyFile{to, name, f.fault}, nil
}

func (f faulty) rename(from, to string) error {
	if err := f.fault("rename", to); err != nil {
		return err
	}
	return f.files.rename(from, to)
}

func (f faulty) remove(name string) error {
	if err := f.fault("remove", name); err != nil {
		return err
	}
	return f.files.remove(name)
}

func (f faulty) syncDir() error {
	if err := f.fault("syncdir", "."); err != nil {
		return err
	}
	return f.files.syncDir()
}

type faultyFile struct {
	file
	name  string
	fault func(op, name string) error
}

func (f faultyFile) WriteAt(b []byte, off int64) (int, error) {
	if err := f.fault("write", f.name); err != nil {
		return 0, err
	}
	return f.file.WriteAt(b, off)
}

func (f faultyFile) Sync() error {
	if err := f.fault("sync", f.name); err != nil {
		return err
	}
	return f.file.Sync()
}
