package journal

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// wakeEvery is how often the journal is looked at for something new.
const wakeEvery = 20 * time.Millisecond

// waker tells a journalctl that follows to look for new entries. journald writes
// an entry at once, but lets readers know of it up to half a second later. So the
// head of its file, which counts the entries, is looked at, and when that has
// changed journalctl is woken: it is given a folder of ours, with a link to the
// journal in it, and looks at all it reads whenever something stirs there.
//
// It only ever makes an entry come sooner. Where there is no room for the folder
// there is none, and journalctl hears from journald alone.
type waker struct {
	dir, bell string   // empty: none
	held      *os.File // the bell, locked as long as we live
	file      string
	head      [headLen]byte
}

// The journal's file keeps its counts of objects and entries, and the number of
// its last entry, in here. They are compared, never read.
const headAt, headLen = 136, 32

// newWaker makes the folder for a journal's own.
func newWaker(journal string) *waker {
	w := &waker{file: filepath.Join(journal, "system.journal")}
	root, _, _ := strings.Cut(os.Getenv("RUNTIME_DIRECTORY"), ":")
	if root == "" {
		root = os.TempDir()
	}
	removeWakers(root)
	dir, err := os.MkdirTemp(root, wakerName)
	if err != nil {
		return w
	}
	bell := filepath.Join(dir, "bell")
	f, err := os.OpenFile(bell, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err == nil {
		w.held = f
		err = errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB), os.Symlink(journal, filepath.Join(dir, filepath.Base(journal))))
	}
	if err != nil {
		w.held.Close()
		os.RemoveAll(dir)
		return w
	}
	w.dir, w.bell = dir, bell
	return w
}

const wakerName = "popgate-journal-"

// removeWakers removes what a popgate that was killed left behind: folders of
// ours whose bell nobody holds any more.
func removeWakers(root string) {
	left, _ := filepath.Glob(filepath.Join(root, wakerName+"*"))
	for _, dir := range left {
		var st syscall.Stat_t
		if syscall.Lstat(dir, &st) != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR || int(st.Uid) != os.Geteuid() {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, "bell"), os.O_RDWR|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			os.RemoveAll(dir)
		}
		f.Close()
	}
}

// folder is what journalctl is to follow.
func (w *waker) folder() string {
	if w.dir == "" {
		return filepath.Dir(w.file)
	}
	return w.dir
}

// look wakes journalctl if the journal has changed.
func (w *waker) look() {
	if w.dir == "" {
		return
	}
	fd, err := syscall.Open(w.file, syscall.O_RDONLY|syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if err != nil {
		return // it is being rotated, which journalctl hears of at once
	}
	var head [headLen]byte
	n, err := syscall.Pread(fd, head[:], headAt)
	syscall.Close(fd)
	if err != nil || n < headLen || bytes.Equal(head[:], w.head[:]) {
		return
	}
	w.head = head
	now := time.Now()
	os.Chtimes(w.bell, now, now) // an entry is late if this fails, not lost
}

// every is how often look must be called.
func (w *waker) every() time.Duration {
	if w.dir == "" {
		return watchEvery
	}
	return wakeEvery
}

func (w *waker) close() {
	if w.dir != "" {
		os.RemoveAll(w.dir)
		w.held.Close()
	}
}
