package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// ConfigFile is where the host's popgate is configured.
const ConfigFile = "/etc/popgate/milter.yaml"

// PopgatePath is where the host has popgate, for other servers' scripts.
const PopgatePath = daemonPath

// Daemon is the host's popgate, as `popgate serve`.
type Daemon struct {
	*Program
	host *Host
}

// popgateUser is the user popgate runs as, with the groups the README has it
// join: the MTA's to hand over its socket, adm and systemd-journal to read logs.
var popgateUser = &syscall.Credential{Uid: uidPopgate, Gid: uidPopgate, Groups: []uint32{uidPostfix, uidExim, gidAdm, gidJournal}}

// Popgate writes the configuration, starts popgate and waits until it is
// ready. The test must have been started by WithDaemon.
func (h *Host) Popgate(t testing.TB, config string) *Daemon {
	t.Helper()
	for path, mode := range map[string]os.FileMode{"/run/popgate": 0o755, "/var/lib/popgate": 0o700, filepath.Dir(PostfixSocket): 0o755} {
		if err := errors.Join(os.MkdirAll(path, mode), os.Chmod(path, mode), os.Chown(path, uidPopgate, uidPopgate)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Dir(ConfigFile), 0o755); err != nil {
		t.Fatal(err)
	}
	d := &Daemon{host: h}
	d.Configure(t, config)
	d.Start(t)
	return d
}

// Configure writes another configuration file.
func (d *Daemon) Configure(t testing.TB, config string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(ConfigFile, []byte(config), 0o640), os.Chown(ConfigFile, 0, uidPopgate)); err != nil {
		t.Fatal(err)
	}
}

// Start starts popgate again after Stop or Kill.
func (d *Daemon) Start(t testing.TB) {
	t.Helper()
	d.Launch(t)
	if !d.Output.waits("msg=ready", d.gone) {
		t.Fatalf("popgate did not say ready: %s", d.Output)
	}
}

// Launch is Start for a test that does not want popgate to be ready.
func (d *Daemon) Launch(t testing.TB) {
	t.Helper()
	p := d.host.startAs(t, popgateUser, daemonPath, "serve", "-c", ConfigFile)
	d.Program = p
	t.Cleanup(func() {
		// It serves on after some panics, and after every race.
		for _, word := range []string{"panic", "DATA RACE"} {
			if strings.Contains(p.Output.String(), word) {
				t.Errorf("popgate's log tells of a %s", word)
			}
		}
	})
}

// Descriptors sets how many files and connections popgate may have. With 0 it
// keeps those it has and can open or accept nothing more.
func (d *Daemon) Descriptors(t testing.TB, limit int) {
	t.Helper()
	// Not root, which has no such power in some containers.
	cmd := exec.Command("prlimit", "--pid", strconv.Itoa(d.cmd.Process.Pid), fmt.Sprintf("--nofile=%d:", limit))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: popgateUser}
	if err := run(cmd); err != nil {
		t.Fatal(err)
	}
}

// Run runs a popgate command, as root, against the daemon and gives what it printed and
// its exit code; -1 for one that did not end.
func (d *Daemon) Run(t testing.TB, args ...string) (stdout string, code int) {
	t.Helper()
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	cmd := exec.CommandContext(ctx, daemonPath, append(args, "-c", ConfigFile)...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if errs.Len() > 0 {
		t.Logf("popgate %s: %s", strings.Join(args, " "), errs.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// Must runs a popgate command that must exit with 0.
func (d *Daemon) Must(t testing.TB, args ...string) string {
	t.Helper()
	out, code := d.Run(t, args...)
	if code != 0 {
		t.Fatalf("popgate %s: exit %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// Holds says whether popgate has a grant for a client, live or about to be
// swept.
func (d *Daemon) Holds(t testing.TB, client string) bool {
	t.Helper()
	return grantOf(t, d.Must(t, "list", "--json"), client)
}

// WaitGrant waits until popgate has a grant for a client. A test that wants
// the race between a login and the first message doesn't call it.
func (d *Daemon) WaitGrant(t testing.TB, client string) {
	t.Helper()
	Until(t, "popgate has a grant for "+client, func() bool { return d.Holds(t, client) })
}

// grantOf looks for a client in the JSON of `popgate list`, whether it is one
// array or one object a line.
func grantOf(t testing.TB, text, client string) bool {
	t.Helper()
	type grant struct {
		Client string `json:"client"`
	}
	for dec := json.NewDecoder(strings.NewReader(text)); dec.More(); {
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			t.Fatalf("popgate list --json: %v in %q", err, text)
		}
		var many []grant
		if json.Unmarshal(raw, &many) != nil {
			var one grant
			if err := json.Unmarshal(raw, &one); err != nil {
				t.Fatalf("popgate list --json: %v in %q", err, text)
			}
			many = []grant{one}
		}
		for _, g := range many {
			if g.Client == client {
				return true
			}
		}
	}
	return false
}
