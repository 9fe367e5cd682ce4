package milter

import "time"

// phase is what a connection is doing. It is kept together with the tick at
// which it began, and a connection only says what it does: the listener's
// housekeeping compares with its own count of ticks. So no packet costs a
// timer, nor a look at the clock.
type phase uint64

const (
	idle      phase = iota // no packet has begun
	receiving              // one has begun
	answering              // one is there and is being answered; the judge bounds it
	writing                // the answer is being written
	numPhases
)

const phaseBits = 2

// enter notes that the connection is now in phase p. It stays since when it
// was, if it was in it already: a packet that comes byte by byte has begun
// once.
func (c *conn) enter(p phase) {
	if phase(c.phase.Load())&(1<<phaseBits-1) != p {
		c.begin(p)
	}
}

// begin notes that phase p begins now.
func (c *conn) begin(p phase) { c.phase.Store(c.listener.ticks.Load()<<phaseBits | uint64(p)) }

// overdue says whether the connection has been in its phase for longer than
// allowed, at tick now.
func (c *conn) overdue(now uint64, allowed *[numPhases]uint64) bool {
	v := c.phase.Load()
	p := phase(v) & (1<<phaseBits - 1)
	return allowed[p] > 0 && now-v>>phaseBits > allowed[p]
}

// timing is how often housekeeping ticks and how many whole ticks each phase
// may last.
type timing struct {
	tick    time.Duration
	allowed [numPhases]uint64
}

func newTiming(o *Options) timing {
	limits := [numPhases]time.Duration{idle: o.IdleTimeout, receiving: o.PacketTimeout, writing: o.WriteTimeout}
	t := timing{tick: time.Second}
	for _, d := range limits {
		if d > 0 {
			t.tick = min(t.tick, max(d/8, time.Millisecond))
		}
	}
	for p, d := range limits {
		if d > 0 {
			t.allowed[p] = uint64((d + t.tick - 1) / t.tick)
		}
	}
	return t
}
