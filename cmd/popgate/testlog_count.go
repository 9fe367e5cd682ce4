package main

import (
	"popgate/internal/ledger"
	"popgate/internal/relay"
)

// fileCount is what was found in one log.
type fileCount struct {
	name, format                        string
	n                                   int // lines
	foreign, long                       int // foreign: of no known transport, and yet they might matter
	logins, logouts, restarts, unparsed int
	fragments, gaps                     int
	failed                              bool // it could not be read to its end
	last                                samples
}

// logCount is what was found in all of them.
type logCount struct {
	fileCount
	files    []fileCount
	services [relay.ServiceOther + 1]int
	outcomes [ledger.Outcomes]int
	others   map[string]int // logins that other formats would read
	tags     map[string]int // lines by tag, of logs without a login
}

// add takes in what was found in one log.
func (n *logCount) add(f *logFile) {
	c := &f.fileCount
	n.files = append(n.files, *c)
	n.n += c.n
	n.foreign += c.foreign
	n.long += c.long
	n.logins += c.logins
	n.logouts += c.logouts
	n.restarts += c.restarts
	n.unparsed += c.unparsed
	n.fragments += c.fragments
	n.gaps += c.gaps
	for _, s := range c.last.inOrder() {
		n.last.add(s)
	}
	if f.trial != nil {
		f.trial.report(n)
	}
}

// sample is a login kept to show.
type sample struct {
	file  string // fit for a terminal
	line  int
	event relay.Event
}

// samples are the last few.
type samples struct {
	ring [3]sample
	n    int
}

func (s *samples) add(one sample) {
	s.ring[s.n%len(s.ring)] = one
	s.n++
}

func (s *samples) inOrder() []sample {
	var out []sample
	for i := max(0, s.n-len(s.ring)); i < s.n; i++ {
		out = append(out, s.ring[i%len(s.ring)])
	}
	return out
}
