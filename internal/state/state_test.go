package state

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

var day = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func grantOf(i int) relay.Change {
	return relay.Change{Kind: relay.ChangeGrant, Grant: relay.Grant{
		Client: netip.AddrFrom4([4]byte{byte(11 + i>>24), byte(i >> 16), byte(i >> 8), byte(i)}), Prefix: 32, Service: relay.IMAP,
		User: fmt.Sprintf("user%d@example.org", i), Source: "file:/var/log/mail.log", Format: "dovecot",
		Session: fmt.Sprintf("s%014d", i), Login: day.Add(time.Duration(i) * time.Millisecond),
		Expires: day.Add(time.Duration(i)*time.Millisecond + 30*time.Minute)}}
}

func revokeOf(i int) relay.Change {
	return relay.Change{Kind: relay.ChangeRevoke, Revocation: relay.Revocation{User: fmt.Sprintf("user%d@example.org", i), Time: day, Until: day.Add(24 * time.Hour)}}
}

// ledger stands in for the real one: it keeps every change it applied.
type ledger struct {
	mu      sync.Mutex
	changes []relay.Change
}

func (l *ledger) apply(c ...relay.Change) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes = append(l.changes, c...)
}

func (l *ledger) snapshot() iter.Seq[relay.Change] {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Values(slices.Clone(l.changes))
}

// daemon is a State that runs, with its ledger.
type daemon struct {
	*State
	ledger
	loaded Loaded
	stop   func() error
}

func start(t testing.TB, dir string, o Options) *daemon {
	t.Helper()
	d := &daemon{}
	if o.Snapshot == nil {
		o.Snapshot = d.snapshot
	}
	s, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	d.State = s
	d.loaded = s.Load(func(c relay.Change) { d.apply(c) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	d.stop = sync.OnceValue(func() error {
		cancel()
		return errors.Join(<-done, s.Close())
	})
	t.Cleanup(func() { d.stop() })
	return d
}

// put applies and appends, and waits for the disk when it is to.
func (d *daemon) put(t testing.TB, wait bool, b relay.Batch) error {
	t.Helper()
	d.apply(b.Changes...)
	done := make(chan error, 1)
	if wait {
		b.Done = done
	}
	d.Append(b)
	if !wait {
		return nil
	}
	select {
	case err := <-done:
		return err
	case <-time.After(20 * time.Second):
		t.Fatal("Done was not told within 20 s")
		return nil
	}
}

func until(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited 20 s for: %s", what)
		}
	}
}

func load(t testing.TB, dir string) ([]relay.Change, Loaded) {
	t.Helper()
	s, err := Open(dir, Options{Snapshot: (&ledger{}).snapshot})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var got []relay.Change
	l := s.Load(func(c relay.Change) { got = append(got, c) })
	if l.Changes != len(got) {
		t.Errorf("Loaded.Changes = %d, but %d were given", l.Changes, len(got))
	}
	return got, l
}

func TestWhatWasAppendedIsLoaded(t *testing.T) {
	dir := t.TempDir() + "/state"
	want := []relay.Change{grantOf(1), revokeOf(2),
		{Kind: relay.ChangeClose, Source: "file:/var/log/mail.log", Session: "s1", At: day, Until: day.Add(time.Hour)}}
	pos := relay.Position{Device: 1, Inode: 2, Offset: 3, Sum: 1 << 63, Cursor: "s=1;i=2", Time: day}
	d := start(t, dir, Options{})
	if len(d.loaded.Warnings) != 0 || d.loaded.Changes != 0 {
		t.Errorf("a new directory loaded %+v, want nothing", d.loaded)
	}
	for _, c := range want {
		d.put(t, false, relay.Batch{Changes: []relay.Change{c}})
	}
	if err := d.put(t, true, relay.Batch{Source: "journal", Position: pos}); err != nil {
		t.Fatal(err)
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	got, l := load(t, dir)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("loaded %+v\nwant %+v", got, want)
	}
	if l.Positions["journal"] != pos || len(l.Positions) != 1 || len(l.Warnings) != 0 || l.Damaged {
		t.Errorf("loaded %+v, want the position %+v and no warning", l, pos)
	}
	for _, e := range must(os.ReadDir(dir)) {
		if info, _ := e.Info(); info.Mode() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", e.Name(), info.Mode())
		}
	}
	if info := must(os.Stat(dir)); info.Mode().Perm() != 0o700 {
		t.Errorf("the directory has mode %v, want 0700", info.Mode())
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// operations notes when what was done to a disk in memory.
type operations struct {
	mu   sync.Mutex
	fail string
	at   map[string][]time.Time
}

func (o *operations) fault(op, _ string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.at[op] = append(o.at[op], time.Now())
	if op == o.fail && len(o.at[op]) < 10_000 {
		return syscall.ENOSPC
	}
	return nil
}

func (o *operations) begin(fail string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.fail, o.at = fail, map[string][]time.Time{}
}

// after says how long after t the operation was first done.
func (o *operations) after(t time.Time, op string) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.at[op]) == 0 {
		return -1
	}
	return o.at[op][0].Sub(t)
}

func (o *operations) count(op string) int { o.mu.Lock(); defer o.mu.Unlock(); return len(o.at[op]) }

func TestAppendedIsWrittenIn200msAndSyncedInAnotherSecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ops operations
		ops.begin("")
		d := start(t, "disk", Options{files: newDisk(-1), Fault: ops.fault})
		time.Sleep(time.Minute)
		for _, tt := range []struct {
			name  string
			b     relay.Batch
			write time.Duration
			sync  time.Duration
		}{
			{"a login", relay.Batch{Changes: []relay.Change{grantOf(1)}}, 200 * time.Millisecond, 1200 * time.Millisecond},
			{"a position, with the next sync", relay.Batch{Source: "s"}, time.Second, 2 * time.Second},
			{"an operator's command, at once", relay.Batch{Changes: []relay.Change{revokeOf(1)}, Done: make(chan error, 1)}, 0, 0},
		} {
			began := time.Now()
			ops.begin("")
			d.Append(tt.b)
			time.Sleep(5 * time.Second)
			w, s := ops.after(began, "write"), ops.after(began, "sync")
			if w < 0 || w > tt.write || s < 0 || s > tt.sync {
				t.Errorf("%s: written after %v, synced after %v; want at most %v and %v", tt.name, w, s, tt.write, tt.sync)
			}
			if ops.count("write") != 1 || ops.count("sync") != 1 {
				t.Errorf("%s: %d writes and %d syncs, want one each", tt.name, ops.count("write"), ops.count("sync"))
			}
		}
		d.stop()
	})
}

func TestFailingDiskIsTriedOnceASecond(t *testing.T) {
	for _, tt := range []struct {
		op       string
		atLeast  int
		atMost   int
		snapshot bool
	}{
		{"write", 50, 65, false},
		{"sync", 1, 20, false},
		{"rename", 4, 10, true},
		{"create", 4, 10, true},
	} {
		t.Run(tt.op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var ops operations
				ops.begin("")
				d := start(t, "disk", Options{files: newDisk(-1), Fault: ops.fault})
				d.put(t, false, relay.Batch{Changes: []relay.Change{grantOf(1)}})
				time.Sleep(500 * time.Millisecond) // written, not yet synced
				ops.begin(tt.op)
				if tt.snapshot {
					d.forget(errors.New("test: snapshot wanted"))
				}
				d.put(t, false, relay.Batch{Changes: []relay.Change{grantOf(2)}})
				time.Sleep(time.Minute)
				if n := ops.count(tt.op); n < tt.atLeast || n > tt.atMost {
					t.Errorf("tried %d times in a minute, want %d to %d", n, tt.atLeast, tt.atMost)
				}
				if d.Health() == nil {
					t.Error("Health = nil while the disk fails")
				}
				ops.begin("")
				time.Sleep(2 * time.Minute)
				if err := d.Health(); err != nil {
					t.Errorf("Health = %v two minutes after the disk works again", err)
				}
				d.stop()
			})
		})
	}
}

// A ledger that takes its time to give its state keeps nobody waiting.
func TestSlowSnapshotDoesNotHoldUpTheChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var ops operations
		ops.begin("")
		d := start(t, "disk", Options{files: newDisk(-1), Fault: ops.fault, Snapshot: func() iter.Seq[relay.Change] {
			return func(func(relay.Change) bool) { time.Sleep(time.Minute) }
		}})
		d.forget(errors.New("test: snapshot wanted"))
		d.put(t, false, relay.Batch{Changes: []relay.Change{grantOf(1)}})
		time.Sleep(10 * time.Second)
		began := time.Now()
		ops.begin("")
		d.put(t, false, relay.Batch{Changes: []relay.Change{grantOf(2)}})
		time.Sleep(500 * time.Millisecond)
		if w := ops.after(began, "write"); w < 0 || w > 200*time.Millisecond {
			t.Errorf("written after %v beside a slow snapshot, want 200 ms", w)
		}
		d.forget(errors.New("test: another snapshot wanted")) // what was written is still unsynced
		time.Sleep(5 * time.Minute)
		if err := d.Health(); err != nil {
			t.Errorf("Health = %v when the snapshots are done", err)
		}
		d.stop()
	})
}

func TestRestartsGoOnWhereTheLastEnded(t *testing.T) {
	dir := t.TempDir() + "/state"
	for i := range 10 {
		d := start(t, dir, Options{})
		if d.loaded.Changes != i || len(d.loaded.Warnings) != 0 {
			t.Fatalf("start %d: loaded %d changes, warnings %v; want %d and none", i, d.loaded.Changes, d.loaded.Warnings, i)
		}
		if i > 0 && d.loaded.Positions["s"].Offset != int64(i) {
			t.Fatalf("start %d: position %+v, want offset %d", i, d.loaded.Positions["s"], i)
		}
		d.put(t, i%2 == 0, relay.Batch{Changes: []relay.Change{grantOf(i)}, Source: "s", Position: relay.Position{Offset: int64(i + 1)}})
		if err := d.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSnapshotReplacesOldChanges(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	d := start(t, dir, Options{})
	const n = 120_000
	for i := 0; i < n; i += 1000 {
		var b relay.Batch
		for j := range 1000 {
			b.Changes = append(b.Changes, grantOf(i+j))
		}
		b.Source, b.Position = "s", relay.Position{Offset: int64(i + 1000)}
		if err := d.put(t, true, b); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "a snapshot", func() bool { _, err := os.Stat(filepath.Join(dir, snapshotName)); return err == nil })
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	got, l := load(t, dir)
	seen := map[string]bool{}
	for _, c := range got {
		seen[c.Grant.User] = true
	}
	if len(seen) != n || l.Damaged || len(l.Warnings) != 0 || l.Positions["s"].Offset != n {
		t.Errorf("loaded %d different grants, %+v; want %d and no warnings", len(seen), l, n)
	}
}

func TestDirectoryThatWouldNotBeSafeIsRefused(t *testing.T) {
	base := t.TempDir()
	file := filepath.Join(base, "file")
	os.WriteFile(file, nil, 0o600)
	open := filepath.Join(base, "open")
	os.Mkdir(open, 0o755)
	foreign := filepath.Join(base, "foreign")
	os.Mkdir(foreign, 0o700)
	chowned := os.Chown(foreign, 12345, 12345) == nil
	busy := filepath.Join(base, "busy")
	first := must(Open(busy, Options{Snapshot: (&ledger{}).snapshot}))
	defer first.Close()
	for _, tt := range []struct{ name, dir, want string }{
		{"not a directory", file, file + ": is not a directory"},
		{"open to others", open, "mode 0755 lets other users in; chmod 0700 "},
		{"another user's", foreign, "owned by uid 12345, but popgate runs as uid "},
		{"parent missing", filepath.Join(base, "a/b"), "can't be made: no such file or directory; make it"},
		{"another daemon's", busy, fmt.Sprintf("in use by another popgate (pid %d)", os.Getpid())},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.dir == foreign && !chowned {
				t.Skip("only root can give a directory away")
			}
			_, err := Open(tt.dir, Options{Snapshot: (&ledger{}).snapshot})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Open = %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := Open(base+"/x", Options{}); err == nil {
		t.Error("Open without Options.Snapshot succeeded")
	}
}

func TestLockGoesWithTheDaemon(t *testing.T) {
	dir := t.TempDir() + "/state"
	for range 3 {
		if err := must(Open(dir, Options{Snapshot: (&ledger{}).snapshot})).Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// fill makes a directory with a snapshot of n grants and m further ones, each
// in a batch of its own, and returns the names of its two files.
func fill(t testing.TB, n, m int) (dir, changes string) {
	t.Helper()
	dir = t.TempDir() + "/state"
	d := start(t, dir, Options{})
	for i := range n {
		d.apply(grantOf(i), revokeOf(i))
	}
	d.forget(errors.New("test: snapshot wanted"))
	if err := d.put(t, true, relay.Batch{Source: "s", Position: relay.Position{Offset: 1}}); err != nil {
		t.Fatal(err)
	}
	for i := range m {
		if err := d.put(t, true, relay.Batch{Changes: []relay.Change{grantOf(n + i)}, Source: "s", Position: relay.Position{Offset: int64(2 + i)}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	names := must(directory(dir).list())
	for _, name := range names {
		if _, ok := firstOf(name); ok {
			changes = filepath.Join(dir, name)
		}
	}
	return dir, changes
}

func count(changes []relay.Change) (grants, taking int) {
	for _, c := range changes {
		if c.Kind == relay.ChangeGrant {
			grants++
		} else {
			taking++
		}
	}
	return grants, taking
}

func TestTornTailIsCutAtEveryByte(t *testing.T) {
	t.Parallel()
	dir, changes := fill(t, 2, 3)
	whole := must(os.ReadFile(changes))
	before := -1
	for n := range len(whole) + 1 {
		os.WriteFile(changes, whole[:n], 0o600)
		got, l := load(t, dir)
		grants, _ := count(got)
		// a position without the changes before it would lose a login
		if want := int64(grants - 2 + 1); l.Positions["s"].Offset != want {
			t.Fatalf("cut at byte %d: %d grants and position %d, want position %d", n, grants, l.Positions["s"].Offset, want)
		}
		if l.Damaged || grants < before {
			t.Fatalf("cut at byte %d: %d grants after %d, %+v", n, grants, before, l)
		}
		before = grants
	}
	if before != 5 {
		t.Errorf("%d grants from the whole file, want 5", before)
	}
}

func TestDamageCostsGrantsAndNeverGivesBackWhatWasRevoked(t *testing.T) {
	for _, tt := range []struct {
		name           string
		hurt           func(t *testing.T, dir, changes string)
		grants, taking int // at most, exactly
		offset         int64
		warn           string
	}{
		{"snapshot flipped in its grants", func(t *testing.T, dir, _ string) { flip(t, dir+"/"+snapshotName, -200) }, 0, 0, 0, "torn or damaged"},
		{"snapshot cut", func(t *testing.T, dir, _ string) { truncate(t, dir+"/"+snapshotName, -1) }, 0, 0, 0, "torn or damaged"},
		{"snapshot's header flipped", func(t *testing.T, dir, _ string) { flip(t, dir+"/"+snapshotName, 13) }, 0, 0, 0, "header is torn"},
		{"snapshot is a foreign file", func(t *testing.T, dir, _ string) {
			os.WriteFile(dir+"/"+snapshotName, []byte(strings.Repeat("hello", 100)), 0o600)
		}, 0, 0, 0, "is not a state file of popgate"},
		{"snapshot is empty", func(t *testing.T, dir, _ string) { truncate(t, dir+"/"+snapshotName, 0) }, 0, 0, 0, "is not a state file"},
		{"snapshot is a symlink", func(t *testing.T, dir, changes string) {
			os.Remove(dir + "/" + snapshotName)
			os.Symlink(changes, dir+"/"+snapshotName)
		}, 0, 0, 0, "symbolic"},
		{"snapshot is a fifo", func(t *testing.T, dir, changes string) {
			os.Remove(dir + "/" + snapshotName)
			syscall.Mkfifo(dir+"/"+snapshotName, 0o600)
		}, 0, 0, 0, "not a regular file"},
		{"snapshot is gone", func(t *testing.T, dir, _ string) { os.Remove(dir + "/" + snapshotName) }, 0, 0, 0, "are missing"},
		{"snapshot of a later version", func(t *testing.T, dir, _ string) {
			h := header(kindSnapshot, 5)
			h[9] = 2
			rewrite(t, dir+"/"+snapshotName, h)
		}, 0, 0, 0, "header is torn"},
		{"changes in the snapshot's place", func(t *testing.T, dir, changes string) {
			os.WriteFile(dir+"/"+snapshotName, must(os.ReadFile(changes)), 0o600)
		}, 0, 0, 0, "of another kind"},
		{"changes are a foreign file", func(t *testing.T, _, changes string) { os.WriteFile(changes, []byte("hello"), 0o600) }, 2, 2, 1, "is not a state file"},
		{"first batch of changes flipped", func(t *testing.T, _, changes string) { flip(t, changes, headerSize+frameSize+3) }, 2, 2, 1, "torn or damaged"},
		{"changes under a later number", func(t *testing.T, dir, changes string) { os.Rename(changes, dir+"/"+changesName(99)) }, 2, 2, 1, "are missing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, changes := fill(t, 2, 3)
			tt.hurt(t, dir, changes)
			got, l := load(t, dir)
			grants, taking := count(got)
			if grants > tt.grants || taking != tt.taking || l.Positions["s"].Offset != tt.offset {
				t.Errorf("loaded %d grants, %d that take away, offset %d; want %d, %d, %d", grants, taking, l.Positions["s"].Offset, tt.grants, tt.taking, tt.offset)
			}
			if text := errors.Join(l.Warnings...); text == nil || !strings.Contains(text.Error(), tt.warn) || !strings.Contains(text.Error(), dir) {
				t.Errorf("warnings %v, want one with the file and %q", l.Warnings, tt.warn)
			}
			// The daemon starts on it, and the next start finds all well.
			d := start(t, dir, Options{})
			if err := d.put(t, true, relay.Batch{Changes: []relay.Change{grantOf(77)}, Source: "s", Position: relay.Position{Offset: 78}}); err != nil {
				t.Fatalf("after damage nothing can be kept: %v", err)
			}
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
			again, l := load(t, dir)
			if g, _ := count(again); g < 1 || l.Positions["s"].Offset != 78 || l.Damaged {
				t.Errorf("after another start: %d grants, %+v; want the new one and no damage", g, l)
			}
		})
	}
}

func TestRevocationBehindDamageStillCounts(t *testing.T) {
	dir := t.TempDir() + "/state"
	d := start(t, dir, Options{})
	for i, c := range []relay.Change{grantOf(0), grantOf(1), revokeOf(0), grantOf(2)} {
		if err := d.put(t, true, relay.Batch{Changes: []relay.Change{c}, Source: "s", Position: relay.Position{Offset: int64(i + 1)}}); err != nil {
			t.Fatal(err)
		}
	}
	d.stop()
	changes := filepath.Join(dir, changesName(1))
	data := must(os.ReadFile(changes))
	second := headerSize + frameSize + int(data[headerSize+4])
	flip(t, changes, second+frameSize+5)
	got, l := load(t, dir)
	if len(got) != 2 || got[0].Grant.User != "user0@example.org" || got[1].Kind != relay.ChangeRevoke || l.Positions["s"].Offset != 1 || !l.Damaged {
		t.Errorf("loaded %+v, %+v; want the first grant, its revocation, position 1, damage", got, l)
	}
}

func flip(t *testing.T, path string, at int) {
	t.Helper()
	data := must(os.ReadFile(path))
	if at < 0 {
		at += len(data)
	}
	data[at] ^= 0x40
	os.WriteFile(path, data, 0o600)
}

func truncate(t *testing.T, path string, to int64) {
	t.Helper()
	if to < 0 {
		to += must(os.Stat(path)).Size()
	}
	if err := os.Truncate(path, to); err != nil {
		t.Fatal(err)
	}
}

func rewrite(t *testing.T, path string, head []byte) {
	t.Helper()
	data := must(os.ReadFile(path))
	copy(data, head)
	os.WriteFile(path, data, 0o600)
}

// A disk that fails in one way for a while loses nothing once it works again.
func TestDiskThatFailsLosesNothing(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"create", "write", "sync", "rename", "syncdir"} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir() + "/state"
			var mu sync.Mutex
			broken := false
			d := start(t, dir, Options{Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Fault: func(o, _ string) error {
				mu.Lock()
				defer mu.Unlock()
				if broken && o == op {
					return syscall.ENOSPC
				}
				return nil
			}})
			turn := func(to bool) { mu.Lock(); broken = to; mu.Unlock() }
			if err := d.put(t, true, relay.Batch{Changes: []relay.Change{grantOf(0)}}); err != nil {
				t.Fatal(err)
			}
			turn(true)
			if op != "write" && op != "sync" {
				d.forget(errors.New("test: snapshot wanted"))
			}
			if err := d.put(t, true, relay.Batch{Changes: []relay.Change{revokeOf(1)}}); !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("Done was told %v while the disk fails, want the file and %v", err, syscall.ENOSPC)
			}
			if err := d.Health(); !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("Health = %v while the disk fails", err)
			}
			d.put(t, false, relay.Batch{Changes: []relay.Change{grantOf(2)}, Source: "s", Position: relay.Position{Offset: 2}})
			turn(false)
			until(t, "health", func() bool { return d.Health() == nil })
			if err := d.put(t, true, relay.Batch{Changes: []relay.Change{grantOf(3)}, Source: "s", Position: relay.Position{Offset: 3}}); err != nil {
				t.Fatal(err)
			}
			if err := d.stop(); err != nil {
				t.Fatal(err)
			}
			got, l := load(t, dir)
			if grants, taking := distinct(got); grants != 3 || taking != 1 || l.Damaged || l.Positions["s"].Offset != 3 {
				t.Errorf("loaded %d grants, %d revocations, %+v; want 3, 1, no damage", grants, taking, l)
			}
		})
	}
}

func distinct(changes []relay.Change) (grants, taking int) {
	seen := map[string]bool{}
	var once []relay.Change
	for _, c := range changes {
		if id := fmt.Sprint(c.Kind, c.Grant.User, c.Revocation.User); !seen[id] {
			seen[id] = true
			once = append(once, c)
		}
	}
	return count(once)
}

func TestWhatWaitsForAFullDiskIsBoundedAndNotLost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir() + "/state"
	var mu sync.Mutex
	broken := true
	d := start(t, dir, Options{Fault: func(op, _ string) error {
		mu.Lock()
		defer mu.Unlock()
		if broken && op == "write" {
			return syscall.ENOSPC
		}
		return nil
	}})
	const n = 250_000
	for i := 0; i < n; i += 100 {
		var b relay.Batch
		for j := range 100 {
			b.Changes = append(b.Changes, grantOf(i+j))
		}
		b.Source, b.Position = "s", relay.Position{Offset: int64(i + 100)}
		d.put(t, false, b)
		d.State.mu.Lock()
		held := d.held
		d.State.mu.Unlock()
		if held > maxHeld+batchSize {
			t.Fatalf("%d bytes held, the bound is %d", held, maxHeld)
		}
	}
	if !d.isLost() {
		t.Fatalf("%d changes fit below the bound: this test tests nothing", n)
	}
	mu.Lock()
	broken = false
	mu.Unlock()
	until(t, "health", func() bool { return d.Health() == nil })
	if err := d.stop(); err != nil {
		t.Fatal(err)
	}
	got, l := load(t, dir)
	if grants, _ := distinct(got); grants != n || l.Damaged || l.Positions["s"].Offset != n {
		t.Errorf("loaded %d grants, %+v; want %d, no damage", grants, l, n)
	}
}

func TestStopWhileTheDiskFailsSaysSo(t *testing.T) {
	d := start(t, t.TempDir()+"/state", Options{Fault: func(op, _ string) error {
		if op == "sync" {
			return syscall.EIO
		}
		return nil
	}})
	d.put(t, false, relay.Batch{Changes: []relay.Change{grantOf(1)}})
	if err := d.stop(); !errors.Is(err, syscall.EIO) {
		t.Errorf("Run = %v, want %v", err, syscall.EIO)
	}
	if err := d.put(t, true, relay.Batch{Changes: []relay.Change{grantOf(2)}}); err == nil {
		t.Error("a batch appended after the end was answered with nil")
	}
}

func TestChangeThatCannotBeKeptIsRefused(t *testing.T) {
	d := start(t, t.TempDir()+"/state", Options{})
	big := grantOf(1)
	big.Grant.Note = strings.Repeat("x", maxText+1)
	for _, c := range []relay.Change{big, {}, {Kind: 99}} {
		if err := d.put(t, true, relay.Batch{Changes: []relay.Change{c}}); err == nil {
			t.Errorf("kind %d with %d bytes of note: kept, want an error", c.Kind, len(c.Grant.Note))
		}
	}
}

func TestRunNeedsLoad(t *testing.T) {
	s := must(Open(t.TempDir()+"/state", Options{Snapshot: (&ledger{}).snapshot}))
	defer s.Close()
	if err := s.Run(t.Context()); err == nil {
		t.Error("Run without Load would write over what is there; want an error")
	}
}

// randomChange has every field of its kind set to anything that fits it.
func randomChange(r *rand.Rand) relay.Change {
	text := func() string {
		b := make([]byte, r.IntN(40))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return string(b)
	}
	when := func() time.Time {
		switch r.IntN(5) {
		case 0:
			return time.Time{}
		case 1:
			return time.Unix(r.Int64N(1<<40)-1<<39, r.Int64N(1e9)).UTC()
		default:
			return day.Add(time.Duration(r.Int64N(int64(100 * time.Hour))))
		}
	}
	addr := func() netip.Addr {
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		switch r.IntN(4) {
		case 0:
			return netip.Addr{}
		case 1:
			return netip.AddrFrom16(b)
		default:
			return netip.AddrFrom4([4]byte(b[:4]))
		}
	}
	yes := func() bool { return r.IntN(2) == 0 }
	switch r.IntN(3) {
	case 0:
		return relay.Change{Kind: relay.ChangeClose, Source: text(), Session: text(), At: when(), Until: when()}
	case 1:
		rv := relay.Revocation{User: text(), All: yes(), Time: when(), Block: when(), Until: when()}
		if a := addr(); a.IsValid() {
			rv.Network = netip.PrefixFrom(a, r.IntN(a.BitLen()+1))
		}
		return relay.Change{Kind: relay.ChangeRevoke, Revocation: rv}
	default:
		return relay.Change{Kind: relay.ChangeGrant, Ceiling: when(), Grant: relay.Grant{Client: addr(), Prefix: byte(r.Uint32()),
			Service: relay.Service(r.Uint32()), Operator: yes(), Forced: yes(), Open: yes(), User: text(), Source: text(), Format: text(),
			Session: text(), Note: text(), Login: when(), Expires: when()}}
	}
}

func TestEveryFieldComesBack(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var dec decoder
	for range 500 {
		var enc encoder
		var want batch
		for range r.IntN(50) {
			c := randomChange(r)
			if err := enc.change(&c); err != nil {
				t.Fatal(err)
			}
			want.changes = append(want.changes, c)
		}
		p := position{"source", relay.Position{Device: r.Uint64(), Inode: r.Uint64(), Offset: -r.Int64(), Sum: r.Uint64(), Cursor: "c", Time: day}}
		enc.position(p.source, p.Position)
		var got batch
		if !dec.batch(enc.take(), &got) {
			t.Fatal("a body was not understood")
		}
		if len(got.changes) != len(want.changes) || got.positions[0] != p {
			t.Fatalf("%d changes, %+v; want %d, %+v", len(got.changes), got.positions, len(want.changes), p)
		}
		for i, c := range got.changes {
			if c != want.changes[i] {
				t.Fatalf("got  %+v\nwant %+v", c, want.changes[i])
			}
		}
	}
}

// A field added to these types must be added to the codec, and then here.
func TestNoFieldIsForgotten(t *testing.T) {
	for _, tt := range []struct {
		v any
		n int
	}{{relay.Grant{}, 14}, {relay.Change{}, 8}, {relay.Revocation{}, 6}, {relay.Position{}, 6}} {
		if typ := reflect.TypeOf(tt.v); typ.NumField() != tt.n {
			t.Errorf("%v has %d fields, the codec was written for %d", typ, typ.NumField(), tt.n)
		}
	}
}
