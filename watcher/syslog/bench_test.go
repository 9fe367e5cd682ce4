package syslog

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// sendVar has the test binary send for a benchmark: network, address, count.
const sendVar = "POPGATE_BENCH_SEND"

// TestSendForABenchmark is no test: it is the other end of BenchmarkSyslog, in a
// process of its own so that its processor time is not counted.
func TestSendForABenchmark(t *testing.T) {
	what := strings.Fields(os.Getenv(sendVar))
	if len(what) != 3 {
		t.Skip("runs for a benchmark only")
	}
	c, err := net.Dial(what[0], what[1])
	if err != nil {
		t.Fatal(err)
	}
	count, _ := strconv.Atoi(what[2])
	lines := mixed()
	if what[0] == "unixgram" || what[0] == "udp" {
		for i := range count {
			if _, err := c.Write(lines[i%len(lines)]); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	// A busy rsyslog writes many messages at once.
	var block bytes.Buffer
	for i := range count {
		fmt.Fprintf(&block, "%d %s", len(lines[i%len(lines)]), lines[i%len(lines)])
		if block.Len() > 32<<10 || i == count-1 {
			if _, err := c.Write(block.Bytes()); err != nil {
				t.Fatal(err)
			}
			block.Reset()
		}
	}
}

// mixed is a mail log's mixture: a tenth of its lines are logins.
func mixed() (lines [][]byte) {
	for i := range 1000 {
		text := fmt.Sprintf("postfix/smtpd[%d]: connect from unknown[203.0.113.%d]", 1000+i, i%250)
		switch i % 10 {
		case 0:
			text = fmt.Sprintf("dovecot: imap-login: Login: user=<user%d@example.org>, method=PLAIN, rip=198.51.100.%d, lip=192.0.2.1, mpid=%d, TLS, session=<%08d>", i, i%250, i, i)
		case 1:
			text = fmt.Sprintf("dovecot: imap(user%d@example.org)<%d><%08d>: Disconnected: Logged out in=24 out=775", i, i, i)
		case 2, 3, 4:
			text = fmt.Sprintf("postfix/qmgr[77]: %011d: from=<someone%d@example.net>, size=%d, nrcpt=1 (queue active)", i, i, 1000+i)
		}
		lines = append(lines, []byte("<22>Nov 22 02:05:32 mx1 "+text))
	}
	return lines
}

// BenchmarkSyslog reads a mail log's lines from another process, up to the
// ledger. cpu-ns/line is the processor time of this process alone.
func BenchmarkSyslog(b *testing.B) {
	for _, network := range []string{"tcp", "unix-stream", "unix"} {
		b.Run(network, func(b *testing.B) {
			o := Options{Network: network, Address: b.TempDir() + "/log.sock"}
			if network == "tcp" {
				o.Address = "127.0.0.1:15140"
			}
			var lines atomic.Uint64
			up := make(chan struct{})
			ctx, stop := context.WithCancel(b.Context())
			var reading sync.WaitGroup
			fresh := func() format.Parser { p, _ := format.New("dovecot"); return p }
			reading.Go(func() {
				first := true
				watcher.Watch(ctx, New(o), watcher.Options{Format: "dovecot", Parser: fresh(), NewParser: fresh, Ledger: &loginsOnly{quiet: true}, Report: func(s relay.SourceState) {
					if lines.Store(s.Lines); first && s.Missed > 0 { // it listens
						first = false
						close(up)
					}
				}})
			})
			<-up
			var before, after syscall.Rusage
			syscall.Getrusage(syscall.RUSAGE_SELF, &before)
			b.ReportAllocs()
			b.ResetTimer()
			start := time.Now()
			send := exec.Command(os.Args[0], "-test.run=^TestSendForABenchmark$")
			dial := map[string]string{"unix": "unixgram", "unix-stream": "unix"}[network]
			if dial == "" {
				dial = network
			}
			send.Env = append(os.Environ(), sendVar+"="+dial+" "+o.Address+" "+strconv.Itoa(b.N))
			if out, err := send.CombinedOutput(); err != nil {
				b.Fatalf("%v: %s", err, out)
			}
			took := time.Since(start)
			b.StopTimer()
			syscall.Getrusage(syscall.RUSAGE_SELF, &after)
			for end := time.Now().Add(10 * time.Second); lines.Load() < uint64(b.N); time.Sleep(time.Millisecond) {
				if time.Now().After(end) {
					b.Fatalf("%d lines of %d were read", lines.Load(), b.N)
				}
			}
			cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
			b.ReportMetric(float64(cpu)/float64(b.N), "cpu-ns/line")
			b.ReportMetric(float64(b.N)/took.Seconds(), "lines/s")
			stop()
			reading.Wait()
		})
	}
}
