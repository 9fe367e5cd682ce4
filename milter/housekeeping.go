package milter

import (
	"context"
	"time"
)

// keepHouse ticks, ends connections that are overdue and reports what ended
// early, until done is closed. It is the only goroutine that logs for
// connections.
func (l *listener) keepHouse(done <-chan struct{}) {
	t := newTiming(&l.server.options)
	ticker := time.NewTicker(t.tick)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			l.server.report(time.Now(), true)
			return
		case now := <-ticker.C:
			l.endOverdue(l.ticks.Add(1), &t)
			l.server.report(now, false)
		}
	}
}

// endOverdue closes the connections that have been at one thing for too long.
func (l *listener) endOverdue(now uint64, t *timing) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		if c.overdue(now, &t.allowed) && !c.ended.Swap(true) {
			l.server.counts.timeouts.Add(1)
			c.breakOff()
		}
	}
}

// drain ends all connections: the idle ones at once, the others when the
// packet being answered is answered, and what is then still there by force.
// A judge that waits for a login is told to stop while there is still time to
// send its answer.
func (l *listener) drain(stopJudging context.CancelFunc) {
	l.draining.Store(true)
	for _, p := range l.loops {
		p.rouse()
	}
	l.mu.Lock()
	for c := range l.conns {
		if c.wire != nil { // reading fails from now on, and writing does not
			_ = c.wire.SetReadDeadline(time.Unix(1, 0))
		}
	}
	l.mu.Unlock()

	limit := l.server.options.DrainTimeout
	if l.wait(limit * 3 / 4) {
		return
	}
	stopJudging()
	if l.wait(limit / 4) {
		return
	}
	l.mu.Lock()
	for c := range l.conns {
		c.ended.Store(true)
		c.breakOff()
	}
	l.mu.Unlock()
	// Only a judge that ignores its context can still hold one.
	l.wait(limit / 4)
}

// stopLoops ends the loops, and waits for those whose workers do so at once: one
// that is held by a judge who can't be told is left to that.
func (l *listener) stopLoops(patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for _, p := range l.loops {
		p.stopped.Store(true)
		p.rouse()
	}
	for _, p := range l.loops {
		select {
		case <-p.ended:
		case <-timer.C:
			return
		}
	}
}

// wait waits until no connection is left, but no longer than d.
func (l *listener) wait(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		l.mu.Lock()
		left := len(l.conns)
		l.mu.Unlock()
		if left == 0 {
			return true
		}
		select {
		case <-l.empty:
		case <-timer.C:
			return false
		}
	}
}
