package milter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"popgate/internal/relay"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// libraryLog is the global log, into which the library writes. It must stay
// empty whatever the tests send.
var libraryLog lockedBuffer

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

func TestMain(m *testing.M) {
	if path := os.Getenv(fewFilesEnv); path != "" {
		os.Exit(serveWithFewFiles(path))
	}
	log.SetOutput(&libraryLog)
	code := m.Run()
	if s := libraryLog.String(); s != "" {
		fmt.Fprintf(os.Stderr, "FAIL: the library logged:\n%s", s)
		code = 1
	}
	if s := leftBehind(); s != "" {
		fmt.Fprintf(os.Stderr, "FAIL: goroutines left behind:\n%s", s)
		code = 1
	}
	os.Exit(code)
}

// leftBehind gives the stacks of goroutines of this package and the library
// that are still there after patience.
func leftBehind() string {
	var left []string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		left = nil
		buf := make([]byte, 1<<20)
		stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
		for _, g := range stacks[1:] {
			if strings.Contains(g, "popgate/milter.") || strings.Contains(g, "emersion/go-milter.") {
				left = append(left, g)
			}
		}
		if left == nil {
			return ""
		}
	}
	return strings.Join(left, "\n\n")
}

var (
	passed   = relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonGrant}
	refused  = relay.Decision{Verdict: relay.Refuse, Reason: relay.ReasonNoGrant}
	deferred = relay.Decision{Verdict: relay.Defer, Reason: relay.ReasonNotReady}

	client4 = netip.MustParseAddr("203.0.113.9")
	client6 = netip.MustParseAddr("2001:db8::9")
)

// witness is a judge that notes what it was asked. Without decide, recipients
// that begin with "pass" pass and those that begin with "later" are deferred.
type witness struct {
	decide     func(context.Context, *relay.Query) relay.Decision
	reply      func(relay.Decision, netip.Addr) relay.Reply
	generation atomic.Uint64
	replies    atomic.Int64

	mu      sync.Mutex
	queries []relay.Query
}

func (w *witness) Judge(ctx context.Context, q *relay.Query) relay.Decision {
	w.mu.Lock()
	w.queries = append(w.queries, *q)
	w.mu.Unlock()
	if w.decide != nil {
		return w.decide(ctx, q)
	}
	return byName(q.Rcpt)
}

func byName(rcpt string) relay.Decision {
	switch {
	case strings.HasPrefix(rcpt, "pass"):
		return passed
	case strings.HasPrefix(rcpt, "later"):
		return deferred
	}
	return refused
}

func (w *witness) Reply(d relay.Decision, client netip.Addr) relay.Reply {
	w.replies.Add(1)
	if w.reply != nil {
		return w.reply(d, client)
	}
	return (&relay.Rules{Reject: relay.DefaultReject}).Reply(d, client)
}

func (w *witness) Generation() uint64 { return w.generation.Load() }

func (w *witness) asked() []relay.Query {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]relay.Query(nil), w.queries...)
}

// daemon is a server at work.
type daemon struct {
	*Server
	network, addr string
	stop          context.CancelFunc
	ended         chan error
}

// serve starts a server on a unix socket, or on loopback for network "tcp".
// The end of the test stops it and sees that it ends well.
func serve(t testing.TB, network string, j Judge, o Options) *daemon {
	t.Helper()
	addr := "127.0.0.1:0"
	if network == "unix" {
		addr = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, j, o)
}

func serveOn(t testing.TB, ln net.Listener, j Judge, o Options) *daemon {
	ctx, stop := context.WithCancel(context.Background())
	d := &daemon{Server: NewServer(j, o), network: ln.Addr().Network(), addr: ln.Addr().String(), stop: stop, ended: make(chan error, 1)}
	go func() { d.ended <- d.Serve(ctx, ln) }()
	t.Cleanup(func() { d.end(t) })
	return d
}

// end stops the server and waits for it.
func (d *daemon) end(t testing.TB) {
	t.Helper()
	d.stop()
	select {
	case err := <-d.ended:
		if err != nil {
			t.Errorf("Serve: %v", err)
		}
		d.ended <- nil // for the next call
	case <-time.After(patience):
		t.Fatal("Serve doesn't end")
	}
}

// until waits until the counts are as wanted.
func (d *daemon) until(t testing.TB, what string, ok func(Stats) bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(d.Stats()); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never %s: %+v", what, d.Stats())
		}
	}
}

// mta is the other end of a milter connection, packet by packet.
type mta struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dial(t testing.TB, d *daemon) *mta {
	t.Helper()
	c, err := net.Dial(d.network, d.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &mta{t, c, bufio.NewReader(c)}
}

// begun dials, negotiates and sends a CONNECT of the client.
func begun(t testing.TB, d *daemon, client netip.Addr) *mta {
	t.Helper()
	m := dial(t, d)
	m.want("O", optneg())
	m.want("c", connect(client.String()))
	return m
}

func packet(code byte, parts ...string) []byte {
	data := strings.Join(parts, "")
	b := binary.BigEndian.AppendUint32(nil, uint32(1+len(data)))
	return append(append(b, code), data...)
}

// macros makes a macro packet from names and values by turns.
func macros(stage byte, namesAndValues ...string) []byte {
	parts := []string{string(stage)}
	for _, s := range namesAndValues {
		parts = append(parts, s, "\x00")
	}
	return packet('D', parts...)
}

func optneg() []byte { return offering(6, 0x1ff, 0x1fffff) }

func offering(version, actions, protocol uint32) []byte {
	var b []byte
	for _, v := range [...]uint32{version, actions, protocol} {
		b = binary.BigEndian.AppendUint32(b, v)
	}
	return packet('O', string(b))
}

func connect(addr string) []byte {
	family := "4"
	if strings.Contains(addr, ":") {
		family = "6"
	}
	return packet('C', "client.example\x00", family, "\x9c\x40", addr, "\x00")
}

func helo() []byte            { return packet('H', "client.example\x00") }
func mail(from string) []byte { return packet('M', from, "\x00SIZE=1000\x00") }
func rcpt(to string) []byte   { return packet('R', to, "\x00") }
func abort() []byte           { return packet('A') }
func quit() []byte            { return packet('Q') }

func (m *mta) send(packets ...[]byte) {
	m.t.Helper()
	if _, err := m.conn.Write(bytes.Join(packets, nil)); err != nil {
		m.t.Fatalf("send: %v", err)
	}
}

// reply reads one answer: its code, and behind it what a reply code says.
// "end" means that the connection has ended.
func (m *mta) reply() string {
	m.t.Helper()
	m.conn.SetReadDeadline(time.Now().Add(patience))
	s, err := readReply(m.r)
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		m.t.Fatal("no answer")
	}
	if err != nil {
		return "end"
	}
	return s
}

func readReply(r io.Reader) (string, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return "", err
	}
	data := make([]byte, binary.BigEndian.Uint32(head[:])-1)
	if _, err := io.ReadFull(r, data); err != nil {
		return "", err
	}
	return string(head[4]) + string(data), nil
}

// want sends packets in one write, if there are any, and compares the start of one
// answer.
func (m *mta) want(answer string, packets ...[]byte) {
	m.t.Helper()
	if len(packets) > 0 {
		m.send(packets...)
	}
	if got := m.reply(); !strings.HasPrefix(got, answer) {
		m.t.Fatalf("after %q: answer %q, want %q", bytes.Join(packets, nil), got, answer)
	}
}

// ended wants the end of the connection, without another answer.
func (m *mta) ended() {
	m.t.Helper()
	if got := m.reply(); got != "end" {
		m.t.Fatalf("got %q, want the end of the connection", got)
	}
}
