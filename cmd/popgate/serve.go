package main

import (
	"fmt"
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
			cfg, warnings, err := config.Load(g.config)
			if err != nil {
				return failWith(exitConfig, err)
			}
			if e.hangup == nil {
				hup := make(chan os.Signal, 1)
				signal.Notify(hup, syscall.SIGHUP)
				defer signal.Stop(hup)
				e.hangup = hup
			}
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

// tuneMemory trades memory for time where the operator has not: RCPTs make
// short-lived garbage, so a larger heap between collections costs little
// memory and saves much time, up to a limit that the table's bound names.
func tuneMemory(cfg *config.Config) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		const base, perGrant = 256 << 20, 1 << 10
		debug.SetMemoryLimit(base + int64(cfg.MaxGrants)*perGrant)
	}
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
