package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"os/user"
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
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "check", "--"+onlySourcesFlag, "--json", "-c", g.config)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	found := 0
	for d := json.NewDecoder(strings.NewReader(out.String())); ; found++ {
		var f finding
		if d.Decode(&f) != nil {
			break
		}
		k.findings = append(k.findings, f)
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == exitConfig {
		k.refused = true
	}
	if found == 0 {
		said := strings.TrimSpace(strings.TrimPrefix(errs.String(), "popgate: "))
		if said == "" && err != nil {
			said = err.Error()
		}
		k.fail("sources", fmt.Sprintf("user %s can't look at them: %s", who, said))
	}
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
