package lab

import (
	"bufio"
	"fmt"
	"net"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Message is one message as it arrived at a sink.
type Message struct {
	From    string   // without angle brackets
	To      []string // without angle brackets
	Subject string
}

// Sink is an SMTP and LMTP server that takes everything and keeps it in
// memory. It is where the MTA under test delivers to: what is not here was not
// relayed.
type Sink struct {
	Addr string // host:port

	mu       sync.Mutex
	messages []Message
	more     chan struct{} // closed and replaced at each message
}

func newSink(t testing.TB, addr string) *Sink {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &Sink{Addr: ln.Addr().String(), more: make(chan struct{})}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			// Not waited for: an MTA may keep its connection for a while.
			go s.serve(conn)
		}
	})
	t.Cleanup(func() { ln.Close(); conns.Wait() })
	return s
}

// Port gives the port alone.
func (s *Sink) Port() string {
	_, port, _ := net.SplitHostPort(s.Addr)
	return port
}

// serve speaks just enough SMTP and LMTP for an MTA that wants to be rid of a
// message.
func (s *Sink) serve(conn net.Conn) {
	defer conn.Close()
	r := textproto.NewReader(bufio.NewReader(conn))
	say := func(line string) { fmt.Fprintf(conn, "%s\r\n", line) }
	var m Message
	lmtp := false
	say("220 sink.test ESMTP")
	for {
		line, err := r.ReadLine()
		if err != nil {
			return
		}
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		switch verb {
		case "EHLO", "LHLO":
			lmtp = verb == "LHLO"
			say("250-sink.test\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 SMTPUTF8")
		case "MAIL":
			m = Message{From: path(line)}
			say("250 2.1.0 ok")
		case "RCPT":
			m.To = append(m.To, path(line))
			say("250 2.1.5 ok")
		case "DATA":
			say("354 go on")
			body, err := r.ReadDotLines()
			if err != nil {
				return
			}
			m.Subject = subject(body)
			s.add(m)
			replies := 1
			if lmtp {
				replies = len(m.To)
			}
			for range replies {
				say("250 2.0.0 stored")
			}
		case "QUIT":
			say("221 2.0.0 bye")
			return
		default:
			say("250 2.0.0 ok")
		}
	}
}

// path gives the address of a MAIL or RCPT command.
func path(line string) string {
	_, after, _ := strings.Cut(line, ":")
	after = strings.TrimSpace(after)
	if rest, ok := strings.CutPrefix(after, "<"); ok {
		if i := strings.LastIndexByte(rest, '>'); i >= 0 {
			return rest[:i]
		}
	}
	return after
}

func subject(body []string) string {
	for _, line := range body {
		if line == "" {
			break
		}
		if len(line) > 8 && strings.EqualFold(line[:8], "Subject:") {
			return strings.TrimSpace(line[8:])
		}
	}
	return ""
}

func (s *Sink) add(m Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages = append(s.messages, m)
	close(s.more)
	s.more = make(chan struct{})
}

// Messages gives what has arrived, in order.
func (s *Sink) Messages() []Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.messages)
}

// Wait waits for a message with this subject. When an MTA delivers one message
// in parts, the first part is given.
func (s *Sink) Wait(t testing.TB, subject string) Message {
	t.Helper()
	end := time.NewTimer(patience)
	defer end.Stop()
	for {
		s.mu.Lock()
		more := s.more
		i := slices.IndexFunc(s.messages, func(m Message) bool { return m.Subject == subject })
		var m Message
		if i >= 0 {
			m = s.messages[i]
		}
		s.mu.Unlock()
		if i >= 0 {
			return m
		}
		select {
		case <-more:
		case <-end.C:
			t.Fatalf("gave up after %v waiting for the message %q; arrived: %+v", patience, subject, s.Messages())
		}
	}
}

// Recipients gives everybody for whom mail has arrived, sorted. Bounces, which
// an MTA sends on its own account, don't count.
func (s *Sink) Recipients() []string {
	var all []string
	for _, m := range s.Messages() {
		if m.From != "" {
			all = append(all, m.To...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}
