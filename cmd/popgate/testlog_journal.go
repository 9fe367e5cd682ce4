package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os/exec"
	"strings"

	"popgate/watcher"
)

// journalLines reads what the units logged to this host's journal.
func (t *logTest) journalLines(ctx context.Context, count *int) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		j, err := t.openJournal(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		defer j.Close()
		watcher.Lines(t.bar.begin(j, journalName, 0, count))(yield)
	}
}

// openJournal has journalctl read what the units logged. It reads the journals
// of this host alone, and by the unit, which nobody but journald sets.
func (t *logTest) openJournal(ctx context.Context) (*journalReader, error) {
	args := []string{"--quiet", "--no-pager", "--output=json", fmt.Sprintf("--since=@%d", t.since.Unix()),
		"--output-fields=MESSAGE,SYSLOG_IDENTIFIER,SYSLOG_PID,_PID,_HOSTNAME,_SYSTEMD_UNIT"}
	for _, u := range t.units {
		args = append(args, "_SYSTEMD_UNIT="+u)
	}
	j := &journalReader{cmd: exec.CommandContext(ctx, "journalctl", args...)}
	j.cmd.Stderr = &j.said
	var err error
	if j.ReadCloser, err = j.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := j.cmd.Start(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			err = errors.New("journalctl is not installed on this host; --journal needs systemd's journal")
		}
		return nil, err
	}
	return j, nil
}

// journalReader ends with an error if journalctl did.
type journalReader struct {
	io.ReadCloser
	cmd  *exec.Cmd
	said bytes.Buffer
	over bool
}

func (j *journalReader) Read(p []byte) (int, error) {
	n, err := j.ReadCloser.Read(p)
	if n > 0 || err == nil {
		return n, err
	}
	if !j.over {
		j.over = true
		if failed := j.cmd.Wait(); failed != nil {
			return 0, fmt.Errorf("journalctl: %w: %s", failed, quoted(strings.TrimSpace(j.said.String())))
		}
	}
	return 0, err
}

// Close ends a journalctl that was not read to its end.
func (j *journalReader) Close() error {
	if !j.over {
		j.over = true
		j.cmd.Process.Kill()
		j.cmd.Wait()
	}
	return nil
}
