package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"popgate/internal/config"
	"popgate/internal/domains"
	"popgate/internal/relay"
)

// sites is the site's domains over reloads: each configuration has a set of
// its own, which takes over what the one before it had read.
type sites struct {
	log    *slog.Logger
	change func() // told of every new reading, the present set's or an old one's

	mu      sync.RWMutex
	set     *domains.Set
	started chan *domains.Set // a set that is to run from now on
}

func newSites(ctx context.Context, cfg *config.Config, log *slog.Logger) (*sites, error) {
	s := &sites{log: log, started: make(chan *domains.Set, 1)}
	set, err := s.load(ctx, cfg, nil)
	if err != nil {
		return nil, err
	}
	s.set = set
	return s, nil
}

// load reads a configuration's domains for the first time, and refuses one
// under which the MTA would be an open relay.
func (s *sites) load(ctx context.Context, cfg *config.Config, before *domains.Set) (*domains.Set, error) {
	set := domains.New(domains.Options{
		Written: cfg.LocalDomains, Files: cfg.LocalDomainFiles, From: cfg.LocalDomainsFrom, MTA: cfg.MTA, Before: before,
		LocalMailers: cfg.PostfixMailers.Local,
		Log:          s.log, OnChange: func(*relay.Domains) { s.changed() },
	})
	if err := set.Load(ctx); err != nil {
		return nil, fmt.Errorf("local domains: %w", err)
	}
	return set, refuseDanger(set)
}

// refuseDanger refuses to run beside a Postfix that would be an open relay by
// its configuration: one that sends strangers' recipients through a transport
// that local_mailers takes for a local one.
func refuseDanger(set *domains.Set) error {
	var certain []error
	for _, f := range set.Findings() {
		if f.Certain {
			certain = append(certain, errors.New(f.Text))
		}
	}
	return errors.Join(certain...)
}

func (s *sites) changed() {
	s.mu.RLock()
	change := s.change
	s.mu.RUnlock()
	if change != nil {
		change()
	}
}

// swap reads a new configuration's domains and puts them in force.
func (s *sites) swap(ctx context.Context, cfg *config.Config) error {
	s.mu.RLock()
	before := s.set
	s.mu.RUnlock()
	next, err := s.load(ctx, cfg, before)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.set = next
	s.mu.Unlock()
	select { // only the newest matters
	case <-s.started:
	default:
	}
	s.started <- next
	return nil
}

// run keeps the present set fresh until ctx ends, and tells change of every
// new reading.
func (s *sites) run(ctx context.Context, change func()) error {
	s.mu.Lock()
	s.change = change
	set := s.set
	s.mu.Unlock()
	for {
		setCtx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func(set *domains.Set) { defer close(done); set.Run(setCtx) }(set)
		select {
		case <-ctx.Done():
		case set = <-s.started:
		}
		stop()
		<-done
		if ctx.Err() != nil {
			return nil
		}
	}
}

func (s *sites) present() *domains.Set {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.set
}

// rules gives a configuration's rules on the site's domains as they are now.
// Where Postfix has become an open relay by its configuration since it was
// last loaded, the transport it became one by proves nothing.
func (s *sites) rules(cfg *config.Config) *relay.Rules {
	set := s.present()
	r := cfg.Rules(set.Current())
	if tainted := set.Tainted(); len(tainted) > 0 {
		r.PostfixMailers.Local = slices.DeleteFunc(slices.Clone(r.PostfixMailers.Local),
			func(mailer string) bool { return slices.Contains(tainted, mailer) })
	}
	return r
}

func (s *sites) current() *relay.Domains { return s.present().Current() }

func (s *sites) problems() []string { return s.present().Problems() }

// Ask asks the tables that can be asked but not listed.
func (s *sites) Ask(ctx context.Context, domain string, w *relay.Waits) relay.Match {
	return s.present().Ask(ctx, domain, w)
}
