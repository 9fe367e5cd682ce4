package policy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

// doors are both, with a question of a granted client and its answer.
var doors = []struct {
	name           string
	make           func(Judge, Options) *Server
	ask            string
	yes, no, later string
}{
	{"policy", NewDelegation, asPostfix(bob), yes, dunno, putOff},
	{"socketmap", NewSocketMap, netstring("postfix " + bob), "5:OK OK,", mapNo, mapPutOff},
}

func eachDoor(t *testing.T, f func(t *testing.T, d int)) {
	for i := range doors {
		t.Run(doors[i].name, func(t *testing.T) { f(t, i) })
	}
}

func TestQuestionCutAtEveryByte(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door := &doors[d]
		for cut := 1; cut < len(door.ask); cut++ {
			inBubble(t, door.make(&witness{}, Options{}), func(t *testing.T, _ *Server, p *pipes) {
				c := p.dial()
				defer c.Close()
				_, _ = io.WriteString(c, door.ask[:cut])
				time.Sleep(time.Second)
				if got := talk(t, c, door.ask[cut:], len(door.yes)); got != door.yes {
					t.Errorf("cut at %d: %q", cut, got)
				}
			})
		}
	})
}

func TestQuestionInSingleBytes(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door := &doors[d]
		inBubble(t, door.make(&witness{}, Options{}), func(t *testing.T, _ *Server, p *pipes) {
			c := p.dial()
			defer c.Close()
			for i := range len(door.ask) {
				_, _ = io.WriteString(c, door.ask[i:i+1])
			}
			if got := reads(t, c, len(door.yes)); got != door.yes {
				t.Errorf("%q", got)
			}
		})
	})
}

func TestQuestionCutShortIsNotAnswered(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door := &doors[d]
		for cut := 1; cut < len(door.ask); cut++ {
			w := &witness{}
			inBubble(t, door.make(w, Options{}), func(t *testing.T, s *Server, p *pipes) {
				c := p.dial()
				_, _ = io.WriteString(c, door.ask[:cut])
				c.Close()
				synctest.Wait()
				if n := s.Stats().BadRequests; n != 1 || len(w.asked()) != 0 {
					t.Errorf("cut at %d: %d bad requests, %d judged", cut, n, len(w.asked()))
				}
			})
		}
	})
}

func TestPipelinedQuestionsAreAnsweredInOrder(t *testing.T) {
	for _, tt := range []struct {
		name         string
		make         func(Judge, Options) *Server
		asked, wants string
	}{
		{"policy", NewDelegation, asPostfix(bob) + asPostfix(eve) + asPostfix(maybe) + asPostfix(bob), yes + dunno + putOff + yes},
		{"socketmap", NewSocketMap, netstring("drac "+bob) + netstring("drac "+eve) + netstring("x y") + netstring("drac "+bob),
			"8:OK RELAY," + mapNo + mapNone + "8:OK RELAY,"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var told atomic.Int32 // answers behind which what was put off can be done
			inBubble(t, tt.make(&witness{}, Options{Answered: func() { told.Add(1) }}), func(t *testing.T, _ *Server, p *pipes) {
				c := p.dial()
				defer c.Close()
				go func() { _, _ = io.WriteString(c, strings.Repeat(tt.asked, 50)) }()
				if got, want := reads(t, c, 50*len(tt.wants)), strings.Repeat(tt.wants, 50); got != want {
					t.Errorf("answered %q", got)
				}
				synctest.Wait()
				if n := told.Load(); n != 50*4 {
					t.Errorf("told of %d answers, want %d", n, 50*4)
				}
			})
		})
	}
}

// lasts gives how long the connection lives from now on.
func lasts(c net.Conn) time.Duration {
	begin := time.Now()
	_ = c.SetReadDeadline(time.Time{})
	_, _ = io.Copy(io.Discard, c)
	return time.Since(begin)
}

func TestDeadlines(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door := &doors[d]
		inBubble(t, door.make(&witness{}, Options{}), func(t *testing.T, s *Server, p *pipes) {
			idle, slow, dribbling, deaf := p.dial(), p.dial(), p.dial(), p.dial()
			_, _ = io.WriteString(slow, door.ask[:4])
			go func() {
				for i := range len(door.ask) {
					if _, err := io.WriteString(dribbling, door.ask[i:i+1]); err != nil {
						return
					}
					time.Sleep(3 * time.Second)
				}
			}()
			_, _ = io.WriteString(deaf, door.ask) // and reads no answer
			if got := lasts(slow); got != 10*time.Second {
				t.Errorf("half a question was waited for %v", got)
			}
			if got := lasts(dribbling); got != 0 { // began together with the one before
				t.Errorf("a dribbled question was waited for %v longer", got)
			}
			time.Sleep(time.Second)
			if n := s.Stats().Unsent; n != 1 {
				t.Errorf("%d peers that read nothing were given up, want 1", n)
			}
			if got := lasts(idle); got != 0 { // it ended with the slow ones
				t.Errorf("a connection that never asked anything lasted %v more", got)
			}
			time.Sleep(10 * time.Second) // until the dribbler has noticed
			if n := s.Stats().Timeouts; n != 3 {
				t.Errorf("%d timeouts counted, want 3", n)
			}
			deaf.Close()
		})
	})
}

func TestIdleTimeBeginsAnewWithEachAnswer(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door := &doors[d]
		inBubble(t, door.make(&witness{}, Options{}), func(t *testing.T, _ *Server, p *pipes) {
			c := p.dial()
			defer c.Close()
			for range 3 {
				if got := talk(t, c, door.ask, len(door.yes)); got != door.yes {
					t.Fatalf("answered %q", got)
				}
				time.Sleep(2 * time.Hour)
			}
		})
	})
}

// waits makes the judge wait for the login of one client until it is told of it
// or ctx ends.
func (w *witness) waits(told <-chan struct{}, whenEnded relay.Decision) {
	byAddress := (&witness{}).JudgeClient
	w.answer = func(ctx context.Context, q *relay.Query) relay.Decision {
		if q.Client != netip.MustParseAddr(maybe) {
			return byAddress(ctx, q)
		}
		select {
		case <-told:
			return relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonGrant}
		case <-ctx.Done():
			return whenEnded
		}
	}
}

func questionAbout(d int, client string) string {
	if doors[d].name == "socketmap" {
		return netstring("postfix " + client)
	}
	return asPostfix(client)
}

func TestAWaitHoldsUpNobodyElse(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door, j := &doors[d], &witness{}
		inBubble(t, door.make(j, Options{}), func(t *testing.T, _ *Server, p *pipes) {
			told := make(chan struct{}) // of the bubble
			j.waits(told, relay.Decision{})
			c, other := p.dial(), p.dial()
			defer c.Close()
			defer other.Close()
			_, _ = io.WriteString(c, questionAbout(d, maybe))
			synctest.Wait()
			begin := time.Now()
			if got := talk(t, other, door.ask, len(door.yes)); got != door.yes || time.Since(begin) != 0 {
				t.Errorf("beside a wait: %q after %v", got, time.Since(begin))
			}
			close(told)
			if got := reads(t, c, len(door.yes)); got != door.yes {
				t.Errorf("after the login: %q", got)
			}
		})
	})
}

func TestStopAnswersWhatIsWaitingWithATemporaryFailure(t *testing.T) {
	// Even a judge that says no when its context ends can't have it taken for one.
	for _, ended := range []relay.Decision{{Verdict: relay.Defer, Reason: relay.ReasonBusy}, {Verdict: relay.Refuse, Reason: relay.ReasonNoGrant}} {
		eachDoor(t, func(t *testing.T, d int) {
			synctest.Test(t, func(t *testing.T) {
				door := &doors[d]
				j := &witness{}
				j.waits(nil, ended)
				s := door.make(j, Options{})
				ctx, stop := context.WithCancel(context.Background())
				p, served := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, make(chan error, 1)
				go func() { served <- s.Serve(ctx, p) }()
				c, idle, half := p.dial(), p.dial(), p.dial()
				_, _ = io.WriteString(c, questionAbout(d, maybe))
				_, _ = io.WriteString(half, door.ask[:3])
				synctest.Wait()
				begin := time.Now()
				stop()
				if got := reads(t, idle, 1) + reads(t, half, 1); got != "" || time.Since(begin) != 0 {
					t.Errorf("nothing was asked, %q answered after %v", got, time.Since(begin))
				}
				if got := reads(t, c, len(door.later)); got != door.later {
					t.Errorf("answered %q", got)
				}
				if err := <-served; err != nil || time.Since(begin) > 2*time.Second {
					t.Errorf("ended after %v: %v", time.Since(begin), err)
				}
				if st := s.Stats(); st.Open != 0 || st.BadRequests != 0 || st.Timeouts != 0 {
					t.Errorf("after the stop: %+v", st)
				}
			})
		})
	}
}

func TestStopLeavesQuestionsSentAheadUnanswered(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		synctest.Test(t, func(t *testing.T) {
			door, j, told := &doors[d], &witness{}, make(chan struct{})
			j.waits(told, relay.Decision{})
			s := door.make(j, Options{})
			ctx, stop := context.WithCancel(context.Background())
			p, served := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, make(chan error, 1)
			go func() { served <- s.Serve(ctx, p) }()
			c := p.dial()
			// So short that all are read together.
			ask := func(client string) string {
				if door.name == "socketmap" {
					return netstring("postfix " + client)
				}
				return "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=" + client + "\nrecipient=x@remote.test\n\n"
			}
			_, _ = io.WriteString(c, ask(maybe)+ask(bob)+ask(bob))
			synctest.Wait()
			begin := time.Now()
			stop()
			synctest.Wait()
			close(told)
			if got := reads(t, c, 3*len(door.yes)); got != door.yes || time.Since(begin) != 0 {
				t.Errorf("answered %q after %v, want one answer at once", got, time.Since(begin))
			}
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	})
}

// lateReader is a connection during whose first reading the server is stopped: the deadline
// that is to wake a reader comes before the reader's own.
type lateReader struct {
	net.Conn
	stop  func()
	once  sync.Once
	woken chan struct{}
}

func (c *lateReader) SetReadDeadline(at time.Time) error {
	if at.Before(time.Now()) {
		defer close(c.woken)
		return c.Conn.SetReadDeadline(at)
	}
	c.once.Do(func() { c.stop(); <-c.woken })
	return c.Conn.SetReadDeadline(at)
}

func TestStopDoesNotWaitForAConnectionThatWasAboutToRead(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(context.Background())
			p, served := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, make(chan error, 1)
			s := doors[d].make(&witness{}, Options{})
			go func() { served <- s.Serve(ctx, p) }()
			ours, theirs := net.Pipe()
			defer ours.Close()
			begin := time.Now()
			p.conns <- &lateReader{Conn: theirs, stop: stop, woken: make(chan struct{})}
			if err := <-served; err != nil || time.Since(begin) != 0 {
				t.Errorf("Serve: %v after %v, want an end at once", err, time.Since(begin))
			}
		})
	})
}

func TestPanicIsATemporaryFailureAndCostsOneConnection(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door, log := &doors[d], &lockedBuffer{}
		byAddress := (&witness{}).JudgeClient
		j := &witness{answer: func(ctx context.Context, q *relay.Query) relay.Decision {
			if q.Client == netip.MustParseAddr(maybe) {
				panic("a fault")
			}
			return byAddress(ctx, q)
		}}
		inBubble(t, door.make(j, Options{Log: slog.New(slog.NewTextHandler(log, nil))}), func(t *testing.T, s *Server, p *pipes) {
			c, other := p.dial(), p.dial()
			defer other.Close()
			if got := talk(t, c, questionAbout(d, maybe), len(door.later)+1); got != door.later {
				t.Errorf("answered %q, and then it should end", got)
			}
			if got := talk(t, other, door.ask, len(door.yes)); got != door.yes {
				t.Errorf("another connection: %q", got)
			}
			time.Sleep(2 * time.Second)
			if n := s.Stats().Panics; n != 1 || strings.Count(log.String(), "a fault") != 1 {
				t.Errorf("%d panics counted, log:\n%s", n, log.String())
			}
		})
	})
}

func TestNothingAPeerSendsReachesTheLog(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		door, log := &doors[d], &lockedBuffer{}
		inBubble(t, door.make(&witness{}, Options{Log: slog.New(slog.NewTextHandler(log, nil))}), func(t *testing.T, _ *Server, p *pipes) {
			for range 100 {
				c := p.dial()
				go func() { _, _ = io.WriteString(c, "gibberish\n\n") }()
				_, _ = io.Copy(io.Discard, c)
			}
			time.Sleep(2 * time.Minute)
			if got := log.String(); strings.Contains(got, "gibberish") || strings.Count(got, "\n") != 1 || !strings.Contains(got, "bad_requests=100") {
				t.Errorf("log of a hundred bad requests:\n%s", got)
			}
		})
	})
}

func TestCaps(t *testing.T) {
	inBubble(t, NewDelegation(&witness{}, Options{MaxConns: 2}), func(t *testing.T, s *Server, p *pipes) {
		a, b, c := p.dial(), p.dial(), p.dial()
		if got := reads(t, c, 1); got != "" || s.Stats().Capped != 1 {
			t.Errorf("a third of two: %q, %+v", got, s.Stats())
		}
		a.Close()
		synctest.Wait()
		d := p.dial()
		if got := talk(t, d, asPostfix(bob), len(yes)); got != yes {
			t.Errorf("in the place of one that ended: %q", got)
		}
		b.Close()
		d.Close()
	})
}

// serve runs a server on a real listener until the test ends.
func serve(t *testing.T, s *Server, ln net.Listener) {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
}

func TestWhoMayConnect(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var barred atomic.Bool
	s := NewDelegation(&witness{}, Options{MaxConnsPerPeer: 1, Allow: func(a netip.Addr) bool {
		return a == netip.MustParseAddr("127.0.0.1") && !barred.Load()
	}})
	serve(t, s, ln)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	if got := talk(t, dial(), asPostfix(bob), len(yes)); got != yes {
		t.Errorf("%q", got)
	}
	if got := reads(t, dial(), 1); got != "" || s.Stats().Capped != 1 {
		t.Errorf("a second from one address: %q, %+v", got, s.Stats())
	}
	barred.Store(true)
	if got := reads(t, dial(), 1); got != "" || s.Stats().Denied != 1 {
		t.Errorf("an address that may not: %q, %+v", got, s.Stats())
	}
}

// Exim's readsocket shuts its side once it has asked, and listens until the
// other side ends.
func TestQuestionOfAPeerThatHasShutItsSide(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, NewSocketMap(&witness{}, Options{}), ln)
	c, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = io.WriteString(c, netstring("exim "+bob))
	if err := c.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := reads(t, c, 100); got != "8:OK RELAY," {
		t.Errorf("answered %q", got)
	}
}

// short is a listener that can't accept for a while.
type short struct {
	*pipes
	failures atomic.Int64
	err      error
}

func (l *short) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", l.err)}
	}
	return l.pipes.Accept()
}

func TestFailuresToAcceptAreCountedAndLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lockedBuffer{}
		s := NewSocketMap(&witness{}, Options{Log: slog.New(slog.NewTextHandler(log, nil))})
		l := &short{pipes: &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, err: syscall.ENOMEM}
		l.failures.Store(20)
		ctx, stop := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- s.Serve(ctx, l) }()
		c := l.dial()
		if got := talk(t, c, netstring("drac "+bob), 11); got != "8:OK RELAY," {
			t.Errorf("answered %q", got)
		}
		if n := s.Stats().AcceptErrors; n != 20 || strings.Count(log.String(), "can't accept") != 1 || !strings.Contains(log.String(), "door=socketmap") {
			t.Errorf("%d failures counted, log:\n%s", n, log.String())
		}
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestABrokenListenerEndsServe(t *testing.T) {
	l := &short{pipes: &pipes{done: make(chan struct{})}, err: syscall.EBADF}
	l.failures.Store(1)
	if err := NewSocketMap(&witness{}, Options{}).Serve(t.Context(), l); !errors.Is(err, syscall.EBADF) {
		t.Errorf("Serve: %v", err)
	}
}

func TestAnIdleConnectionKeepsNoLargeBuffer(t *testing.T) {
	c := &conn{read: append(make([]byte, 0, maxRequest), asPostfix(bob)...)}
	c.drop(len(c.read) - 3)
	if cap(c.read) > keepBuffer || len(c.read) != 3 {
		t.Errorf("%d bytes kept in room for %d", len(c.read), cap(c.read))
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
