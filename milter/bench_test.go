package milter

import (
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"time"
)

// BenchmarkRecipient is one refused recipient as Postfix asks about it, over a
// unix socket, both ends in this process.
func BenchmarkRecipient(b *testing.B) {
	ours, theirs := socketPair(b)
	l := newListener(NewServer(&judgeOf{decision: refused}, Options{}), b.Context())
	l.serve(theirs)
	if got := talkB(b, ours, optneg()); got != 'O' {
		b.Fatalf("%q", got)
	}
	if got := talkB(b, ours, connect("203.0.113.9")); got != 'c' {
		b.Fatalf("%q", got)
	}
	ask := joined([][]byte{macros('R', "{rcpt_mailer}", "smtp", "{rcpt_host}", "c.example", "{rcpt_addr}", "x@c.example",
		"{client_addr}", "203.0.113.9", "v", "Postfix 3.7.11"), rcpt("<x@c.example>")})
	b.ReportAllocs()
	for b.Loop() {
		if got := talkB(b, ours, ask); got != 'y' {
			b.Fatalf("%q", got)
		}
	}
	ours.Close()
	l.wait(patience)
}

var answerBuffer [1024]byte

// talkB sends a packet and gives the code of its answer, without allocating.
func talkB(b *testing.B, c net.Conn, packet []byte) byte {
	if _, err := c.Write(packet); err != nil {
		b.Fatal(err)
	}
	n, err := io.ReadAtLeast(c, answerBuffer[:], lengthSize+1)
	if err != nil {
		b.Fatal(err)
	}
	return answerBuffer[:n][lengthSize]
}

func socketPair(t testing.TB) (a, b net.Conn) {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socketpair")
		conns[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	return conns[0], conns[1]
}

// BenchmarkIdleConnection reports the memory of a connection that has asked
// three times and waits: heap and stack, some 500 bytes of the other end
// included.
func BenchmarkIdleConnection(b *testing.B) {
	const conns = 1000
	b.ReportAllocs()
	for b.Loop() {
		l := newListener(NewServer(&judgeOf{decision: refused}, Options{}), b.Context())
		all := make([]net.Conn, 0, conns)
		before := inUse()
		for range conns {
			ours, theirs := socketPair(b)
			l.serve(theirs)
			talkB(b, ours, optneg())
			talkB(b, ours, connect("203.0.113.9"))
			for range 3 {
				talkB(b, ours, joined([][]byte{macros('R', "{rcpt_mailer}", "smtp", "{rcpt_addr}", "x@c.example"), rcpt("<x@c.example>")}))
			}
			all = append(all, ours)
		}
		b.ReportMetric(float64(inUse()-before)/conns, "B/conn")
		for _, c := range all {
			c.Close()
		}
		l.wait(patience)
	}
}

// inUse gives what heap and stacks hold, once the stacks have shrunk.
func inUse() uint64 {
	for range 5 {
		runtime.GC()
		time.Sleep(10 * time.Millisecond)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
