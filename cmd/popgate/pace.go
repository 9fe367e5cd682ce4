package main

import (
	"syscall"
	"time"
)

// A pace lets long work make way for those who wait for an answer. A processor
// that is at work is taken away from one thread, when another wakes up, only
// after some milliseconds; one that sleeps is in nobody's way. So it works for
// less time than an answer to an MTA takes, and sleeps for most of it.
//
// The sleep is the kernel's and not the runtime's, which on an idle machine
// wakes a goroutine up to a millisecond late.
type pace struct {
	work, sleep time.Duration // at least; the kernel adds up to 50 µs to the second
	began       time.Time
}

// leisurely is for what nobody waits for but him who asked for much.
func leisurely() *pace { return &pace{work: 25 * time.Microsecond, sleep: 200 * time.Microsecond} }

// brisk is for what is wanted soon.
func brisk() *pace { return &pace{work: 50 * time.Microsecond, sleep: 50 * time.Microsecond} }

// rest is called after each small piece of work.
func (p *pace) rest() {
	if time.Since(p.began) < p.work {
		return
	}
	t := syscall.NsecToTimespec(int64(p.sleep))
	_ = syscall.Nanosleep(&t, nil) // cut short by a signal: so be it
	p.began = time.Now()
}
