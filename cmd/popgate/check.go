package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/internal/wiring"
	"popgate/watcher"
	"popgate/watcher/format"
	"popgate/watcher/push"
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
	refused  bool // serve would not start
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
	live, onlySources := false, false
	cmd := &cobra.Command{
		Use:   "check [--live]",
		Short: "Check the configuration, the sources, the domains and the MTA's wiring, and name the remedies",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if onlySources {
				return checkSources(c.Context(), e, g)
			}
			return check(c.Context(), e, g, live)
		},
	}
	cmd.Flags().BoolVar(&onlySources, onlySourcesFlag, false, "")
	if err := cmd.Flags().MarkHidden(onlySourcesFlag); err != nil {
		panic(err) // the flag of the line before
	}
	cmd.Flags().BoolVar(&live, "live", false, "ask the running daemon too, and put test questions through the doors")
	return cmd
}

func check(ctx context.Context, e *env, g *global, live bool) error {
	cfg, warnings, err := loadConfig(g.config)
	if err != nil {
		return failWith(exitConfig, err)
	}
	k := &checker{e: e}
	k.ok("configuration "+g.config, "")
	for _, w := range warnings {
		k.warn("configuration", w.String())
	}
	k.times(cfg)
	k.clock()
	k.listeners(cfg)
	k.sourcesAsDaemon(ctx, cfg, g)
	site := k.domains(ctx, cfg)
	k.stateDir(cfg)
	w := k.wiring(ctx, cfg, mtaFiles{postfix: "/etc/postfix/main.cf", sendmail: "/etc/mail/sendmail.cf"}, wiring.Exec)
	w.domains(ctx, cfg, site)
	w.reach(ctx)
	if live {
		k.live(ctx, cfg, g, w, site)
	}
	return k.report(g.json)
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
		fmt.Fprintf(k.e.stdout, "%-4s  %s\n", f.Result, shown(f.What+text))
	}
	switch {
	case k.refused: // the code with which serve ends, so that an upgrade can tell
		return answerNo(exitConfig)
	case failed:
		return answerNo(exitNo)
	}
	return nil
}

func (k *checker) times(cfg *config.Config) {
	if cfg.GrantTTL < 5*time.Minute {
		k.warn("grant_ttl", fmt.Sprintf("%s is shorter than most clients take to poll; 30m suits them", cfg.GrantTTL))
	}
}

// listeners tries what serve will do, as far as a running daemon allows.
func (k *checker) listeners(cfg *config.Config) {
	for _, a := range slices.Concat(cfg.Listen.Milter, cfg.Listen.Policy, cfg.Listen.Socketmap, []config.Address{cfg.Listen.Control, cfg.Listen.Push}) {
		if a.IsZero() {
			continue
		}
		what := "listener " + a.String()
		if a.Network != "unix" {
			k.listen(what, a)
			continue
		}
		if err := k.socket(a.Address); err != nil {
			k.fail(what, err.Error())
			continue
		}
		k.ok(what, "")
	}
	for key, name := range map[string]string{"socket_group": cfg.SocketGroup, "control_group": cfg.ControlGroup} {
		if name == "" {
			continue
		}
		if _, err := lookupGroup(name); err != nil {
			k.fail(key, err.Error())
		}
	}
}

// listen tries an address.
func (k *checker) listen(what string, a config.Address) {
	l, err := net.Listen(a.Network, a.Address)
	switch {
	case err == nil:
		l.Close()
		k.ok(what, "")
	case errors.Is(err, syscall.EADDRINUSE):
		k.ok(what, "in use; by a running popgate, it is to be hoped")
	default:
		k.fail(what, err.Error())
	}
}

// socket says what would keep a socket from being made.
func (k *checker) socket(path string) error {
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != fs.ModeSocket {
		return errors.New("exists and is no socket; remove it or choose another path")
	}
	dir := filepath.Dir(path)
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		dir = filepath.Dir(dir) // serve makes one directory
		info, err = os.Stat(dir)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist; make it, or correct the path", dir)
	case err != nil:
		return err
	case !info.IsDir():
		return fmt.Errorf("%s is no directory", dir)
	}
	return nil
}

func (k *checker) sources(ctx context.Context, cfg *config.Config) {
	for _, s := range cfg.Sources {
		what := "source " + s.Name
		if s.Kind == config.KindSyslog {
			k.syslog(what, &s)
			continue
		}
		if s.Kind == config.KindJournal {
			k.journal(ctx, what, &s)
			continue
		}
		if s.Kind == config.KindPush {
			k.push(what, &s, cfg.StateDir)
			continue
		}
		info, err := os.Stat(s.Path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			k.fail(what, "does not exist; does the POP/IMAP server log there? The daemon will wait for it and put strangers off meanwhile")
			continue
		case err != nil:
			k.fail(what, err.Error())
			continue
		}
		if err := watcher.Usable(s.Path); err != nil {
			k.fail(what, err.Error())
			continue
		}
		k.ok(what, fmt.Sprintf("%d bytes, last written %s", info.Size(), stampOf(info.ModTime())))
		k.silent(what, info.ModTime())
		k.stamps(what, &s, info.ModTime())
		k.formatFits(what, &s, cfg.Formats)
		if !ownFile(s.Path) {
			k.warn(what, forgeable)
		}
	}
}

// forgeable is what a file that syslog writes is, and what would be right.
const forgeable = "a log file written through syslog can be forged by every local user of this host; let the server write a file of its own (Dovecot: log_path), or trust your local users"

// push tries what the source will do, as far as a running daemon allows.
func (k *checker) push(what string, s *config.Source, stateDir string) {
	if err := push.UsableKey(s.KeyFile, daemonUser(stateDir)); err != nil {
		k.fail(what, err.Error())
		return
	}
	k.listen(what, s.Listen)
	if s.Listen.OffLoopback() {
		k.warn(what, "its secret comes over the network in the clear, and whoever sees it can forge logins; let a tunnel end on this host, and listen on 127.0.0.1")
	}
}

// daemonUser gives the user the daemon runs as: the one who checks, or, where
// that is root, the owner of the state directory.
func daemonUser(stateDir string) uint32 {
	self := uint32(os.Geteuid())
	if info, err := os.Stat(stateDir); self == 0 && err == nil {
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			return st.Uid
		}
	}
	return self
}

// ownFile says whether the last lines of a log are of a file that the server
// writes itself, past syslog.
func ownFile(path string) bool {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // a FIFO would wait for a writer
	if err != nil {
		return false
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return false
	}
	const tail = 8 << 10
	if info, err := f.Stat(); err == nil && info.Size() > tail {
		f.Seek(-tail, io.SeekEnd)
	}
	own, other := 0, 0
	first := true
	var m format.Message
	for line, err := range watcher.Lines(f) {
		if err != nil || first && !format.Split(line, &m) {
			first = false
			continue
		}
		first = false
		if format.Split(line, &m) && m.Transport == format.DovecotFile {
			own++
		} else {
			other++
		}
	}
	return own > 0 && other == 0
}

// domains gives the site's domains, or nil where they can't be had.
func (k *checker) domains(ctx context.Context, cfg *config.Config) *sites {
	s, err := newSites(ctx, cfg, slog.New(warnings{k}))
	if err != nil {
		k.fail("local domains", err.Error())
		k.refused = true
		return nil
	}
	for _, p := range s.problems() {
		k.warn("local domains", p)
	}
	if s.current().Empty() && !s.present().Asks() {
		k.fail("local domains", "none is known: every recipient the MTA does not call local would be put off; name them in local_domains, or let local_domains_from find them")
		return s
	}
	k.ok("local domains", fmt.Sprintf("%d known", s.current().Len()))
	return s
}

func (k *checker) stateDir(cfg *config.Config) {
	dir := cfg.StateDir
	what := "state_dir " + dir
	if dir == "" {
		k.warn("state_dir", "empty: grants and revocations are lost at every restart")
		return
	}
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := os.Stat(filepath.Dir(dir)); err != nil {
			k.fail(what, fmt.Sprintf("%s does not exist either; make it, or correct the path", filepath.Dir(dir)))
			return
		}
		k.warn(what, "does not exist yet; serve makes it if it may")
		return
	case err != nil:
		k.fail(what, err.Error())
		return
	case !info.IsDir():
		k.fail(what, "is no directory")
		return
	case info.Mode().Perm()&0o077 != 0:
		k.fail(what, fmt.Sprintf("mode %04o: others may read or write the grants; chmod 0700", info.Mode().Perm()))
		return
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		owner := fmt.Sprintf("#%d", st.Uid)
		if u, err := user.LookupId(fmt.Sprint(st.Uid)); err == nil {
			owner = u.Username
		}
		if os.Geteuid() == 0 {
			k.ok(what, fmt.Sprintf("belongs to %s, as whom serve must run", owner))
		} else {
			k.fail(what, fmt.Sprintf("belongs to %[1]s, and this is user id %[2]d: run check as %[1]s if serve runs as that user, else chown it", owner, os.Geteuid()))
		}
		return
	}
	f, err := os.CreateTemp(dir, "check-")
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
		err = errors.Join(err, f.Sync(), f.Close(), os.Remove(f.Name()))
	}
	if err != nil {
		k.fail(what, "can't be written to: "+err.Error())
		return
	}
	k.ok(what, "")
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
