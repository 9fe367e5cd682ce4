package milter

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"popgate/internal/relay"
)

// script is a connection whose peer says what is written down, in steps of a
// few bytes, and hangs up.
type script struct {
	in   []byte
	step int
	out  bytes.Buffer
}

func (s *script) Read(p []byte) (int, error) {
	if len(s.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.step)], s.in)
	s.in = s.in[n:]
	return n, nil
}

func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return nil }
func (s *script) RemoteAddr() net.Addr             { return nil }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

// converse runs a whole conversation and gives what was answered and asked.
func converse(stream []byte, step int) (answers []string, asked []relay.Query, err error) {
	w := &witness{}
	l := newListener(NewServer(w, Options{}), context.Background())
	s := &script{in: slices.Clone(stream), step: step}
	l.serve(s)
	if !l.wait(patience) {
		return nil, nil, fmt.Errorf("the conversation doesn't end")
	}
	answers, err = answersIn(s.out.Bytes())
	return answers, unsigned(w.asked()), err
}

func answersIn(out []byte) (answers []string, err error) {
	for rest := bytes.NewReader(out); rest.Len() > 0; {
		answer, err := readReply(rest)
		if err != nil {
			return nil, fmt.Errorf("broken answer in %q", out)
		}
		answers = append(answers, answer)
	}
	return answers, nil
}

func unsigned(asked []relay.Query) []relay.Query {
	for i := range asked {
		asked[i].Door, asked[i].Waits = "", nil
	}
	return asked
}

// street is a daemon on a unix socket to which one peer at a time talks, and a judge
// who now and then says that he waits.
type street struct {
	w *witness
	d *daemon
}

func newStreet(t testing.TB, loops int) *street {
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		if len(q.Rcpt)%3 == 0 || rand.IntN(4) == 0 {
			q.Waits.Block()
			runtime.Gosched()
		}
		return byName(q.Rcpt)
	}}
	return &street{w, serve(t, "unix", w, Options{Loops: loops})}
}

// converse runs a whole conversation in fragments, now and then with a breath between.
func (s *street) converse(stream []byte, step int) (answers []string, asked []relay.Query, err error) {
	s.w.mu.Lock()
	s.w.queries = nil
	s.w.mu.Unlock()
	c, err := net.Dial(s.d.network, s.d.addr)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	written := make(chan struct{})
	go func() {
		defer close(written)
		for len(stream) > 0 {
			n := min(len(stream), 1+rand.IntN(step))
			if _, err := c.Write(stream[:n]); err != nil { // it was over already
				return
			}
			if stream = stream[n:]; rand.IntN(2) == 0 {
				runtime.Gosched()
			}
		}
		_ = c.(*net.UnixConn).CloseWrite()
	}()
	out, err := io.ReadAll(c)
	<-written
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		return nil, nil, fmt.Errorf("the conversation doesn't end: %w", err)
	}
	answers, err = answersIn(out) // a reset comes behind the last
	return answers, unsigned(s.w.asked()), err
}

// model is a second reading of the protocol, written for clarity: it takes the
// stream apart packet by packet and says what must be answered and asked.
type model struct {
	negotiated, connected bool
	stage                 byte
	macros                map[string]string
	q                     relay.Query
	authType, authUser    string
	answers               []string // their beginnings
	asked                 []relay.Query
}

func (m *model) run(stream []byte) {
	for len(stream) >= 5 {
		n := int(binary.BigEndian.Uint32(stream))
		code := stream[4]
		contents := code == 'L' || code == 'B'
		switch {
		case n == 0 || n > 1<<20 || n > 1<<16 && !contents, !strings.ContainsRune("DOCHMRLNBEATQ", rune(code)):
			return
		case contents && m.negotiated:
			m.answers = append(m.answers, "c")
			m.macros = nil
			stream = stream[min(len(stream), 4+n):]
			continue
		case len(stream) < 4+n:
			return
		}
		if !m.packet(code, string(stream[5:4+n])) {
			return
		}
		stream = stream[4+n:]
	}
}

func (m *model) packet(code byte, data string) bool {
	if m.negotiated == (code == 'O') {
		return false
	}
	if code == 'D' {
		return m.takeMacros(data)
	}
	if code != m.stage {
		m.macros = nil
	}
	defer func() { m.macros = nil }()
	end := strings.IndexByte(data, 0)
	switch code {
	case 'O':
		if len(data) < 12 || data[:4] < "\x00\x00\x00\x02" {
			return false
		}
		m.negotiated = true
		m.answers = append(m.answers, "O\x00\x00\x00\x02")
		return true
	case 'Q':
		return false
	case 'A':
		m.forget()
		return true
	case 'C':
		if m.connected || !m.connect(data) {
			return false
		}
		m.forget()
	case 'H', 'E':
		m.forget()
	case 'M':
		if end < 0 {
			return false
		}
		m.forget()
		m.q.Sender = stripped(data[:end])
		m.q.Queue, m.authType, m.authUser = m.macros["i"], m.macros["{auth_type}"], m.macros["{auth_authen}"]
	case 'R':
		if end < 0 {
			return false
		}
		m.remember()
		m.recipient(stripped(data[:end]))
		return true
	}
	if strings.ContainsRune("CHM", rune(code)) {
		m.remember()
	}
	m.answers = append(m.answers, "c")
	return true
}

func (m *model) forget() { m.q.Sender, m.q.Queue, m.authType, m.authUser = "", "", "", "" }

func (m *model) remember() {
	if v, ok := m.macros["{client_addr}"]; ok {
		m.q.ClientAddr = v
	}
	if v, ok := m.macros["v"]; ok {
		m.q.Version = v
	}
}

func (m *model) recipient(rcpt string) {
	if v, ok := m.macros["i"]; ok {
		m.q.Queue = v
	}
	q := m.q
	q.Rcpt, q.Mailer, q.Host, q.Addr = rcpt, m.macros["{rcpt_mailer}"], m.macros["{rcpt_host}"], m.macros["{rcpt_addr}"]
	q.AuthType, q.AuthUser = m.authType, m.authUser
	t, typed := m.macros["{auth_type}"]
	u, named := m.macros["{auth_authen}"]
	if typed || named {
		q.AuthType, q.AuthUser = t, u
	}
	m.asked = append(m.asked, q)
	m.answers = append(m.answers, map[relay.Verdict]string{relay.Pass: "c", relay.Refuse: "y550 ", relay.Defer: "y451 "}[byName(rcpt).Verdict])
}

func (m *model) takeMacros(data string) bool {
	if data == "" {
		return false
	}
	m.stage, m.macros = data[0], map[string]string{}
	if data = data[1:]; data == "" {
		return true
	}
	if !strings.HasSuffix(data, "\x00") {
		return false
	}
	parts := strings.Split(strings.TrimSuffix(data, "\x00"), "\x00")
	if len(parts)%2 != 0 {
		return false
	}
	for i := 0; i < len(parts); i += 2 {
		_, twice := m.macros[parts[i]]
		if _, wanted := macroNamed([]byte(parts[i])); twice && wanted {
			return false
		}
		m.macros[parts[i]] = parts[i+1]
	}
	return true
}

func (m *model) connect(data string) bool {
	_, rest, ok := strings.Cut(data, "\x00")
	if !ok || rest == "" {
		return false
	}
	m.connected = true
	m.q.Client = netip.Addr{}
	if rest[0] != '4' && rest[0] != '6' {
		return true
	}
	if len(rest) < 3 {
		return false
	}
	addr, _, ok := strings.Cut(rest[3:], "\x00")
	if ok {
		m.q.Client, _ = relay.ParseClient(addr)
	}
	return ok
}

func stripped(s string) string {
	if len(s) >= 2 && s[0] == '<' && s[len(s)-1] == '>' {
		return s[1 : len(s)-1]
	}
	return s
}

// judgeConversation compares what the server does with what the model says.
func judgeConversation(converse func([]byte, int) ([]string, []relay.Query, error), stream []byte, step int) error {
	answers, asked, err := converse(stream, step)
	if err != nil {
		return err
	}
	m := &model{}
	m.run(stream)
	if !slices.Equal(asked, m.asked) {
		return fmt.Errorf("asked %+v\nwant  %+v", asked, m.asked)
	}
	if len(answers) != len(m.answers) {
		return fmt.Errorf("answers %q, want %q", answers, m.answers)
	}
	for i, a := range answers {
		if !strings.HasPrefix(a, m.answers[i]) || a[0] == 'c' && a != "c" {
			return fmt.Errorf("answer %d is %q, want %q", i, a, m.answers[i])
		}
	}
	return nil
}

// conversations are what Postfix and sendmail say, in shape and order.
func conversations() [][][]byte {
	postfix := [][]byte{optneg(),
		macros('C', "j", "mx.example", "{daemon_name}", "mx.example", "{daemon_addr}", "192.0.2.25", "v", "Postfix 3.7.11", "_", "host [203.0.113.9]"),
		connect("203.0.113.9"), macros('H'), helo(),
		macros('M', "{mail_addr}", "a@b.example", "{mail_host}", "b.example", "{mail_mailer}", "smtp"), mail("<a@b.example>"),
		macros('R', "{rcpt_mailer}", "smtp", "{rcpt_host}", "c.example", "{rcpt_addr}", "x@c.example", "{client_addr}", "203.0.113.9", "v", "Postfix 3.7.11"), rcpt("<x@c.example>"),
		macros('R', "{rcpt_mailer}", "local", "{rcpt_host}", "l.example", "{rcpt_addr}", "pass@l.example", "{client_addr}", "203.0.113.9", "i", "4Zx", "v", "Postfix 3.7.11"), rcpt("<pass@l.example>"),
		abort(), macros('H', "{tls_version}", "TLSv1.3", "{cipher}", "AES", "{cipher_bits}", "256"), helo(),
		macros('M', "{auth_type}", "PLAIN", "{auth_authen}", "bob"), mail("<a@b.example>"), macros('R', "{rcpt_mailer}", "smtp", "{auth_type}", "PLAIN", "{auth_authen}", "bob"), rcpt("<later@c.example>"),
		macros('E', "i", "4Zx"), packet('E'), abort(), abort(), quit()}
	sendmail := [][]byte{optneg(),
		macros('C', "j", "mx.example", "_", "host [IPv6:2001:db8:0:0:0:0:0:9]", "{daemon_name}", "MTA", "{if_name}", "mx", "{if_addr}", "192.0.2.25"),
		packet('C', "host\x006\x9c\x40IPv6:2001:db8:0:0:0:0:0:9\x00"), macros('H'), helo(),
		macros('M', "i", "Q1", "{auth_type}", "LOGIN", "{auth_authen}", "bob@realm", "{auth_ssf}", "0", "{mail_mailer}", "esmtp"), mail("<>"),
		macros('R', "{rcpt_mailer}", "local", "{rcpt_host}", "", "{rcpt_addr}", "alice", "{client_addr}", "IPv6:2001:db8:0:0:0:0:0:9", "i", "Q1", "v", "8.17.1.9"), rcpt("<pass@l.example>"),
		macros('R', "{rcpt_mailer}", "relay", "{rcpt_host}", "gw", "{rcpt_addr}", "u%remote@gw", "v", "8.17.1.9"), rcpt("<\"x@r\"@l>"),
		packet('E'), mail("<a@b>"), rcpt("<@l:x@r>"), quit()}
	bs := [][]byte{offering(2, 0x3f, 0x7f), macros('C', "_", "root@localhost"), packet('C', "localhost\x00U"), mail("root"), rcpt("pass"), packet('L', "Subject\x00x\x00"), packet('N'), packet('B', "body\r\n"), packet('E'), quit()}
	return [][][]byte{postfix, sendmail, bs}
}

func FuzzConversation(f *testing.F) {
	for i, c := range conversations() {
		f.Add(joined(c), i*7+1)
		f.Add(joined(c), 1<<16)
	}
	s := newStreet(f, 1)
	f.Fuzz(func(t *testing.T, stream []byte, step int) {
		step = max(1, min(step, 1<<16))
		if err := judgeConversation(converse, stream, step); err != nil {
			t.Errorf("%q in steps of %d: %v", stream, step, err)
		}
		if err := judgeConversation(s.converse, stream, step); err != nil {
			t.Errorf("%q in steps of up to %d, over a socket: %v", stream, step, err)
		}
	})
}

// mutate changes a conversation as a faulty or hostile peer might: packets left
// out, doubled, exchanged, taken from another conversation, and bytes changed.
func mutate(rng *rand.Rand, all [][][]byte) []byte {
	c := slices.Clone(all[rng.IntN(len(all))])
	for range rng.IntN(4) {
		i, j := rng.IntN(len(c)), rng.IntN(len(c))
		switch rng.IntN(5) {
		case 0:
			c = slices.Delete(c, i, i+1)
		case 1:
			c = slices.Insert(c, i, c[j])
		case 2:
			c[i], c[j] = c[j], c[i]
		case 3:
			other := all[rng.IntN(len(all))]
			c = slices.Insert(c, i, other[rng.IntN(len(other))])
		case 4:
			c[i] = slices.Concat(c[i], c[j])[:rng.IntN(len(c[i])+len(c[j])+1)]
		}
		if len(c) == 0 {
			return nil
		}
	}
	stream := joined(c)
	for range rng.IntN(4) {
		if len(stream) == 0 {
			break
		}
		i := rng.IntN(len(stream))
		switch rng.IntN(4) {
		case 0:
			stream[i] = byte(rng.Uint32())
		case 1:
			stream[i] ^= 1 << rng.IntN(8)
		case 2:
			stream[i] = "\x00DOCHMRLNBEATQUK<>@"[rng.IntN(18)]
		case 3:
			stream = stream[:i]
		}
	}
	return stream
}

// number reads an environment variable.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s=%q: not a number", name, s)
	}
	return n
}

// TestMutatedConversations runs 5,000 mutated conversations, or as many as
// POPGATE_CONVERSATIONS says, and prints the seed with which POPGATE_SEED repeats
// a failure. Every fifth runs over a socket too, where the fragments are others each
// time.
func TestMutatedConversations(t *testing.T) {
	runs := number(t, "POPGATE_CONVERSATIONS", 5000)
	seed := number(t, "POPGATE_SEED", uint64(time.Now().UnixNano()))
	t.Logf("POPGATE_CONVERSATIONS=%d POPGATE_SEED=%d", runs, seed)
	all := conversations()
	var workers sync.WaitGroup
	const n = 2
	streets := [n]*street{newStreet(t, 1), newStreet(t, 3)}
	for w := range uint64(n) {
		workers.Go(func() {
			rng := rand.New(rand.NewPCG(seed, w))
			for i := range runs / n {
				stream, step := mutate(rng, all), 1+rng.IntN(600)
				if err := judgeConversation(converse, stream, step); err != nil {
					t.Errorf("%q in steps of %d: %v", stream, step, err)
					return
				}
				if i%5 > 0 {
					continue
				}
				if err := judgeConversation(streets[w].converse, stream, step); err != nil {
					t.Errorf("%q in steps of up to %d, over a socket: %v", stream, step, err)
					return
				}
			}
		})
	}
	workers.Wait()
}
