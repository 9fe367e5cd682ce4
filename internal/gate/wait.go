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
	n      int
}

type waiter struct{ woken chan struct{} }

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
	w, patience := g.waiting.enter(key, f.Client, r, f.Now)
	if w == nil {
		f.Busy = true
		return false
	}
	q.Waits.Transaction = true
	q.Waits.Count++
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		// Register first, look up then: a login between the first look-up and
		// the registration is found here.
		f.Now = g.now()
		g.lookup(r, f)
		if d := relay.Decide(f); d.Verdict != relay.Refuse {
			g.waiting.leave(key, f.Client, w, 0)
			return true
		}
		q.Waits.Block()
		select {
		case <-w.woken:
			continue
		case <-timer.C:
		case <-ctx.Done():
			// The wait was cut short, so nobody knows what it would have brought.
			f.Busy = true
		}
		f.Now = g.now()
		g.lookup(r, f)
		until := time.Duration(0)
		if relay.Decide(f).Verdict == relay.Refuse {
			until = f.Now.Mono + shortWaitFor
		}
		g.waiting.leave(key, f.Client, w, until)
		return true
	}
}

// enter takes a place, or gives nil when there is none. The patience is how
// long the place is good for.
func (w *waiting) enter(key relay.Key, client netip.Addr, r *relay.Rules, now relay.Now) (*waiter, time.Duration) {
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
	p := &waiter{woken: make(chan struct{}, 1)}
	w.byKey[key] = append(w.byKey[key], p)
	w.client[client] = true
	w.n++
	return p, patience
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
// any. It never blocks.
func (g *Gate) Follow(b relay.Batch) (woken bool) {
	for i := range b.Changes {
		if c := &b.Changes[i]; c.Kind == relay.ChangeGrant {
			woken = g.waiting.wake(c.Grant.Key()) || woken
		}
	}
	return woken
}

func (w *waiting) wake(key relay.Key) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.byKey[key] {
		select {
		case p.woken <- struct{}{}:
		default:
		}
	}
	return len(w.byKey[key]) > 0
}

// Waiting gives how many clients wait at the moment.
func (g *Gate) Waiting() int {
	g.waiting.mu.Lock()
	defer g.waiting.mu.Unlock()
	return g.waiting.n
}
