package main

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"popgate/internal/config"
	"popgate/watcher"
	"popgate/watcher/format"
)

const (
	// quiet is how long a log may be silent before somebody should look: a
	// weekend day at a small site is shorter.
	quiet = 24 * time.Hour
	// astray is how far a stamp may be from the time at which it was written.
	// Beyond it, logins begin to count as too old or as from the future.
	astray = time.Minute
)

// synchronized says whether the kernel's clock is kept right by somebody. A
// variable for the tests.
var synchronized = func() (bool, error) {
	const unsynchronized = 0x40 // STA_UNSYNC
	var t syscall.Timex
	_, err := syscall.Adjtimex(&t)
	return t.Status&unsynchronized == 0, err
}

// clock warns of a clock that nobody keeps right: the time of a login is the
// log's, the end of a grant is this host's.
func (k *checker) clock() {
	switch well, err := synchronized(); {
	case err != nil:
		k.warn("clock", "could not be looked at: "+err.Error())
	case !well:
		k.warn("clock", "the kernel says that nothing keeps it right; run an NTP client (systemd-timesyncd, chrony), or logins of other hosts' logs count as too old or too new")
	default:
		k.ok("clock", "kept right by NTP")
	}
}

// silent warns of a log that nothing has been written to for long.
func (k *checker) silent(what string, last time.Time) {
	if age := k.e.now().Wall.Sub(last); age > quiet {
		k.warn(what, fmt.Sprintf("silent: its last line came %s ago; does the POP/IMAP server log somewhere else now?", brief(age.Round(time.Minute))))
	}
}

// stamps compares the stamp of a log's last line with the time at which it was
// written.
func (k *checker) stamps(what string, s *config.Source, written time.Time) {
	// As if it were tomorrow: a stamp without a zone is never read as later
	// than that, and ahead is what this looks for.
	stamp, zoned, ok := lastStamp(s, k.e.now().Wall.Add(36*time.Hour))
	if !ok {
		return
	}
	apart := stamp.Sub(written)
	if apart.Abs() <= astray {
		return
	}
	remedy := "set the clock of the host that stamps the lines"
	if !zoned {
		remedy += ", or write time_zone at the source if it logs in another zone"
	}
	k.warn(what, fmt.Sprintf("the stamp of its last line is %s %s the time at which the file was last written: logins would count as %s; %s",
		brief(apart.Abs().Round(time.Second)), map[bool]string{true: "ahead of", false: "behind"}[apart > 0], map[bool]string{true: "future", false: "stale"}[apart > 0], remedy))
}

// lastStamp gives the stamp of a log's last line, read as of then.
func lastStamp(s *config.Source, then time.Time) (stamp time.Time, zoned, ok bool) {
	f, err := os.Open(s.Path)
	if err != nil {
		return time.Time{}, false, false
	}
	defer f.Close()
	const tail = 8 << 10
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		f.Seek(-tail, io.SeekEnd)
	}
	loc := s.Location
	if loc == nil {
		loc = time.Local
	}
	var m format.Message
	for line, err := range watcher.Lines(f) {
		if err == nil && format.Split(line, &m) {
			stamp, zoned, ok = m.Stamp.Time(then, loc)
		}
	}
	return stamp, zoned, ok
}
