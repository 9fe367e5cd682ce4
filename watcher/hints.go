package watcher

import (
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/fsnotify/fsnotify"
)

// hints tells when it may be worth looking at a file again. Nothing depends on
// a hint: one that is lost, late or wrong costs at most the time to the next
// tick.
//
// An open file is watched through /proc/self/fd, not by its path: the watch
// then is on the very file that is open, wherever it has been moved to.
type hints struct {
	inotify *fsnotify.Watcher // nil: only the clock tells
	events  chan fsnotify.Event
	errors  chan error
	turns   []place         // names in directories that matter
	dirs    map[string]bool // directories watched for them
}

func newHints() *hints {
	h := &hints{dirs: map[string]bool{}}
	// Out of inotify instances, the source still reads, only later: by the clock.
	if w, err := fsnotify.NewWatcher(); err == nil {
		h.inotify, h.events, h.errors = w, w.Events, w.Errors
	}
	return h
}

func (h *hints) close() {
	if h.inotify != nil {
		h.inotify.Close()
	}
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// file watches an open file; a watch it lost (the kernel's library drops that
// of a file that is moved) is put back. It says whether there is one.
func (h *hints) file(fd int) bool {
	return h.inotify != nil && h.inotify.Add(fdPath(fd)) == nil
}

// forget ends the watch of an open file. It comes before its close, because
// the number will be another file's.
func (h *hints) forget(fd int) {
	if h.inotify != nil {
		_ = h.inotify.Remove(fdPath(fd)) // the watch of a moved or deleted file is gone already
	}
}

// places watches just these names: the links on the way to the log, or where
// the way ends too early. A directory that can't be watched is left to the clock.
// It says whether one is watched that was not before.
func (h *hints) places(turns []place) (added bool) {
	if h.inotify == nil {
		return false
	}
	h.turns = turns
	for dir := range h.dirs {
		if !slices.ContainsFunc(turns, func(p place) bool { return p.dir == dir }) {
			_ = h.inotify.Remove(dir)
			delete(h.dirs, dir)
		}
	}
	for _, p := range turns {
		if h.inotify.Add(p.dir) == nil && !h.dirs[p.dir] {
			h.dirs[p.dir], added = true, true
		}
	}
	return added
}

// concerns says whether an event is about something that is watched, rather
// than about a neighbour in a watched directory.
func (h *hints) concerns(e fsnotify.Event) bool {
	if h.dirs[e.Name] || !h.dirs[filepath.Dir(e.Name)] {
		return true // the directory itself, or an open file
	}
	return slices.Contains(h.turns, place{filepath.Dir(e.Name), filepath.Base(e.Name)})
}

// wait returns when there is a hint or a tick, and says whether the way to the
// file should be checked anew, or false when done is closed.
func (h *hints) wait(done <-chan struct{}, tick <-chan time.Time) (recheck, ok bool) {
	for {
		select {
		case <-done:
			return false, false
		case <-tick:
			return true, true
		case e, open := <-h.events:
			if !open {
				h.events = nil
				continue
			}
			if h.concerns(e) {
				return e.Op != fsnotify.Write, true
			}
		case _, open := <-h.errors: // events were dropped: look at everything
			if !open {
				h.errors = nil
				continue
			}
			return true, true
		}
	}
}
