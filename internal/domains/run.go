package domains

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Runner runs one of the MTA's programs and gives what it printed. Where the
// program ran and did not end well, the error is a *Failed.
type Runner func(ctx context.Context, name string, args ...string) ([]byte, error)

// Failed tells how a program ended.
type Failed struct {
	Name   string
	Code   int    // -1: killed
	Stderr string // what it complained about, or empty
}

// Error names the program and what it complained about.
func (f *Failed) Error() string {
	if last := lastLine(f.Stderr); last != "" {
		return last
	}
	return fmt.Sprintf("%s ended with %d", f.Name, f.Code)
}

const (
	runTime   = 10 * time.Second
	maxOutput = 64 << 20
)

// Exec runs the program itself, for at most ten seconds. The places where
// MTAs keep their programs are looked at even if PATH leaves them out.
func Exec(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, runTime)
	defer stop()
	cmd := exec.CommandContext(ctx, program(name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	var out, complaint capped
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%s: no answer in %v", name, runTime)
	case errors.As(err, &exit):
		return nil, &Failed{name, exit.ExitCode(), complaint.buf.String()}
	case err != nil:
		return nil, err
	case out.cut:
		return nil, fmt.Errorf("%s: more than %d MiB of output", name, maxOutput>>20)
	}
	return out.buf.Bytes(), nil
}

func program(name string) string {
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	for _, dir := range [...]string{"/usr/sbin/", "/usr/local/sbin/", "/sbin/"} {
		if path, err := exec.LookPath(dir + name); err == nil {
			return path
		}
	}
	return name
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// capped keeps the beginning of what is written to it.
type capped struct {
	buf bytes.Buffer
	cut bool
}

func (c *capped) Write(p []byte) (int, error) {
	if room := maxOutput - c.buf.Len(); len(p) > room {
		c.cut = true
		c.buf.Write(p[:room])
		return len(p), nil
	}
	return c.buf.Write(p)
}
