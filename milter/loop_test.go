package milter

import (
	"context"
	"fmt"
	"log"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"popgate/internal/relay"
)

// doors are what an MTA can come in by, and how many loops may be behind.
func doors(t *testing.T, f func(t *testing.T, network string, loops int)) {
	for _, network := range []string{"unix", "tcp"} {
		for _, loops := range []int{1, 3} {
			t.Run(fmt.Sprintf("%s, loops %d", network, loops), func(t *testing.T) { f(t, network, loops) })
		}
	}
}

// hold is a judge who lets recipients that begin with "wait" wait until he is
// told, and passes them then. He says so before.
type hold struct {
	witness
	let     chan struct{} // one for each that waits, or closed
	waiting atomic.Int32  // those that wait, or did
}

func newHold() *hold {
	h := &hold{let: make(chan struct{})}
	h.decide = func(ctx context.Context, q *relay.Query) relay.Decision {
		if !strings.HasPrefix(q.Rcpt, "wait") {
			return byName(q.Rcpt)
		}
		if !strings.HasPrefix(q.Rcpt, "wait-untold") {
			q.Waits.Block()
			q.Waits.Block() // for whatever else
		}
		done := ctx.Done()
		if strings.HasSuffix(q.Rcpt, "@deaf") {
			done = nil
		}
		h.waiting.Add(1)
		select {
		case <-h.let:
			return passed
		case <-done:
			return deferred
		}
	}
	return h
}

// until waits until something holds.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never %s", what)
		}
	}
}

// verbose is a judge who refuses all but recipients that begin with "pass", and whose
// refusals are numbered and long.
func verbose() *witness {
	w := &witness{}
	w.decide = func(_ context.Context, q *relay.Query) relay.Decision {
		w.generation.Add(1)
		return byName(q.Rcpt)
	}
	w.reply = func(relay.Decision, netip.Addr) relay.Reply {
		return relay.Reply{Code: 550, Enhanced: "5.7.1", Text: fmt.Sprint(w.replies.Load(), " ", strings.Repeat("x", 380))}
	}
	return w
}

// narrow has the other end hold little of what is sent, and ours little of what
// was not.
func (m *mta) narrow(c *conn) {
	m.t.Helper()
	if tcp, ok := m.conn.(*net.TCPConn); ok {
		if err := tcp.SetReadBuffer(16 << 10); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := syscall.SetsockoptInt(int(c.fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, 1); err != nil {
		m.t.Fatal(err)
	}
}

// knownBy gives the daemon's side of the connection whose recipient w was asked about
// last.
func knownBy(w *witness) *conn {
	asked := w.asked()
	return asked[len(asked)-1].Waits.Asker.(*conn)
}

func (c *conn) does(p phase) bool { return phase(c.phase.Load())&(1<<phaseBits-1) == p }

func TestSlowMTAsAreEndedByTheLoop(t *testing.T) {
	const long, short = time.Minute, 40 * time.Millisecond
	ended := func(t *testing.T, d *daemon) {
		t.Helper()
		d.until(t, "ended", func(s Stats) bool { return s.Timeouts == 1 && s.Open == 0 })
		if s := d.Stats(); s.BadPackets != 0 || s.Unsent != 0 {
			t.Errorf("%+v", s)
		}
	}
	doors(t, func(t *testing.T, network string, loops int) {
		t.Run("idle", func(t *testing.T) {
			d := serve(t, network, &witness{}, Options{Loops: loops, IdleTimeout: short, PacketTimeout: long, WriteTimeout: long})
			dial(t, d).ended()
			ended(t, d)
		})
		t.Run("a packet that doesn't go on", func(t *testing.T) {
			d := serve(t, network, &witness{}, Options{Loops: loops, IdleTimeout: long, PacketTimeout: short, WriteTimeout: long})
			m := begun(t, d, client4)
			m.send(rcpt("<x@y>"), rcpt("<x@y>")[:9])
			if got := m.reply(); !strings.HasPrefix(got, "y550 ") {
				t.Errorf("%q", got)
			}
			m.ended()
			ended(t, d)
		})
		t.Run("contents that don't go on", func(t *testing.T) {
			d := serve(t, network, &witness{}, Options{Loops: loops, IdleTimeout: long, PacketTimeout: short, WriteTimeout: long})
			m := begun(t, d, client4)
			m.want("c", packet('B', strings.Repeat("y", 5000))[:3000])
			m.ended()
			ended(t, d)
		})
		t.Run("answers that are not read", func(t *testing.T) {
			w := verbose()
			d := serve(t, network, w, Options{Loops: loops, IdleTimeout: long, PacketTimeout: long, WriteTimeout: short})
			m := begun(t, d, client4)
			m.want("y550 ", rcpt("<x@y>"))
			m.narrow(knownBy(w))
			go m.conn.Write(slices.Repeat(rcpt("<x@y>"), 4000))
			ended(t, d)
			if n := len(w.asked()); n > 3000 {
				t.Errorf("asked %d times for one that listens no more", n)
			}
		})
	})
}

func TestWhoWaitsForALoginIsNotASlowMTA(t *testing.T) {
	const short = 300 * time.Millisecond
	h := newHold()
	d := serve(t, "unix", h, Options{IdleTimeout: short, PacketTimeout: short, WriteTimeout: short})
	m := begun(t, d, client4)
	m.send(rcpt("<wait@c>"))
	until(t, "waiting", func() bool { return h.waiting.Load() == 1 })
	for range 2 {
		dial(t, d).ended()
	}
	close(h.let)
	m.want("c")
}

func TestAnMTAThatReadsLateLosesNothing(t *testing.T) {
	const recipients = 1500
	doors(t, func(t *testing.T, network string, loops int) {
		w := verbose()
		d := serve(t, network, w, Options{Loops: loops})
		m := begun(t, d, client4)
		m.want("y550 5.7.1 1 ", rcpt("<x@y>"))
		c := knownBy(w)
		m.narrow(c)
		written := make(chan error)
		go func() {
			_, err := m.conn.Write(append(slices.Repeat(rcpt("<x@y>"), recipients), quit()...))
			written <- err
		}()
		n := 0
		until(t, "put on hold", func() bool { // when the kernel holds no more either
			was := n
			time.Sleep(20 * time.Millisecond)
			n = len(w.asked())
			return n == was && c.does(writing)
		})
		if n >= recipients {
			t.Errorf("asked %d times, of one that reads nothing", n)
		}
		begun(t, d, client4).want("c", rcpt("<pass@y>")) // others are answered
		for i := range recipients {
			if got, want := m.reply(), fmt.Sprintf("y550 5.7.1 %d %s\x00", 2+i, strings.Repeat("x", 380)); got != want {
				t.Fatalf("answer %d is %q", i, got)
			}
		}
		m.ended()
		if err := <-written; err != nil {
			t.Error(err)
		}
		if s := d.Stats(); s.Unsent != 0 || s.Timeouts != 0 || s.BadPackets != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestNobodyQueuesBehindAJudgeThatSaysHeWaits(t *testing.T) {
	const slow = 8
	asks := joined([][]byte{mail("<a@b>"), macros('R', "{rcpt_mailer}", "smtp"), rcpt("<wait@c>"),
		rcpt("<no@c>"), rcpt("<later@c>"), mail("<>"), rcpt("<pass@c>"), rcpt("<no@d>")})
	doors(t, func(t *testing.T, network string, loops int) {
		h := newHold()
		d := serve(t, network, h, Options{Loops: loops})
		var waiting, others []*mta
		for range slow {
			waiting, others = append(waiting, begun(t, d, client4)), append(others, begun(t, d, client4))
		}
		for round := range 3 { // what has waited goes on, and waits again
			before, asked := int32(round*slow), len(h.asked())
			for _, m := range waiting {
				m.want("c", asks[:len(asks)-4])
			}
			until(t, "waiting", func() bool { return h.waiting.Load() == before+slow })
			others = append(others, begun(t, d, client4))
			for _, m := range others {
				m.want("y550 ", rcpt("<x@c>"))
				m.want("c", rcpt("<pass@c>"))
			}
			for _, m := range waiting {
				m.send(asks[len(asks)-4:])
			}
			if got := len(h.asked()) - asked; got != slow+2*len(others) {
				t.Errorf("asked %d times while %d wait", got, slow)
			}
			for range waiting {
				h.let <- struct{}{}
			}
			for i, m := range waiting {
				for _, want := range []string{"c", "y550 ", "y451 ", "c", "c", "y550 "} {
					if got := m.reply(); !strings.HasPrefix(got, want) {
						t.Fatalf("round %d, connection %d: %q, want %q", round, i, got, want)
					}
				}
			}
			if got := len(h.asked()) - asked; got != 5*slow+2*len(others) {
				t.Errorf("asked %d times in all", got)
			}
		}
		d.end(t)
		for _, m := range append(waiting, others...) {
			m.ended()
		}
	})
}

// ahead is a judge who waits for what is let, and by whom each connection that
// waits can be answered meanwhile.
func ahead() (w *witness, waiting chan relay.Asker, let chan relay.Decision) {
	waiting, let = make(chan relay.Asker), make(chan relay.Decision)
	w = &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		if q.Rcpt == "plain@l" {
			return refused
		}
		q.Waits.Block()
		waiting <- q.Waits.Asker
		d := <-let
		if q.Rcpt == "boom@c" {
			panic("a fault of ours")
		}
		return d
	}}
	return w, waiting, let
}

// Who brings what a judge waits for can answer at once. The judge's own answer is
// then the same one, and no second.
func TestAnAnswerAheadOfTheJudgeIsTheOnlyOne(t *testing.T) {
	doors(t, func(t *testing.T, network string, loops int) {
		w, waiting, let := ahead()
		d := serve(t, network, w, Options{Loops: loops})
		m := begun(t, d, client4)
		for range 20 {
			m.send(rcpt("<late@c>"), rcpt("<plain@l>"))
			(<-waiting).Passes()
			if got := m.reply(); got != "c" {
				t.Fatalf("%q while the judge still waits", got)
			}
			let <- passed
			m.want("y550 ") // of the next recipient
			m.send(rcpt("<late@c>"))
			<-waiting
			let <- refused
			m.want("y550 ") // nothing is left of the answer before
		}
	})
}

func TestAPanicBehindAnAnswerGivesNoSecondOne(t *testing.T) {
	w, waiting, let := ahead()
	d := serve(t, "unix", w, Options{})
	m := begun(t, d, client4)
	m.send(rcpt("<boom@c>"), rcpt("<plain@l>"))
	(<-waiting).Passes()
	m.want("c")
	let <- passed
	m.ended()
	d.until(t, "counted", func(s Stats) bool { return s.Panics == 1 && s.Open == 0 })
}

// An answer ahead of the judge for which the socket has no room is kept.
func TestAnAnswerAheadOfTheJudgeIsSentToOneWhoReadsLate(t *testing.T) {
	w, waiting, let := ahead()
	m := begun(t, serve(t, "unix", w, Options{}), client4)
	for range 3 {
		m.send(rcpt("<late@c>"), rcpt("<plain@l>"))
		a := <-waiting
		n := 0
		for err := error(nil); err == nil; n++ {
			_, err = syscall.Write(int(a.(*conn).fd), proceed)
		}
		a.Passes()
		let <- passed
		time.Sleep(5 * time.Millisecond)
		for range n { // one of them was not written, and one was kept
			m.want("c")
		}
		m.want("y550 ")
	}
}

// An MTA that has gone leaves nothing behind when it is answered.
func TestAnAnswerAheadOfTheJudgeToOneWhoHasGone(t *testing.T) {
	w, waiting, let := ahead()
	d := serve(t, "unix", w, Options{})
	m := begun(t, d, client4)
	m.send(rcpt("<late@c>"))
	a := <-waiting
	m.conn.Close()
	a.Passes()
	let <- passed
	d.until(t, "closed", func(s Stats) bool { return s.Open == 0 && s.Unsent == 1 })
}

func TestPanicAfterWaitingCostsOneConnection(t *testing.T) {
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		if q.Rcpt == "boom@c" {
			q.Waits.Block()
			panic("a fault of ours")
		}
		return byName(q.Rcpt)
	}}
	doors(t, func(t *testing.T, network string, loops int) {
		d := serve(t, network, w, Options{Loops: loops})
		other := begun(t, d, client4)
		for range 20 {
			m := begun(t, d, client4)
			m.want("y451 4.7.1 ", rcpt("<boom@c>"), rcpt("<pass@l>"))
			m.ended()
			other.want("c", rcpt("<pass@l>"))
		}
		d.until(t, "counted", func(s Stats) bool { return s.Panics == 20 && s.Open == 1 })
	})
}

// The answer put in the place of one that was lost is sent, if not at once.
func TestTheAnswerAfterAPanicIsSentToOneWhoReadsLate(t *testing.T) {
	filled := make(chan int, 1)
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		n, fd := 0, int(q.Waits.Asker.(*conn).fd)
		for err := error(nil); err == nil; n++ {
			_, err = syscall.Write(fd, proceed)
		}
		filled <- n - 1
		panic("a fault of ours")
	}}
	m := begun(t, serve(t, "unix", w, Options{}), client4)
	m.send(rcpt("<x@y>"), rcpt("<z@y>"))
	n := <-filled
	time.Sleep(5 * time.Millisecond)
	for range n {
		m.want("c")
	}
	m.want("y451 4.7.1 ")
	m.ended()
}

// Where something is wrong outside of Judge, the library gives up its session and
// not only the connection.
func TestALoopGoesOnWithoutTheWorkerThatWasLost(t *testing.T) {
	var complaints lockedBuffer
	log.SetOutput(&complaints)
	defer log.SetOutput(&libraryLog)
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		c := q.Waits.Asker.(*conn)
		switch q.Rcpt {
		case "aside@c":
			q.Waits.Block()
			fallthrough
		case "here@c":
			c.session.conn = nil
		}
		return passed
	}}
	doors(t, func(t *testing.T, network string, loops int) {
		d := serve(t, network, w, Options{Loops: loops})
		other := begun(t, d, client4)
		for range 5 {
			for _, who := range []string{"<here@c>", "<aside@c>"} {
				m := begun(t, d, client4)
				m.send(rcpt(who), rcpt("<pass@c>"))
				m.ended()
				other.want("c", rcpt("<pass@l>"))
			}
		}
		d.until(t, "closed", func(s Stats) bool { return s.Open == 1 && s.Panics == 10 })
		d.end(t)
	})
	if n := strings.Count(complaints.String(), "panic handling command"); n != 40 {
		t.Errorf("%d complaints of the library, want 40", n)
	}
}

// Connections begin in one loop, which is cheapest, and don't all stay there.
func TestConnectionsThatGoOnAreSpreadOverLoops(t *testing.T) {
	const loops, each = 3, 7
	w := &witness{}
	d := serve(t, "unix", w, Options{Loops: loops})
	in := func() map[*loop]int {
		all := map[*loop]int{}
		d.mu.Lock()
		defer d.mu.Unlock()
		for p := range d.loops {
			all[p] = int(p.watched.Load())
		}
		return all
	}
	var all []*mta
	for range loops * each {
		all = append(all, begun(t, d, client4))
	}
	if at := slices.Sorted(maps.Values(in())); !slices.Equal(at, []int{0, 0, loops * each}) {
		t.Errorf("new ones: %v in the loops", at)
	}
	for i, m := range all {
		client := fmt.Sprintf("203.0.113.%d", i)
		for range 2 * lookAgain {
			m.want("y550 ", macros('R', "{client_addr}", client4.String()), rcpt("<"+client+"@c>"))
		}
	}
	if at := slices.Sorted(maps.Values(in())); at[0] < each-1 || at[len(at)-1] > each+1 {
		t.Errorf("after some time: %v in the loops", at)
	}
	for _, m := range all[:2*each] {
		m.send(quit())
		m.ended()
	}
	d.until(t, "gone", func(s Stats) bool { return s.Open == each })
	for range 2 * lookAgain {
		for _, m := range all[2*each:] {
			m.want("c", rcpt("<pass@l>"))
		}
	}
	if at := slices.Sorted(maps.Values(in())); at[len(at)-1] > at[0]+1 {
		t.Errorf("after some have gone: %v in the loops", at)
	}
}

// What is put off until an answer has been sent is done behind the last one too,
// however the connection ends, and whoever waits for its packets.
func TestNothingPutOffIsLeftBehind(t *testing.T) {
	stream := joined([][]byte{optneg(), connect("203.0.113.9"), rcpt("<x@y>"), rcpt("<aside@y>"), quit()})
	for name, talk := range map[string]func(t *testing.T, w *witness, o Options){
		"by a loop": func(t *testing.T, w *witness, o Options) {
			m := dial(t, serve(t, "unix", w, o))
			m.send(stream)
			for _, want := range []string{"O", "c", "y550 ", "y550 "} {
				m.want(want)
			}
			m.ended()
		},
		"alone": func(t *testing.T, w *witness, o Options) {
			l := newListener(NewServer(w, o), t.Context())
			l.serve(&script{in: stream, step: len(stream)})
			if !l.wait(patience) {
				t.Fatal("the conversation doesn't end")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			var decided, done atomic.Int32
			w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
				if q.Rcpt == "aside@y" {
					q.Waits.Block()
				}
				decided.Add(1)
				return refused
			}}
			talk(t, w, Options{Answered: func() { done.Store(decided.Load()) }})
			until(t, "done for both", func() bool { return done.Load() == 2 })
		})
	}
}
