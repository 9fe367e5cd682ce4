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
// another process is asked, which has threads before and makes more behind.
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
	giveWay()
	threads()
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
		fields := strings.Fields(rest)
		if policy, err := strconv.Atoi(fields[38]); err != nil || policy != unix.SCHED_IDLE { // the 41st field, proc_pid_stat(5)
			t.Errorf("%s: %s", name, b)
		}
	}
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
	login(10_000)
	s.until("all logins count", func() bool { return strings.Contains(s.must("status", "--json"), `"grants":10100`) })
	for _, args := range [][]string{{"list"}, {"list", "--json"}} {
		if n := listed(args...); n != 1 {
			t.Errorf("popgate %s gave way %d times", strings.Join(args, " "), n)
		}
	}
}
