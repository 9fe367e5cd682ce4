package milter

import (
	"context"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// loop waits for the packets of many connections in one place, the kernel's
// epoll(7), and has one worker at a time answer them, one after the other. An
// answer takes microseconds; before one that has to wait for something, for a
// login or another program, the worker steps aside with its connection, and
// another takes its place.
//
// What the kernel tells of a connection only the loop's worker looks at, between
// two answers. One whose worker steps aside, or that moves to another loop, is
// taken out of the watch first, and a socket is closed only when its connection
// is in no loop any more: so a number in the kernel's answer is always that of the
// connection it was given for.
type loop struct {
	listener    *listener
	door        *sockets // where new connections come in
	doorNumber  int
	epoll       int
	wakes, wake int // a pipe: what is written to wake wakes who waits
	watched     atomic.Int32
	rounds      atomic.Uint64 // how often it has waited
	stopped     atomic.Bool
	ended       chan struct{} // closed when nobody waits any more, and all is given back

	mu    sync.Mutex
	conns map[int32]*conn // those that are watched, by their socket; nil: all was given back

	// The rest is the present worker's.
	accept taker
	events [64]syscall.EpollEvent
	ready  []syscall.EpollEvent // not yet looked at
}

func newLoop(l *listener, door *sockets) (*loop, error) {
	var pipe [2]int
	if err := syscall.Pipe2(pipe[:], syscall.O_NONBLOCK|syscall.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	epoll, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		err = os.NewSyscallError("epoll_create1", err)
	} else if err = control(epoll, syscall.EPOLL_CTL_ADD, pipe[0], syscall.EPOLLIN); err != nil {
		_ = syscall.Close(epoll)
	}
	if err != nil {
		_ = syscall.Close(pipe[0])
		_ = syscall.Close(pipe[1])
		return nil, err
	}
	return &loop{listener: l, door: door, doorNumber: door.fd, epoll: epoll, wakes: pipe[0], wake: pipe[1],
		ended: make(chan struct{}), conns: map[int32]*conn{}}, nil
}

// admit lets in who has come, if he is still there.
func (p *loop) admit() {
	if !p.door.take(&p.accept) {
		return
	}
	a, err := p.accept.got()
	if err == nil {
		p.listener.admit(a)
		return
	}
	select {
	case p.door.trouble <- struct{}{}:
	default:
	}
}

func control(epoll, op, fd int, events uint32) error {
	return os.NewSyscallError("epoll_ctl", syscall.EpollCtl(epoll, op, fd, &syscall.EpollEvent{Events: events, Fd: int32(fd)}))
}

// watch has the loop wait for a connection's packets. It answers false when it
// can't any more.
func (p *loop) watch(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer p.count()
	if p.conns == nil || p.listener.draining.Load() && !c.full {
		return false
	}
	p.conns[c.fd] = c // before the kernel can tell of it
	if control(p.epoll, syscall.EPOLL_CTL_ADD, int(c.fd), c.interest()) != nil {
		delete(p.conns, c.fd)
		return false
	}
	return true
}

// count notes how many connections are watched. The lock is held.
func (p *loop) count() { p.watched.Store(int32(len(p.conns))) }

// interest is what is waited for.
func (c *conn) interest() uint32 {
	if c.full {
		return syscall.EPOLLOUT
	}
	return syscall.EPOLLIN
}

// forget takes out a connection that is about to be closed, which ends the
// kernel's watch as well.
func (p *loop) forget(c *conn) {
	p.mu.Lock()
	if p.conns[c.fd] == c {
		delete(p.conns, c.fd)
		p.count()
	}
	p.mu.Unlock()
}

// stepAside is called by a worker before something that takes time.
func (p *loop) stepAside(w *worker) {
	if w.aside {
		return
	}
	w.aside = true
	p.unwatch(w.conn)
	employ(p)
}

// next answers for whatever worker asks: one that stepped aside has nothing but
// its own connection, which it then gives back.
func (p *loop) next(w *worker) (*conn, []byte) {
	for {
		if c := w.conn; c != nil {
			if packet := c.take(); packet != nil {
				return c, packet
			}
			w.conn = nil
			p.settle(c, w.aside)
		}
		if w.aside {
			p.listener.server.options.Answered()
			return nil, nil
		}
		if w.conn = p.wait(); w.conn == nil {
			s := p.listener.server
			s.mu.Lock()
			delete(s.loops, p)
			s.mu.Unlock()
			p.release()
			close(p.ended)
			return nil, nil
		}
	}
}

// lost goes on without a connection whose packet was too much for the library.
func (p *loop) lost(w *worker) {
	if w.conn != nil {
		p.listener.server.counts.panics.Add(1)
		w.conn.close()
	}
	if !w.aside {
		employ(p)
	}
}

// settle leaves a connection until there is more to do for it. When draining
// there is only the rest of its answer.
func (p *loop) settle(c *conn, aside bool) {
	full := len(c.unsent) > 0
	switch {
	case c.over(), !full && p.listener.draining.Load():
		c.close()
		return
	case full != c.full:
		c.full = full
		if !aside && control(p.epoll, syscall.EPOLL_CTL_MOD, int(c.fd), c.interest()) != nil {
			c.close()
			return
		}
	}
	c.lend()
	if !full {
		c.waits()
		if c.peer.IsValid() {
			c.acknowledge()
		}
	}
	to := p
	if !aside {
		to = p.moves(c)
	}
	if to != nil && !to.watch(c) {
		c.close()
	}
}

// lookAgain is after how many answers a connection may be moved.
const lookAgain = 64

// moves takes a connection that has been here for some time out of the loop, for
// another that has fewer. nil: it stays.
func (p *loop) moves(c *conn) *loop {
	if c.answers++; c.answers%lookAgain != 0 || c.full {
		return nil
	}
	to := p.listener.leastBusy()
	if to.watched.Load()+1 >= p.watched.Load() {
		return nil
	}
	p.unwatch(c)
	c.loop = to
	return to
}

// unwatch ends the watch of a connection that goes on elsewhere.
func (p *loop) unwatch(c *conn) {
	p.forget(c)
	_ = control(p.epoll, syscall.EPOLL_CTL_DEL, int(c.fd), 0)
}

// wait gives a connection that has sent something, or nil when the loop has been
// stopped.
func (p *loop) wait() *conn {
	for {
		if len(p.ready) == 0 {
			p.listener.server.options.Answered()
			p.rounds.Add(1)
			n, err := syscall.EpollWait(p.epoll, p.events[:], -1)
			if err != nil && err != syscall.EINTR {
				panic(os.NewSyscallError("epoll_wait", err)) // only of a descriptor that is none
			}
			p.ready = p.events[:max(n, 0)]
			continue
		}
		e := &p.ready[0]
		p.ready = p.ready[1:]
		switch int(e.Fd) {
		case p.wakes:
			if p.woken() {
				return nil
			}
			continue
		case p.doorNumber:
			p.admit()
			continue
		}
		p.mu.Lock()
		c := p.conns[e.Fd]
		p.mu.Unlock()
		if c != nil && p.receive(c) {
			return c
		}
	}
}

// receive reads what a connection has sent, or sends what it has not taken yet.
// It answers false when there is nothing to be done for it.
func (p *loop) receive(c *conn) bool {
	if c.full {
		p.flush(c)
		return len(c.unsent) == 0 || c.over()
	}
	n, err := read(c.fd, c.room())
	if err == syscall.EAGAIN {
		c.lend()
		return false
	}
	c.received(n) // of an error nothing was got, which is the end
	return true
}

func read(fd int32, b []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), b)
		if err != syscall.EINTR {
			return n, err
		}
	}
}

// write sends a packet, or keeps what there is no room for. Then nothing more is
// read: an MTA that takes no answers gets to ask no questions.
func (p *loop) write(c *conn, packet []byte) error {
	n := 0
	for n < len(packet) {
		m, err := syscall.Write(int(c.fd), packet[n:])
		switch err {
		case nil:
			n += m
		case syscall.EINTR:
		case syscall.EAGAIN:
			c.enter(writing)
			c.unsent = append(c.unsent[:0:0], packet[n:]...)
			return nil
		default:
			return err
		}
	}
	c.unsent = nil
	return nil
}

// flush sends what there was no room for.
func (p *loop) flush(c *conn) {
	if err := p.write(c, c.unsent); err != nil {
		c.broken()
	}
}

// woken looks at why the loop was woken. It answers true when it is to end.
func (p *loop) woken() bool {
	var b [16]byte
	_, _ = read(int32(p.wakes), b[:])
	if p.listener.draining.Load() {
		p.mu.Lock()
		var idle []*conn
		for _, c := range p.conns {
			if !c.full { // else its answer is still to be taken
				idle = append(idle, c)
			}
		}
		p.mu.Unlock()
		for _, c := range idle {
			c.close()
		}
	}
	return p.stopped.Load()
}

// comesRound waits until the loop has waited for packets once more. It answers
// false when ctx has ended before that.
func (p *loop) comesRound(ctx context.Context) bool {
	const often = time.Millisecond
	was := p.rounds.Load()
	p.rouse()
	for p.rounds.Load() == was {
		select {
		case <-p.ended:
			return true
		case <-ctx.Done():
			return false
		case <-time.After(often):
		}
	}
	return true
}

// rouse has the loop look at what is asked of it, if it is still there.
func (p *loop) rouse() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns != nil {
		_, _ = syscall.Write(p.wake, []byte{0})
	}
}

// release gives back what a loop holds in which nobody waits any more. Workers
// that stepped aside close their connections themselves.
func (p *loop) release() {
	p.mu.Lock()
	left := p.conns
	p.conns = nil
	for _, fd := range [...]int{p.epoll, p.wakes, p.wake} {
		_ = syscall.Close(fd)
	}
	p.mu.Unlock()
	for _, c := range left {
		c.close()
	}
}
