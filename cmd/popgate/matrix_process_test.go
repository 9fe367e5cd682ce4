package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"
)

// Some states only a process can be in: the test's own binary runs as the
// daemon then, and can be told to bring itself into trouble.
const asDaemon = "POPGATE_TEST_SERVE"

func TestMain(m *testing.M) {
	if config := os.Getenv(asDaemon); config != "" {
		os.Exit(serveAsProcess(config))
	}
	os.Exit(m.Run())
}

// serveAsProcess is the daemon, until it is stopped or its test is gone.
func serveAsProcess(config string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	e := processEnv()
	e.ready = func() { fmt.Println("ready") }
	go func() {
		for in := bufio.NewScanner(os.Stdin); in.Scan(); {
			err := errors.New("unknown")
			switch in.Text() {
			case "no descriptors":
				err = limit(syscall.RLIMIT_NOFILE, 0)
			case "descriptors":
				err = limit(syscall.RLIMIT_NOFILE, 1024)
			case "disk full":
				err = limit(syscall.RLIMIT_FSIZE, 0)
			}
			fmt.Println("done", err)
		}
		stop()
	}()
	return run(ctx, []string{"serve", "-c", config}, e)
}

func limit(what int, n uint64) error {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(what, &l); err != nil {
		return err
	}
	l.Cur = n
	return syscall.Setrlimit(what, &l)
}

// process is a daemon in a process of its own.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string
}

// newProcess starts a site's daemon and waits for its listeners.
func newProcess(s *scene) *process {
	s.t.Helper()
	p := &process{cmd: exec.Command(os.Args[0]), lines: make(chan string, 10)}
	p.cmd.Env = append(os.Environ(), asDaemon+"="+s.config)
	p.cmd.Stderr = &s.log
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		s.t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.kill)
	go func() {
		defer close(p.lines)
		for r := bufio.NewScanner(out); r.Scan(); {
			p.lines <- r.Text()
		}
	}()
	s.noError(p.expect("ready"))
	return p
}

func (p *process) expect(want string) error {
	select {
	case got := <-p.lines:
		if got != want {
			return fmt.Errorf("the daemon's process said %q, want %q", got, want)
		}
		return nil
	case <-time.After(20 * time.Second):
		return fmt.Errorf("the daemon's process never said %q", want)
	}
}

// tell has the process bring itself into trouble, or out of it.
func (p *process) tell(what string) error {
	if _, err := fmt.Fprintln(p.in, what); err != nil {
		return err
	}
	return p.expect("done <nil>")
}

func (p *process) signal(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		t.Fatal(err)
	}
}

// stop ends the process as an init system does.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGTERM)
	for range p.lines {
	}
	if err := p.cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	p.cmd = nil
}

// kill ends the process whatever state it is in.
func (p *process) kill() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Kill()
	for range p.lines {
	}
	_ = p.cmd.Wait() // says that it was killed
	p.cmd = nil
}

// freeze stops the process, and waits until it is.
func (p *process) freeze(t *testing.T) {
	t.Helper()
	p.signal(t, syscall.SIGSTOP)
	var ws syscall.WaitStatus
	for {
		_, err := syscall.Wait4(p.cmd.Process.Pid, &ws, syscall.WUNTRACED, nil)
		if err == nil && ws.Stopped() {
			return
		}
		if err != syscall.EINTR {
			t.Fatalf("the process did not freeze: %v, %v", err, ws)
		}
	}
}
