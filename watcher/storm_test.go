package watcher

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"popgate/cache"
	"popgate/internal/ledger"
	"popgate/internal/relay"
	"popgate/watcher/format"
)

// The storm: thousands of lines a second by several writers, in this process
// and in others, in pieces, with forgeries among them, and every kind of
// rotation at random moments; the reader is held up, has its events taken from
// it, and is killed and started again. Everything from the file to the grants
// is real. At the end every login that stayed readable must be granted, and
// nothing else, and no line may have been handed over that nobody wrote.
//
// POPGATE_SOAK=10m makes it long, POPGATE_SEED=n repeats one.
func TestFileStorm(t *testing.T) {
	for _, tt := range []struct {
		name  string
		hints func() *hints
	}{
		{"with events", newHints},
		{"every event lost", unaided},
		{"no inotify instance to be had", noInstance},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if os.Getenv(starved) == "" && tt.name == "no inotify instance to be had" {
				starve(t)
				return
			}
			length := 10 * time.Second
			if d, err := time.ParseDuration(os.Getenv("POPGATE_SOAK")); err == nil {
				length = d
			}
			seed := uint64(time.Now().UnixNano())
			if n, err := strconv.ParseUint(os.Getenv("POPGATE_SEED"), 10, 64); err == nil {
				seed = n
			}
			t.Logf("POPGATE_SEED=%d", seed)
			random := rand.New(rand.NewPCG(seed, seed))
			var total counts
			for end := time.Now().Add(length); time.Now().Before(end) && !t.Failed(); {
				newStorm(t, random, tt.hints, &total).run(min(time.Until(end), 15*time.Second))
			}
			t.Log(total)
			if total.logins == 0 || total.courier == 0 {
				t.Error("nobody logged in: the storm proves nothing")
			}
		})
	}
}

// unaided is a reading to which no event ever comes: only the clock tells.
func unaided() *hints { return &hints{} }

// noInstance is one that asks for events and gets none.
func noInstance() *hints {
	h := newHints()
	if h.inotify != nil || h.files != nil {
		panic("there was an inotify instance")
	}
	return h
}

// starved marks the process in which no inotify instance can be made.
const starved = "POPGATE_STORM_STARVED"

// starve runs the test once more in a user namespace that may have no inotify
// instance at all, so that the kernel answers EMFILE.
func starve(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script := `echo 0 > /proc/sys/user/max_inotify_instances && exec "$0" "$@"`
	args := []string{"-c", script, self, "-test.v", "-test.timeout=0", "-test.run=^TestFileStorm$/^no_inotify_instance_to_be_had$"}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", args...)
	cmd.Env = append(os.Environ(), starved+"=1")
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids,
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatalf("CI=true, and no user namespace: %v", err)
		}
		t.Skipf("needs a user namespace: %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("without inotify: %v", err)
	}
}

// floodable says whether the kernel's queue of events is small enough to be
// filled.
func floodable() bool {
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return err == nil && n <= flood
}

// flood is how many events are made while nobody takes them.
const flood = 24 << 10

type storm struct {
	*testing.T
	rand      *rand.Rand
	dir, path string
	stamp     time.Time // of every line
	hints     func() *hints
	total     *counts

	// The logging daemon. Its lock is held over each line that is written in
	// pieces, so that it is never told to reopen in the middle of one; a line
	// that is written whole only keeps away who needs to be alone.
	daemon    sync.RWMutex
	log       *os.File
	processes []*process

	ledger    *ledger.Ledger
	store     *cache.Store
	watched   atomic.Bool // there is an inotify instance
	overflows atomic.Int64
	held      sync.Mutex // whoever has it holds up the reader
	holding   bool       // the storm has it

	mu            sync.Mutex
	next          int
	logins, maybe map[int]bool
	seen          map[int]bool
	again         int
	wrong         []string
	lost          map[int]bool // written, and then gone where nobody could read them
	positions     map[string]relay.Position
	why           string

	stopReaders func() // nil: there is none
	rotated     []int  // what the next line was when a log was rotated, the last one first
}

func newStorm(t *testing.T, random *rand.Rand, hints func() *hints, total *counts) *storm {
	s := &storm{T: t, rand: random, hints: hints, total: total, stamp: time.Now().UTC().Truncate(time.Second),
		logins: map[int]bool{}, maybe: map[int]bool{}, seen: map[int]bool{}, lost: map[int]bool{}, positions: map[string]relay.Position{}}
	base := t.TempDir()
	s.must(os.Chmod(base, 0o755)) // it may let a group in
	s.dir = filepath.Join(base, "log")
	s.path = filepath.Join(s.dir, "mail.log")
	s.must(os.Mkdir(s.dir, 0o755))
	s.reopenDaemon()
	for range 2 {
		p, err := newProcess(s.path)
		s.must(err)
		s.processes = append(s.processes, p)
	}
	start := time.Now()
	now := func() relay.Now { return relay.Now{Wall: time.Now(), Mono: time.Since(start)} }
	s.store = cache.New(cache.Options{Now: now})
	s.ledger = ledger.New(ledger.Options{Store: s.store, Now: now, Rules: &relay.Rules{GrantTTL: time.Hour, HoldOpenLogins: time.Hour,
		IPv6Prefix: 128, MaxGrants: 1 << 24, Services: []relay.Service{relay.POP3, relay.IMAP}}})
	return s
}

func (s *storm) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// formatReader is one life of the reading of one format. Once killed it changes
// nothing any more.
type formatReader struct {
	*storm
	name   string
	File   *File
	killed atomic.Bool
}

func (r *formatReader) Name() string { return r.name }
func (r *formatReader) Type() string { return "file" }

func (r *formatReader) Records(ctx context.Context, from relay.Position, since time.Time) iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for rec := range r.File.Records(ctx, from, since) {
			if r.name == "dovecot" && !r.killed.Load() {
				r.read(&rec)
			}
			if !yield(rec) {
				return
			}
		}
	}
}

func (r *formatReader) Event(ev relay.Event, _ time.Time) {
	if !r.killed.Load() {
		r.ledger.Event(ev)
	}
}

func (r *formatReader) Gap(source string, at time.Time) {
	if !r.killed.Load() {
		r.ledger.Gap(source, at)
	}
}

func (r *formatReader) Position(source string, p relay.Position) {
	if r.killed.Load() {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.positions[source] = p
}

// read checks what is handed over.
func (s *storm) read(r *Record) {
	s.held.Lock()
	defer s.held.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Kind == Down {
		s.why = r.Err.Error()
	}
	if r.Kind != Line || connection.Match(r.Text) {
		return
	}
	n, whole := lineNumber(string(r.Text))
	switch {
	case !whole || n >= s.next:
		s.wrong = append(s.wrong, string(r.Text))
	case s.seen[n]:
		s.again++
	default:
		s.seen[n] = true
	}
}

// start starts a reader for each format; stopReaders kills them.
func (s *storm) start() {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	var readers []*formatReader
	for _, name := range []string{"dovecot", "courier"} {
		parser, err := format.New(name)
		s.must(err)
		f := NewFile(s.path, time.UTC)
		f.hints = func() *hints { return s.counting(s.hints()) }
		r := &formatReader{storm: s, name: name, File: f}
		readers = append(readers, r)
		s.mu.Lock()
		o := Options{Format: name, Parser: parser, From: s.positions[name], Since: time.Now().Add(-time.Hour), Ledger: r}
		s.mu.Unlock()
		done.Go(func() { Watch(ctx, r, o) })
	}
	s.stopReaders = func() {
		for _, r := range readers {
			r.killed.Store(true)
		}
		cancel()
		done.Wait()
		s.stopReaders = nil
	}
}

// counting counts how often events were dropped.
func (s *storm) counting(h *hints) *hints {
	if h.files != nil {
		s.watched.Store(true)
		h.files.dropped = func() { s.overflows.Add(1) }
	}
	return h
}

// lines takes the next lines. Whoever writes them holds the daemon's lock.
func (s *storm) lines(r *rand.Rand) lines {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := someLines(r, heads(s.stamp), s.next)
	s.next += l.count
	for _, n := range l.logins {
		s.logins[n] = true
	}
	for _, n := range l.maybe {
		s.maybe[n] = true
	}
	return l
}

// write writes the next lines, sometimes in pieces, sometimes a monster first,
// and gives the number of the last. The daemon's lock is held.
func (s *storm) write(r *rand.Rand) int {
	l := s.lines(r)
	text := l.text
	if r.IntN(500) == 0 {
		text = strings.Repeat("line ", MaxLine/4) + "\n" + text
	}
	for r.IntN(4) == 0 && len(text) > 1 {
		cut := 1 + r.IntN(len(text)-1)
		_, err := s.log.WriteString(text[:cut])
		s.must(err)
		text = text[cut:]
		if r.IntN(4) == 0 {
			time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
		}
	}
	_, err := s.log.WriteString(text)
	s.must(err)
	return l.first + l.count - 1
}

// writer is the daemon's thread that logs, writing in pieces.
func (s *storm) writer(ctx context.Context, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	for ctx.Err() == nil {
		s.daemon.Lock()
		for range 1 + r.IntN(20) {
			s.write(r)
		}
		s.daemon.Unlock()
		time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
	}
}

// appender keeps another process logging: whole lines, several at a time or one
// by one, beside all others.
func (s *storm) appender(ctx context.Context, p *process, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 2))
	for ctx.Err() == nil {
		for range 1 + r.IntN(10) {
			s.daemon.RLock()
			l := s.lines(r)
			var err error
			if r.IntN(2) == 0 {
				err = p.write(l.text)
			} else {
				for line := range strings.Lines(l.text) {
					err = errors.Join(err, p.write(line))
				}
			}
			s.daemon.RUnlock()
			if err != nil {
				s.Error(err)
				return
			}
		}
		time.Sleep(time.Duration(r.IntN(3000)) * time.Microsecond)
	}
}

// reopen is what the programs do when they are told that the log was rotated,
// one after the other.
func (s *storm) reopen() {
	s.daemon.Lock()
	s.reopenDaemon()
	s.daemon.Unlock()
	for _, p := range s.processes {
		if s.rand.IntN(2) == 0 {
			time.Sleep(time.Duration(s.rand.IntN(2000)) * time.Microsecond)
		}
		s.must(p.write(""))
	}
}

// reopenAll is reopen where nobody may write in between: the daemon's lock is held.
func (s *storm) reopenAll() {
	s.reopenDaemon()
	for _, p := range s.processes {
		s.must(p.write(""))
	}
}

func (s *storm) reopenDaemon() {
	if s.log != nil {
		s.log.Close()
	}
	var err error
	s.log, err = os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	s.must(err)
}

// caughtUp waits until every line up to n was handed over or is lost.
func (s *storm) caughtUp(n int) {
	s.Helper()
	first := 0
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		for first < n && (s.seen[first] || s.lost[first]) {
			first++
		}
		why := s.why
		s.mu.Unlock()
		if first == n {
			return
		}
		if time.Now().After(end) {
			s.Fatalf("line %d of %d was never handed over; last trouble: %s", first, n, why)
		}
	}
}

// allRead waits until all that has been written was handed over; the daemon's
// lock is held.
func (s *storm) allRead() {
	s.Helper()
	s.mu.Lock()
	n := s.next
	s.mu.Unlock()
	s.caughtUp(n)
}

// noticed makes sure that the reader has the present file open. What is
// written to a file that appears and vanishes between two looks was never
// readable.
func (s *storm) noticed() {
	s.daemon.Lock()
	n := s.write(s.rand)
	s.daemon.Unlock()
	s.caughtUp(n + 1)
}

func (s *storm) isLink() bool {
	info, err := os.Lstat(s.path)
	s.must(err)
	return info.Mode()&os.ModeSymlink != 0
}

func (s *storm) name(n int) string { return fmt.Sprintf("%s.%d", s.path, n) }

// kept is how many rotated logs there are; more are not looked at.
const kept = maxSiblings - 2

// shift makes room for mail.log.1. A log that would soon be removed must have
// been read: on a busy machine a dozen rotations may fall between two looks, and
// nobody can read what is gone. A reader that is held up or not there comes to
// it later; that is for a few rotations only.
func (s *storm) shift() {
	const last = kept - 4
	s.mu.Lock()
	s.rotated = append([]int{s.next}, s.rotated[:min(len(s.rotated), last)]...)
	s.mu.Unlock()
	if s.stopReaders != nil && !s.holding && len(s.rotated) > last {
		s.caughtUp(s.rotated[last])
	}
	os.Remove(s.name(kept))
	for n := kept - 1; n > 0; n-- {
		os.Rename(s.name(n), s.name(n+1))
	}
}

func (s *storm) pause() { time.Sleep(time.Duration(s.rand.IntN(20)) * time.Millisecond) }

// renameCreate is logrotate's create: the daemon goes on in the renamed file
// until it is told.
func (s *storm) renameCreate() {
	if s.isLink() {
		s.noticed()
	}
	s.shift()
	s.must(os.Rename(s.path, s.name(1)))
	s.must(os.WriteFile(s.path, nil, 0o640))
	s.pause()
	s.reopen()
}

func (s *storm) renameOnly() {
	if s.isLink() {
		s.noticed()
	}
	s.shift()
	s.must(os.Rename(s.path, s.name(1)))
	s.pause()
	s.reopen()
}

func (s *storm) remove() {
	s.noticed()
	s.must(os.Remove(s.path))
	s.pause()
	s.reopen()
}

// copyTruncate loses, for everybody, what is written between its two halves.
func (s *storm) copyTruncate() {
	s.noticed() // a reader that has read nothing can't know the copy for what it is
	s.shift()
	from, err := os.Open(s.path)
	s.must(err)
	to, err := os.Create(s.name(1))
	s.must(err)
	_, err = io.Copy(to, from)
	s.must(err)
	s.must(to.Close())
	time.Sleep(time.Duration(s.rand.IntN(2)) * time.Millisecond)
	s.daemon.Lock()
	defer s.daemon.Unlock()
	for line := range Lines(from) { // what the copy does not have
		s.forget(string(line))
	}
	copied, err := os.ReadFile(s.name(1))
	s.must(err)
	if i := strings.LastIndexByte(string(copied), '\n'); i+1 < len(copied) { // and the line it cut
		all, err := os.ReadFile(s.path)
		s.must(err)
		line, _, _ := strings.Cut(string(all[i+1:]), "\n")
		s.forget(line)
	}
	from.Close()
	s.must(os.Truncate(s.path, 0))
}

func (s *storm) forget(line string) {
	if n, ok := lineNumber(line); ok {
		s.mu.Lock()
		s.lost[n] = true
		s.mu.Unlock()
	}
}

// truncateRegrow empties the log, after all of it was read, and fills it again
// at once, past its old size or not.
func (s *storm) truncateRegrow() {
	s.daemon.Lock()
	defer s.daemon.Unlock()
	s.allRead()
	s.must(os.Truncate(s.path, 0))
	for range s.rand.IntN(300) {
		s.write(s.rand)
	}
}

// symlinkSwap points the path at another file.
func (s *storm) symlinkSwap() {
	s.noticed()
	target := filepath.Join(s.dir, fmt.Sprintf("target-%d", s.rand.Uint32()))
	s.must(os.WriteFile(target, nil, 0o640))
	s.must(os.Symlink(target, s.path+".new"))
	s.must(os.Rename(s.path+".new", s.path))
	s.pause()
	s.reopen()
}

func (s *storm) directoryVanishes() {
	s.noticed()
	s.daemon.Lock() // in a directory that is gone nothing new can be opened, nor found
	defer s.daemon.Unlock()
	s.must(os.Rename(s.dir, fmt.Sprintf("%s-%d", s.dir, s.rand.Uint32())))
	s.pause()
	s.must(os.Mkdir(s.dir, 0o755))
	s.pause()
	s.reopenAll()
}

func (s *storm) fifo() {
	if s.isLink() {
		s.noticed()
	}
	s.shift()
	s.must(os.Rename(s.path, s.name(1)))
	s.must(syscall.Mkfifo(s.path, 0o600))
	s.pause()
	s.must(os.Remove(s.path))
	s.reopen()
}

func (s *storm) awayAndBack() {
	s.must(os.Rename(s.path, s.path+".away"))
	s.pause()
	s.must(os.Rename(s.path+".away", s.path))
}

// heldUp keeps the reader from going on while the log is written and rotated,
// and flooded with events, so that those are dropped.
func (s *storm) heldUp(flooded bool) {
	s.noticed() // what it had not opened before could be gone when it comes back
	s.held.Lock()
	defer s.held.Unlock()
	s.holding = true
	defer func() { s.holding = false }()
	if flooded {
		s.flood()
	}
	for range s.rand.IntN(3) {
		s.pause()
		if !s.isLink() {
			s.renameCreate()
		}
	}
}

// flood makes more events of the file that is read than the kernel keeps.
func (s *storm) flood() {
	s.daemon.Lock()
	defer s.daemon.Unlock()
	for i := range flood / 2 { // in turns: equal events that follow each other are one
		s.must(os.Chmod(s.path, 0o640))
		if i%8 == 0 {
			s.write(s.rand)
		} else {
			_, err := s.log.WriteString("\n")
			s.must(err)
		}
	}
}

// overflowed waits until the kernel has told that it dropped events.
func (s *storm) overflowed() {
	for end := time.Now().Add(30 * time.Second); s.watched.Load() && floodable() && s.overflows.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			s.Fatal("inotify's queue never overflowed")
		}
	}
}

// restart kills the readers and lets them resume where their last positions
// were, after the log was rotated without them.
func (s *storm) restart() {
	s.daemon.Lock()
	s.allRead()
	s.stopReaders()
	for range s.rand.IntN(3) {
		if s.isLink() {
			break // logrotate does not rotate links either
		}
		for range s.rand.IntN(50) {
			s.write(s.rand)
		}
		s.shift()
		s.must(os.Rename(s.path, s.name(1)))
		s.reopenAll()
	}
	s.daemon.Unlock()
	s.start()
}

// run is one round.
func (s *storm) run(length time.Duration) {
	s.start()
	ctx, stop := context.WithTimeout(context.Background(), length)
	defer stop()
	var writers sync.WaitGroup
	for range 2 {
		seed := s.rand.Uint64()
		writers.Go(func() { s.writer(ctx, seed) })
	}
	for _, p := range s.processes {
		seed := s.rand.Uint64()
		writers.Go(func() { s.appender(ctx, p, seed) })
	}
	s.heldUp(true)
	s.overflowed()
	held := func() { s.heldUp(s.rand.IntN(4) == 0) }
	faults := []func(){s.renameCreate, s.renameCreate, s.renameOnly, s.remove, s.copyTruncate, s.truncateRegrow,
		s.symlinkSwap, s.directoryVanishes, s.fifo, s.awayAndBack, held, s.restart}
	for ; ctx.Err() == nil; s.total.rotations++ {
		faults[s.rand.IntN(len(faults))]()
		time.Sleep(time.Duration(s.rand.IntN(30)) * time.Millisecond)
	}
	writers.Wait()
	s.reopen()
	s.allRead()
	s.stopReaders()
	for _, p := range s.processes {
		p.close()
	}
	s.compare()
}
