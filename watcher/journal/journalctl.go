package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"popgate/watcher"
)

// journalctlPath is systemd's own reader. Its place is fixed: a PATH is the
// word of whoever started us.
var journalctlPath = "/usr/bin/journalctl"

// errNoJournalctl is a host without systemd.
var errNoJournalctl = errors.New("not there; the journal is read with it: install systemd, or name the log file the server writes, as in `file: /var/log/mail.log`")

// outputFields are those that are judged, or read by a format.
const outputFields = "MESSAGE,MESSAGE_ID,SYSLOG_IDENTIFIER,SYSLOG_PID,_PID,_UID,_EXE,_SYSTEMD_UNIT,_TRANSPORT,_HOSTNAME,_MACHINE_ID,OBJECT_SYSTEMD_UNIT"

// asking is how long a single question to journalctl may take.
const asking = 10 * time.Second

// journalctl gives the arguments that every run has. One folder is named, this
// machine's: without, files that lie beside it are read as well, and journals of
// other machines are full of whatever those machines sent. --merge says nothing
// there but that entries of earlier boots count too; without it --follow shows
// this boot's only, and inside a sandbox that hides the boot's id, none.
func (v *view) arguments(dir string, more ...string) []string {
	args := []string{"--directory=" + dir, "--merge", "--quiet", "--no-pager", "--output=json"}
	if v.system {
		args = append(args, "--system")
	}
	return append(args, more...)
}

// child is a running journalctl.
type child struct {
	out  *os.File
	errs *last
	kill func()
	gone chan struct{} // closed when it has ended
	err  error         // then: how
}

// startChild starts journalctl with an environment of its own. It dies with us,
// however we do.
func startChild(args []string) (*child, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	c := &child{out: r, errs: &last{}, gone: make(chan struct{})}
	cmd := exec.Command(journalctlPath, args...)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = w, c.errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that forked.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			c.err = cmd.Wait()
			close(c.gone)
		}
	}()
	if err := <-started; err != nil {
		r.Close()
		if errors.Is(err, os.ErrNotExist) {
			err = errNoJournalctl
		}
		if errors.Is(err, os.ErrPermission) {
			err = errors.New("popgate's user may not run it; its mode should be 0755, and the service's sandbox must not forbid it")
		}
		return nil, fmt.Errorf("%s: %w", journalctlPath, err)
	}
	c.kill = func() { cmd.Process.Kill() }
	return c, nil
}

// stop ends the child.
func (c *child) stop() {
	c.kill()
	<-c.gone
	c.out.Close()
}

// ended waits for a child that has told everything and gives the reason of its
// end, nil for success.
func (c *child) ended() error {
	c.out.Close()
	<-c.gone
	said := strings.TrimSpace(c.errs.String())
	switch {
	case c.err == nil:
		return nil
	case said == "":
		return fmt.Errorf("%s: %w", journalctlPath, c.err)
	}
	return fmt.Errorf("%s: %w: %s", journalctlPath, c.err, said)
}

// last keeps the end of what is written to it.
type last struct {
	mu   sync.Mutex
	text []byte
}

const lastBytes = 1 << 10

func (l *last) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if cut := len(l.text) - lastBytes; cut > 0 {
		l.text = append(l.text[:0], l.text[cut:]...)
	}
	return len(p), nil
}

func (l *last) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.ReplaceAll(string(bytes.ToValidUTF8(l.text, []byte("?"))), "\n", "; ")
}

// ask runs journalctl for the first entry it gives; nil: there is none.
func ask(ctx context.Context, args []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	c, err := startChild(args)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, c.kill)
	defer stop()
	buf, n := make([]byte, 2*watcher.MaxLine), 0
	for n < len(buf) {
		m, err := c.out.Read(buf[n:])
		n += m
		if i := bytes.IndexByte(buf[:n], '\n'); i >= 0 {
			c.stop()
			return buf[:i], nil
		}
		if err == nil {
			continue
		}
		err = c.ended()
		if ctx.Err() != nil {
			err = fmt.Errorf("%s: no answer within %v", journalctlPath, asking)
		}
		return nil, err
	}
	c.stop()
	return nil, fmt.Errorf("%s: an entry of over %d bytes, and only small fields were asked for", journalctlPath, len(buf))
}
