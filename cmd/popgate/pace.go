package main

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A pace lets long work make way for those who wait for an answer. A processor
// that is at work is taken away from one thread, when another wakes up, only
// after some milliseconds; one that sleeps is in nobody's way. So it works for
// less time than an answer to an MTA takes, and then sleeps: for nearly all of the
// time while MTAs ask, and for some of it while none does.
type pace struct {
	work         time.Duration // at least; it is looked at after each small piece
	among, alone time.Duration // sleeps while MTAs ask and while none does; to wake up takes some 25 µs more
	nap          *napper
	answered     func() uint64 // how many answers MTAs were given; nil: that doesn't matter
	until        time.Time     // when making way ends, if it does

	began   time.Time
	answers uint64    // as told last
	last    time.Time // when there was one more of them
}

// calm is for how long no MTA must have been answered to count as asking no more.
const calm = 100 * time.Millisecond

// leisurely is for what nobody waits for but him who asked for much.
func leisurely(answered func() uint64) *pace {
	return &pace{work: 25 * time.Microsecond, among: 800 * time.Microsecond, alone: 50 * time.Microsecond, nap: &listNap, answered: answered}
}

// brisk is for what is wanted soon: it makes way for a second.
func brisk() *pace {
	return &pace{work: 50 * time.Microsecond, among: 50 * time.Microsecond, nap: &statusNap, until: time.Now().Add(time.Second)}
}

// rest is called after each small piece of work.
func (p *pace) rest() {
	now := time.Now()
	if now.Sub(p.began) < p.work || !p.until.IsZero() && now.After(p.until) {
		return
	}
	p.nap.take(p.sleep(now))
	p.began = time.Now()
}

// sleep says for how long.
func (p *pace) sleep(now time.Time) time.Duration {
	if p.answered == nil {
		return p.among
	}
	if n := p.answered(); n != p.answers || p.last.IsZero() {
		p.answers, p.last = n, now
	}
	if now.Sub(p.last) > calm {
		return p.alone
	}
	return p.among
}

// A napper sleeps for less than a millisecond by a clock of the kernel's that
// can be waited for as one waits for a connection. The runtime's own sleep ends
// up to a millisecond late on an idle machine, and in a system call that sleeps a
// goroutine keeps its place in the runtime (a P), which whoever is woken needs.
// One takes a nap at a time, so several lists together work no more than one does.
type napper struct {
	mu    sync.Mutex
	make  func() (*clock, error)
	clock *clock // made when it is first needed
}

type clock struct {
	fd   int
	file *os.File // of the same: it is waited for with others of the runtime's
}

// A status waits for no list.
var listNap, statusNap = napper{make: newClock}, napper{make: newClock}

func newClock() (*clock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &clock{fd, os.NewFile(uintptr(fd), "timerfd")}, nil
}

func (n *napper) take(d time.Duration) {
	if d <= 0 { // which would stop the clock
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	var err error
	if n.clock == nil {
		n.clock, err = n.make()
	}
	if err == nil {
		err = n.clock.wait(d)
	}
	if err != nil { // no descriptor is left, say: the next nap tries again
		time.Sleep(d)
	}
}

func (c *clock) wait(d time.Duration) error {
	if err := unix.TimerfdSettime(c.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}, nil); err != nil {
		return os.NewSyscallError("timerfd_settime", err)
	}
	var rang [8]byte // how often
	_, err := c.file.Read(rang[:])
	return err
}
