package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// insideVar names, in the child process, the test the private host is for.
const insideVar = "POPGATE_LAB_TEST"

// Isolated runs a test on a host of its own. In the process that go test
// started it runs the same test binary once more, for this test only, in new
// namespaces; there it calls body. What body logs, and whether it failed or
// was skipped, becomes the outcome of t.
//
// Statements of the test before Isolated run in both processes; there should
// be none but t.Parallel.
func Isolated(t *testing.T, body func(t *testing.T, h *Host)) {
	t.Helper()
	if os.Getenv(insideVar) == t.Name() {
		inside(t, body)
		return
	}
	root, err := ready()
	if err != nil {
		missing(t, err)
	}
	outside(t, root)
}

// WithDaemon is Isolated for tests that start popgate: it is built first,
// outside, where the compiler's cache is.
func WithDaemon(t *testing.T, body func(t *testing.T, h *Host)) {
	t.Helper()
	if os.Getenv(insideVar) == "" {
		if _, err := ready(); err != nil {
			missing(t, err)
		}
		path, err := daemonBinary()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("popgate: %s", path)
	}
	Isolated(t, body)
}

// missing ends a test that can't be run on this machine.
func missing(t testing.TB, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("lab: %v", err)
	}
	t.Skipf("lab: %v", err)
}

// ready says whether this machine can run the lab, and gives the unpacked
// packages.
var ready = sync.OnceValues(func() (string, error) {
	if runtime.GOOS != "linux" {
		return "", errors.New("needs Linux namespaces")
	}
	if os.Geteuid() != 0 {
		return "", errors.New("needs root, for namespaces and ports below 1024")
	}
	for _, tool := range []string{"apt-get", "dpkg-deb", "dpkg-query"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("needs Debian: %w", err)
		}
	}
	cmd := exec.Command("true")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("needs leave to make namespaces: %w", err)
	}
	return tree()
})

const namespaces = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// reaper runs its arguments as process 1 of a namespace and ends with their
// status, and so ends all that they started. A shell, because a shell that waits
// for one child reaps every other: servers that fork twice leave their children
// to process 1, and a test binary would keep those as zombies until the machine
// has no process numbers left.
var reaper = []string{"/bin/sh", "-c", `"$@"; exit`, "reaper"}

// outside runs the test again, in namespaces of its own.
func outside(t *testing.T, root string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	args := []string{self, "-test.run=" + pattern(t.Name()), "-test.v", "-test.count=1", "-test.parallel=64"}
	if end, ok := t.Deadline(); ok {
		// The child tells more about a test that hangs than its parent can.
		end = end.Add(-time.Until(end) / 20)
		args = append(args, "-test.timeout="+time.Until(end).String())
	}
	args = slices.Concat(reaper, args)
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), insideVar+"="+t.Name(), "POPGATE_LAB_TREE="+root)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = patience
	report, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer report.Close()
	cmd.ExtraFiles = []*os.File{out}
	// The death signal is bound to the thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err = cmd.Start()
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	outcome, _ := io.ReadAll(report)
	err = cmd.Wait()
	switch {
	case err != nil:
		t.Fatalf("on its private host: %v", err)
	case string(outcome) == "skip":
		t.Skip("skipped on its private host")
	case string(outcome) != "pass":
		// An empty run is no proof.
		t.Fatalf("the test did not run on its private host: %q", outcome)
	}
}

// pattern gives the -test.run that means exactly this test.
func pattern(name string) string {
	parts := strings.Split(name, "/")
	for i, p := range parts {
		parts[i] = "^" + regexp.QuoteMeta(p) + "$"
	}
	return strings.Join(parts, "/")
}

// inside makes the host and runs body on it.
func inside(t *testing.T, body func(t *testing.T, h *Host)) {
	report := os.NewFile(3, "report")
	syscall.CloseOnExec(3)
	t.Cleanup(func() {
		outcome := "pass"
		switch {
		case t.Failed():
			outcome = "fail"
		case t.Skipped():
			outcome = "skip"
		}
		io.WriteString(report, outcome)
		report.Close()
	})
	h := newHost(t, os.Getenv("POPGATE_LAB_TREE"))
	t.Cleanup(func() {
		if t.Failed() {
			h.dump(t)
		}
	})
	body(t, h)
}

// daemonBinary builds cmd/popgate. With POPGATE_LAB_RACE=1 it is built with
// the race detector, which needs a C compiler. POPGATE_LAB_DAEMON names one to
// be tested instead, say that of a package.
var daemonBinary = sync.OnceValues(func() (string, error) {
	if path := os.Getenv("POPGATE_LAB_DAEMON"); path != "" {
		if !filepath.IsAbs(path) {
			return "", fmt.Errorf("POPGATE_LAB_DAEMON: %q is not an absolute path", path)
		}
		return path, nil
	}
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	temp, err := os.MkdirTemp(dir, "build")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(temp)
	args := []string{"build", "-o", filepath.Join(temp, "popgate")}
	if os.Getenv("POPGATE_LAB_RACE") == "1" {
		args = append(args, "-race")
	}
	ctx, stop := context.WithTimeout(context.Background(), 5*time.Minute)
	defer stop()
	if err := run(exec.CommandContext(ctx, "go", append(args, "popgate/cmd/popgate")...)); err != nil {
		return "", err
	}
	// A parallel test process may be running the old one: replace, never
	// overwrite.
	path := filepath.Join(dir, "popgate")
	if err := os.Rename(filepath.Join(temp, "popgate"), path); err != nil {
		return "", err
	}
	return path, os.Setenv("POPGATE_LAB_DAEMON", path)
})
