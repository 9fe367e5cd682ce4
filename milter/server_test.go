package milter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

// pipes is a listener without a network, for tests that bring their own time.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), done: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

// inBubble runs a test with a server on pipes and a clock that only runs when
// nobody has anything to do. It sees that nothing is left behind.
func inBubble(t *testing.T, j Judge, o Options, f func(t *testing.T, s *Server, p *pipes, stop func() time.Duration)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		s, p, ended := NewServer(j, o), newPipes(), make(chan error, 1)
		go func() { ended <- s.Serve(ctx, p) }()
		stop := func() time.Duration {
			begin := time.Now()
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("Serve: %v", err)
			}
			ended <- nil
			return time.Since(begin)
		}
		f(t, s, p, stop)
		stop()
	})
}

// talk sends one packet and reads its answer.
func talk(t *testing.T, c net.Conn, packet []byte) string {
	t.Helper()
	if _, err := c.Write(packet); err != nil {
		return "end"
	}
	s, err := readReply(c)
	if err != nil {
		return "end"
	}
	return s
}

// lasts gives how long the connection lives from now on.
func lasts(c net.Conn) time.Duration {
	begin := time.Now()
	_, _ = io.Copy(io.Discard, c)
	return time.Since(begin)
}

func between(t *testing.T, what string, got, from, to time.Duration) {
	t.Helper()
	if got < from || got > to {
		t.Errorf("%s after %v, want %v to %v", what, got, from, to)
	}
}

func TestIdleConnectionEndsAfterTheIdleTimeout(t *testing.T) {
	inBubble(t, &witness{}, Options{}, func(t *testing.T, s *Server, p *pipes, _ func() time.Duration) {
		c := p.dial()
		talk(t, c, optneg())
		time.Sleep(2 * time.Hour) // as long as an MTA may wait for its client
		if got := talk(t, c, connect("203.0.113.9")); got != "c" {
			t.Fatalf("after two hours: %q", got)
		}
		between(t, "ended", lasts(c), 7210*time.Second, 7213*time.Second)
		if n := s.Stats().Timeouts; n != 1 {
			t.Errorf("timeouts %d", n)
		}
	})
}

func TestNewConnectionOfAnOldDaemonIsNotOverdue(t *testing.T) {
	inBubble(t, &witness{}, Options{}, func(t *testing.T, _ *Server, p *pipes, _ func() time.Duration) {
		time.Sleep(24 * time.Hour)
		c := p.dial()
		between(t, "ended", lasts(c), 7210*time.Second, 7213*time.Second)
	})
}

func TestSlowPeerIsBoundedFromThePacketsFirstByte(t *testing.T) {
	inBubble(t, &witness{}, Options{}, func(t *testing.T, s *Server, p *pipes, _ func() time.Duration) {
		c := p.dial()
		talk(t, c, optneg())
		begin := time.Now()
		for i := 0; ; i++ { // a byte each five seconds
			if _, err := c.Write(rcpt("<" + strings.Repeat("x", 100) + ">")[i : i+1]); err != nil {
				break
			}
			time.Sleep(5 * time.Second)
		}
		between(t, "ended", time.Since(begin), 30*time.Second, 40*time.Second)
		if n := s.Stats().Timeouts; n != 1 {
			t.Errorf("timeouts %d", n)
		}
	})
}

func TestPeerThatNeverReadsEndsAfterTheWriteTimeout(t *testing.T) {
	inBubble(t, &witness{}, Options{}, func(t *testing.T, s *Server, p *pipes, _ func() time.Duration) {
		c := p.dial()
		talk(t, c, optneg())
		if _, err := c.Write(rcpt("<pass@l>")); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for s.Stats().Open > 0 {
			time.Sleep(100 * time.Millisecond)
		}
		between(t, "ended", time.Since(begin), 10*time.Second, 13*time.Second)
		if st := s.Stats(); st.Timeouts != 1 || st.Unsent != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestShortTimeoutsAreKept(t *testing.T) {
	o := Options{IdleTimeout: 80 * time.Millisecond, PacketTimeout: 40 * time.Millisecond, WriteTimeout: 40 * time.Millisecond}
	inBubble(t, &witness{}, o, func(t *testing.T, _ *Server, p *pipes, _ func() time.Duration) {
		between(t, "idle: ended", lasts(p.dial()), 80*time.Millisecond, 100*time.Millisecond)
		c := p.dial()
		if _, err := c.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		between(t, "slow: ended", lasts(c), 40*time.Millisecond, 60*time.Millisecond)
	})
}

func TestNobodyQueuesBehindAJudgeThatWaits(t *testing.T) {
	w := &witness{decide: func(ctx context.Context, q *relay.Query) relay.Decision {
		if strings.HasPrefix(q.Rcpt, "wait") {
			select {
			case <-ctx.Done():
				return deferred
			case <-time.After(2 * time.Second):
				return passed
			}
		}
		return refused
	}}
	inBubble(t, w, Options{}, func(t *testing.T, _ *Server, p *pipes, _ func() time.Duration) {
		slow, fast := p.dial(), p.dial()
		talk(t, slow, optneg())
		answered := make(chan string)
		go func() { answered <- talk(t, slow, rcpt("<wait@c>")) }()
		begin := time.Now()
		talk(t, fast, optneg())
		talk(t, fast, rcpt("<x@c>"))
		between(t, "the other was answered", time.Since(begin), 0, 0)
		if got := <-answered; got != "c" {
			t.Errorf("the one that waited: %q", got)
		}
	})
}

func TestDrain(t *testing.T) {
	wait := func(d time.Duration, obey bool) *witness {
		return &witness{decide: func(ctx context.Context, _ *relay.Query) relay.Decision {
			done := ctx.Done()
			if !obey {
				done = nil
			}
			select {
			case <-done:
				return deferred
			case <-time.After(d):
				return passed
			}
		}}
	}
	for _, tt := range []struct {
		name     string
		judge    Judge
		ask      bool
		answer   string
		from, to time.Duration // how long Serve takes to end
	}{
		{"an idle connection goes at once", wait(0, true), false, "end", 0, 0},
		{"the packet being answered is answered", wait(time.Second, true), true, "c", time.Second, time.Second},
		{"a judge that waits too long is told, and its answer sent", wait(time.Minute, true), true, "y451 ", 1500 * time.Millisecond, 1600 * time.Millisecond},
		{"a judge that can't be told doesn't hold the daemon", wait(time.Minute, false), true, "end", 2 * time.Second, 3 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBubble(t, tt.judge, Options{}, func(t *testing.T, s *Server, p *pipes, stop func() time.Duration) {
				c := p.dial()
				talk(t, c, optneg())
				answered := make(chan string, 1)
				go func() {
					if !tt.ask {
						answered <- "end"
						return
					}
					answered <- talk(t, c, rcpt("<x@y>"))
				}()
				synctest.Wait()
				between(t, "Serve ended", stop(), tt.from, tt.to)
				if got := <-answered; !strings.HasPrefix(got, tt.answer) {
					t.Errorf("answer %q, want %q", got, tt.answer)
				}
				if n := lasts(c); n != 0 {
					t.Errorf("the connection lived on for %v", n)
				}
				if st := s.Stats(); st.BadPackets != 0 || st.Timeouts != 0 {
					t.Errorf("%+v", st)
				}
				time.Sleep(time.Minute) // the judge that can't be told
			})
		})
	}
}

func TestDrainDoesNotReadThePacketBeforeAgain(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		w := &witness{}
		d := serve(t, network, w, Options{})
		m := begun(t, d, client4)
		m.want("c", rcpt("<pass@l>"))
		d.end(t)
		m.ended()
		if s := d.Stats(); s.BadPackets != 0 || len(w.asked()) != 1 {
			t.Errorf("%s: asked %d times, %+v", network, len(w.asked()), s)
		}
	}
}

func TestAPacketHalfReceivedIsNotWaitedFor(t *testing.T) {
	inBubble(t, &witness{}, Options{}, func(t *testing.T, s *Server, p *pipes, stop func() time.Duration) {
		c := p.dial()
		talk(t, c, optneg())
		if _, err := c.Write(rcpt("<x@y>")[:7]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		between(t, "Serve ended", stop(), 0, 0)
		if st := s.Stats(); st.BadPackets != 0 || st.Open != 0 {
			t.Errorf("%+v", st)
		}
	})
}

func TestPanicCostsOneConnection(t *testing.T) {
	var said lockedBuffer
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		if q.Rcpt == "boom@c" {
			panic("a fault of ours")
		}
		return byName(q.Rcpt)
	}}
	d := serve(t, "unix", w, Options{Log: slog.New(slog.NewTextHandler(&said, nil))})
	other := begun(t, d, client4)
	for _, where := range []string{"Judge", "Reply"} {
		m := begun(t, d, client4)
		if where == "Reply" {
			w.reply = func(relay.Decision, netip.Addr) relay.Reply { panic("a fault of ours") }
			m.want("y451 4.7.1 ", rcpt("<x@c>"), rcpt("<pass@l>"))
		} else {
			m.want("y451 4.7.1 ", rcpt("<boom@c>"), rcpt("<pass@l>"))
		}
		m.ended() // what was sent behind it is not answered
	}
	other.want("c", rcpt("<pass@l>"))
	d.end(t)
	if n := d.Stats().Panics; n != 2 {
		t.Errorf("panics %d", n)
	}
	if !strings.Contains(said.String(), "a fault of ours") || !strings.Contains(said.String(), "server_test.go") {
		t.Errorf("log without the panic's place:\n%s", &said)
	}
}

func TestCaps(t *testing.T) {
	t.Run("in all", func(t *testing.T) {
		d := serve(t, "unix", &witness{}, Options{MaxConns: 2})
		a, b := begun(t, d, client4), begun(t, d, client4)
		dial(t, d).ended()
		a.send(quit())
		a.ended()
		d.until(t, "room", func(s Stats) bool { return s.Open == 1 })
		c := begun(t, d, client4)
		b.want("c", rcpt("<pass@l>"))
		c.want("c", rcpt("<pass@l>"))
		if s := d.Stats(); s.Capped != 1 || s.Total != 3 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("one address over TCP, others still get in", func(t *testing.T) {
		d := serve(t, "tcp", &witness{}, Options{MaxConnsPerPeer: 1})
		a := begun(t, d, client4)
		dial(t, d).ended()
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		c, err := from.Dial(d.network, d.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := talk(t, c, optneg()); !strings.HasPrefix(got, "O") {
			t.Errorf("second address: %q", got)
		}
		a.send(quit())
		a.ended()
		d.until(t, "room", func(s Stats) bool { return s.Open == 1 })
		begun(t, d, client4).want("c", rcpt("<pass@l>"))
		d.end(t)
	})
	t.Run("a unix socket is one MTA, with the cap of all", func(t *testing.T) {
		d := serve(t, "unix", &witness{}, Options{MaxConnsPerPeer: 1})
		for range 5 {
			begun(t, d, client4)
		}
	})
	t.Run("addresses that are not allowed", func(t *testing.T) {
		d := serve(t, "tcp", &witness{}, Options{Allow: func(a netip.Addr) bool { return a == netip.MustParseAddr("127.0.0.3") }})
		dial(t, d).ended()
		d.until(t, "counted", func(s Stats) bool { return s.Denied == 1 && s.Open == 0 && s.Total == 0 })
		u := serve(t, "unix", &witness{}, Options{Allow: func(netip.Addr) bool { return false }})
		begun(t, u, client4)
	})
	t.Run("all listeners share them", func(t *testing.T) {
		d := serve(t, "unix", &witness{}, Options{MaxConns: 1})
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error)
		go func() { ended <- d.Serve(ctx, ln) }()
		begun(t, d, client4)
		second := &daemon{Server: d.Server, network: "tcp", addr: ln.Addr().String()}
		dial(t, second).ended()
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestNoDelayedAcknowledgement: sendmail writes macros and command one after the
// other, with Nagle's algorithm on, and without QUICKACK each command over TCP
// takes some 40 ms.
func TestNoDelayedAcknowledgement(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux can be told not to delay acknowledgements")
	}
	m := begun(t, serve(t, "tcp", &witness{}, Options{}), client4)
	if err := m.conn.(*net.TCPConn).SetNoDelay(false); err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	for range 41 {
		begin := time.Now()
		m.send(macros('R', "{rcpt_mailer}", "smtp"))
		m.want("y550 ", rcpt("<x@c>"))
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	if median := took[len(took)/2]; median > 20*time.Millisecond {
		t.Errorf("a recipient takes %v", median)
	}
}

// shortOf is a listener that fails before it accepts.
type shortOf struct {
	net.Listener
	mu     sync.Mutex
	errors []error
}

func (s *shortOf) Accept() (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.errors) > 0 {
		err := s.errors[0]
		s.errors = s.errors[1:]
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", err)}
	}
	return s.Listener.Accept()
}

func TestAcceptSurvivesWhatPasses(t *testing.T) {
	var said lockedBuffer
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		p := newPipes()
		short := &shortOf{Listener: p}
		for range 20 {
			short.errors = append(short.errors, syscall.ENOMEM, syscall.ENOBUFS, syscall.ECONNABORTED)
		}
		s := NewServer(&witness{}, Options{Log: slog.New(slog.NewTextHandler(&said, nil))})
		ended := make(chan error)
		go func() { ended <- s.Serve(ctx, short) }()
		begin := time.Now()
		c := p.dial()
		if got := talk(t, c, optneg()); got == "end" {
			t.Error("not served")
		}
		// 5 ms, doubled until it is 1 s: neither a busy loop nor a long wait.
		between(t, "accepted", time.Since(begin), 50*time.Second, 60*time.Second)
		if n := s.Stats().AcceptErrors; n != 60 {
			t.Errorf("errors counted: %d", n)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	if got := strings.Count(said.String(), "\n"); got != 2 || !strings.Contains(said.String(), "door=milter") {
		t.Errorf("want one line at the beginning and one at the end:\n%s", &said)
	}
}

func TestServeEndsWithAListenerThatIsBroken(t *testing.T) {
	p := newPipes()
	s := NewServer(&witness{}, Options{})
	p.Close()
	if err := s.Serve(t.Context(), p); !errors.Is(err, net.ErrClosed) {
		t.Errorf("closed by others: %v", err)
	}
	if err := s.Serve(t.Context(), &shortOf{Listener: newPipes(), errors: []error{syscall.EINVAL}}); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("no listening socket: %v", err)
	}
}

func TestServeStopsInThePauseOfAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		short := &shortOf{Listener: newPipes()}
		for range 1000 {
			short.errors = append(short.errors, syscall.EMFILE)
		}
		ended := make(chan error)
		go func() { ended <- NewServer(&witness{}, Options{}).Serve(ctx, short) }()
		time.Sleep(10*time.Second + time.Millisecond)
		begin := time.Now()
		cancel()
		if err := <-ended; err != nil || time.Since(begin) != 0 {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
	})
}

// TestOutOfFileDescriptors serves in a process of its own that may open few
// files, and wants every connection served in the end.
func TestOutOfFileDescriptors(t *testing.T) {
	for _, loops := range []int{1, 3} {
		t.Run(fmt.Sprintf("loops %d", loops), func(t *testing.T) { outOfFileDescriptors(t, loops) })
	}
}

func outOfFileDescriptors(t *testing.T, loops int) {
	limit, clients := 21+3*loops, 60
	path := filepath.Join(t.TempDir(), "s")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), fewFilesEnv+"="+path, fmt.Sprintf("%s_LIMIT=%d", fewFilesEnv, limit), fmt.Sprintf("%s_LOOPS=%d", fewFilesEnv, loops))
	child.Stderr = t.Output()
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("%q, %v", line, err)
	}
	d := &daemon{network: "unix", addr: path}
	for range 2 { // and again when there was enough for a while
		var all []*mta
		for range clients {
			m := dial(t, d)
			m.send(optneg())
			all = append(all, m)
		}
		for _, m := range all { // each one that ends makes room for another
			m.want("O")
			m.want("c", connect("203.0.113.9"))
			m.want("y550 ", rcpt("<x@y>"))
			m.conn.Close()
		}
		for range clients {
			m := begun(t, d, client4)
			m.want("y550 ", rcpt("<x@y>"))
			m.conn.Close()
		}
	}
	stdin.Close()
	if err := child.Wait(); err != nil {
		t.Error(err)
	}
}

const fewFilesEnv = "MILTER_TEST_FEW_FILES"

// serveWithFewFiles is the child of TestOutOfFileDescriptors. It exits 0 only
// if it did run out.
func serveWithFewFiles(path string) int {
	limit, err := strconv.ParseUint(os.Getenv(fewFilesEnv+"_LIMIT"), 10, 64)
	loops, err2 := strconv.Atoi(os.Getenv(fewFilesEnv + "_LOOPS"))
	if err != nil || err2 != nil {
		return 2
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return 2
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	fmt.Println("ready")
	s := NewServer(&witness{}, Options{Loops: loops, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err := s.Serve(ctx, ln); err != nil || s.Stats().AcceptErrors == 0 {
		fmt.Fprintln(os.Stderr, "error", err, "stats", s.Stats())
		return 1
	}
	return 0
}

func TestSummaryOfWhatEndedEarly(t *testing.T) {
	var said lockedBuffer
	o := Options{Log: slog.New(slog.NewTextHandler(&said, nil))}
	inBubble(t, &witness{}, o, func(t *testing.T, _ *Server, p *pipes, stop func() time.Duration) {
		time.Sleep(time.Minute + 2*time.Second)
		for range 100 {
			c := p.dial()
			talk(t, c, packet('?'))
		}
		time.Sleep(2 * time.Minute)
		if got := strings.Count(said.String(), "\n"); got != 1 || !strings.Contains(said.String(), "bad_packets=100") {
			t.Errorf("want one line about a hundred connections:\n%s", &said)
		}
		stop()
	})
}
