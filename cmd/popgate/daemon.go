package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"popgate/cache"
	"popgate/internal/config"
	"popgate/internal/control"
	"popgate/internal/gate"
	"popgate/internal/ledger"
	"popgate/internal/logging"
	"popgate/internal/metrics"
	"popgate/internal/policy"
	"popgate/internal/relay"
	"popgate/internal/state"
	"popgate/milter"
)

// daemon is everything `serve` runs, wired together.
type daemon struct {
	env     *env
	path    string
	started time.Time
	level   slog.LevelVar
	queue   *logging.Queue
	log     *slog.Logger
	own     ownAddresses

	store        *cache.Store
	ledger       *ledger.Ledger
	gate         *gate.Gate
	state        *state.State  // nil: nothing is kept
	missing      string        // why saved grants may be missing, as status tells it
	missingUntil time.Duration // and until when
	milter       *milter.Server
	closed       map[string]*policy.Server // by listener: the doors behind which the MTA's own rule stays shut
	sites        *sites
	sources      *sources

	listeners []openListener

	reloading sync.Mutex
	config    atomic.Pointer[config.Config]
	notice    atomic.Pointer[string] // why the last reload was refused
	doubtful  chan gate.Record       // recipients put off as unsure, for the notices
	watchers  control.Watchers
	woken     atomic.Bool // a client that waited for its login has been woken just now
}

// newDaemon asks for everything that can be refused before anything runs.
func newDaemon(ctx context.Context, e *env, path string, cfg *config.Config) (*daemon, error) {
	d := &daemon{env: e, path: path, started: e.now().Wall, doubtful: make(chan gate.Record, 64)}
	d.level.Set(cfg.Log.Level)
	d.queue = openQueue(e, cfg)
	d.log = slog.New(d.queue.Handler(&d.level))
	d.config.Store(cfg)
	d.own.read()

	plans, err := planSources(path, cfg)
	if err != nil {
		return nil, failWith(exitConfig, err)
	}
	if d.sites, err = newSites(ctx, cfg, d.log); err != nil {
		return nil, failWith(exitConfig, err)
	}
	d.wire(cfg)
	positions, err := d.restore(cfg)
	if err != nil {
		return nil, failWith(exitNo, err)
	}
	if d.listeners, err = openListeners(e, cfg); err != nil {
		if d.state != nil {
			err = errors.Join(err, d.state.Close())
		}
		return nil, failWith(exitNo, err)
	}
	for _, key := range overruled(cfg, d.listeners) {
		d.log.Warn("not opened: systemd hands over the sockets of this name; change its socket unit instead, or disable it", "key", key)
	}
	d.sources = newSources(d, positions, append(plans, planScripts(d.listeners)...))
	return d, nil
}

// openQueue gives the queue of log lines. Under systemd journald gets the fields
// of each line apart.
func openQueue(e *env, cfg *config.Config) *logging.Queue {
	if cfg.Log.Format == "json" {
		return logging.NewQueue(e.stderr, logging.JSON)
	}
	if logging.ToJournal(os.Getenv("JOURNAL_STREAM"), e.stderr) {
		if journald, err := logging.OpenJournal(logging.JournalSocket); err == nil {
			return logging.NewQueue(journald, logging.Journal)
		}
	}
	return logging.NewQueue(e.stderr, logging.Text)
}

// wire makes the rooms and the arrows between them.
func (d *daemon) wire(cfg *config.Config) {
	rules := d.sites.rules(cfg)
	d.store = cache.New(cache.Options{Now: d.env.now, Gone: func(g relay.Grant) { d.ledger.Gone(g) }})
	d.ledger = ledger.New(ledger.Options{Store: d.store, Rules: rules, Now: d.env.now, Own: d.own.is, Feed: d.feed})
	d.gate = gate.New(gate.Options{Store: lookup{d.store, d.env}, Ledger: d.ledger, Rules: rules,
		Domains: d.sites, Now: d.env.now, Record: d.record, ClockSet: d.clockSet})
	allow := mayConnect(cfg.Listen.Allow)
	d.milter = milter.NewServer(d.gate, milter.Options{Log: d.log, Allow: allow, Answered: d.queue.Flush})
	o := policy.Options{Log: d.log, Allow: allow, Answered: d.queue.Flush}
	d.closed = map[string]*policy.Server{"policy": policy.NewDelegation(d.gate, o), "socketmap": policy.NewSocketMap(d.gate, o)}
}

// restore opens the state directory and gives back where the sources were.
func (d *daemon) restore(cfg *config.Config) (map[string]relay.Position, error) {
	if cfg.StateDir == "" {
		return nil, nil
	}
	s, err := state.Open(cfg.StateDir, state.Options{Snapshot: d.ledger.Snapshot, Log: d.log})
	if err != nil {
		return nil, err
	}
	var loaded state.Loaded
	var out ledger.Restored
	uncollected(func() {
		out = d.ledger.Restore(func(yield func(relay.Change) bool) {
			loaded = s.Load(func(c relay.Change) { yield(c) }) // Restore takes them all
		})
	})
	for _, w := range loaded.Warnings {
		d.log.Warn("state", "warning", w)
	}
	d.log.Info("state read", "dir", cfg.StateDir, "grants", out.Grants, "dropped", out.Dropped, "revocations", out.Revoked)
	d.state = s // from here on the ledger's batches are kept
	if loaded.Damaged {
		// A revocation may be among what was lost, so no login up to now counts
		// any more, whether it was saved or is read again; and nobody can tell
		// who has logged in.
		if _, err := d.ledger.Revoke(relay.Revocation{All: true}, 0, nil); err != nil {
			return nil, err
		}
		d.lost(cfg, "saved files were damaged, and a revocation may be lost with them; so no login from before the start counts, and clients must log in again; the log says which files")
	} else if out.Future > 0 {
		d.lost(cfg, fmt.Sprintf("%d saved grants are of logins in the future and don't count until their clients log in again; is the clock right?", out.Future))
	}
	return loaded.Positions, nil
}

// lost has nobody refused for one ttl who may have lost a saved grant, and says
// why.
func (d *daemon) lost(cfg *config.Config, why string) {
	d.missing, d.missingUntil = why, d.env.now().Mono+cfg.GrantTTL
	d.log.Warn("state: grants may be missing", "warning", why)
	d.gate.Missed()
}

// clockSet tells the log why clients with a grant are put off.
func (d *daemon) clockSet(ahead time.Duration) {
	d.log.Warn("the clock was set ahead, which ended grants: strangers are put off for one grant_ttl", "ahead", ahead.Round(time.Second))
}

// lookup is the gate's view of the store.
type lookup struct {
	store *cache.Store
	env   *env
}

func (l lookup) Lookup(k relay.Key) (relay.Grant, error) {
	g, _ := l.store.Get(k)
	if l.env.storeLie != nil {
		g = l.env.storeLie(k, g)
	}
	return g, l.env.storeFault()
}

// feed hands a batch to all who follow the ledger. It runs under the ledger's
// lock: nothing here may block.
func (d *daemon) feed(b relay.Batch) {
	if d.gate.Follow(b) { // first: somebody waits
		d.woken.Store(true)
	}
	if d.watchers.Want(control.WatchGrants) {
		for i := range b.Changes {
			d.watchChange(&b.Changes[i])
		}
	}
	if d.state != nil {
		d.state.Append(b)
	} else if b.Done != nil {
		b.Done <- nil
	}
}

// answer answers clients whose login has just been applied: their answer first,
// what is written down about it then. It is called where grants are made, once the
// ledger is unlocked.
func (d *daemon) answer() {
	if d.woken.Swap(false) {
		d.gate.Answer()
		runtime.Gosched() // for those who must look by themselves
	}
}

// record writes a decision down.
func (d *daemon) record(r gate.Record) {
	if r.Decision.Reason == relay.ReasonUnsure {
		select {
		case d.doubtful <- r:
		default: // one of many: the others tell
		}
	}
	if d.level.Level() <= slog.LevelInfo {
		d.queue.Decision(r)
	}
	if d.watchers.Want(control.WatchDecisions) {
		d.watchDecision(r)
	}
}

// logDrain is how long a stopping daemon tries to write what is left of its log.
const logDrain = 2 * time.Second

// run serves until ctx ends or a room that the others can't do without fails.
func (d *daemon) run(ctx context.Context) error {
	logCtx, stopLog := context.WithCancel(context.WithoutCancel(ctx))
	logDone := make(chan struct{})
	go func() { defer close(logDone); d.queue.Run(logCtx) }()
	defer func() {
		stopLog()
		select {
		case <-logDone:
		case <-time.After(logDrain): // nobody reads it; that is no reason to stay
		}
	}()

	group, ctx := errgroup.WithContext(ctx)
	stateCtx, stopState := context.WithCancel(context.WithoutCancel(ctx))
	stateDone := make(chan error, 1)
	if d.state != nil {
		go func() { stateDone <- d.state.Run(stateCtx) }()
	} else {
		stateDone <- nil
	}
	d.sources.start(ctx)
	group.Go(func() error { return d.store.Sweep(ctx) })
	group.Go(func() error { return d.sites.run(ctx, d.domainsChanged) })
	group.Go(func() error { d.housekeep(ctx); return nil })
	group.Go(func() error { d.noticeUnsure(ctx); return nil })
	group.Go(func() error { d.reloadOnSignal(ctx); return nil })
	access := control.Access{ReadGroup: d.readGroup, Log: slog.NewLogLogger(d.log.Handler(), slog.LevelWarn)}
	d.checkReadGroup()
	for _, l := range d.listeners {
		switch l.name {
		case "milter":
			group.Go(func() error { return d.milter.Serve(ctx, l.Listener) })
		case "policy", "socketmap":
			group.Go(func() error { return d.closed[l.name].Serve(ctx, l.Listener) })
		case "control":
			group.Go(func() error { return control.Serve(ctx, l.Listener, (*operator)(d), access) })
		case "metrics":
			group.Go(func() error { return metrics.Serve(ctx, l.Listener, d.metrics()) })
		}
	}
	d.log.Info("ready", "version", version(), "listen", addresses(d.listeners), "sources", d.sources.names())
	d.env.ready()
	d.env.supervisor.ready()
	tidyUp()
	group.Go(func() error { d.env.supervisor.watch(ctx, func() bool { return d.alive(ctx) }); return nil })

	err := group.Wait()
	d.sources.wait()
	stopState()
	if stateErr := <-stateDone; stateErr != nil && !errors.Is(stateErr, context.Canceled) {
		err = errors.Join(err, stateErr)
	}
	if d.state != nil {
		err = errors.Join(err, d.state.Close())
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		d.log.Error("stopped", "error", err)
		return failWith(exitNo, err)
	}
	d.log.Info("stopped")
	return nil
}

// housekeep does what is due every minute.
func (d *daemon) housekeep(ctx context.Context) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.own.read()
			d.ledger.Tick()
		}
	}
}

// domainsChanged puts a new reading of the site's domains under every RCPT.
func (d *daemon) domainsChanged() {
	d.reloading.Lock()
	defer d.reloading.Unlock()
	d.gate.SetRules(d.sites.rules(d.config.Load()))
}

func addresses(ls []openListener) []string {
	var out []string
	for _, l := range ls {
		out = append(out, l.name+" "+l.text)
	}
	return out
}
