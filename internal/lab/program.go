package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Program is a server the lab has started.
type Program struct {
	Output *Log // standard output and error

	cmd  *exec.Cmd
	gone chan struct{} // closed when it has ended
	once sync.Once
}

// start starts a server as root. What is left of it at the end of the test is
// killed.
func (h *Host) start(t testing.TB, name string, args ...string) *Program {
	t.Helper()
	return h.startAs(t, nil, name, args...)
}

// startAs starts a server as somebody; nil is root.
func (h *Host) startAs(t testing.TB, who *syscall.Credential, name string, args ...string) *Program {
	t.Helper()
	p := &Program{Output: newLog(), cmd: exec.Command(name, args...), gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.Output, p.Output
	p.cmd.Env = append(os.Environ(), "LC_ALL=C")
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: who}
	// Children may keep the output open after the server's own end.
	p.cmd.WaitDelay = 100 * time.Millisecond
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.gone) }()
	t.Cleanup(func() { p.Kill() })
	h.keep(name, p.Output.String)
	return p
}

// Signal sends a signal.
func (p *Program) Signal(t testing.TB, s os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// Freeze stops the server's every thread where it is, so that it neither
// answers nor hangs up, until Thaw.
func (p *Program) Freeze(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGSTOP)
	threads := fmt.Sprintf("/proc/%d/task/*/stat", p.cmd.Process.Pid)
	Until(t, p.cmd.Path+" stands still", func() bool {
		stats, _ := filepath.Glob(threads)
		for _, stat := range stats {
			// "pid (name) state ...", and the name may hold anything.
			text, err := os.ReadFile(stat)
			if i := bytes.LastIndexByte(text, ')'); err == nil && !bytes.HasPrefix(text[i+1:], []byte(" T")) {
				return false
			}
		}
		return len(stats) > 0
	})
}

// Thaw lets a frozen server go on.
func (p *Program) Thaw(t testing.TB) {
	t.Helper()
	p.Signal(t, syscall.SIGCONT)
}

// Stop asks the server to end and waits until it has.
func (p *Program) Stop(t testing.TB) {
	t.Helper()
	if !p.Running() {
		return
	}
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.gone:
	case <-time.After(patience):
		t.Fatalf("%s did not end within %v of SIGTERM", p.cmd.Path, patience)
	}
}

// Kill ends the server and its children with SIGKILL.
func (p *Program) Kill() {
	p.once.Do(func() { syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) })
	<-p.gone
}

// Running says whether the server is still there.
func (p *Program) Running() bool {
	select {
	case <-p.gone:
		return false
	default:
		return true
	}
}
