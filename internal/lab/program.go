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
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: who}
	return h.launch(t, cmd)
}

// startIn starts a server as root in a systemd unit; the host must have a
// Journal. Without a unit it is just started.
func (h *Host) startIn(t testing.TB, unit, name string, args ...string) *Program {
	t.Helper()
	if unit == "" {
		return h.start(t, name, args...)
	}
	group := h.journal.unit(t, unit)
	defer group.Close()
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(group.Fd())}
	return h.launch(t, cmd)
}

// launch starts a server. Its output is the lab's; without an environment of
// its own it has the test's.
func (h *Host) launch(t testing.TB, cmd *exec.Cmd) *Program {
	t.Helper()
	p := &Program{Output: newLog(), cmd: cmd, gone: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.Output, p.Output
	if p.cmd.Env == nil {
		p.cmd.Env = os.Environ()
	}
	p.cmd.Env = append(p.cmd.Env, "LC_ALL=C")
	p.cmd.SysProcAttr.Setpgid = true
	// Children may keep the output open after the server's own end.
	p.cmd.WaitDelay = 100 * time.Millisecond
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { p.cmd.Wait(); close(p.gone) }()
	t.Cleanup(func() { p.Kill() })
	h.keep(cmd.Path, p.Output.String)
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
