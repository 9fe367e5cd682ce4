package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
)

// server is an SMTP server of a few words. answer gives the reply to a line;
// an empty one hangs up.
type server struct {
	mu    sync.Mutex
	heard []string
}

func (s *server) serve(t *testing.T, greeting string, answer func(line string) string) (target string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				fmt.Fprint(conn, greeting)
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					s.mu.Lock()
					s.heard = append(s.heard, lines.Text())
					s.mu.Unlock()
					reply := answer(lines.Text())
					if reply == "" {
						return
					}
					fmt.Fprint(conn, reply+"\r\n")
				}
			}()
		}
	}()
	return l.Addr().String()
}

// shut refuses every recipient but the local one.
func shut(line string) string {
	if strings.HasPrefix(line, "RCPT") && line != "RCPT TO:<bob@local.test>" {
		return "550 5.7.1 relaying denied"
	}
	return "250 ok"
}

func options(target string) Options {
	return Options{Target: target, Local: "bob@local.test", Remote: "remote.test", Virtual: "virtual.test", Sender: "x@client.test"}
}

func TestNothingIsEverDeliveredNotEvenByAnOpenRelay(t *testing.T) {
	s := &server{}
	target := s.serve(t, "220 hi\r\n", func(string) string { return "250 ok" })
	r, err := Run(context.Background(), options(target))
	if err != nil || r.Count(Taken) < 60 {
		t.Fatalf("%v, %d taken", err, r.Count(Taken))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, line := range s.heard {
		word := strings.ToUpper(strings.Fields(line)[0])
		if word == "DATA" || word == "BDAT" || word == "RCPT" && s.heard[i+1] != "RSET" {
			t.Errorf("line %d: %q, then %q", i, line, s.heard[i+1])
		}
	}
}

func TestEveryShapeIsOffered(t *testing.T) {
	s := &server{}
	target := s.serve(t, "220 hi\r\n", shut)
	r, err := Run(context.Background(), options(target))
	if err != nil || len(r.Tries) != len(Shapes)+3 || r.Count(Refused) != len(r.Tries) || r.Local.Outcome != Taken || r.Any {
		t.Errorf("%v: %+v", err, r)
	}
}

// What is known of an MTA's replies decides what a probe proves.
func TestAReplyProvesNoMoreThanItSays(t *testing.T) {
	for text, want := range map[string]string{
		"250 2.1.5 ok": Taken, "251 will forward": Taken, "550 5.7.1 Relaying denied": Refused, "554 5.7.1 <x>: Relay access denied": Refused,
		"451 4.3.0 later": Deferred, "450 4.1.2 Domain not found": Deferred, "550 5.1.2 Domain not found": Weak,
		"556 5.1.10 <x>: domain does not accept mail (nullMX)": Weak, "354 what": Deferred,
	} {
		s := &server{}
		target := s.serve(t, "220 hi\r\n", func(line string) string {
			if strings.HasPrefix(line, "RCPT TO:<x@remote.test>") {
				return text
			}
			return shut(line)
		})
		r, err := Run(context.Background(), options(target))
		if err != nil || r.Plain() != want {
			t.Errorf("%q: %v, want %s, %v", text, r.Tries[0], want, err)
		}
	}
}

// MTAs hang up after a few errors; what comes after would not have been tried.
func TestALimitOnErrorsHidesNoShape(t *testing.T) {
	var mu sync.Mutex
	errorsSeen := 0
	s := &server{}
	target := s.serve(t, "220 hi\r\n", func(line string) string {
		mu.Lock()
		defer mu.Unlock()
		if strings.HasPrefix(line, "EHLO") {
			errorsSeen = 0
		}
		if errorsSeen++; errorsSeen > 9 {
			return "421 4.7.0 too many errors"
		}
		if strings.Contains(line, "!") {
			return "250 taken"
		}
		return shut(line)
	})
	r, err := Run(context.Background(), options(target))
	if err != nil || r.Count(Deferred) > 0 || r.Count(Taken) < 10 {
		t.Errorf("%v: %d put off, %d taken", err, r.Count(Deferred), r.Count(Taken))
	}
}

func TestWhatIsNoAnswerIsNoProof(t *testing.T) {
	for name, tt := range map[string]struct {
		greeting string
		answer   func(string) string
		xclient  bool
	}{
		"a greeting that refuses": {greeting: "554 go away\r\n", answer: shut},
		"no greeting":             {greeting: "hello\r\n", answer: shut},
		"EHLO refused":            {greeting: "220 hi\r\n", answer: func(string) string { return "550 no" }},
		"a hang-up at each recipient": {greeting: "220 hi\r\n", answer: func(l string) string {
			return strings.TrimPrefix("250 ok", map[bool]string{true: "250 ok"}[strings.HasPrefix(l, "RCPT")])
		}},
		"XCLIENT refused": {greeting: "220 hi\r\n", xclient: true, answer: func(l string) string {
			return map[bool]string{true: "550 no", false: "250 ok"}[strings.HasPrefix(l, "XCLIENT")]
		}},
		"a greeting without end": {greeting: strings.Repeat("220-more\r\n", 300_000), answer: shut},
	} {
		s := &server{}
		o := options(s.serve(t, tt.greeting, tt.answer))
		o.XCLIENT = tt.xclient
		if r, err := Run(context.Background(), o); !errors.Is(err, ErrUnreachable) || r != nil {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if _, err := Run(context.Background(), options(l.Addr().String())); !errors.Is(err, ErrUnreachable) {
		t.Errorf("nobody there: %v", err)
	}
}
