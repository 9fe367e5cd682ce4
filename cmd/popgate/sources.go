package main

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/config"
	"popgate/internal/control"
	"popgate/internal/ledger"
	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
	"popgate/watcher/push"
)

// plan is a source that can be started: whatever could be refused about it has
// been asked for.
type plan struct {
	config config.Source
	custom *config.Format // nil: a format popgate brings
	source watcher.Source
	parser format.Parser
	fresh  func() format.Parser // one more, for a stream of the source
	fixed  bool                 // it came with a listener, and stays when the configuration is read anew
}

// planSources makes every source's reader and parser. Its errors name the
// configuration file and the line.
func planSources(file string, cfg *config.Config) ([]plan, error) {
	plans := make([]plan, 0, len(cfg.Sources))
	for i, s := range cfg.Sources {
		refuse := func(line int, text string) error {
			return config.Error{File: file, Line: line, Key: fmt.Sprintf("sources[%d]", i), Text: text}
		}
		if !cfg.Listen.Push.IsZero() && s.Name == scriptsOf(cfg.Listen.Push.Text) {
			return nil, refuse(s.Line, fmt.Sprintf("%q is what the socket of listen.push is called; choose another name", s.Name))
		}
		p := plan{config: s}
		line := s.Line
		var err error
		if j := slices.IndexFunc(cfg.Formats, func(f config.Format) bool { return f.Name == s.Format }); j >= 0 {
			p.custom = &cfg.Formats[j]
			line = p.custom.Line
		}
		// Whether the format can be read has been seen when one more is made.
		p.fresh = func() format.Parser { fresh, _ := p.newParser(); return fresh }
		if p.parser, err = p.newParser(); err != nil {
			return nil, refuse(line, err.Error())
		}
		switch s.Kind {
		case config.KindFile:
			p.source = watcher.NewFile(s.Path, s.Location)
		case config.KindSyslog:
			if p.source, err = planSyslog(&s, p.custom != nil); err != nil {
				return nil, refuse(s.Line, err.Error())
			}
		case config.KindPush:
			p.source = push.NewReports(push.Options{Network: s.Listen.Network, Address: s.Listen.Address, Allow: s.Allow, KeyFile: s.KeyFile})
		case config.KindJournal:
			if p.source, err = planJournal(&s); err != nil {
				return nil, refuse(s.Line, err.Error())
			}
		default:
			return nil, refuse(s.Line, fmt.Sprintf("popgate does not know how to read a source of the kind %q", s.Kind))
		}
		p.source = named{p.source, s.Name}
		plans = append(plans, p)
	}
	return plans, nil
}

// scriptFormat is what logins told by `popgate login` are marked with.
const scriptFormat = "login"

// scriptsOf names the source that a socket of `popgate login` is.
func scriptsOf(address string) string { return "push:" + address }

// planScripts makes a source of each socket of `popgate login`.
func planScripts(listeners []openListener) []plan {
	var plans []plan
	for _, l := range listeners {
		if l.name != "push" {
			continue
		}
		p := plan{config: config.Source{Name: scriptsOf(l.text), Kind: config.KindPush, Format: scriptFormat}, fixed: true}
		p.source = named{push.NewScript(l.Listener), p.config.Name}
		plans = append(plans, p)
	}
	return plans
}

// newParser makes a parser of the source's format.
func (p *plan) newParser() (format.Parser, error) {
	if p.custom != nil {
		return customParser(p.custom)
	}
	return format.New(p.config.Format)
}

func customParser(f *config.Format) (format.Parser, error) {
	return format.NewCustom(format.Custom{Name: f.Name, Tag: f.Tag, Pattern: f.Pattern, Logout: f.Logout, Service: f.Service})
}

func (p *plan) same(q *plan) bool {
	if (p.custom == nil) != (q.custom == nil) {
		return false
	}
	if p.custom != nil {
		a, b := *p.custom, *q.custom
		a.Line, b.Line = 0, 0
		if a != b {
			return false
		}
	}
	return p.config.Equal(q.config)
}

// named gives a source the name the configuration has for it.
type named struct {
	watcher.Source
	name string
}

func (n named) Name() string { return n.name }

// sources runs one watcher for each source and swaps them at a reload.
type sources struct {
	d      *daemon
	events [ledger.Outcomes]atomic.Uint64
	doubts doubts

	misdatedAt atomic.Int64 // when the log was last told of a login whose stamp is wrong

	mu        sync.Mutex
	ctx       context.Context
	running   map[string]*runningSource
	since     time.Time // how far back a source is read that has no place yet
	place     sync.Mutex
	positions map[string]relay.Position // where each source got to; guarded by place
}

type runningSource struct {
	plan plan
	stop context.CancelFunc
	done chan struct{}
}

func newSources(d *daemon, positions map[string]relay.Position, plans []plan) *sources {
	if positions == nil {
		positions = map[string]relay.Position{}
	}
	s := &sources{d: d, running: map[string]*runningSource{}, positions: positions}
	s.since = d.env.now().Wall.Add(-d.config.Load().GrantTTL)
	for _, p := range plans {
		s.running[p.config.Name] = &runningSource{plan: p}
	}
	d.gate.Sources(s.names())
	return s
}

func (s *sources) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for n := range s.running {
		out = append(out, n)
	}
	slices.Sort(out)
	return out
}

func (s *sources) start(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ctx = ctx
	for _, r := range s.running {
		s.launch(r)
	}
}

// launch starts a source's watcher. The lock is held.
func (s *sources) launch(r *runningSource) {
	ctx, stop := context.WithCancel(s.ctx)
	r.stop, r.done = stop, make(chan struct{})
	name := r.plan.config.Name
	s.place.Lock()
	from := s.positions[name]
	s.place.Unlock()
	if c := r.plan.config; c.Kind == config.KindFile && !ownFile(c.Path) {
		s.d.log.Warn(forgeable, "source", name)
	}
	report, asked := s.doubting(ctx, r.plan, s.report(name))
	options := watcher.Options{
		Format: r.plan.config.Format, Parser: r.plan.parser, NewParser: r.plan.fresh, TimeZone: r.plan.config.Location,
		From: from, Since: s.since,
		Ledger: s, Report: report, Unparsed: s.unparsed(name), Refused: s.refused(name),
	}
	go func() {
		defer close(r.done)
		watcher.Watch(ctx, r.plan.source, options)
		asked()
	}()
}

// swap puts new plans in the place of the old ones. A source that reads the
// same in the same way keeps its place.
func (s *sources) swap(plans []plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[string]*runningSource{}
	for name, r := range s.running {
		if r.plan.fixed {
			next[name] = r
		}
	}
	var stopped []*runningSource
	for i := range plans {
		name := plans[i].config.Name
		if old, ok := s.running[name]; ok && old.plan.same(&plans[i]) {
			next[name] = old
			continue
		}
		next[name] = &runningSource{plan: plans[i]}
	}
	for name, old := range s.running {
		if next[name] != old {
			old.stop()
			stopped = append(stopped, old)
		}
	}
	for _, old := range stopped {
		<-old.done
	}
	s.running = next
	names := make([]string, 0, len(next))
	for n := range next {
		names = append(names, n)
	}
	s.d.gate.Sources(names)
	for name, r := range next {
		if r.done != nil {
			continue
		}
		// A source that is read in another way from now on goes on where it
		// was: read again, lines could count that were not believed the first
		// time. What the old way missed is missed.
		s.since = s.d.env.now().Wall.Add(-s.d.config.Load().GrantTTL)
		s.place.Lock()
		_, known := s.positions[name]
		s.place.Unlock()
		if known {
			s.d.gate.Missed()
		}
		s.launch(r)
	}
}

func (s *sources) wait() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.running {
		if r.done != nil {
			<-r.done
		}
	}
}

// Event, Gap and Position are the watchers' way to the ledger.

func (s *sources) Event(ev relay.Event, _ time.Time) {
	outcome, grant := s.d.ledger.Event(ev)
	s.d.answer()
	s.events[outcome].Add(1)
	if s.d.watchers.Want(control.WatchLogins) {
		s.d.watchEvent(ev, outcome, grant)
	}
	if ev.Kind != relay.Login {
		return
	}
	if ev.Live && (outcome == ledger.Stale || outcome == ledger.Future) {
		s.misdated(&ev)
	}
	level := slog.LevelInfo
	switch outcome {
	case ledger.Granted, ledger.Renewed, ledger.Revoked: // what an administrator asks about
	case ledger.Full:
		level = slog.LevelError
	default:
		level = slog.LevelDebug
	}
	attrs := []any{"client", ev.Client, "user", ev.User, "service", ev.Service.String(), "source", ev.Source,
		"format", ev.Format, "time", ev.Time, "outcome", outcome.String()}
	if grant.Prefix != 0 {
		attrs = append(attrs, "expires", grant.Expires)
	}
	s.d.log.Log(context.Background(), level, "login", attrs...)
}

// misdated deals with a login that was seen being written and whose stamp is
// not of now: the clock or the time zone of who wrote it is wrong, or the line
// was long on its way. It grants nothing, for how old it is can't be told; but
// somebody did log in, and may be the next to ask.
func (s *sources) misdated(ev *relay.Event) {
	s.d.gate.Missed()
	now := s.d.env.now()
	if last := s.misdatedAt.Load(); last != 0 && now.Mono-time.Duration(last) < time.Hour || !s.misdatedAt.CompareAndSwap(last, int64(now.Mono)) {
		return
	}
	s.d.log.Warn("a login was logged just now with a stamp that is not of now: it grants nothing, and strangers are put off for one grant_ttl; is the clock right on the host that logs, and the source's time_zone?",
		"source", ev.Source, "client", ev.Client, "time", ev.Time, "now", now.Wall)
}

func (s *sources) Gap(source string, at time.Time) { s.d.ledger.Gap(source, at) }

func (s *sources) Position(source string, p relay.Position) {
	s.place.Lock()
	s.positions[source] = p
	s.place.Unlock()
	s.d.ledger.Position(source, p)
}

// report takes a source's health and tells the log when it changes.
func (s *sources) report(name string) func(relay.SourceState) {
	last := relay.SourceStarting
	before := "" // the error it had
	missed, skipped := uint64(0), uint64(0)
	return func(state relay.SourceState) {
		state.Name = name
		if state.Status != last || state.Error != before {
			switch state.Status {
			case relay.SourceDown:
				s.d.log.Warn("source down: logins may be missed, so strangers are put off instead of refused", "source", name, "error", trouble(name, state.Error))
			case relay.SourceUp:
				s.d.log.Info("source up", "source", name)
			}
			last, before = state.Status, state.Error
		}
		if state.Missed > missed {
			attrs := []any{"source", name}
			if state.Skipped > skipped {
				attrs = append(attrs, "bytes", state.Skipped-skipped)
				skipped = state.Skipped
			}
			s.d.log.Warn("logins may have been missed: strangers are put off instead of refused for one grant_ttl", attrs...)
			missed = state.Missed
		}
		s.d.gate.SourceChanged(state)
	}
}

// unparsed tells the log now and then about lines that look like a login and
// match nothing: a new release of the server may have changed its wording.
func (s *sources) unparsed(name string) func([]byte) {
	var last time.Duration
	first := true
	return func(line []byte) {
		now := s.d.env.now().Mono
		if first || now-last >= time.Hour {
			first, last = false, now
			s.d.log.Warn("a line looks like a login and could not be parsed; see popgate test-log --unparsed", "source", name, "line", clip(line))
		}
	}
}

// refused tells the log now and then who was turned away.
func (s *sources) refused(name string) func(error, uint64) {
	var last time.Duration
	var times uint64
	first := true
	return func(why error, more uint64) {
		times += more
		s.doubts.refused(name, times, why.Error())
		if now := s.d.env.now().Mono; first || now-last >= time.Minute {
			first, last = false, now
			s.d.log.Warn("something sent to a source does not count", "source", name, "why", why, "times", times)
		}
	}
}

func clip(line []byte) string {
	const most = 200
	if len(line) > most {
		return string(line[:most]) + "..."
	}
	return string(line)
}
