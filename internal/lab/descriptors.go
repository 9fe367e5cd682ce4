package lab

import (
	"fmt"
	"os"
	"strconv"
	"testing"
)

// LastDescriptor gives the highest descriptor popgate has open. With a limit
// just above it, popgate may open again what it closes, and nothing else as
// soon as those below are in use.
func (d *Daemon) LastDescriptor(t testing.TB) int {
	t.Helper()
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", d.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	last := -1
	for _, entry := range open {
		n, err := strconv.Atoi(entry.Name())
		if err != nil {
			t.Fatal(err)
		}
		last = max(last, n)
	}
	return last
}
