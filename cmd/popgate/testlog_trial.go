package main

import (
	"popgate/watcher/format"
)

// trial reads a log that has shown no login yet in every other format, to tell
// which would be right.
type trial struct {
	parsers map[string]format.Parser
	logins  map[string]int
	tags    map[string]int
	left    int // lines
}

const (
	trialLines = 200_000
	maxTags    = 1000 // that are told apart; strangers may choose some
)

func newTrial(without string) *trial {
	t := &trial{parsers: map[string]format.Parser{}, logins: map[string]int{}, tags: map[string]int{}, left: trialLines}
	for _, name := range format.Names() {
		if name == without || name == "auto" {
			continue
		}
		if p, err := format.New(name); err == nil {
			t.parsers[name] = p
		}
	}
	return t
}

// active says whether there is still something to try.
func (t *trial) active() bool { return t != nil && t.left > 0 }

func (t *trial) line(m *format.Message) {
	t.left--
	if _, known := t.tags[string(m.Tag)]; known || len(t.tags) < maxTags {
		t.tags[string(m.Tag)]++
	}
	for name, p := range t.parsers {
		if _, result := p.Parse(m); result == format.Login {
			t.logins[name]++
		}
	}
}

// report adds what a log without a login was tried for.
func (t *trial) report(n *logCount) {
	if n.others == nil {
		n.others, n.tags = map[string]int{}, map[string]int{}
	}
	for name, count := range t.logins {
		n.others[name] += count
	}
	for tag, count := range t.tags {
		n.tags[tag] += count
	}
}
