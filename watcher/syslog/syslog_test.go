package syslog

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// ear listens with a Source and notes what it tells.
type ear struct {
	*testing.T
	address string
	hold    sync.Mutex // held: nobody reads the records

	mu    sync.Mutex
	up    bool
	notes []string
	more  chan struct{}
}

// freeAddress gives an address of this host's that nobody listens at.
func freeAddress(t *testing.T, network string) string {
	t.Helper()
	switch network {
	case "unix", "unix-stream":
		return filepath.Join(t.TempDir(), "log.sock")
	case "udp":
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.LocalAddr().String()
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// startSyslog starts a source and waits until it listens.
func startSyslog(t *testing.T, o Options) *ear {
	t.Helper()
	if o.Address == "" {
		o.Address = freeAddress(t, o.Network)
	}
	e := &ear{T: t, address: o.Address, more: make(chan struct{})}
	ctx, stop := context.WithCancel(context.Background())
	var reading sync.WaitGroup
	reading.Go(func() {
		for r := range New(o).Records(ctx, relay.Position{}, time.Time{}) {
			e.hold.Lock()
			e.note(&r)
			e.hold.Unlock()
		}
	})
	t.Cleanup(func() { stop(); reading.Wait() })
	e.wait("GAP lost")
	return e
}

func (e *ear) note(r *watcher.Record) {
	text := ""
	switch r.Kind {
	case watcher.Line:
		if text = string(r.Text); r.Withheld {
			text = "WITHHELD " + text
		}
	case watcher.Gap:
		if text = "GAP"; r.Lost {
			text = "GAP lost"
		}
	case watcher.CaughtUp:
		text = "UP"
	case watcher.Down:
		text = "DOWN " + r.Err.Error()
	case watcher.Ended:
		text = "ENDED"
	case watcher.Refused:
		text = "REFUSED " + r.Err.Error()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.Kind == watcher.CaughtUp && e.up {
		return // it is told after each reading
	}
	e.up = r.Kind == watcher.CaughtUp || e.up && r.Kind != watcher.Down
	e.notes = append(e.notes, text)
	close(e.more)
	e.more = make(chan struct{})
}

// seen gives what was told and can't be told again.
func (e *ear) seen() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Clone(e.notes)
}

// wait waits for a note that begins with a text, and forgets all up to it; it
// gives those before it.
func (e *ear) wait(text string) []string {
	e.Helper()
	end := time.After(20 * time.Second)
	for {
		e.mu.Lock()
		i := slices.IndexFunc(e.notes, func(n string) bool { return strings.HasPrefix(n, text) })
		if i >= 0 {
			before := slices.Clone(e.notes[:i])
			e.notes = slices.Clone(e.notes[i+1:])
			e.mu.Unlock()
			return before
		}
		more := e.more
		e.mu.Unlock()
		select {
		case <-more:
		case <-end:
			told := inShort(e.seen())
			e.Fatalf("no %q; told last: %q", text, told[max(0, len(told)-10):])
		}
	}
}

// talk connects from an address of this host's, "" for any.
func (e *ear) talk(network, from string) net.Conn {
	e.Helper()
	var d net.Dialer
	switch network {
	case "tcp":
		if from != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
		}
	case "udp":
		if from != "" {
			d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(from)}
		}
	}
	c, err := d.Dial(network, e.address)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { c.Close() })
	return c
}

func say(t *testing.T, c net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
}

// hungUp waits until the other end has closed the connection.
func hungUp(t *testing.T, c net.Conn) {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection was not closed: %v", err)
	}
}

// sent is a message as a host sends it.
func sent(host, text string) string { return "<22>Nov 22 02:05:32 " + host + " dovecot: " + text }

var onlyLocal = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}

func TestSyslogIsUpWhenSomebodyIsHeard(t *testing.T) {
	for _, network := range []string{"unix", "unix-stream", "udp", "tcp"} {
		t.Run(network, func(t *testing.T) {
			e := startSyslog(t, Options{Network: network})
			dial := map[string]string{"unix": "unixgram", "unix-stream": "unix"}[network]
			if dial == "" {
				dial = network
			}
			c := e.talk(dial, "")
			say(t, c, sent("mx1", "a")+"\n")
			if before := e.wait("UP"); !slices.Equal(before, []string{"GAP lost"}) {
				t.Errorf("before it was up: %q", before)
			}
			e.wait(sent("mx1", "a"))
			say(t, c, sent("mx1", "b")+"\n")
			if before := e.wait(sent("mx1", "b")); len(before) > 0 {
				t.Errorf("between two messages: %q", before)
			}
		})
	}
}

func TestASenderOutsideTheListChangesNothing(t *testing.T) {
	t.Run("tcp", func(t *testing.T) {
		e := startSyslog(t, Options{Network: "tcp", Allow: onlyLocal})
		for range 3 {
			c := e.talk("tcp", "127.0.0.2")
			io.WriteString(c, sent("mx1", "forged")+"\n")
			hungUp(t, c)
			e.wait("REFUSED tcp:" + e.address + ": 127.0.0.2 is not in allow")
		}
		if rest := e.seen(); len(rest) > 0 {
			t.Errorf("told: %q", rest)
		}
		say(t, e.talk("tcp", "127.0.0.1"), sent("mx1", "a")+"\n")
		e.wait(sent("mx1", "a"))
	})
	t.Run("a spoofed datagram", func(t *testing.T) {
		e := startSyslog(t, Options{Network: "udp", Allow: onlyLocal})
		say(t, e.talk("udp", "127.0.0.2"), sent("mx1", "forged"))
		e.wait("REFUSED udp:" + e.address + ": 127.0.0.2 is not in allow")
		say(t, e.talk("udp", "127.0.0.1"), sent("mx1", "a"))
		if before := e.wait(sent("mx1", "a")); !slices.Equal(before, []string{"GAP lost", "UP"}) {
			t.Errorf("told: %q", before)
		}
	})
}

// Where a listener takes both families, the addresses of one look like those
// of the other.
func TestAllowMeansAnAddressHoweverItLooks(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		_, port, _ := net.SplitHostPort(freeAddress(t, network))
		e := startSyslog(t, Options{Network: network, Address: "[::]:" + port, Allow: onlyLocal})
		e.address = "127.0.0.1:" + port
		say(t, e.talk(network, "127.0.0.1"), sent("mx1", "a")+"\n")
		e.wait(sent("mx1", "a"))
		io.WriteString(e.talk(network, "127.0.0.2"), sent("mx1", "forged")+"\n")
		if before := e.wait("REFUSED " + network); len(before) > 0 {
			t.Errorf("%s: told %q", network, before)
		}
	}
}

// broken is a listener out of descriptors for a while.
type broken struct {
	net.Listener
	errors chan error
}

func (b *broken) Accept() (net.Conn, error) {
	select {
	case err := <-b.errors:
		return nil, &net.OpError{Op: "accept", Err: err}
	default:
		return b.Listener.Accept()
	}
}

func TestOutOfDescriptorsThoseWhoAreInStayIn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	b := &broken{l, make(chan error, 3)}
	h := &hall{Source: New(Options{Network: "tcp", Address: l.Addr().String()}), ctx: ctx, listener: b,
		post: make(chan parcel), conns: map[*conn]bool{}, of: map[string]int{}}
	e := &ear{T: t, address: l.Addr().String(), more: make(chan struct{})}
	r := &reader{hall: h, senders: map[string]*sender{}, yield: func(rec watcher.Record) bool { e.note(&rec); return true }}
	h.work()
	var reading sync.WaitGroup
	reading.Go(func() { r.run(ctx) })
	defer func() { stop(); h.close(); reading.Wait(); h.workers.Wait() }()
	first := e.talk("tcp", "")
	say(t, first, sent("mx1", "a")+"\n")
	e.wait(sent("mx1", "a"))
	for range cap(b.errors) {
		b.errors <- syscall.EMFILE
	}
	second := e.talk("tcp", "127.0.0.2") // this one still comes in, for it is waited for already
	say(t, second, sent("mx2", "b")+"\n")
	e.wait("DOWN tcp:" + e.address + ": no sender can connect: too many open files")
	say(t, first, sent("mx1", "c")+"\n")
	e.wait(sent("mx1", "c"))
	third := e.talk("tcp", "127.0.0.3")
	say(t, third, sent("mx3", "d")+"\n")
	e.wait("UP")
	e.wait(sent("mx3", "d"))
}

// asUser runs a function in a thread that belongs to another user.
func asUser(t *testing.T, uid int, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root, to be another user")
		}
		t.Skip("needs root, to be another user")
	}
	done := make(chan syscall.Errno)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		_, _, errno := syscall.RawSyscall(syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid))
		if errno == 0 {
			do()
		}
		done <- errno
	}()
	if errno := <-done; errno != 0 {
		t.Fatal(errno)
	}
}

func TestAUserWhoIsNotVouchedForChangesNothing(t *testing.T) {
	for network, dial := range map[string]string{"unix": "unixgram", "unix-stream": "unix"} {
		t.Run(network, func(t *testing.T) {
			dir := t.TempDir()
			if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
				t.Fatal(err)
			}
			e := startSyslog(t, Options{Network: network, Address: dir + "/log.sock", PeerUIDs: []uint32{4242}})
			as := func(uid int, text string) {
				asUser(t, uid, func() {
					c, err := net.Dial(dial, e.address)
					if err != nil {
						t.Error(err)
						return
					}
					t.Cleanup(func() { c.Close() })
					io.WriteString(c, text+"\n")
				})
			}
			as(65534, sent("mx1", "forged"))
			e.wait("REFUSED " + network + ":" + e.address + ": user id 65534 is neither root nor in peer_uids")
			as(4242, sent("mx1", "a"))
			if before := e.wait(sent("mx1", "a")); !slices.Equal(before, []string{"GAP lost", "UP"}) {
				t.Errorf("told: %q", before)
			}
			as(0, sent("mx1", "b"))
			e.wait(sent("mx1", "b"))
		})
	}
	t.Run("without peer_uids nobody else comes that far", func(t *testing.T) {
		e := startSyslog(t, Options{Network: "unix"})
		info, err := os.Stat(e.address)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v %v", info.Mode(), err)
		}
	})
}

func TestAHostThatIsNotListedIsNotRead(t *testing.T) {
	e := startSyslog(t, Options{Network: "tcp", Hosts: []string{"mx1", "mx2.example.org"}})
	c := e.talk("tcp", "")
	for _, host := range []string{"mx3", "mx", "mx11", "mx2", "mx2.example.org.evil.test"} {
		say(t, c, sent(host, "forged")+"\n")
	}
	say(t, c, "<22>Nov 22 02:05:32 dovecot: no host\n")
	say(t, c, sent("MX1", "a")+"\n"+sent("mx2.example.org", "b")+"\n")
	e.wait("UP")
	if before := e.wait(sent("MX1", "a")); len(before) > 0 {
		t.Errorf("told: %q", before)
	}
	e.wait(sent("mx2.example.org", "b"))
}

func TestAnEndlessLineCostsItsSenderOnly(t *testing.T) {
	e := startSyslog(t, Options{Network: "tcp"})
	good, bad := e.talk("tcp", "127.0.0.1"), e.talk("tcp", "127.0.0.2")
	say(t, good, sent("mx1", "first")+"\n")
	e.wait(sent("mx1", "first"))
	say(t, bad, sent("mx2", "first")+"\n")
	e.wait(sent("mx2", "first"))
	for i := range 40 {
		say(t, bad, sent("mx2", strings.Repeat("x", 100<<10)))
		say(t, good, sent("mx1", fmt.Sprint(i))+"\n")
		if before := e.wait(sent("mx1", fmt.Sprint(i))); len(before) > 0 {
			t.Fatalf("told: %q", inShort(before))
		}
	}
	say(t, bad, "\n"+sent("mx2", "last")+"\n")
	if before := e.wait(sent("mx2", "last")); !slices.Equal(before, []string{"GAP"}) {
		t.Errorf("for the endless line: %q", inShort(before))
	}
}

func TestAWrongOctetCountCostsItsSenderOnly(t *testing.T) {
	e := startSyslog(t, Options{Network: "tcp"})
	good, bad := e.talk("tcp", "127.0.0.1"), e.talk("tcp", "127.0.0.2")
	say(t, good, sent("mx1", "first")+"\n")
	e.wait(sent("mx1", "first"))
	first := sent("mx2", "first")
	say(t, bad, fmt.Sprintf("%d %s", len(first), first))
	e.wait(first)
	say(t, bad, "20 "+sent("mx2", "wrong")+sent("mx2", "forged"))
	hungUp(t, bad)
	e.wait("GAP lost")
	e.wait("REFUSED tcp:" + e.address + ": 127.0.0.2: an octet count was wrong")
	e.wait("ENDED")
	say(t, good, sent("mx1", "last")+"\n")
	if before := e.wait(sent("mx1", "last")); len(before) > 0 {
		t.Errorf("told: %q", before)
	}
}

// One who connects and says nothing that syslog is was never a sender: his
// going is no loss.
func TestAConnectionThatSaysNothingChangesNothing(t *testing.T) {
	e := startSyslog(t, Options{Network: "tcp"})
	good := e.talk("tcp", "127.0.0.1")
	say(t, good, sent("mx1", "first")+"\n")
	e.wait(sent("mx1", "first"))
	e.talk("tcp", "127.0.0.2").Close()
	e.wait("ENDED")
	web := e.talk("tcp", "127.0.0.2")
	say(t, web, "GET / HTTP/1.0\r\n\r\n")
	hungUp(t, web)
	for _, n := range e.wait("ENDED") {
		if !strings.HasPrefix(n, "REFUSED") {
			t.Errorf("told: %q", n)
		}
	}
	say(t, good, sent("mx1", "last")+"\n")
	if before := e.wait(sent("mx1", "last")); len(before) > 0 {
		t.Errorf("told: %q", before)
	}
}

func TestAConnectionThatBreaksInsideAMessageIsALoss(t *testing.T) {
	e := startSyslog(t, Options{Network: "tcp"})
	c := e.talk("tcp", "")
	say(t, c, sent("mx1", "a")+"\n"+sent("mx1", "Login: half a mess"))
	e.wait(sent("mx1", "a"))
	c.Close()
	if before := e.wait("GAP lost"); len(before) > 0 {
		t.Errorf("the fragment was judged: %q", before)
	}
}

func TestManyConnectionsCostTheirOwnerOnly(t *testing.T) {
	e := startSyslog(t, Options{Network: "tcp"})
	for range maxOfOne {
		e.talk("tcp", "127.0.0.2")
	}
	c := e.talk("tcp", "127.0.0.2")
	hungUp(t, c)
	e.wait("REFUSED tcp:" + e.address + ": 127.0.0.2 has 16 connections")
	say(t, e.talk("tcp", "127.0.0.1"), sent("mx1", "a")+"\n")
	e.wait(sent("mx1", "a"))
}

// Nobody reads for a while: connections wait and lose nothing, and what the
// kernel had no room for of the datagrams is told.
func TestASlowReader(t *testing.T) {
	const many = 20_000
	t.Run("tcp", func(t *testing.T) {
		e := startSyslog(t, Options{Network: "tcp"})
		c := e.talk("tcp", "")
		e.hold.Lock()
		go func() {
			for i := range many {
				if _, err := io.WriteString(c, sent("mx1", fmt.Sprintf("%0200d", i))+"\n"); err != nil {
					t.Error(err)
				}
			}
		}()
		time.AfterFunc(200*time.Millisecond, e.hold.Unlock)
		e.wait("UP")
		if before := e.wait(sent("mx1", fmt.Sprintf("%0200d", many-1))); len(before) != many-1 {
			t.Errorf("%d lines of %d came before the last", len(before), many-1)
		}
	})
	t.Run("udp", func(t *testing.T) {
		e := startSyslog(t, Options{Network: "udp"})
		c := e.talk("udp", "")
		say(t, c, sent("mx1", "first"))
		e.wait(sent("mx1", "first"))
		e.hold.Lock()
		for i := range many {
			say(t, c, sent("mx1", fmt.Sprintf("%0200d", i)))
		}
		e.hold.Unlock()
		// The kernel tells it beside a later datagram.
		for end := time.Now().Add(20 * time.Second); !slices.Contains(e.seen(), "GAP lost"); time.Sleep(time.Millisecond) {
			say(t, c, sent("mx1", "next"))
			if time.Now().After(end) {
				t.Fatal("no gap")
			}
		}
	})
}

func TestAMessageThatIsNeverFinishedEndsItsConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		h := &hall{ctx: t.Context(), post: make(chan parcel)}
		var ended error
		start := time.Now()
		done := make(chan struct{})
		go func() { ended = h.read(&conn{Conn: near}); close(done) }()
		time.Sleep(24 * time.Hour) // an idle sender is nothing out of the ordinary
		io.WriteString(far, "<22>")
		// Drop by drop does not help.
		for range 5 {
			time.Sleep(finishIn / 6)
			io.WriteString(far, "x")
		}
		<-done
		if took := time.Since(start) - 24*time.Hour; took != finishIn || ended == nil {
			t.Errorf("ended after %v with %v", took, ended)
		}
		far.Close()
	})
}

func TestALineTooLongIsNoMemory(t *testing.T) {
	h := &hall{ctx: t.Context(), post: make(chan parcel)}
	near, far := net.Pipe()
	go func() {
		far.Write([]byte("<22>"))
		block := []byte(strings.Repeat("x", 1<<20))
		for range 64 {
			far.Write(block)
		}
		far.Close()
	}()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if err := h.read(&conn{Conn: near}); err == nil {
		t.Error("a line without an end ended in order")
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 4<<20 {
		t.Errorf("%d bytes were allocated for a line of 64 MiB", used)
	}
}

// As many senders as there may be, each inside a message of the greatest length.
func TestFullBuffersOfEverySenderStayWithinBounds(t *testing.T) {
	e := startSyslog(t, Options{Network: "tcp"})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	first := sent("mx1", "first") + "\n"
	text := first + sent("mx1", strings.Repeat("x", watcher.MaxLine-100))
	for i := range maxConns {
		say(t, e.talk("tcp", fmt.Sprintf("127.0.0.%d", 1+i/maxOfOne)), text)
	}
	for range maxConns {
		e.wait(first[:len(first)-1])
	}
	e.talk("tcp", "127.0.1.1")
	e.wait("REFUSED")
	if used := int64(heap()) - int64(before); used > maxConns*(watcher.MaxLine+20<<10) {
		t.Errorf("%d bytes for %d connections", used, maxConns)
	} else {
		t.Logf("%.1f MB for %d connections", float64(used)/1e6, maxConns)
	}
}

func TestAListenerThatCannotBeOpenedSaysWhyAndHeals(t *testing.T) {
	for name, tt := range map[string]struct {
		network string
		block   func(t *testing.T, address string) (heal func())
		why     string
	}{
		"the port is taken": {"tcp", func(t *testing.T, address string) func() {
			l, err := net.Listen("tcp", address)
			if err != nil {
				t.Fatal(err)
			}
			return func() { l.Close() }
		}, "another program listens here"},
		"another reader has the socket": {"unix", func(t *testing.T, address string) func() {
			c, err := net.ListenPacket("unixgram", address)
			if err != nil {
				t.Fatal(err)
			}
			return func() { c.Close() }
		}, "another program listens here"},
		"no directory": {"unix-stream", func(t *testing.T, address string) func() {
			os.Remove(filepath.Dir(address))
			return func() { os.Mkdir(filepath.Dir(address), 0o755) }
		}, "does not exist; make it"},
		"a file in its place": {"unix", func(t *testing.T, address string) func() {
			os.WriteFile(address, nil, 0o644)
			return func() { os.Remove(address) }
		}, "exists and is no socket"},
		"certificates missing": {"tls", func(t *testing.T, address string) func() { return nil }, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := Options{Network: tt.network, Address: freeAddress(t, tt.network)}
			if tt.network == "tls" {
				o.TLS = TLS{Cert: "/nonexistent/cert.pem", Key: "/nonexistent/key.pem"}
			}
			heal := tt.block(t, o.Address)
			e := &ear{T: t, address: o.Address, more: make(chan struct{})}
			ctx, stop := context.WithCancel(context.Background())
			var reading sync.WaitGroup
			reading.Go(func() {
				for r := range New(o).Records(ctx, relay.Position{}, time.Time{}) {
					e.note(&r)
				}
			})
			defer reading.Wait()
			defer stop()
			e.wait("DOWN " + tt.network + ":" + o.Address)
			if !strings.Contains(strings.Join(e.seen(), " "), tt.why) {
				e.wait("DOWN ") // said again, for want of the first
			}
			if heal != nil {
				heal()
				e.wait("GAP lost")
			}
		})
	}
}

func TestASocketThatWasRemovedIsMadeAnew(t *testing.T) {
	t.Parallel()
	e := startSyslog(t, Options{Network: "unix"})
	os.Remove(e.address)
	e.wait("DOWN unix:" + e.address + ": the socket has been removed or replaced")
	e.wait("GAP lost")
	say(t, e.talk("unixgram", ""), sent("mx1", "a"))
	e.wait(sent("mx1", "a"))
}

func TestASocketLeftBehindIsTaken(t *testing.T) {
	for network, dial := range map[string]string{"unix": "unixgram", "unix-stream": "unix"} {
		for _, left := range []string{"unix", "unixgram"} {
			path := freeAddress(t, network)
			fd, err := syscall.Socket(syscall.AF_UNIX, map[string]int{"unix": syscall.SOCK_STREAM, "unixgram": syscall.SOCK_DGRAM}[left], 0)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}), syscall.Close(fd)); err != nil {
				t.Fatal(err)
			}
			e := startSyslog(t, Options{Network: network, Address: path})
			say(t, e.talk(dial, ""), sent("mx1", "a")+"\n")
			e.wait(sent("mx1", "a"))
		}
	}
}

// Who comes and goes, and what that means. Times are seconds.
func TestSendersComeAndGo(t *testing.T) {
	type step struct {
		at   int
		do   string // "mx1 opens", "mx1 says", "mx1 ends", "mx1 breaks", "look"
		want string
	}
	for name, steps := range map[string][]step{
		"the only one goes and comes back": {
			{0, "mx1 opens", ""}, {0, "mx1 says", "GAP lost, UP, LINE"},
			{10, "mx1 ends", "ENDED"}, {15, "look", ""}, {20, "look", "DOWN"}, {21, "look", ""},
			{30, "mx1 opens", ""}, {31, "look", ""}, {40, "mx1 says", "GAP lost, UP, LINE"},
		},
		"it connects anew within a moment": {
			{0, "mx1 opens", ""}, {0, "mx1 says", "GAP lost, UP, LINE"},
			{10, "mx1 ends", "ENDED"}, {11, "mx1 opens", ""}, {12, "mx1 says", "GAP, LINE"}, {60, "look", ""},
		},
		"the new connection opens before the old one ends": {
			{0, "mx1 opens", ""}, {0, "mx1 says", "GAP lost, UP, LINE"},
			{1, "mx1 opens", ""}, {1, "mx1 says", "LINE"}, {1, "mx1 ends", "ENDED"}, {60, "look", ""},
		},
		"the connection breaks": {
			{0, "mx1 opens", ""}, {0, "mx1 says", "GAP lost, UP, LINE"},
			{1, "mx1 breaks", "GAP lost, REFUSED, ENDED"}, {2, "mx1 opens", ""}, {2, "mx1 says", "GAP, LINE"},
		},
		"one of two goes": {
			{0, "mx1 opens", ""}, {0, "mx1 says", "GAP lost, UP, LINE"},
			{1, "mx2 opens", ""}, {2, "mx2 says", "GAP lost, LINE"},
			{10, "mx1 ends", "ENDED"}, {19, "look", ""}, {20, "look", "GAP lost, REFUSED"}, {40, "look", ""},
			{50, "mx1 opens", ""}, {50, "mx1 says", "GAP lost, LINE"},
		},
		"one who never says anything does not keep it up": {
			{0, "mx1 opens", ""}, {0, "mx1 says", "GAP lost, UP, LINE"}, {1, "mx2 opens", ""},
			{2, "mx1 ends", "ENDED"}, {12, "look", "DOWN"}, {13, "mx2 breaks", "REFUSED, ENDED"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			up := false
			r := &reader{hall: &hall{Source: New(Options{Network: "tcp", Address: "127.0.0.1:1"})}, senders: map[string]*sender{}}
			r.yield = func(rec watcher.Record) bool {
				if rec.Kind == watcher.CaughtUp && up {
					return true // it is told after each reading
				}
				up = rec.Kind == watcher.CaughtUp || up && rec.Kind != watcher.Down
				got = append(got, map[watcher.Kind]string{watcher.Line: "LINE", watcher.Gap: "GAP", watcher.CaughtUp: "UP", watcher.Down: "DOWN", watcher.Ended: "ENDED", watcher.Refused: "REFUSED"}[rec.Kind])
				if rec.Lost {
					got[len(got)-1] += " lost"
				}
				return true
			}
			open := map[string][]*conn{}
			start := time.Now()
			for _, s := range steps {
				now := start.Add(time.Duration(s.at) * time.Second)
				who, what, _ := strings.Cut(s.do, " ")
				switch what {
				case "":
					r.leave(now)
				case "opens":
					c := &conn{from: who, id: uint64(s.at + 1)}
					open[who] = append(open[who], c)
					r.parcel(&parcel{what: opened, conn: c}, now)
				case "says": // on its newest connection
					r.parcel(&parcel{conn: open[who][len(open[who])-1], frames: []frame{{[]byte(sent(who, "x"))}}}, now)
				default: // its oldest
					p := &parcel{what: closed, conn: open[who][0]}
					if what == "breaks" {
						p.err = errors.New("broken")
					}
					open[who] = open[who][1:]
					r.parcel(p, now)
				}
				if told := strings.Join(got, ", "); told != s.want {
					t.Errorf("%d s, %s: told %q, want %q", s.at, s.do, told, s.want)
				}
				got = nil
			}
		})
	}
}

// loginsOnly is a ledger that notes whose logins it was told.
type loginsOnly struct {
	quiet bool // it notes nothing
	mu    sync.Mutex
	got   []string
}

func (l *loginsOnly) Event(ev relay.Event, _ time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if ev.Kind == relay.Login && !l.quiet {
		l.got = append(l.got, ev.Client.String())
	}
}
func (l *loginsOnly) Gap(string, time.Time)           {}
func (l *loginsOnly) Position(string, relay.Position) {}
func (l *loginsOnly) logins() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.got, " ")
}

// understand has a source understood in one format and gives its logins.
func understand(t *testing.T, o Options, name string) (*ear, *loginsOnly) {
	t.Helper()
	o.Address = freeAddress(t, o.Network)
	l := &loginsOnly{}
	ctx, stop := context.WithCancel(context.Background())
	fresh := func() format.Parser { p, _ := format.New(name); return p }
	var reading sync.WaitGroup
	reading.Go(func() {
		watcher.Watch(ctx, New(o), watcher.Options{Format: name, Parser: fresh(), NewParser: fresh, Ledger: l})
	})
	t.Cleanup(func() { stop(); reading.Wait() })
	return &ear{T: t, address: o.Address}, l
}

func (l *loginsOnly) wait(t *testing.T, want string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); l.logins() != want; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("logins from %q, want %q", l.logins(), want)
		}
	}
}

// dial is talk for a listener that may not be open yet.
func (e *ear) dial() net.Conn { return e.dialFrom("127.0.0.1") }

func (e *ear) dialFrom(address string) net.Conn {
	e.Helper()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		c, err := from.Dial("tcp", e.address)
		if err == nil {
			e.Cleanup(func() { c.Close() })
			return c
		}
		if time.Now().After(end) {
			e.Fatal(err)
		}
	}
}

const attacker, honest = "203.0.113.66", "198.51.100.7"

func courierLine(text string) string { return "<22>Nov 22 02:05:32 mx1 pop3d: " + text + "\n" }

func courierSession(client string) string {
	return courierLine("Connection, ip=[::ffff:"+client+"], port=[1]") +
		courierLine("LOGIN, user=alice, ip=[::ffff:"+client+"], port=[1]")
}

// The forgery's first piece comes over one connection, its second, a perfect
// login, over another one, and nobody can tell which was written first.
func TestPiecesOfOneCourierRecordOverTwoConnections(t *testing.T) {
	for _, ordered := range []bool{true, false} {
		e := startSyslog(t, Options{Network: "tcp", Ordered: ordered})
		withheld := map[bool]string{true: "WITHHELD "}[ordered]
		a := e.talk("tcp", "")
		say(t, a, sent("mx1", "one")+"\n")
		e.wait(sent("mx1", "one"))
		b := e.talk("tcp", "")
		say(t, b, sent("mx1", "first piece")+"\n")
		before := e.wait(withheld + sent("mx1", "first piece"))
		if told := slices.Contains(before, "GAP lost"); told != ordered {
			t.Errorf("ordered %v: told %q", ordered, before)
		}
		say(t, a, sent("mx1", "second piece")+"\n")
		e.wait(withheld + sent("mx1", "second piece"))
		b.Close()
		e.wait("ENDED")
		say(t, a, sent("mx1", "a straggler")+"\n")
		e.wait(withheld + sent("mx1", "a straggler"))
		say(t, e.talk("tcp", "127.0.0.2"), sent("mx2", "another sender")+"\n")
		e.wait(sent("mx2", "another sender"))
	}
}

// Two hosts' servers log at the same time: the piece of one is not the end of
// the other's.
func TestPiecesOfOneHostAreNotTheNextHosts(t *testing.T) {
	e, l := understand(t, Options{Network: "tcp", Ordered: true}, "courier")
	a := e.dial()
	say(t, a, courierLine("x")+courierSession(honest))
	l.wait(t, honest)
	say(t, a, courierLine("LOGIN FAILED, user="+strings.Repeat("x", 486)))
	say(t, a, strings.ReplaceAll(courierLine("Connection, ip=[::ffff:198.51.100.8], port=[1]"), "mx1", "mx2"))
	say(t, a, courierLine("LOGIN, user=victim, ip=[::ffff:"+attacker+"], port=[1]"))
	say(t, a, courierSession("198.51.100.9"))
	l.wait(t, honest+" 198.51.100.9")
}

// Two senders call themselves by the same name: what one has sent is neither
// the beginning nor the proof of what the other one sends.
func TestPiecesOfOneSenderAreNotTheNextSenders(t *testing.T) {
	e, l := understand(t, Options{Network: "tcp", Ordered: true}, "courier")
	a, b := e.dialFrom("127.0.0.1"), e.dialFrom("127.0.0.2")
	say(t, a, courierLine("x")+courierSession(honest))
	l.wait(t, honest)
	say(t, b, courierLine("x")+courierLine("Connection, ip=[::ffff:198.51.100.8], port=[1]"))
	say(t, a, courierLine("LOGIN FAILED, user="+strings.Repeat("x", 486)))
	say(t, b, courierLine("LOGIN, user=bob, ip=[::ffff:198.51.100.8], port=[1]"))
	l.wait(t, honest+" 198.51.100.8")
	// The connection was told by a, so that b's login of it does not count.
	say(t, a, courierLine("the rest")+courierLine("Connection, ip=[::ffff:"+attacker+"], port=[9]")+courierSession("198.51.100.9"))
	l.wait(t, honest+" 198.51.100.8 198.51.100.9")
	say(t, b, courierLine("LOGIN, user=victim, ip=[::ffff:"+attacker+"], port=[9]")+courierSession("198.51.100.10"))
	l.wait(t, honest+" 198.51.100.8 198.51.100.9 198.51.100.10")
}

// The daemon in between cuts messages at 256 bytes, and the stranger has
// counted: what is left of his failed login is a whole record, and the rest of
// it, which the server had cut off already, comes as a login.
func TestAForgedLoginBehindAMessageCutAtTheRightByte(t *testing.T) {
	e, l := understand(t, Options{Network: "tcp", Ordered: true}, "courier")
	a := e.dial()
	say(t, a, courierLine("x")+courierSession(honest))
	l.wait(t, honest)
	whole := "LOGIN FAILED, user=" + "%s, ip=[::ffff:" + attacker + "], port=[1]"
	const busybox = 255
	pad := busybox - len("<22>Nov 22 02:05:32 pop3d: ") - len(whole) + len("%s")
	say(t, a, courierLine("Connection, ip=[::ffff:"+attacker+"], port=[1]"))
	say(t, a, courierLine(fmt.Sprintf(whole, strings.Repeat("x", pad))))
	say(t, a, courierLine("LOGIN, user=victim, ip=[::ffff:"+attacker+"], port=[1]"))
	say(t, a, courierSession("198.51.100.9"))
	l.wait(t, honest+" 198.51.100.9")
}

// What may be cut matters where a cut line could be a login: a user whose
// login has such a length is not kept out where it could not.
func TestALoginOfALengthAtWhichDaemonsCut(t *testing.T) {
	const limit = 255
	for _, name := range []string{"dovecot", "auto"} {
		e, l := understand(t, Options{Network: "tcp"}, name)
		login := sent("mx1", "imap-login: Login: user=<%s>, method=PLAIN, rip="+honest+", lip=192.0.2.1, mpid=1, TLS, session=<%s>")
		login = fmt.Sprintf(login, "alice", strings.Repeat("a", limit-len(login)+len("%s%s")-len("alice")))
		if len(login) != limit {
			t.Fatalf("%d bytes", len(login))
		}
		say(t, e.dial(), sent("mx1", "x")+"\n"+login+"\n")
		l.wait(t, honest)
	}
}

// A line end in a counted message begins no line.
func TestALoginBehindALineEndInAMessage(t *testing.T) {
	e, l := understand(t, Options{Network: "tcp"}, "dovecot")
	c := e.dial()
	login := func(client string) string {
		return sent("mx1", "imap-login: Login: user=<alice>, method=PLAIN, rip="+client+", lip=192.0.2.1, mpid=1, session=<ab>")
	}
	for _, m := range []string{"<22>Nov 22 02:05:32 mx1 imap4d: user `x\n" + login(attacker), login(attacker) + "\n" + login(attacker), login(honest)} {
		say(t, c, fmt.Sprintf("%d %s", len(m), m))
	}
	l.wait(t, honest)
}
