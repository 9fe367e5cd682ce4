package journal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"popgate/internal/lab"
)

// The journal's storm: some hundred logins a second, while journald rotates,
// vacuums and restarts, journalctl is killed and frozen, the reading ends and is
// begun again, and others write logins of their own, from Dovecot's unit and from
// other machines. No login of Dovecot's is lost, and no other is told.
// POPGATE_SOAK=10m makes it long, POPGATE_SEED=n repeats its choices.
func TestJournalStorm(t *testing.T) {
	onJournal(t, lab.JournalOptions{Conf: []string{"RateLimitIntervalSec=0"}}, func(s *journalStage) {
		length := 4 * time.Second
		if d, err := time.ParseDuration(os.Getenv("POPGATE_SOAK")); err == nil {
			length = d
		}
		seed := uint64(time.Now().UnixNano())
		if n, err := strconv.ParseUint(os.Getenv("POPGATE_SEED"), 10, 64); err == nil {
			seed = n
		}
		s.Logf("POPGATE_SEED=%d", seed)
		w := &journalStorm{journalStage: s, chance: rand.New(rand.NewPCG(seed, 1)), seen: map[int]int{}}
		w.run(length)
	})
}

// forgedFrom is the first number of those nobody logged in with.
const forgedFrom = 1_000_000_000

type journalStorm struct {
	*journalStage
	chance *rand.Rand

	lock    sync.Mutex
	seen    map[int]int
	unknown []string
	lost    int
}

func (w *journalStorm) count() {
	w.mu.Lock()
	got := w.got
	w.got, w.live = nil, nil
	w.mu.Unlock()
	w.lock.Lock()
	defer w.lock.Unlock()
	for _, text := range got {
		n := -1
		_, rest, _ := strings.Cut(text, "mpid=")
		fmt.Sscanf(rest, "%d", &n)
		n -= 1000
		switch {
		case text == "LOST":
			w.lost++
		case text == "GAP":
		case n < 0 || n >= forgedFrom || loginMessage(n) != text:
			w.unknown = append(w.unknown, text)
		default:
			w.seen[n]++
		}
	}
}

func (w *journalStorm) run(length time.Duration) {
	ctx, stop := context.WithTimeout(context.Background(), length)
	defer stop()
	others := w.journal.Pipe(w.T, "dovecot.service", 0, "/usr/bin/logger", "-t", "dovecot", "-p", "mail.info")
	var writers sync.WaitGroup
	written := 0
	r := rand.New(rand.NewPCG(w.chance.Uint64(), 2))
	writers.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond) {
			for range r.IntN(12) {
				w.login(written)
				written++
			}
			fmt.Fprintln(others, loginMessage(forgedFrom+written))
		}
	})
	w.start()
	imports := 0
	turns := []func(){
		func() { w.journal.Control(w.T, "--rotate") },
		func() { w.journal.Control(w.T, "--rotate", "--vacuum-files=12") },
		func() { w.journal.Stop(w.T); w.journal.Start(w.T) },
		killChildren,
		killChildren,
		func() { w.stop(); w.start() },
		func() { w.stop(); w.journal.Control(w.T, "--rotate"); w.start() },
		func() {
			imports++
			w.journal.Import(w.T, fmt.Sprintf("/var/log/journal/remote/remote-%d.journal", imports%4), w.export(forgedFrom+imports))
		},
	}
	happened := 0
	for ; ctx.Err() == nil; happened++ {
		turns[w.chance.IntN(len(turns))]()
		w.count()
		time.Sleep(time.Duration(w.chance.IntN(150)) * time.Millisecond)
	}
	writers.Wait()
	first := 0
	for end := time.Now().Add(20 * time.Second); first < written; time.Sleep(5 * time.Millisecond) {
		w.count()
		for first < written && w.seen[first] > 0 {
			first++
		}
		if time.Now().After(end) {
			w.Fatalf("login %d of %d was never told; in the journal %d times; down: %q", first, written,
				strings.Count(w.journal.Control(w.T, "-o", "cat"), loginMessage(first)), w.down)
		}
	}
	w.stop()
	w.count()
	twice := 0
	for _, n := range w.seen {
		if n > 1 {
			twice++
		}
	}
	w.Logf("%d logins, %d turns, %d told twice, %d doubts whether one was lost", written, happened, twice, w.lost)
	if len(w.unknown) > 0 {
		w.Errorf("%d were told that Dovecot never wrote, the first %q", len(w.unknown), w.unknown[0])
	}
	if w.lost > 0 {
		w.Errorf("%d times a loss was told, and there was none", w.lost)
	}
}
