package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a running server: the daemon or a yardstick.
type process struct {
	cmd    *exec.Cmd
	socket string // where it is asked
	exited chan error
}

// launch starts a server. Whatever reads a pipe of cmd must have been given the
// pipe before.
func launch(cmd *exec.Cmd, socket string) (*process, error) {
	p := &process{cmd: cmd, socket: socket, exited: make(chan error, 1)}
	// Should this program be killed, what it measures goes with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { p.exited <- cmd.Wait() }()
	return p, nil
}

// stop asks the server to end and waits until it has.
func (p *process) stop() error {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.exited:
		return err
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill()
		return fmt.Errorf("%s did not stop in 30s", p.cmd.Path)
	}
}

// processor gives the processor time the server has used, by the clock the
// kernel keeps for each process: the same account as /proc/PID/stat's, without
// rounding to its 10 ms.
func (p *process) processor() (time.Duration, error) {
	const schedulerClock = 2
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^p.cmd.Process.Pid<<3|schedulerClock), &t); err != nil {
		return 0, fmt.Errorf("processor time of %s: %w", p.cmd.Path, err)
	}
	return time.Duration(t.Nano()), nil
}

// memory gives the server's resident memory in bytes.
func (p *process) memory() (float64, error) {
	name := fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid)
	text, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if f := bytes.Fields(line); len(f) == 3 && string(f[0]) == "VmRSS:" {
			kilobytes, err := strconv.ParseFloat(string(f[1]), 64)
			return kilobytes * 1024, err
		}
	}
	return 0, fmt.Errorf("%s: no VmRSS", name)
}

// account is what the kernel counts of a process's reading and writing.
type account struct {
	read    int // bytes, from files and everything else
	wrote   int // bytes, to files and everything else
	written int // bytes that went to a disk, whole pages
}

func (p *process) account() (a account, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", p.cmd.Process.Pid))
	if err != nil {
		return a, err
	}
	for line := range strings.Lines(string(text)) {
		name, number, _ := strings.Cut(strings.TrimSpace(line), ": ")
		to, wanted := map[string]*int{"rchar": &a.read, "wchar": &a.wrote, "write_bytes": &a.written}[name]
		if !wanted {
			continue
		}
		if *to, err = strconv.Atoi(number); err != nil {
			return a, err
		}
	}
	return a, nil
}

func (a account) minus(before account) account {
	return account{a.read - before.read, a.wrote - before.wrote, a.written - before.written}
}

// settle waits until the server has nothing left to do.
func (b *bench) settle(p *process) error {
	const idleAt, looks = 2 * time.Millisecond, 15 // of processor time between two looks, for so many
	last, quiet := time.Duration(-1), 0
	return b.until("the server to be idle", 2*time.Minute, func() (bool, error) {
		now, err := p.processor()
		if quiet++; now-last > idleAt {
			quiet = 0
		}
		last = now
		return quiet >= looks, err
	})
}

// gateYardstick compiles the libmilter filter and starts it.
func (b *bench) gateYardstick() (*process, error) {
	source, binary, socket := b.dir+"/gate.c", b.dir+"/gate", b.dir+"/gate.sock"
	if err := os.WriteFile(source, gateSource, 0o600); err != nil {
		return nil, err
	}
	if err := b.command("cc", "-O2", "-Wall", "-o", binary, source, "-lmilter", "-lpthread"); err != nil {
		return nil, fmt.Errorf("the yardstick needs a C compiler and libmilter (apt-get install gcc libc6-dev libmilter-dev): %w", err)
	}
	_ = os.Remove(socket) // of a yardstick before this one
	p, err := launch(exec.CommandContext(b.ctx, binary, socket), socket)
	if err != nil {
		return nil, err
	}
	return p, b.until("the yardstick's socket", 10*time.Second, func() (bool, error) {
		m, err := dial(socket)
		if err != nil {
			return false, nil // not yet
		}
		return true, m.close()
	})
}
