package milter

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
)

func TestDrainOfLoops(t *testing.T) {
	doors(t, func(t *testing.T, network string, loops int) {
		const patient = 4 * patience // longer than end waits
		begin := func(t *testing.T, limit time.Duration) (*hold, *daemon, *mta, *mta) {
			h := newHold()
			d := serve(t, network, h, Options{Loops: loops, DrainTimeout: limit})
			idle, half := begun(t, d, client4), begun(t, d, client4)
			half.send(rcpt("<x@y>")[:7])
			return h, d, idle, half
		}
		none := func(t *testing.T, d *daemon) {
			t.Helper()
			if s := d.Stats(); s.Open != 0 || s.BadPackets != 0 || s.Unsent != 0 || s.Timeouts != 0 {
				t.Errorf("%+v", s)
			}
		}
		t.Run("idle connections and halves of packets go at once", func(t *testing.T) {
			_, d, idle, half := begin(t, patient)
			d.end(t)
			idle.ended()
			half.ended()
			none(t, d)
		})
		t.Run("the packet being answered is answered", func(t *testing.T) {
			h, d, idle, half := begin(t, patient)
			m := begun(t, d, client4)
			m.send(rcpt("<wait@c>"))
			until(t, "waiting", func() bool { return h.waiting.Load() == 1 })
			d.stop()
			idle.ended()
			half.ended()
			h.let <- struct{}{}
			m.want("c")
			m.ended()
			d.end(t)
			none(t, d)
		})
		t.Run("a judge that waits too long is told, and his answer sent", func(t *testing.T) {
			if network != "unix" || loops > 1 {
				t.Skip("takes its time")
			}
			h, d, idle, _ := begin(t, 2*time.Second)
			m := begun(t, d, client4)
			m.send(rcpt("<wait@c>"))
			until(t, "waiting", func() bool { return h.waiting.Load() == 1 })
			d.stop()
			idle.ended()
			m.want("y451 ")
			m.ended()
			d.end(t)
			none(t, d)
		})
		for _, who := range []string{"wait@deaf", "wait-untold@deaf"} {
			t.Run("a judge that can't be told holds neither the daemon nor a descriptor: "+who, func(t *testing.T) {
				before := descriptors(t)
				h, d, idle, half := begin(t, 200*time.Millisecond)
				m := begun(t, d, client4)
				m.send(rcpt("<" + who + ">"))
				until(t, "waiting", func() bool { return h.waiting.Load() == 1 })
				d.end(t)
				idle.ended()
				half.ended()
				m.ended()
				h.let <- struct{}{}
				d.until(t, "all gone", func(s Stats) bool { return s.Open == 0 })
				for _, m := range []*mta{idle, half, m} {
					m.conn.Close()
				}
				until(t, "all given back", func() bool { return descriptors(t) <= before })
			})
		}
	})
}

// What one who reads late was promised is sent even when draining, and by a
// connection that comes back from waiting, and then he is not waited for.
func TestDrainSendsWhatWasAnswered(t *testing.T) {
	asks := joined([][]byte{rcpt("<first@c>"), slices.Repeat(rcpt("<x@y>"), 25)}) // read at once
	for _, loops := range []int{1, 3} {
		for _, waits := range []bool{false, true} {
			t.Run(fmt.Sprintf("loops %d, having waited: %v", loops, waits), func(t *testing.T) {
				w := verbose()
				decide := w.decide
				draining := make(chan struct{})
				w.decide = func(ctx context.Context, q *relay.Query) relay.Decision {
					if waits && q.Rcpt == "first@c" {
						q.Waits.Block()
						<-draining
					}
					return decide(ctx, q)
				}
				d := serve(t, "unix", w, Options{Loops: loops, DrainTimeout: 4 * patience})
				m := begun(t, d, client4)
				m.want("y550 5.7.1 1 ", rcpt("<x@y>"))
				c := knownBy(w)
				m.narrow(c)
				m.send(asks)
				until(t, "asked or put on hold", func() bool { return c.does(writing) || waits && len(w.asked()) == 2 })
				d.stop()
				until(t, "draining", c.listener.draining.Load)
				close(draining)
				until(t, "put on hold", func() bool { return c.does(writing) })
				time.Sleep(5 * time.Millisecond)
				for i := range 26 {
					if got := m.reply(); !strings.HasPrefix(got, fmt.Sprintf("y550 5.7.1 %d ", 2+i)) {
						t.Fatalf("answer %d is %q", i, got)
					}
				}
				m.ended()
				d.end(t)
			})
		}
	}
}

// descriptors gives how many the process has open.
func descriptors(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

func TestMTAsThatComeAndGoLeaveNothingBehind(t *testing.T) {
	const rounds = 130
	leave := map[string]func(*testing.T, *hold, *mta){
		"at once":                  func(*testing.T, *hold, *mta) {},
		"in the midst of a packet": func(_ *testing.T, _ *hold, m *mta) { m.send(optneg(), connect("203.0.113.9")[:9]) },
		"answered": func(_ *testing.T, _ *hold, m *mta) {
			m.want("O", optneg())
			m.want("y550 ", rcpt("<x@y>"))
		},
		"without reading": func(_ *testing.T, _ *hold, m *mta) { m.send(optneg(), rcpt("<x@y>"), rcpt("<x@y>")) },
		"having said a half": func(t *testing.T, _ *hold, m *mta) {
			m.send(optneg(), rcpt("<x@y>"), rcpt("<pass@y>"))
			if err := m.conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			m.want("O")
			m.want("y550 ")
			m.want("c")
			m.ended()
		},
		"while waiting": func(t *testing.T, h *hold, m *mta) {
			n := h.waiting.Load()
			m.send(optneg(), rcpt("<wait@y>"), rcpt("<x@y>"))
			until(t, "waiting", func() bool { return h.waiting.Load() == n+1 })
			go func() { h.let <- struct{}{} }() // at the same time
		},
		"by QUIT": func(_ *testing.T, _ *hold, m *mta) {
			m.send(optneg(), quit(), rcpt("<x@y>"))
			m.want("O")
			m.ended()
		},
		"as no MTA": func(_ *testing.T, _ *hold, m *mta) { m.send([]byte("GET / HTTP/1.1\r\n\r\n")) },
	}
	doors(t, func(t *testing.T, network string, loops int) {
		before, goroutines := descriptors(t), runtime.NumGoroutine()
		h := newHold()
		d := serve(t, network, h, Options{Loops: loops})
		total := uint64(0)
		for name, how := range leave {
			for i := range rounds {
				c, err := net.Dial(d.network, d.addr)
				if err != nil {
					t.Fatal(err)
				}
				how(t, h, &mta{t, c, bufio.NewReader(c)})
				if tcp, ok := c.(*net.TCPConn); ok && i%2 > 0 {
					if err := tcp.SetLinger(0); err != nil { // a reset
						t.Fatal(err)
					}
				}
				c.Close()
			}
			total += rounds
			d.until(t, "gone, leaving "+name, func(s Stats) bool { return s.Total == total && s.Open == 0 })
		}
		if s := d.Stats(); s.Panics+s.Timeouts+s.AcceptErrors > 0 {
			t.Errorf("%+v", s)
		}
		begun(t, d, client4).conn.Close()
		d.end(t)
		until(t, "all given back", func() bool { return descriptors(t) <= before && runtime.NumGoroutine() <= goroutines })
	})
}

// A loop whose worker is held answers nobody, and nothing but this would tell.
func TestAliveWaitsForEveryLoop(t *testing.T) {
	held, release := make(chan struct{}), make(chan struct{})
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		if strings.HasPrefix(q.Rcpt, "hold") {
			close(held)
			<-release // and has not told that it would take time
		}
		return refused
	}}
	d := serve(t, "unix", w, Options{Loops: 2})
	if !d.Alive(t.Context()) {
		t.Fatal("at rest: not alive")
	}
	m := begun(t, d, client4)
	m.send(rcpt("<hold@c>"))
	<-held
	soon, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	if d.Alive(soon) {
		t.Error("alive with a worker that is held")
	}
	close(release)
	m.want("y550 ")
	if !d.Alive(t.Context()) {
		t.Error("not alive any more")
	}
	d.end(t)
	if !d.Alive(t.Context()) {
		t.Error("after the end there is nobody to wait for")
	}
}
