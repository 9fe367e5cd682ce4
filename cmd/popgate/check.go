package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/watcher"
)

// finding is one line of check's report.
type finding struct {
	Result string `json:"result"` // ok, WARN, FAIL
	What   string `json:"what"`
	Text   string `json:"text,omitempty"` // what is wrong and the remedy
}

// checker collects findings.
type checker struct {
	e        *env
	findings []finding
}

func (k *checker) ok(what, text string) {
	k.findings = append(k.findings, finding{"ok", what, text})
}
func (k *checker) warn(what, text string) {
	k.findings = append(k.findings, finding{"WARN", what, text})
}
func (k *checker) fail(what, text string) {
	k.findings = append(k.findings, finding{"FAIL", what, text})
}

func newCheck(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Check the configuration, the sources and the domains, and name the remedies",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, warnings, err := config.Load(g.config)
			if err != nil {
				return failWith(exitConfig, err)
			}
			k := &checker{e: e}
			k.ok("configuration "+g.config, "")
			for _, w := range warnings {
				k.warn("configuration", w.String())
			}
			k.times(cfg)
			if err := k.sources(g.config, cfg); err != nil {
				return failWith(exitConfig, err)
			}
			k.domains(c.Context(), cfg)
			k.stateDir(cfg)
			return k.report(g.json)
		},
	}
}

func (k *checker) report(asJSON bool) error {
	failed := false
	for _, f := range k.findings {
		failed = failed || f.Result == "FAIL"
		if asJSON {
			if err := printJSON(k.e.stdout, f); err != nil {
				return err
			}
			continue
		}
		text := ""
		if f.Text != "" {
			text = ": " + f.Text
		}
		fmt.Fprintf(k.e.stdout, "%-4s  %s%s\n", f.Result, f.What, text)
	}
	if failed {
		return answerNo(exitNo)
	}
	return nil
}

func (k *checker) times(cfg *config.Config) {
	if cfg.GrantTTL < 5*time.Minute {
		k.warn("grant_ttl", fmt.Sprintf("%s is shorter than most clients take to poll; 30m suits them", cfg.GrantTTL))
	}
}

func (k *checker) sources(file string, cfg *config.Config) error {
	plans, err := planSources(file, cfg)
	if err != nil {
		return err
	}
	for _, p := range plans {
		what := "source " + p.config.Name
		info, err := os.Stat(p.config.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			k.fail(what, "does not exist; does the POP/IMAP server log there? The daemon will wait for it and put strangers off meanwhile")
			continue
		case err != nil:
			k.fail(what, err.Error())
			continue
		}
		if err := watcher.Usable(p.config.Path); err != nil {
			k.fail(what, err.Error())
			continue
		}
		k.ok(what, fmt.Sprintf("%d bytes, last written %s", info.Size(), stampOf(info.ModTime())))
		k.warn(what, "a log file written through syslog can be forged by every local user of this host; let the server write a file of its own (Dovecot: log_path), or trust your local users")
	}
	return nil
}

func (k *checker) domains(ctx context.Context, cfg *config.Config) {
	s, err := newSites(ctx, cfg, slog.New(warnings{k}))
	if err != nil {
		k.fail("local domains", err.Error())
		return
	}
	for _, p := range s.problems() {
		k.warn("local domains", p)
	}
	if s.current().Empty() && !s.present().Asks() {
		k.fail("local domains", "none is known: every recipient the MTA does not call local would be put off; name them in local_domains, or let local_domains_from find them")
		return
	}
	k.ok("local domains", fmt.Sprintf("%d known", s.current().Len()))
}

func (k *checker) stateDir(cfg *config.Config) {
	if cfg.StateDir == "" {
		k.warn("state_dir", "empty: grants and revocations are lost at every restart")
		return
	}
	info, err := os.Stat(cfg.StateDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		k.warn("state_dir "+cfg.StateDir, "does not exist yet; serve makes it if it may")
		return
	case err != nil:
		k.fail("state_dir "+cfg.StateDir, err.Error())
		return
	case !info.IsDir():
		k.fail("state_dir "+cfg.StateDir, "is no directory")
		return
	case info.Mode().Perm()&0o077 != 0:
		k.fail("state_dir "+cfg.StateDir, fmt.Sprintf("mode %04o: others may read or write the grants; chmod 0700", info.Mode().Perm()))
		return
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && os.Geteuid() != 0 && int(st.Uid) != os.Geteuid() {
		k.fail("state_dir "+cfg.StateDir, fmt.Sprintf("belongs to user id %d; run check as the daemon's user, or change the owner", st.Uid))
		return
	}
	k.ok("state_dir "+cfg.StateDir, "")
}

// warnings turns what the daemon would log into findings.
type warnings struct{ k *checker }

func (w warnings) Enabled(_ context.Context, l slog.Level) bool { return l >= slog.LevelWarn }
func (w warnings) WithAttrs([]slog.Attr) slog.Handler           { return w }
func (w warnings) WithGroup(string) slog.Handler                { return w }

func (w warnings) Handle(_ context.Context, r slog.Record) error {
	var b strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&b, " %s=%v", a.Key, a.Value)
		return true
	})
	w.k.warn(r.Message, strings.TrimSpace(b.String()))
	return nil
}
