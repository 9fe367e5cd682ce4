package wiring

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

// Runner runs one of the MTA's programs with this input and gives what it
// printed, also beside an error.
type Runner func(ctx context.Context, input, name string, args ...string) (string, error)

// runTime bounds each program.
const runTime = 20 * time.Second

// Exec runs the program itself. Where PATH leaves them out, it looks where MTAs
// keep their programs.
func Exec(ctx context.Context, input, name string, args ...string) (string, error) {
	ctx, stop := context.WithTimeout(ctx, runTime)
	defer stop()
	cmd := exec.CommandContext(ctx, find(name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.WaitDelay = time.Second
	cmd.Stdin = strings.NewReader(input)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := cmd.Run()
	switch {
	case err == nil:
	case ctx.Err() != nil:
		err = fmt.Errorf("%s: no answer in %v", name, runTime)
	case errors.As(err, new(*exec.ExitError)) && complaint.Len() > 0:
		err = fmt.Errorf("%s: %s", name, lastLine(complaint.String()))
	default:
		err = fmt.Errorf("%s: %w", name, err)
	}
	return out.String(), err
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func find(name string) string {
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
