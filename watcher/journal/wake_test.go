package journal

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestAFolderThatAKilledPopgateLeftIsRemoved(t *testing.T) {
	root := t.TempDir()
	t.Setenv("RUNTIME_DIRECTORY", root+":/elsewhere")
	killed, alive := newWaker("/var/log/journal/0"), newWaker("/var/log/journal/0")
	if killed.dir == "" || alive.dir == "" {
		t.Fatal("no folder")
	}
	if link, err := os.Readlink(filepath.Join(alive.folder(), "0")); err != nil || link != "/var/log/journal/0" {
		t.Errorf("it leads to %q: %v", link, err)
	}
	killed.held.Close()
	next := newWaker("/var/log/journal/0")
	for dir, want := range map[string]bool{killed.dir: false, alive.dir: true, next.dir: true} {
		if _, err := os.Stat(dir); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", dir, err, want)
		}
	}
	alive.close()
	next.close()
	if left, _ := filepath.Glob(filepath.Join(root, "*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestWithoutRoomForAFolderTheJournalItselfIsFollowed(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", filepath.Join(t.TempDir(), "none"))
	w := newWaker("/var/log/journal/0")
	defer w.close()
	if w.folder() != "/var/log/journal/0" || w.every() != watchEvery {
		t.Errorf("follows %s every %v", w.folder(), w.every())
	}
	w.look()
}

func TestAChangeOfTheJournalRingsTheBellOnce(t *testing.T) {
	t.Setenv("RUNTIME_DIRECTORY", t.TempDir())
	journal := t.TempDir()
	file := filepath.Join(journal, "system.journal")
	w := newWaker(journal)
	defer w.close()
	rung := func() syscall.Timespec {
		var st syscall.Stat_t
		if err := syscall.Stat(w.bell, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ctim
	}
	before := rung()
	w.look() // nothing there
	if rung() != before {
		t.Error("rung without a journal")
	}
	head := make([]byte, 256)
	head[headAt+24] = 1
	if err := os.WriteFile(file, head, 0o600); err != nil {
		t.Fatal(err)
	}
	w.look()
	once := w.head
	if once[24] != 1 {
		t.Error("the head was not seen")
	}
	mtime := rung()
	w.look()
	if rung() != mtime {
		t.Error("rung again, and nothing had changed")
	}
}
