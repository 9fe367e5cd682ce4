package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const configuration = `listen:
  milter: [unix:%[1]s/milter.sock]
  control: unix:%[1]s/control.sock
  metrics: unix:%[1]s/metrics.sock
mta: postfix
local_domains: [local.test]
local_domains_from: none
sources: [{file: %[1]s/mail.log, format: dovecot}]
state_dir: %[1]s/state
grant_ttl: 12h
max_grants: %[2]d
wait_for_login: %[3]v
`

// daemon is a popgate whose log is read.
type daemon struct {
	*process
	b       *bench
	control string
	log     *logReader
	ready   time.Duration // from its start
	spent   time.Duration // of processor time until then
}

// serve starts the daemon in a directory, with the log and the state that are
// there, and waits until it says that it is ready.
func (b *bench) serve(dir string, wait time.Duration, env ...string) (*daemon, error) {
	file := filepath.Join(dir, "milter.yaml")
	text := fmt.Sprintf(configuration, dir, b.grants+1<<20, wait)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, b.popgate, "serve", "-c", file)
	stderr, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stderr, cmd.Env = write, append(os.Environ(), env...)
	d := &daemon{b: b, control: "unix:" + dir + "/control.sock", log: &logReader{ready: make(chan struct{})}}
	began := time.Now()
	d.process, err = launch(cmd, dir+"/milter.sock")
	_ = write.Close()
	if err != nil {
		return nil, errors.Join(err, stderr.Close())
	}
	go d.log.read(stderr)
	select {
	case <-d.log.ready:
		d.ready = time.Since(began)
		d.spent, err = d.processor()
		return d, err
	case err := <-d.exited:
		return nil, fmt.Errorf("popgate serve: %w: %s", err, d.log.lastLine())
	case <-time.After(b.patience()):
		_ = d.stop()
		return nil, fmt.Errorf("popgate serve: not ready after %v: %s", b.patience(), d.log.lastLine())
	}
}

// serveGrants starts the daemon with all the grants, in the directory that it
// gives, and waits until they are there.
func (b *bench) serveGrants(wait time.Duration) (d *daemon, dir string, err error) {
	if dir, err = b.withGrants(); err != nil {
		return nil, "", err
	}
	if d, err = b.serve(dir, wait); err != nil {
		return nil, "", err
	}
	if err := d.holding(b.grants); err != nil {
		return nil, "", errors.Join(err, d.stop())
	}
	return d, dir, nil
}

// logReader reads the daemon's log as a journal would.
type logReader struct {
	ready   chan struct{}
	dropped atomic.Int64 // lines that it was too slow for
	bytes   atomic.Int64 // read
	rounds  atomic.Int64 // of the collector, with GODEBUG=gctrace=1

	reading sync.Mutex // whoever holds it keeps the log from being read

	mu   sync.Mutex
	last string // before the daemon was ready
}

func (l *logReader) read(from io.ReadCloser) {
	defer from.Close()
	in := bufio.NewReaderSize(from, 1<<18)
	for ready := false; ; {
		l.reading.Lock()
		line, err := in.ReadSlice('\n')
		l.reading.Unlock()
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		l.bytes.Add(int64(len(line)))
		if !ready {
			l.mu.Lock()
			l.last = string(line)
			l.mu.Unlock()
			if ready = bytes.Contains(line, []byte(" msg=ready ")); ready {
				close(l.ready)
			}
		}
		if bytes.Contains(line, []byte("log lines dropped")) {
			_, n, _ := strings.Cut(strings.TrimSpace(string(line)), " lines=")
			lines, _ := strconv.ParseInt(n, 10, 64)
			l.dropped.Add(lines)
		}
		if bytes.HasPrefix(line, []byte("gc ")) {
			l.rounds.Add(1)
		}
	}
}

func (l *logReader) lastLine() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.TrimSpace(l.last)
}

// patience is how long the daemon may take for what is much work with many
// grants.
func (b *bench) patience() time.Duration {
	return 5*time.Minute + time.Duration(b.grants/1_000_000)*time.Minute
}

// status is what the daemon says of itself.
type status struct {
	Grants  int `json:"grants"`
	Sources []struct {
		State  string `json:"state"`
		Logins int    `json:"logins"`
	} `json:"sources"`
}

func (d *daemon) status() (s status, err error) {
	// It exits with 5 while it is degraded, and has said all the same.
	out, err := exec.CommandContext(d.b.ctx, d.b.popgate, "status", "--json", "--socket", d.control).Output()
	if len(out) == 0 {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			err = fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
		}
		return s, fmt.Errorf("popgate status: %w", err)
	}
	if err := json.Unmarshal(out, &s); err != nil {
		return s, err
	}
	if len(s.Sources) != 1 {
		return s, fmt.Errorf("popgate status: %d sources", len(s.Sources))
	}
	return s, nil
}

// holding waits until the daemon holds so many grants and has done all that
// comes with them.
func (d *daemon) holding(want int) error {
	err := d.b.until(fmt.Sprintf("%d grants", want), d.b.patience(), func() (bool, error) {
		s, err := d.status()
		return s.Grants >= want, err
	})
	return errors.Join(err, d.b.settle(d.process))
}

// room makes a directory for a daemon, with an empty log.
func (b *bench) room(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	return dir, os.WriteFile(dir+"/mail.log", nil, 0o600)
}

// stamp is how the time stands in a log line.
const stamp = "2006-01-02T15:04:05.000000Z07:00"

// loginLine is what Dovecot writes when a client has logged in.
func loginLine(b []byte, n int, at time.Time) []byte { return loginOf(b, n, n, at) }

// loginOf is the n-th login, of a user who may have more of them.
func loginOf(b []byte, user, n int, at time.Time) []byte {
	b = at.AppendFormat(b, stamp)
	return fmt.Appendf(b, " mx dovecot: imap-login: Login: user=<user%07d@local.test>, method=PLAIN, rip=%v, lip=192.0.2.25, "+
		"mpid=%d, TLS, session=<s%015d>\n", user, granted(n), 1000+n%60_000, n)
}

// otherLine is one that is no login.
func otherLine(b []byte, n int, at time.Time) []byte {
	b = at.AppendFormat(b, stamp)
	return fmt.Appendf(b, " mx postfix/smtpd[%d]: connect from unknown[%v]\n", 1000+n%60_000, plus(strangerNet, n%strangers))
}
