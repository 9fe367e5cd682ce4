// Package journal reads what units log to systemd's journal on this machine.
//
// It promises: an entry is handed over only if fields that journald itself fills
// in show that it was written on this machine, in one of the units, by a program
// that writes such a log and the user who runs it. Where entries may be missing,
// because journald dropped or vacuumed them, a Gap stands in their place. An
// entry may be handed over twice, after a restart, never changed.
package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
)

const (
	// watchEvery is how often the journal's folders are looked at.
	watchEvery = 500 * time.Millisecond
	// provedEvery is how often journalctl is asked whether the one that follows
	// has told everything.
	provedEvery = time.Minute
	// silence is how long journalctl may owe entries that are in the journal
	// and tell none. It has twice the time after each time it was found silent,
	// up to mostSilence: a disk may be slow.
	silence     = 3 * time.Second
	mostSilence = time.Minute
	// prompt is how soon journalctl must be back at work after its death, and as
	// far as it was.
	prompt = time.Second
	// sure is how often an entry is looked for before it counts as gone.
	sure = 3
	// rotation is how long the folders may look empty while journald rotates.
	rotation = 5 * time.Second
	// recent is how old the journal's end may be that was reached, when it is
	// called the present.
	recent = time.Second
	// firstPause and lastPause are how long it takes until journalctl is started
	// once more, after its first death and at most.
	firstPause = 20 * time.Millisecond
	lastPause  = 5 * time.Second
)

// Source reads what units log to systemd's journal on this machine, with
// journalctl.
//
// One journalctl follows the folder that journald writes to. Whether it has told
// everything, a second one is asked that shows the last entry and ends: so a
// reader that is stuck, or sees nothing at all, is noticed, and the present is
// never claimed to be reached before it is. Whatever goes wrong with the child,
// with the folders, or with journald, there is one remedy: begin again behind the
// last entry that was handed over.
type Source struct {
	units  []string
	proof  proof
	now    func() time.Time
	proved time.Duration // provedEvery, except in tests
	silent time.Duration // silence, except in tests
}

// New names the units whose logins are read and the format they log in.
// Entries count only if they were written by the programs that write such a
// log; own takes the place of what is known about them. Its errors are about
// the configuration.
func New(units []string, formatName string, own Trust) (*Source, error) {
	p, err := newProof(units, formatName, own)
	if err != nil {
		return nil, err
	}
	return &Source{units: units, proof: p, now: time.Now, proved: provedEvery, silent: silence}, nil
}

// Name is the source's name in configuration and status.
func (j *Source) Name() string { return "journal:" + strings.Join(j.units, ",") }

// Type is the kind of source.
func (j *Source) Type() string { return "journal" }

// Records reads the journal until ctx ends; see Source.
func (j *Source) Records(ctx context.Context, from relay.Position, since time.Time) iter.Seq[watcher.Record] {
	return func(yield func(watcher.Record) bool) {
		r := &reading{Source: j, ctx: ctx, yield: yield, window: j.now().Sub(since), buf: make([]byte, watcher.Chunk), patience: j.silent, news: true}
		if from.Sum == j.proof.sum() {
			r.resumed = true
			if isCursor([]byte(from.Cursor)) {
				r.cursor = []byte(from.Cursor)
			}
			if !from.Time.After(j.now().Add(watcher.ClockTolerance)) { // else the clock has been set back
				r.complete = from.Time
			}
		}
		for r.session() {
		}
	}
}

// view is this machine's journal as it lies on disk.
type view struct {
	machine string
	dirs    []string // that have journals in them; journald writes to the last
	system  bool     // only the system's own files are read
}

func (v *view) active() string { return v.dirs[len(v.dirs)-1] }

func (v *view) same(w *view) bool {
	return v.machine == w.machine && strings.Join(v.dirs, "\n") == strings.Join(w.dirs, "\n")
}

// journalRoots are where journals are kept. While there is one in the second,
// journald writes to that: it is moved into the first, and removed, as soon as
// that may be written to.
var journalRoots = []string{"/var/log/journal", "/run/log/journal"}

// look finds this machine's journals and says what would keep them from being
// read. journalctl itself would pass over what it may not read and show the
// rest.
func (j *Source) look() (view, error) {
	v := view{system: j.proof.systemUsers()}
	const idFile = "/etc/machine-id"
	id, err := os.ReadFile(idFile)
	if err != nil {
		return v, fmt.Errorf("%w; this machine's journals are found by it", err)
	}
	if v.machine = string(bytes.TrimSpace(id)); len(v.machine) != 32 || !isHex(v.machine) {
		return v, fmt.Errorf("%s: holds no machine id; systemd-machine-id-setup makes one", idFile)
	}
	for _, root := range journalRoots {
		dir := filepath.Join(root, v.machine)
		has, err := journalIn(dir)
		if err != nil {
			return v, err
		}
		if has {
			v.dirs = append(v.dirs, dir)
		}
	}
	if len(v.dirs) == 0 {
		return v, fmt.Errorf("no journal of this machine in %s or %s: %w; does systemd-journald run? In a container, both must be the host's, and so must %s",
			filepath.Join(journalRoots[0], v.machine), filepath.Join(journalRoots[1], v.machine), fs.ErrNotExist, idFile)
	}
	return v, nil
}

// journalIn says whether a folder holds a journal of the system, which must be
// readable then.
func journalIn(dir string) (bool, error) {
	if _, err := os.ReadDir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, unreadable(err)
	}
	names := journalNames(dir)
	for _, name := range names {
		f, err := os.Open(filepath.Join(dir, name))
		switch {
		case err == nil:
			f.Close()
		case !errors.Is(err, fs.ErrNotExist): // else it was rotated or vacuumed just now
			return false, unreadable(err)
		}
	}
	return len(names) > 0, nil
}

// journalNames gives the names of the system's journals in a folder.
func journalNames(dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "system") && strings.HasSuffix(e.Name(), ".journal") {
			names = append(names, e.Name())
		}
	}
	return names
}

func unreadable(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; the popgate user must be in group systemd-journal: usermod -aG systemd-journal popgate, and start popgate again", err)
	}
	return err
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

// isCursor says whether this can be a place in a journal: journalctl refuses
// whatever is none.
func isCursor(c []byte) bool {
	rest := string(c)
	for _, name := range []string{"s=", "i=", "b=", "m=", "t=", "x="} {
		var value string
		value, rest, _ = strings.Cut(rest, ";")
		digits, ok := strings.CutPrefix(value, name)
		if !ok || digits == "" || len(digits) > 32 || !isHex(digits) {
			return false
		}
	}
	return rest == ""
}

// sameEntry says whether two cursors are of one entry. The first two fields are
// the file's: journald gives an entry others when it moves it from /run to /var.
func sameEntry(a, b []byte) bool {
	tail := func(c []byte) []byte {
		for range 2 {
			_, c, _ = bytes.Cut(c, []byte(";"))
		}
		return c
	}
	return len(a) > 0 && bytes.Equal(tail(a), tail(b))
}

// entryTime reads a time as the journal has it.
func entryTime(text []byte) time.Time {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return time.Time{}
	}
	return time.UnixMicro(n)
}

// Usable says whether the journal could be read as a source now, and if not, why
// and what would be right. Where it can be read, doubts tell what makes it
// unlikely that a login will be found.
func (j *Source) Usable(ctx context.Context) (doubts []string, err error) {
	v, err := j.look()
	if err != nil {
		return nil, err
	}
	latest := func(matches ...string) (bool, error) {
		for _, dir := range v.dirs {
			line, err := ask(ctx, v.arguments(dir, append([]string{"--output-fields=_UID", "--lines=1"}, matches...)...))
			if line != nil || err != nil {
				return line != nil, err
			}
		}
		return false, nil
	}
	for _, u := range j.proof.units {
		one := j.proof
		one.units = []string{u}
		// The last three of the matches are of journald's own messages.
		found, err := latest(one.matches()[:len(one.matches())-3]...)
		if err != nil {
			return nil, err
		}
		if found {
			continue
		}
		if found, err = latest("_SYSTEMD_UNIT=" + u); err != nil {
			return nil, err
		}
		doubt := fmt.Sprintf("%s has never logged to this host's journal; systemctl list-units tells the names of units", u)
		if found {
			doubt = fmt.Sprintf("%s logs, but never by a program that is believed to tell of logins; journalctl -u %s -o verbose shows _EXE and _UID: name them in programs and users, or another format", u, u)
		}
		doubts = append(doubts, doubt)
	}
	return doubts, nil
}
