package main

import (
	"runtime"
	"sync"
	"syscall"
	"time"
)

// A pace lets long work make way for those who wait for an answer. A processor
// that is at work is taken away from one thread, when another wakes up, only
// after some milliseconds; one that sleeps is in nobody's way. So it works for
// less time than an answer to an MTA takes, and sleeps for most of it.
//
// The sleep is the kernel's and not the runtime's, which on an idle machine
// wakes a goroutine up to a millisecond late. Who sleeps so keeps his place in
// the runtime (a P), and whoever is woken needs one: so one sleeps at a time, and
// several lists together work no more than one does.
type pace struct {
	work, sleep time.Duration // at least; the kernel adds up to 50 µs to a sleep
	until       time.Time     // when making way ends, if it does
	began       time.Time
}

var resting sync.Mutex

// leisurely is for what nobody waits for but him who asked for much.
func leisurely() *pace { return &pace{work: 25 * time.Microsecond, sleep: 200 * time.Microsecond} }

// brisk is for what is wanted soon: it makes way for a second.
func brisk() *pace {
	return &pace{work: 50 * time.Microsecond, sleep: 50 * time.Microsecond, until: time.Now().Add(time.Second)}
}

// rest is called after each small piece of work.
func (p *pace) rest() {
	now := time.Now()
	if now.Sub(p.began) < p.work || !p.until.IsZero() && now.After(p.until) {
		return
	}
	resting.Lock()
	t := syscall.NsecToTimespec(int64(p.sleep))
	_ = syscall.Nanosleep(&t, nil) // cut short by a signal: so be it
	resting.Unlock()
	runtime.Gosched() // whoever was woken and found no place goes first
	p.began = time.Now()
}
