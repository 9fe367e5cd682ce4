package state

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
)

const childEnv = "POPGATE_TEST_STATE_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir)
	}
	os.Exit(m.Run())
}

// bigGrant makes the files grow fast, so that snapshots come often.
func bigGrant(i int) relay.Change {
	c := grantOf(i)
	c.Grant.Note = strings.Repeat(strconv.Itoa(i)+" ", 2000)
	return c
}

// child is a daemon that goes on from its position, and prints each one that
// was promised to be on the disk. The grants it holds are the last hundred, as
// if older ones had expired.
func child(dir string) {
	d := &daemon{}
	s, err := Open(dir, Options{Snapshot: d.snapshot})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	d.State = s
	keep := func(c relay.Change) {
		d.ledger.mu.Lock()
		defer d.ledger.mu.Unlock()
		d.changes = append(d.changes, c)
		if n := len(d.changes); n > 100 {
			d.changes = d.changes[n-100:]
		}
	}
	at := int(s.Load(keep).Positions["s"].Offset)
	go func() {
		fmt.Println("error", s.Run(neverEnds{}))
		os.Exit(1)
	}()
	for i := at; ; i++ {
		c := bigGrant(i)
		keep(c)
		b := relay.Batch{Changes: []relay.Change{c}, Source: "s", Position: relay.Position{Offset: int64(i + 1)}}
		if i%10 != 9 {
			s.Append(b)
			continue
		}
		done := make(chan error, 1)
		b.Done = done
		s.Append(b)
		if err := <-done; err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		fmt.Println(i + 1)
	}
}

// neverEnds is the context of a daemon that is only ever killed.
type neverEnds struct{}

func (neverEnds) Deadline() (time.Time, bool) { return time.Time{}, false }
func (neverEnds) Done() <-chan struct{}       { return nil }
func (neverEnds) Err() error                  { return nil }
func (neverEnds) Value(any) any               { return nil }

func TestKilledDaemonKeepsWhatItPromised(t *testing.T) {
	dir := t.TempDir() + "/state"
	r := rand.New(rand.NewPCG(8, 9))
	promised, snapshots := 0, 0
	for life := range 12 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+dir)
		out := must(cmd.StdoutPipe())
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 20 + r.IntN(150); n > 0 && lines.Scan(); n-- {
			at, err := strconv.Atoi(lines.Text())
			if err != nil {
				t.Errorf("life %d: the daemon said %q", life, lines.Text())
				break
			}
			promised = max(promised, at)
		}
		cmd.Process.Kill()
		for lines.Scan() { // what it had said before it died
			if at, err := strconv.Atoi(lines.Text()); err == nil {
				promised = max(promised, at)
			}
		}
		cmd.Wait()
		if _, err := os.Stat(dir + "/" + snapshotName); err == nil {
			snapshots++
		}
		got, l := load(t, dir)
		have := map[string]bool{}
		for _, c := range got {
			have[c.Grant.User] = true
		}
		at := int(l.Positions["s"].Offset)
		if at < promised || l.Damaged {
			t.Fatalf("life %d: position %d, but %d was promised; %+v", life, at, promised, l)
		}
		for i := max(0, at-50); i < at; i++ {
			if !have[grantOf(i).Grant.User] {
				t.Fatalf("life %d: position %d, but grant %d is lost", life, at, i)
			}
		}
	}
	if promised < 1000 || snapshots < 6 {
		t.Errorf("only %d batches and %d lives with a snapshot: this test tests little", promised, snapshots)
	}
}
