package watcher

import (
	"path/filepath"
	"slices"
	"strconv"
	"sync"
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
	files   *files            // open files; nil: only the clock tells of them
	inotify *fsnotify.Watcher // directories; nil: only the clock tells
	events  chan fsnotify.Event
	errors  chan error
	dirs    map[string]bool // directories watched for turns

	mu    sync.Mutex
	turns []place // names in directories that matter

	// While somebody waits in the kernel, all else is passed on to him.
	begin   sync.Once
	closed  chan struct{}
	passing sync.WaitGroup
	heard   heard // guarded by mu
}

// heard is what was passed on and not yet taken.
type heard struct{ hint, recheck, ended bool }

func newHints() *hints {
	h := &hints{dirs: map[string]bool{}, closed: make(chan struct{}), files: newFiles()}
	// Out of inotify instances, the source still reads, only later: by the clock.
	if w, err := fsnotify.NewWatcher(); err == nil {
		h.inotify, h.events, h.errors = w, w.Events, w.Errors
	}
	return h
}

func (h *hints) close() {
	if h.closed != nil {
		close(h.closed)
		h.passing.Wait()
	}
	if h.files != nil {
		h.files.close()
		h.files = nil
	}
	if h.inotify != nil {
		h.inotify.Close()
	}
}

func fdPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// file watches an open file. It says whether there is a watch.
func (h *hints) file(fd int) bool { return h.files != nil && h.files.watch(fd) }

// forget ends the watch of an open file. It comes before its close, because
// the number will be another file's.
func (h *hints) forget(fd int) {
	if h.files != nil {
		h.files.forget(fd)
	}
}

// places watches just these names: the links on the way to the log, or where
// the way ends too early. A directory that can't be watched is left to the clock.
// It says whether one is watched that was not before: what happened to it
// meanwhile was told to nobody, or passed over as a neighbour's.
func (h *hints) places(turns []place) (added bool) {
	if h.inotify == nil {
		return false
	}
	h.mu.Lock()
	for _, p := range turns {
		added = added || !slices.Contains(h.turns, p)
	}
	h.turns = turns
	h.mu.Unlock()
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
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.turns, func(p place) bool {
		return p.dir == e.Name || p == place{filepath.Dir(e.Name), filepath.Base(e.Name)}
	})
}

// wait returns when there is a hint or a tick, and says whether the way to the
// file should be checked anew, or false when done is closed. done and tick are
// the same at each call.
func (h *hints) wait(done <-chan struct{}, tick <-chan time.Time) (recheck, ok bool) {
	if h.files == nil {
		return h.hear(done, tick)
	}
	h.begin.Do(func() { h.passing.Go(func() { h.pass(done, tick) }) })
	for {
		changed, recheck, other := h.files.wait()
		if other {
			h.mu.Lock()
			was := h.heard
			h.heard = heard{}
			h.mu.Unlock()
			if was.ended {
				return false, false
			}
			changed, recheck = changed || was.hint, recheck || was.recheck
		}
		if changed {
			return recheck, true
		}
	}
}

// pass passes on what is heard to who waits in the kernel, until done or close.
func (h *hints) pass(done <-chan struct{}, tick <-chan time.Time) {
	for ok := true; ok; {
		var recheck bool
		recheck, ok = h.hear(done, tick)
		h.mu.Lock()
		h.heard.hint, h.heard.recheck, h.heard.ended = true, h.heard.recheck || recheck, !ok
		h.mu.Unlock()
		h.files.wake()
	}
}

// hear is wait for all but what open files tell.
func (h *hints) hear(done <-chan struct{}, tick <-chan time.Time) (recheck, ok bool) {
	for {
		select {
		case <-done:
			return false, false
		case <-h.closed:
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
