package main

import (
	"context"
	"fmt"
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
// themselves, and whom they turn away.
type doubts struct {
	mu     sync.Mutex
	of     map[string][]string
	turned map[string]refusals
}

// refusals are what was sent to a source and does not count.
type refusals struct {
	times uint64
	last  string
}

func (d *doubts) refused(name string, times uint64, last string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.turned == nil {
		d.turned = map[string]refusals{}
	}
	d.turned[name] = refusals{times, last}
}

func (d *doubts) set(name string, texts []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.of == nil {
		d.of = map[string][]string{}
	}
	d.of[name] = texts
}

// about gives the doubts about a source; what it has read takes them away, but
// not the word of those it turned away.
func (d *doubts) about(s relay.SourceState) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var texts []string
	if s.Status == relay.SourceUp && s.Lines == 0 {
		texts = slices.Clone(d.of[s.Name])
		if s.Type == "push" {
			texts = append(texts, "nobody has told of a login yet; does Dovecot's auth_policy_server_url, or the script's --socket, lead here?")
		}
	}
	if r := d.turned[s.Name]; r.times > 0 {
		texts = append(texts, fmt.Sprintf("turned away %d %s, the last: %s", r.times, plural(int(r.times), "time"), r.last))
	}
	return texts
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
