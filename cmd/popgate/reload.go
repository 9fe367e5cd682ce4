package main

import (
	"context"
	"fmt"
	"strings"

	"popgate/internal/config"
)

// reloadOnSignal reloads at every SIGHUP until ctx ends.
func (d *daemon) reloadOnSignal(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.env.hangup:
			d.reload(ctx) // the verdict is in the log
		}
	}
}

// reload reads the configuration anew: all of it takes effect, or nothing does
// and the old one stays in force.
func (d *daemon) reload(ctx context.Context) ([]string, error) {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	var notes []string
	err := d.env.supervisor.reload(func() (err error) {
		notes, err = d.swap(ctx)
		return err
	})
	if err != nil {
		why := err.Error()
		d.notice.Store(&why)
		d.log.Error("reload refused, the old configuration stays in force", "error", err)
		return nil, err
	}
	d.notice.Store(nil)
	d.log.Info("reloaded", "config", d.path, "notes", notes)
	return notes, nil
}

func (d *daemon) swap(ctx context.Context) ([]string, error) {
	before := d.config.Load()
	cfg, warnings, err := loadConfig(d.path)
	if err != nil {
		return nil, err
	}
	if keys := config.Diff(before, cfg); len(keys) > 0 {
		return nil, fmt.Errorf("%s can't change while popgate runs; restart it, or take the change back", strings.Join(keys, ", "))
	}
	plans, err := planSources(d.path, cfg)
	if err != nil {
		return nil, err
	}
	if err := d.sites.swap(ctx, cfg); err != nil {
		return nil, err
	}
	// Nothing below can fail.
	var notes []string
	for _, w := range warnings {
		d.log.Warn("configuration", "warning", w.String())
		notes = append(notes, w.String())
	}
	rules := d.sites.rules(cfg)
	d.config.Store(cfg)
	d.level.Set(cfg.Log.Level)
	d.checkReadGroup()
	tuneMemory(cfg)
	d.gate.SetRules(rules) // first: to purge takes a while with many grants
	purged := d.ledger.SetRules(rules)
	d.sources.swap(plans)
	if purged > 0 {
		notes = append(notes, fmt.Sprintf("%d %s purged that the new rules would not have made", purged, plural(purged, "grant")))
	}
	return notes, nil
}
