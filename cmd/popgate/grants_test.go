package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// What one thread gives way to, another would take: the whole process must. So
// another process is asked, which has threads before and makes more behind. When
// it has waited for long, they all go on as others do, only nice: else a list
// would never end beside somebody who needs the processor.
func TestAListGivesWayWithAllItsThreads(t *testing.T) {
	const asked = "POPGATE_TEST_GIVE_WAY"
	if os.Getenv(asked) == "" {
		child := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), asked+"=1")
		if out, err := child.CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	hold := make(chan struct{})
	var held sync.WaitGroup
	defer held.Wait()
	defer close(hold)
	threads := func() {
		var there sync.WaitGroup
		for range 4 {
			there.Add(1)
			held.Go(func() {
				runtime.LockOSThread()
				there.Done()
				<-hold
			})
		}
		there.Wait()
	}
	threads()
	before, err := unix.SchedGetAttr(0, 0)
	if err != nil {
		t.Fatal(err)
	}
	nice := max(niceAfter, int(before.Nice))
	enough := make(chan time.Time)
	giveWayUntil(enough)
	threads()
	if others := threadsBut(t, unix.SCHED_IDLE, 0); len(others) > 0 {
		t.Errorf("these don't give way: %q", others)
	}
	if before.Policy == unix.SCHED_IDLE || unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_NORMAL, Nice: int32(nice)}, 0) != nil {
		return // it was to, or this user may not, and so waits
	}
	enough <- time.Now()
	var others []string
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if others = threadsBut(t, unix.SCHED_NORMAL, nice); len(others) == 0 {
			return
		}
	}
	t.Errorf("these wait for ever: %q", others)
}

// threadsBut gives what is known of the threads of this process that have another
// policy or, if they could have one, another nice value.
func threadsBut(t *testing.T, policy, nice int) (others []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/task/*/stat")
	if err != nil || len(all) < 8 {
		t.Fatal(all, err)
	}
	for _, name := range all {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		fields := strings.Fields(rest) // from the 3rd on, proc_pid_stat(5): the 19th is the nice value, the 41st the policy
		if fields[38] != strconv.Itoa(policy) || policy != unix.SCHED_IDLE && fields[16] != strconv.Itoa(nice) {
			others = append(others, string(b))
		}
	}
	return others
}

// A list gives way once it proves long, in either form, and a short one doesn't.
func TestOnlyALongListGivesWay(t *testing.T) {
	s := newSite(t)
	grants := 0
	login := func(more int) {
		f, err := os.OpenFile(filepath.Join(s.dir, "mail.log"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range more {
			fmt.Fprintf(f, "%s mx1 dovecot: imap-login: Login: user=<u%d>, method=PLAIN, rip=198.51.%d.%d, lip=192.0.2.1, mpid=4711, TLS, session=<s%d>\n",
				time.Now().Format(time.RFC3339), grants, grants>>8, grants&255, grants)
			grants++
		}
	}
	listed := func(args ...string) (gaveWay int) {
		var out, errs bytes.Buffer
		e := s.env(&out, &errs)
		e.giveWay = func() { gaveWay++ }
		if code := run(t.Context(), append(args, "-c", s.config), e); code != 0 {
			t.Errorf("popgate %s: exit %d\n%s", strings.Join(args, " "), code, errs.String())
		}
		if n := strings.Count(out.String(), "198.51."); n != grants {
			t.Errorf("popgate %s: %d grants, want %d", strings.Join(args, " "), n, grants)
		}
		return gaveWay
	}
	login(100)
	s.start()
	if n := listed("list") + listed("list", "--json"); n != 0 {
		t.Errorf("short lists gave way %d times", n)
	}
	for range 10 { // each in its own time: a busy machine has little for either of us
		login(1000)
		s.until("all logins count", func() bool { return strings.Contains(s.must("status", "--json"), fmt.Sprintf(`"grants":%d`, grants)) })
	}
	for _, args := range [][]string{{"list"}, {"list", "--json"}} {
		if n := listed(args...); n != 1 {
			t.Errorf("popgate %s gave way %d times", strings.Join(args, " "), n)
		}
	}
}
