package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"popgate/internal/config"
)

// onlySourcesFlag has check look at the sources alone: that is what check runs
// as the daemon's user.
const onlySourcesFlag = "only-sources"

// sourcesAsDaemon looks at the sources as the daemon's user sees them: root may
// read what that user may not. A user without a name here has no groups that
// could be known, so then root looks.
func (k *checker) sourcesAsDaemon(ctx context.Context, cfg *config.Config, g *global) {
	uid := daemonUser(cfg.StateDir)
	who, cred, err := credential(uid)
	if err != nil || uid == daemonUser("") {
		k.sources(ctx, cfg)
		return
	}
	out := &upTo{left: maxSaid}
	errs := &upTo{left: maxSaid}
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "check", "--"+onlySourcesFlag, "--json", "-c", g.config)
	// A session of its own: that user's processes must not reach root's terminal,
	// nor what root's environment holds.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred, Setsid: true}
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TZ=" + os.Getenv("TZ")}
	if _, set := os.LookupEnv("TZ"); !set {
		cmd.Env = cmd.Env[:1] // an empty one would mean UTC
	}
	cmd.Stdout, cmd.Stderr = out, errs
	err = cmd.Run()
	k.told(who, out.String(), errs.String(), err)
}

// told takes over what the daemon's user has found. It is that user's word, so
// what is no report, or ends before its time, is never called well.
func (k *checker) told(who, out, errs string, err error) {
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code, err = exit.ExitCode(), nil
	}
	found := 0
	d := json.NewDecoder(strings.NewReader(out))
	for ; ; found++ {
		var f finding
		bad := d.Decode(&f)
		if bad == nil && !slices.Contains([]string{"ok", "WARN", "FAIL"}, f.Result) {
			bad = fmt.Errorf("a finding can't be %q", f.Result)
		}
		if bad != nil {
			if !errors.Is(bad, io.EOF) {
				err = errors.Join(err, bad)
			}
			break
		}
		// A line feed could make a further line that looks like a finding.
		f.What, f.Text = strings.ReplaceAll(f.What, "\n", " "), strings.ReplaceAll(f.Text, "\n", " ")
		k.findings = append(k.findings, f)
	}
	k.refused = k.refused || code == exitConfig
	if found > 0 && err == nil && (code == 0 || code == exitNo || code == exitConfig) {
		return
	}
	said := strings.TrimSpace(strings.TrimPrefix(errs, "popgate: "))
	if said == "" {
		said = fmt.Sprintf("exit status %d", code)
		if err != nil {
			said = err.Error()
		}
	}
	k.fail("sources", fmt.Sprintf("user %s can't look at them: %s", who, said))
}

// maxSaid bounds what is taken of another user's process.
const maxSaid = 1 << 20

// upTo keeps so much of what is written, and throws the rest away.
type upTo struct {
	strings.Builder
	left int
}

func (u *upTo) Write(p []byte) (int, error) {
	n := min(u.left, len(p))
	u.left -= n
	u.Builder.Write(p[:n])
	return len(p), nil
}

// credential gives a user's name and what a process of his has.
func credential(uid uint32) (name string, cred *syscall.Credential, err error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return "", nil, err
	}
	cred = &syscall.Credential{Uid: uid}
	ids, err := u.GroupIds()
	for i, id := range append([]string{u.Gid}, ids...) {
		n, bad := strconv.ParseUint(id, 10, 32)
		if err = errors.Join(err, bad); i == 0 {
			cred.Gid = uint32(n)
			continue
		}
		cred.Groups = append(cred.Groups, uint32(n))
	}
	return u.Username, cred, err
}

// checkSources is check for the sources alone.
func checkSources(ctx context.Context, e *env, g *global) error {
	cfg, _, err := loadConfig(g.config)
	if err != nil {
		return failWith(exitConfig, err)
	}
	k := &checker{e: e}
	k.sources(ctx, cfg)
	return k.report(g.json)
}
