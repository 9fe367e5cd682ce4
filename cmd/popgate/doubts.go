package main

import (
	"context"
	"slices"
	"sync"

	"popgate/internal/relay"
)

// doubter is a source that can say why it may never see a login though it can be
// read: the unit's name is wrong, say.
type doubter interface {
	Usable(ctx context.Context) (doubts []string, err error)
}

// doubts keeps what sources that are up and have read nothing yet say of
// themselves.
type doubts struct {
	mu sync.Mutex
	of map[string][]string
}

func (d *doubts) set(name string, texts []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = map[string][]string{}
	}
	d.of[name] = texts
}

// about gives the doubts about a source; what it has read takes them away.
func (d *doubts) about(s relay.SourceState) []string {
	if s.Status != relay.SourceUp || s.Lines > 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.of[s.Name])
}

// doubting gives a report that, when the source first comes up and has read
// nothing, asks it for doubts and tells the log. wait waits for the asking.
func (s *sources) doubting(ctx context.Context, p plan, report func(relay.SourceState)) (_ func(relay.SourceState), wait func()) {
	source := p.source
	if n, ok := source.(named); ok {
		source = n.Source
	}
	d, ok := source.(doubter)
	if !ok {
		return report, func() {}
	}
	name := p.config.Name
	s.doubts.set(name, nil)
	var asking sync.WaitGroup
	asked := false
	return func(state relay.SourceState) {
		report(state)
		if asked || state.Status != relay.SourceUp {
			return
		}
		if asked = true; state.Lines > 0 {
			return
		}
		asking.Go(func() {
			texts, err := d.Usable(ctx)
			if err != nil { // the source itself will say so
				return
			}
			s.doubts.set(name, texts)
			for _, text := range texts {
				s.d.log.Warn("a source may never see a login", "source", name, "why", text)
			}
		})
	}, asking.Wait
}
