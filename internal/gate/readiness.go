package gate

import (
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/relay"
)

// startGrace is how long a start may take to read what was logged before,
// while another source is up already.
const startGrace = 60 * time.Second

// readiness knows whether a login may have been missed: a source is not read
// up to the present, so "no grant" may mean "not read yet".
type readiness struct {
	mu      sync.Mutex
	sources map[string]*sourceLife
	view    atomic.Pointer[readinessView]
}

type sourceLife struct {
	state  relay.SourceState
	since  time.Duration // clock that only runs forward, of the last change of Status
	begun  time.Duration // when its replay began
	missed time.Duration // when it last passed over lines unread; 0: never
}

// readinessView is what a look-up needs, computed when a source's status
// changes or it has missed lines. Times are on the clock that only runs forward.
type readinessView struct {
	forever bool          // no source is up
	until   time.Duration // start-up replay of a source that is not up yet
	missed  time.Duration // when a source last passed over lines unread; 0: none has
	missing time.Duration // when the last of the sources that are down was lost or begun, or its replacement came up; 0: none is down
}

// Sources tells which sources there are; those not named before are starting,
// those no longer named are forgotten.
func (g *Gate) Sources(names []string) {
	now := g.now()
	r := &g.sources
	r.mu.Lock()
	defer r.mu.Unlock()
	next := map[string]*sourceLife{}
	for _, n := range names {
		if old, ok := r.sources[n]; ok {
			next[n] = old
		} else {
			next[n] = &sourceLife{state: relay.SourceState{Name: n}, since: now.Mono, begun: now.Mono}
		}
	}
	r.sources = next
	r.compute()
}

// SourceChanged takes a source's report. One that Sources has not named is
// ignored.
func (g *Gate) SourceChanged(s relay.SourceState) {
	now := g.now()
	r := &g.sources
	r.mu.Lock()
	defer r.mu.Unlock()
	life, ok := r.sources[s.Name]
	if !ok {
		return
	}
	changed := life.state.Status != s.Status
	if changed {
		life.since = now.Mono
		if s.Status == relay.SourceStarting {
			life.begun = now.Mono // it is read anew
		}
	}
	missed := s.Missed > life.state.Missed
	if missed {
		life.missed = max(now.Mono, 1)
	}
	life.state = s
	if changed || missed {
		r.compute()
	}
}

// SourceStates gives every source's last report.
func (g *Gate) SourceStates() []relay.SourceState {
	r := &g.sources
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]relay.SourceState, 0, len(r.sources))
	for _, l := range r.sources {
		out = append(out, l.state)
	}
	return out
}

func (r *readiness) compute() {
	v := &readinessView{}
	if len(r.sources) == 0 {
		r.view.Store(v)
		return
	}
	v.forever = true
	var upSince time.Duration
	for _, l := range r.sources {
		if l.state.Status == relay.SourceUp {
			if v.forever || l.since < upSince {
				upSince = l.since
			}
			v.forever = false
		}
	}
	for _, l := range r.sources {
		v.missed = max(v.missed, l.missed)
		switch l.state.Status {
		case relay.SourceUp:
		case relay.SourceStarting:
			v.until = max(v.until, l.begun+startGrace)
		default:
			// From the moment it was lost, or from when another one was there
			// to be heard if that is later, a whole ttl must pass.
			v.missing = max(v.missing, l.since, upSince, 1)
		}
	}
	r.view.Store(v)
}

// blind says whether a login may have been missed.
func (r *readiness) blind(now relay.Now, ttl time.Duration) bool {
	v := r.view.Load()
	if v == nil {
		return false
	}
	return v.forever || now.Mono < v.until || v.missing > 0 && now.Mono < v.missing+ttl || v.missed > 0 && now.Mono < v.missed+ttl
}

// PutOff says whether strangers are put off at the moment because a login may
// have been missed, and until when; the zero time is until a source is up.
func (g *Gate) PutOff() (until time.Time, off bool) {
	now, ttl := g.now(), g.Rules().GrantTTL
	end := time.Duration(g.missed.Load())
	if v := g.sources.view.Load(); v != nil {
		if v.forever {
			return time.Time{}, true
		}
		end = max(end, v.until)
		for _, from := range []time.Duration{v.missing, v.missed} {
			if from > 0 {
				end = max(end, from+ttl)
			}
		}
	}
	if now.Mono >= end {
		return time.Time{}, false
	}
	return now.Wall.Add(end - now.Mono), true
}
