package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"

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
