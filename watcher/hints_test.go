package watcher

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"popgate/internal/relay"

	"github.com/fsnotify/fsnotify"
)

// With a clock that never ticks, events alone must lead to every line.
func TestHintsLeadToEveryChange(t *testing.T) {
	for _, tt := range []struct {
		name string
		put  func(dir, path string) error // before the start
		do   func(dir, path string) error // after it; then a line is appended
	}{
		{"appended", nil, nil},
		{"renamed and created", nil, func(_, path string) error {
			return errors.Join(os.Rename(path, path+".1"), os.WriteFile(path, nil, 0o640))
		}},
		{"renamed, and created later", nil, func(_, path string) error { return os.Rename(path, path+".1") }},
		{"deleted", nil, func(_, path string) error { return os.Remove(path) }},
		{"replaced", nil, func(_, path string) error {
			return errors.Join(os.WriteFile(path+".new", nil, 0o640), os.Rename(path+".new", path))
		}},
		{"truncated", nil, func(_, path string) error { return os.Truncate(path, 0) }},
		{"not yet there", func(_, path string) error { return os.Remove(path) }, nil},
		{"a symbolic link is swapped", func(dir, path string) error {
			return errors.Join(os.Rename(path, dir+"/real-1"), os.WriteFile(dir+"/real-2", nil, 0o640), os.Symlink("real-1", path))
		}, func(dir, path string) error {
			return errors.Join(os.Symlink("real-2", dir+"/link"), os.Rename(dir+"/link", path))
		}},
		{"a symbolic link to a directory is swapped", func(dir, path string) error {
			return errors.Join(os.Mkdir(dir+"/1", 0o755), os.Mkdir(dir+"/2", 0o755), os.WriteFile(dir+"/1/mail.log", nil, 0o640),
				os.WriteFile(dir+"/2/mail.log", nil, 0o640), os.Symlink("1", dir+"/link"), os.Remove(path), os.Symlink("link/mail.log", path))
		}, func(dir, path string) error {
			return errors.Join(os.Symlink("2", dir+"/new"), os.Rename(dir+"/new", dir+"/link"))
		}},
		{"the mode is put right", func(_, path string) error { return os.Chmod(path, 0o666) }, func(_, path string) error { return os.Chmod(path, 0o640) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			path := watchedLog(t)
			if tt.put != nil {
				if err := tt.put(filepath.Dir(path), path); err != nil {
					t.Fatal(err)
				}
			}
			n, stop := watchFile(t, path, func(_ *Options, f *File) { f.slow, f.fast = time.Hour, time.Hour })
			defer stop()
			if tt.do != nil {
				if err := tt.do(filepath.Dir(path), path); err != nil {
					t.Fatal(err)
				}
			}
			if tt.name == "the mode is put right" {
				wait(t, func() bool { return n.last().Status == relay.SourceUp })
			}
			appendLine(t, path, logged(time.Now(), 1))
			wait(t, func() bool { return len(granted(n, time.Now())) == 1 })
		})
	}
}

// The kernel drops events when there are too many; the library tells by an
// error, and that must be a hint like any other.
func TestHintsOverflow(t *testing.T) {
	h := &hints{events: make(chan fsnotify.Event), errors: make(chan error, 1)}
	h.errors <- fsnotify.ErrEventOverflow
	if recheck, ok := h.wait(t.Context().Done(), nil); !recheck || !ok {
		t.Errorf("after an overflow: recheck %v, ok %v, want both", recheck, ok)
	}
}

// Without inotify, and without /proc, the clock has to do.
func TestHintsThatFail(t *testing.T) {
	path := watchedLog(t)
	n, stop := watchFile(t, path, func(_ *Options, f *File) { f.hints, f.slow, f.fast = unaided, time.Hour, time.Millisecond })
	defer stop()
	appendLine(t, path, logged(time.Now(), 1))
	wait(t, func() bool { return len(granted(n, time.Now())) == 1 })

	h := newHints()
	h.close()
	if h.file(0) {
		t.Error("a watch on a closed watcher succeeded")
	}
	h.places([]place{{"/", "x"}})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, ok := h.wait(ctx.Done(), nil); ok {
		t.Error("wait went on after the end")
	}
}

// A busy neighbour of a watched link is no reason to look.
func TestHintsIgnoreNeighbours(t *testing.T) {
	h := newHints()
	defer h.close()
	dir := t.TempDir()
	h.places([]place{{dir, "link"}})
	for _, tt := range []struct {
		name string
		want bool
	}{{dir + "/neighbour", false}, {dir + "/link", true}, {dir, true}} {
		if got := h.concerns(fsnotify.Event{Name: tt.name}); got != tt.want {
			t.Errorf("an event about %s concerns us: %v, want %v", tt.name, got, tt.want)
		}
	}
	h.places(nil)
	if len(h.dirs) != 0 || len(h.inotify.WatchList()) != 0 {
		t.Errorf("still watching %v", h.inotify.WatchList())
	}
}

// What happens to a name before it is known to matter is a neighbour's event: so
// whoever names it must look again, be its directory watched already or not.
func TestANewNameInAWatchedDirectoryIsLookedAtAgain(t *testing.T) {
	h := newHints()
	defer h.close()
	if h.inotify == nil {
		t.Skip("no inotify instance")
	}
	dir := t.TempDir()
	link, gone := place{dir, "link"}, place{dir, "gone"}
	for i, tt := range []struct {
		turns []place
		again bool
	}{
		{[]place{link}, true},
		{[]place{link}, false},
		{[]place{link, gone}, true}, // the log behind the link is being rotated
		{[]place{link, gone}, false},
		{[]place{link}, false},
		{nil, false},
	} {
		if got := h.places(tt.turns); got != tt.again {
			t.Errorf("%d: names %v: look again %v, want %v", i, tt.turns, got, tt.again)
		}
	}
}

// An idle source costs a few system calls each second, and nothing leaks when
// it ends.
func TestFileIdleAndEnd(t *testing.T) {
	path := watchedLog(t)
	fds := func() int {
		e, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("no /proc")
		}
		return len(e)
	}
	before := fds()
	var looks atomic.Int64
	_, stop := watchFile(t, path, func(_ *Options, f *File) {
		f.now = func() time.Time { looks.Add(1); return time.Now() }
	})
	appendLine(t, path, "a")
	wait(t, func() bool { return looks.Load() > 0 })
	from := looks.Load()
	time.Sleep(1500 * time.Millisecond) // idle time itself is what is measured
	if n := looks.Load() - from; n > 20 {
		t.Errorf("%d looks at the clock in 1.5 idle seconds", n)
	}
	stop()
	if after := fds(); after > before {
		t.Errorf("%d files open, %d before", after, before)
	}
}
