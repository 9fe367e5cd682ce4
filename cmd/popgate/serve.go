package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"popgate/internal/config"
)

func newServe(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon in the foreground",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, warnings, err := loadConfig(g.config)
			if err != nil {
				return failWith(exitConfig, err)
			}
			// Whoever reads the log may go away: that must cost lines, not mail.
			signal.Ignore(syscall.SIGPIPE)
			if e.hangup == nil {
				hup := make(chan os.Signal, 1)
				signal.Notify(hup, syscall.SIGHUP)
				defer signal.Stop(hup)
				e.hangup = hup
			}
			tuneProcessors()
			tuneMemory(cfg)
			d, err := newDaemon(c.Context(), e, g.config, cfg)
			if err != nil {
				return err
			}
			for _, w := range warnings {
				d.log.Warn("configuration", "warning", w.String())
			}
			return d.run(c.Context())
		},
	}
}

// loadConfig reads the configuration and refuses what can't be run.
func loadConfig(path string) (*config.Config, []config.Warning, error) {
	cfg, warnings, err := config.Load(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, fmt.Errorf("%s: there is no such file; copy milter.yaml.example there, or name another with -c", path)
	}
	if err == nil {
		_, err = planSources(path, cfg)
	}
	return cfg, warnings, err
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return release
}

// release is the version a build without version control information has; the
// package build sets it.
var release = "0.1.0-dev"

func newVersion(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if g.json {
				return printJSON(e.stdout, map[string]string{"version": version()})
			}
			_, err := fmt.Fprintln(e.stdout, "popgate", version())
			return err
		},
	}
}
