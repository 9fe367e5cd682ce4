package watcher

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"popgate/internal/relay"
)

// The storm: several writers, lines in pieces, and every kind of rotation at
// random moments, with the reader killed and started again in between. Every
// line that stayed readable must be handed over, and nothing that was never
// written. POPGATE_SOAK=10m makes it long, POPGATE_SEED=n repeats one.
func TestFileStorm(t *testing.T) {
	for _, tt := range []struct {
		name    string
		unaided bool // no event ever comes: only the clock tells
	}{{"with events", false}, {"every event lost", true}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			length := 2 * time.Second
			if d, err := time.ParseDuration(os.Getenv("POPGATE_SOAK")); err == nil {
				length = d
			}
			seed := uint64(time.Now().UnixNano())
			if n, err := strconv.ParseUint(os.Getenv("POPGATE_SEED"), 10, 64); err == nil {
				seed = n
			}
			t.Logf("POPGATE_SEED=%d", seed)
			s := newStorm(t, seed, tt.unaided)
			s.run(length)
		})
	}
}

type storm struct {
	*testing.T
	rand      *rand.Rand
	dir, path string
	unaided   bool

	// The logging daemon. Its lock is held over each line, so that it is never
	// told to reopen in the middle of one.
	daemon sync.Mutex
	log    *os.File
	next   int

	mu       sync.Mutex
	seen     map[int]int
	wrong    []string
	lost     map[int]bool // written, and then gone where nobody could read them
	position relay.Position
	why      string

	stopReader func()
}

func newStorm(t *testing.T, seed uint64, unaided bool) *storm {
	s := &storm{T: t, rand: rand.New(rand.NewPCG(seed, seed)), dir: filepath.Join(t.TempDir(), "log"), unaided: unaided,
		seen: map[int]int{}, lost: map[int]bool{}}
	s.path = filepath.Join(s.dir, "mail.log")
	s.must(os.Mkdir(s.dir, 0o755))
	s.reopen()
	return s
}

func (s *storm) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func stormLine(n int) string {
	text := fmt.Sprintf("line %d %s", n, strings.Repeat("x", n*n%300))
	return fmt.Sprintf("%s %08x", text, crc32.ChecksumIEEE([]byte(text)))
}

func lineNumber(line string) (int, bool) {
	f := strings.Fields(line)
	if len(f) < 2 {
		return 0, false
	}
	n, err := strconv.Atoi(f[1])
	return n, err == nil
}

func (s *storm) read(r Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Kind == Down {
		s.why = r.Err.Error()
	}
	if !r.Position.IsZero() {
		s.position = r.Position
	}
	if r.Kind != Line {
		return
	}
	n, ok := lineNumber(string(r.Text))
	if !ok || stormLine(n) != string(r.Text) {
		s.wrong = append(s.wrong, string(r.Text))
		return
	}
	s.seen[n]++
}

// start starts a reader; stopReader kills it.
func (s *storm) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	f := NewFile(s.path, time.UTC)
	f.unaided = s.unaided
	s.mu.Lock()
	from := s.position
	s.mu.Unlock()
	go func() {
		defer close(done)
		for r := range f.Records(ctx, from, time.Now().Add(-time.Hour)) {
			if ctx.Err() != nil {
				return // killed: no last word
			}
			s.read(r)
		}
	}()
	s.stopReader = func() { cancel(); <-done }
}

// write writes the next line, sometimes in pieces, sometimes a monster first.
// The daemon's lock is held.
func (s *storm) write(r *rand.Rand) int {
	n := s.next
	s.next++
	line := stormLine(n) + "\n"
	if r.IntN(500) == 0 {
		line = strings.Repeat("line ", MaxLine/4) + "\n" + line
	}
	for r.IntN(4) == 0 && len(line) > 1 {
		cut := 1 + r.IntN(len(line)-1)
		_, err := s.log.WriteString(line[:cut])
		s.must(err)
		line = line[cut:]
		if r.IntN(4) == 0 {
			time.Sleep(time.Duration(r.IntN(300)) * time.Microsecond)
		}
	}
	_, err := s.log.WriteString(line)
	s.must(err)
	return n
}

// writer is one program that logs.
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

// reopen is what the daemon does when it is told that its log was rotated.
func (s *storm) reopen() {
	s.daemon.Lock()
	defer s.daemon.Unlock()
	s.reopenLocked()
}

func (s *storm) reopenLocked() {
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
	end := time.Now().Add(20 * time.Second)
	for {
		s.mu.Lock()
		for first < n && (s.seen[first] > 0 || s.lost[first]) {
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
		time.Sleep(time.Millisecond)
	}
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

// shift makes room for mail.log.1.
func (s *storm) shift() {
	os.Remove(s.name(6))
	for n := 5; n > 0; n-- {
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
	s.caughtUp(s.next)
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
	s.must(os.Rename(s.dir, fmt.Sprintf("%s-%d", s.dir, s.rand.Uint32())))
	s.pause()
	s.must(os.Mkdir(s.dir, 0o755))
	s.pause()
	s.reopen()
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

// restart kills the reader and lets it resume where the last position was,
// after the log was rotated without it.
func (s *storm) restart() {
	s.daemon.Lock()
	s.caughtUp(s.next)
	s.stopReader()
	for range s.rand.IntN(3) {
		if s.isLink() {
			break // logrotate does not rotate links either
		}
		for range s.rand.IntN(50) {
			s.write(s.rand)
		}
		s.shift()
		s.must(os.Rename(s.path, s.name(1)))
		s.reopenLocked()
	}
	s.daemon.Unlock()
	s.start()
}

func (s *storm) run(length time.Duration) {
	s.start()
	ctx, stop := context.WithTimeout(context.Background(), length)
	defer stop()
	var writers sync.WaitGroup
	for range 3 {
		seed := s.rand.Uint64()
		writers.Go(func() { s.writer(ctx, seed) })
	}
	rotations := []func(){s.renameCreate, s.renameCreate, s.renameOnly, s.remove, s.copyTruncate, s.truncateRegrow,
		s.symlinkSwap, s.directoryVanishes, s.fifo, s.awayAndBack, s.restart}
	count := 0
	for ; ctx.Err() == nil; count++ {
		rotations[s.rand.IntN(len(rotations))]()
		time.Sleep(time.Duration(s.rand.IntN(30)) * time.Millisecond)
	}
	writers.Wait()
	s.reopen()
	s.caughtUp(s.next)
	s.stopReader()
	twice := 0
	for _, n := range s.seen {
		if n > 1 {
			twice++
		}
	}
	s.Logf("%d lines, %d rotations: %d lost to copytruncate itself, %d handed over again after a restart", s.next, count, len(s.lost), twice)
	if len(s.wrong) > 0 {
		s.Errorf("%d lines were handed over that nobody wrote, the first %q", len(s.wrong), shortened(s.wrong[:1]))
	}
}
