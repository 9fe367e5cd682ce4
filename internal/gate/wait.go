package gate

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"popgate/internal/relay"
)

// POP/IMAP servers write the login line after the client has its answer, so a
// client that logs in and sends at once can be a few milliseconds early. It
// may wait for the line, within limits that keep strangers from holding up
// anything but themselves.
const (
	waitsPerConnection = 5
	shortWait          = 100 * time.Millisecond // for a client whose last wait brought nothing
	shortWaitFor       = 5 * time.Second
	maxFailed          = 16384 // clients remembered for that
)

type waiting struct {
	mu     sync.Mutex
	byKey  map[relay.Key][]*waiter
	client map[netip.Addr]bool          // one wait at a time for each
	failed map[netip.Addr]time.Duration // until when only a short wait is given
	due    []*waiter                    // whose login has come, and who are to be answered
	n      int
}

type waiter struct {
	woken     chan struct{}
	answering bool // his door takes an answer from whoever brings the login

	mu sync.Mutex // held while he is answered, which the others needn't wait for
	// pass answers the client if he may pass by now, and says whether he may. nil:
	// nothing can be answered for him.
	pass   func(*relay.Facts) bool
	facts  relay.Facts // what pass is asked about
	passed bool        // what it said
}

func (w *waiting) init() {
	w.byKey = map[relay.Key][]*waiter{}
	w.client = map[netip.Addr]bool{}
	w.failed = map[netip.Addr]time.Duration{}
}

// wait lets the client wait for its login and looks up again. It answers
// whether it waited; with no place to wait it marks the facts busy.
func (g *Gate) wait(ctx context.Context, r *relay.Rules, q *relay.Query, f *relay.Facts) bool {
	if q.Waits.Transaction || q.Waits.Count >= waitsPerConnection {
		return false
	}
	key := relay.KeyOf(f.Client, r.IPv6Prefix)
	w, patience := g.waiting.enter(key, f.Client, r, f.Now, q.Waits.Asker != nil)
	if w == nil {
		f.Busy = true
		return false
	}
	q.Waits.Transaction = true
	q.Waits.Count++
	failedUntil := time.Duration(0)
	defer func() { g.waiting.leave(key, f.Client, w, failedUntil) }()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for over := false; ; {
		// Register first, look up then: a login between the first look-up and
		// the registration is found here. The rules may have changed meanwhile.
		f.Now = g.now()
		g.lookup(g.Rules(), f)
		d := relay.Decide(f)
		if over && d.Verdict == relay.Refuse {
			failedUntil = f.Now.Mono + shortWaitFor
		}
		if over || d.Verdict != relay.Refuse {
			return true
		}
		q.Waits.Block()
		if w.answering {
			w.offer(f, g.passes(q))
		}
		select {
		case <-w.woken:
		case <-timer.C:
			over = true
		case <-ctx.Done():
			// The wait was cut short, so nobody knows what it would have brought.
			over, f.Busy = true, true
		}
		if w.withdraw(f) {
			return true
		}
	}
}

// passes lets whoever brings a login answer the client that waits for it. To wake
// the goroutine that waits, and for it to find a processor, takes longer than all
// else from the line to the answer.
func (g *Gate) passes(q *relay.Query) func(*relay.Facts) bool {
	return func(f *relay.Facts) (may bool) {
		// A panic here would be the log reader's. The goroutine that waits looks up
		// once more, in the place where a panic costs one connection.
		defer func() { _ = recover() }()
		f.Now = g.now()
		g.lookup(g.Rules(), f)
		if relay.Decide(f).Verdict != relay.Pass {
			return false
		}
		may = true // whatever becomes of the answer: there is no other
		q.Waits.Asker.Passes()
		return true
	}
}

// enter takes a place, or gives nil when there is none. The patience is how
// long the place is good for.
func (w *waiting) enter(key relay.Key, client netip.Addr, r *relay.Rules, now relay.Now, answering bool) (*waiter, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.client[client] || w.n >= r.MaxWaiting {
		return nil, 0
	}
	patience := r.WaitForLogin
	if until, ok := w.failed[client]; ok {
		if now.Mono < until {
			patience = min(patience, shortWait)
		} else {
			delete(w.failed, client)
		}
	} else if len(w.failed) >= maxFailed {
		patience = min(patience, shortWait) // it may be among those not remembered
		w.forget(now)
	}
	p := &waiter{woken: make(chan struct{}, 1), answering: answering}
	w.byKey[key] = append(w.byKey[key], p)
	w.client[client] = true
	w.n++
	return p, patience
}

// offer has whoever brings the client's login answer by pass, until withdraw is
// called.
func (p *waiter) offer(f *relay.Facts, pass func(*relay.Facts) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.facts, p.pass = *f, pass
}

// withdraw says whether the client was answered meanwhile, and by which facts.
// From now on he can't be.
func (p *waiter) withdraw(f *relay.Facts) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pass = nil; p.passed {
		*f = p.facts
	}
	return p.passed
}

// answer answers the client, if that is still for others to do, and wakes him.
func (p *waiter) answer() {
	p.mu.Lock()
	if p.pass != nil {
		p.passed, p.pass = p.pass(&p.facts), nil
	}
	p.mu.Unlock()
	p.wake()
}

// wake has the client look up once more.
func (p *waiter) wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

func (w *waiting) forget(now relay.Now) {
	for c, until := range w.failed {
		if now.Mono >= until {
			delete(w.failed, c)
		}
	}
}

func (w *waiting) leave(key relay.Key, client netip.Addr, p *waiter, failedUntil time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.byKey[key]
	for i, q := range list {
		if q == p {
			list = append(list[:i], list[i+1:]...)
			break
		}
	}
	if len(list) == 0 {
		delete(w.byKey, key)
	} else {
		w.byKey[key] = list
	}
	delete(w.client, client)
	w.n--
	if failedUntil > 0 && len(w.failed) < maxFailed {
		w.failed[client] = failedUntil
	}
}

// Follow wakes those who wait for what a batch brings, and says whether there were
// any: then Answer is to be called, for one of them may have been left to it. It
// never blocks.
func (g *Gate) Follow(b relay.Batch) (woken bool) {
	for i := range b.Changes {
		if c := &b.Changes[i]; c.Kind == relay.ChangeGrant {
			woken = g.waiting.wake(c.Grant.Key()) || woken
		}
	}
	return woken
}

// wake leaves to Answer the first who waits under the key, if he can be answered.
// Only him, or the log would be read late where many wait under one key; the
// others look by themselves.
func (w *waiting) wake(key relay.Key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	list := w.byKey[key]
	for i, p := range list {
		if i == 0 && p.answering {
			w.due = append(w.due, p)
			continue
		}
		p.wake()
	}
	return len(list) > 0
}

// Answer answers those who were left to it. It takes as long as it takes to send
// an answer to each, and so is called with no lock held.
func (g *Gate) Answer() {
	w := &g.waiting
	w.mu.Lock()
	due := w.due
	w.due = nil
	w.mu.Unlock()
	for _, p := range due {
		p.answer()
	}
}

// Waiting gives how many clients wait at the moment.
func (g *Gate) Waiting() int {
	g.waiting.mu.Lock()
	defer g.waiting.mu.Unlock()
	return g.waiting.n
}
