package milter

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	gomilter "github.com/emersion/go-milter"

	"popgate/internal/relay"
)

func TestNegotiation(t *testing.T) {
	const list = "\x00\x00\x00\x03{rcpt_mailer} {rcpt_host} {rcpt_addr} {client_addr} {auth_authen} {auth_type} i v\x00"
	for _, tt := range []struct {
		name string
		send []byte
		want string
	}{
		{"version 2, macros asked for at RCPT, HELO, headers and body left out, every reply promised",
			optneg(), "O\x00\x00\x00\x02\x00\x00\x01\x00\x00\x00\x00\x72" + list},
		{"what an old MTA doesn't offer isn't asked for",
			offering(2, 0x3f, 0x3f), "O\x00\x00\x00\x02\x00\x00\x00\x00\x00\x00\x00\x32"},
		{"a longer offer is read as far as it is known",
			packet('O', "\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff\x00\x00\x00\x03i\x00"),
			"O\x00\x00\x00\x02\x00\x00\x01\x00\x00\x00\x00\x72" + list},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := dial(t, serve(t, "unix", &witness{}, Options{}))
			m.send(tt.send)
			if got := m.reply(); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

// TestQueries says what the judge is asked after a conversation. What the
// packets hold is as Postfix and sendmail send it.
func TestQueries(t *testing.T) {
	tagged := packet('C', "host\x00", "6", "\x00\x19", "IPv6:2001:db8:0:0:0:0:0:9\x00")
	auth := []string{"{auth_type}", "PLAIN", "{auth_authen}", "bob"}
	c4 := connect("203.0.113.9")
	for _, tt := range []struct {
		name string
		send [][]byte
		want []relay.Query // Door and Waits left out
	}{
		{"one transaction of Postfix", [][]byte{
			macros('C', "j", "mx.example", "{daemon_name}", "smtpd", "{daemon_addr}", "192.0.2.1", "v", "Postfix 3.7.11", "_", "host [203.0.113.9]"), c4,
			macros('H'), helo(),
			macros('M', "{mail_addr}", "a@b.example", "{mail_host}", "b.example", "{mail_mailer}", "smtp"), mail("<a@b.example>"),
			macros('R', "{rcpt_mailer}", "smtp", "{rcpt_host}", "c.example", "{rcpt_addr}", "x@c.example", "{client_addr}", "203.0.113.9", "v", "Postfix 3.7.11"), rcpt("<X@c.example>")},
			[]relay.Query{{Client: client4, ClientAddr: "203.0.113.9", Rcpt: "X@c.example", Sender: "a@b.example", Version: "Postfix 3.7.11",
				Mailer: "smtp", Host: "c.example", Addr: "x@c.example"}}},
		{"one transaction of sendmail over IPv6", [][]byte{
			macros('C', "j", "mx.example", "_", "host [IPv6:2001:db8:0:0:0:0:0:9]", "{daemon_name}", "MTA"), tagged,
			helo(),
			macros('M', "i", "Q1", "{mail_mailer}", "esmtp", "{mail_host}", "b.example.", "{mail_addr}", "a@b.example"), mail("<a@b.example>"),
			macros('R', "{rcpt_mailer}", "local", "{rcpt_host}", "", "{rcpt_addr}", "alice", "{client_addr}", "IPv6:2001:db8:0:0:0:0:0:9", "i", "Q1", "v", "8.17.1.9"), rcpt("<alice@l.example>")},
			[]relay.Query{{Client: client6, ClientAddr: "IPv6:2001:db8:0:0:0:0:0:9", Rcpt: "alice@l.example", Sender: "a@b.example", Queue: "Q1",
				Version: "8.17.1.9", Mailer: "local", Addr: "alice"}}},
		{"IPv6 tag of sendmail", [][]byte{tagged, rcpt("<x@y>")}, []relay.Query{{Client: client6, Rcpt: "x@y"}}},
		{"no address: family U of sendmail -bs", [][]byte{packet('C', "localhost\x00U"), rcpt("<x@y>")}, []relay.Query{{Rcpt: "x@y"}}},
		{"no address: a unix socket's", [][]byte{packet('C', "localhost\x00L\x00\x00/run/s\x00"), rcpt("<x@y>")}, []relay.Query{{Rcpt: "x@y"}}},
		{"no address: a text that is none", [][]byte{packet('C', "h\x004\x00\x19unknown\x00"), rcpt("<x@y>")}, []relay.Query{{Rcpt: "x@y"}}},
		{"no address: no CONNECT", [][]byte{mail("<a@b>"), rcpt("<x@y>")}, []relay.Query{{Rcpt: "x@y", Sender: "a@b"}}},
		{"mapped addresses are IPv4", [][]byte{connect("::ffff:203.0.113.9"), rcpt("<x@y>")}, []relay.Query{{Client: client4, Rcpt: "x@y"}}},
		{"client_addr differs from CONNECT: both are handed on", [][]byte{c4, macros('R', "{client_addr}", "198.51.100.1"), rcpt("<x@y>")},
			[]relay.Query{{Client: client4, ClientAddr: "198.51.100.1", Rcpt: "x@y"}}},
		{"client_addr and v told at CONNECT hold at RCPT", [][]byte{macros('C', "{client_addr}", "203.0.113.9", "v", "8.17.1.9"), c4, helo(), mail("<>"), rcpt("<x@y>"), abort(), mail("<>"), rcpt("<x@z>")},
			[]relay.Query{{Client: client4, ClientAddr: "203.0.113.9", Version: "8.17.1.9", Rcpt: "x@y"}, {Client: client4, ClientAddr: "203.0.113.9", Version: "8.17.1.9", Rcpt: "x@z"}}},
		{"macros of the first recipient are not those of the second", [][]byte{c4, mail("<a@b>"),
			macros('R', "{rcpt_mailer}", "local", "{rcpt_host}", "h", "{rcpt_addr}", "alice", "{auth_type}", "PLAIN", "{auth_authen}", "bob"), rcpt("<alice@l>"), rcpt("<x@y>")},
			[]relay.Query{{Client: client4, Sender: "a@b", Rcpt: "alice@l", Mailer: "local", Host: "h", Addr: "alice", AuthType: "PLAIN", AuthUser: "bob"}, {Client: client4, Sender: "a@b", Rcpt: "x@y"}}},
		{"macros belong to the command right behind them", [][]byte{c4, mail("<a@b>"),
			macros('R', "{rcpt_mailer}", "local", "{rcpt_addr}", "alice"), helo(), rcpt("<x@y>"),
			macros('R', "{rcpt_mailer}", "local"), macros('M', "i", "Q"), rcpt("<x@z>")},
			[]relay.Query{{Client: client4, Rcpt: "x@y"}, {Client: client4, Rcpt: "x@z"}}},
		{"the second of two packets for one command counts", [][]byte{c4, macros('R', "{rcpt_mailer}", "local"), macros('R', "{rcpt_mailer}", "smtp"), rcpt("<x@y>")},
			[]relay.Query{{Client: client4, Rcpt: "x@y", Mailer: "smtp"}}},
		{"authenticated at MAIL, for all recipients of the transaction", [][]byte{c4, macros('M', auth...), mail("<a@b>"), rcpt("<x@y>"), macros('R', "{rcpt_mailer}", "smtp"), rcpt("<x@z>")},
			[]relay.Query{{Client: client4, Sender: "a@b", Rcpt: "x@y", AuthType: "PLAIN", AuthUser: "bob"}, {Client: client4, Sender: "a@b", Rcpt: "x@z", Mailer: "smtp", AuthType: "PLAIN", AuthUser: "bob"}}},
		{"auth from the previous transaction does not authenticate the next: ABORT", [][]byte{c4, macros('M', auth...), mail("<a@b>"), abort(), rcpt("<x@y>")}, []relay.Query{{Client: client4, Rcpt: "x@y"}}},
		{"auth from the previous transaction does not authenticate the next: MAIL", [][]byte{c4, macros('M', auth...), mail("<a@b>"), macros('M', "i", "Q2"), mail("<c@d>"), rcpt("<x@y>")},
			[]relay.Query{{Client: client4, Sender: "c@d", Queue: "Q2", Rcpt: "x@y"}}},
		{"auth from the previous transaction does not authenticate the next: HELO after STARTTLS", [][]byte{c4, macros('M', auth...), mail("<a@b>"), macros('H', "{tls_version}", "TLSv1.3"), helo(), rcpt("<x@y>")}, []relay.Query{{Client: client4, Rcpt: "x@y"}}},
		{"auth from the previous transaction does not authenticate the next: end of message", [][]byte{c4, macros('M', auth...), mail("<a@b>"), macros('E', "i", "Q"), packet('E'), rcpt("<x@y>")}, []relay.Query{{Client: client4, Rcpt: "x@y"}}},
		{"half an authentication at RCPT is not completed from MAIL", [][]byte{c4, macros('M', auth...), mail("<a@b>"), macros('R', "{auth_type}", "PLAIN"), rcpt("<x@y>")},
			[]relay.Query{{Client: client4, Sender: "a@b", Rcpt: "x@y", AuthType: "PLAIN"}}},
		{"macros sent with a value that is empty", [][]byte{c4, macros('R', "{rcpt_mailer}", "", "{rcpt_host}", "", "{rcpt_addr}", "", "i", "", "v", ""), rcpt("<x@y>")}, []relay.Query{{Client: client4, Rcpt: "x@y"}}},
		{"queue id known from the second recipient on", [][]byte{c4, mail("<a@b>"), rcpt("<x@y>"), macros('R', "i", "Q9"), rcpt("<x@z>")},
			[]relay.Query{{Client: client4, Sender: "a@b", Rcpt: "x@y"}, {Client: client4, Sender: "a@b", Queue: "Q9", Rcpt: "x@z"}}},
		{"one pair of brackets is taken off, no more", [][]byte{c4, rcpt("<<x@y>>"), rcpt("x@y"), rcpt("<x@y"), rcpt("x@y>"), rcpt("<>"), rcpt("<"), rcpt(""), rcpt("<x@y> ")},
			[]relay.Query{{Client: client4, Rcpt: "<x@y>"}, {Client: client4, Rcpt: "x@y"}, {Client: client4, Rcpt: "<x@y"}, {Client: client4, Rcpt: "x@y>"},
				{Client: client4}, {Client: client4, Rcpt: "<"}, {Client: client4}, {Client: client4, Rcpt: "<x@y> "}}},
		{"a recipient's own bytes are kept: case, quotes, routes, arguments cut off", [][]byte{c4, packet('R', "<@L:\"x@R\"@l\t%>\x00NOTIFY=NEVER\x00ORCPT=rfc822;q\x00")},
			[]relay.Query{{Client: client4, Rcpt: "@L:\"x@R\"@l\t%"}}},
		{"STARTTLS, second HELO, XCLIENT's own QUIT: the client stays", [][]byte{c4, helo(), abort(), helo(), mail("<>"), abort(), abort(), rcpt("<x@y>")}, []relay.Query{{Client: client4, Rcpt: "x@y"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &witness{}
			m := dial(t, serve(t, "unix", w, Options{}))
			m.send(append(append([][]byte{optneg()}, tt.send...), quit())...)
			for m.reply() != "end" {
			}
			got := w.asked()
			for i := range got {
				if got[i].Door != "milter" || got[i].Waits == nil {
					t.Errorf("query %d: door %q, waits %v", i, got[i].Door, got[i].Waits)
				}
				got[i].Door, got[i].Waits = "", nil
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got  %+v\nwant %+v", got, tt.want)
			}
		})
	}
}

func TestWaitsAreTheConnectionsAndBeginAtMail(t *testing.T) {
	var seen []relay.Waits
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		seen = append(seen, relay.Waits{Transaction: q.Waits.Transaction, Count: q.Waits.Count})
		q.Waits.Transaction = true
		q.Waits.Count++
		return passed
	}}
	m := begun(t, serve(t, "unix", w, Options{}), client4)
	m.want("c", mail("<>"))
	m.want("c", rcpt("<a@b>"))
	m.want("c", rcpt("<a@b>"))
	m.want("c", abort(), helo())
	m.want("c", rcpt("<a@b>"))
	m.want("c", mail("<>"))
	m.want("c", rcpt("<a@b>"))
	want := []relay.Waits{{}, {Transaction: true, Count: 1}, {Transaction: true, Count: 2}, {Count: 3}}
	if !slices.Equal(seen, want) {
		t.Errorf("waits %v, want %v", seen, want)
	}
}

func TestSameVerdictOnTheFirstAndTheThousandthMessage(t *testing.T) {
	// What happened before must not matter: passes, refusals, RSET, EHLO,
	// STARTTLS (ABORT and a second HELO), ends of messages.
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		switch {
		case q.Client != client4:
			return deferred
		case strings.HasPrefix(q.Rcpt, "pass"):
			return passed
		}
		return refused
	}}
	m := begun(t, serve(t, "unix", w, Options{}), client4)
	for i := range 1000 {
		m.want("c", macros('M', "i", fmt.Sprint("Q", i)), mail("<a@b>"))
		m.want("y550 5.7.1 ", macros('R', "{rcpt_mailer}", "smtp"), rcpt("<x@c.example>"))
		m.want("c", macros('R', "{rcpt_mailer}", "local"), rcpt("<pass@l.example>"))
		switch i % 5 {
		case 0:
			m.want("c", macros('E', "i", "Q"), packet('E'))
			m.send(abort())
		case 1:
			m.send(abort())
		case 2:
			m.want("c", helo())
		case 3:
			m.want("c", abort(), macros('H', "{tls_version}", "TLSv1.3"), helo())
		case 4:
			m.want("c", packet('E'))
		}
	}
}

func TestRecipientsOfBothKindsPipelined(t *testing.T) {
	m := begun(t, serve(t, "unix", &witness{}, Options{}), client4)
	var all [][]byte
	for range 200 {
		all = append(all, mail("<a@b>"), macros('R', "{rcpt_mailer}", "smtp"), rcpt("<no@c>"), macros('R', "{rcpt_mailer}", "local"), rcpt("<pass@l>"), rcpt("<later@d>"), abort())
	}
	go m.conn.Write(append(joined(all), quit()...))
	for i := range 200 {
		for _, want := range []string{"c", "y550 ", "c", "y451 "} {
			if got := m.reply(); !strings.HasPrefix(got, want) {
				t.Fatalf("message %d: %q, want %q", i, got, want)
			}
		}
	}
	m.ended()
}

func joined(packets [][]byte) []byte { return slices.Concat(packets...) }

func TestSplitAtEveryByte(t *testing.T) {
	stream := joined([][]byte{optneg(), macros('C', "v", "Postfix 3"), connect("203.0.113.9"), helo(), mail("<a@b>"),
		macros('R', "{rcpt_mailer}", "smtp", "{rcpt_addr}", "x@c"), rcpt("<x@c>"), rcpt("<pass@l>"), packet('L', "Subject\x00hello\x00"), packet('E'), quit()})
	d := serve(t, "tcp", &witness{}, Options{})
	for at := range stream {
		m := dial(t, d)
		m.conn.Write(stream[:at])
		m.conn.Write(stream[at:])
		for _, want := range []string{"O", "c", "c", "c", "y550 ", "c", "c", "c", "end"} {
			if got := m.reply(); !strings.HasPrefix(got, want) {
				t.Fatalf("split at %d: %q, want %q", at, got, want)
			}
		}
	}
	m := dial(t, d)
	for i := range stream { // and at all of them at once
		m.conn.Write(stream[i : i+1])
	}
	for _, want := range []string{"O", "c", "c", "c", "y550 ", "c", "c", "c", "end"} {
		if got := m.reply(); !strings.HasPrefix(got, want) {
			t.Fatalf("byte by byte: %q, want %q", got, want)
		}
	}
	if s := d.Stats(); s.BadPackets != 0 {
		t.Errorf("counted bad packets: %+v", s)
	}
}

func TestAnMTAThatCannotLeaveOutHeadersAndBody(t *testing.T) {
	w := &witness{}
	d := serve(t, "unix", w, Options{})
	m := dial(t, d)
	m.want("O", offering(2, 0, 0))
	m.want("c", connect("203.0.113.9"))
	for range 3 {
		m.want("c", mail("<a@b>"))
		m.want("c", rcpt("<pass@l>"))
		m.want("c", packet('L', "Subject\x00", strings.Repeat("x", 150_000), "\x00"))
		m.want("c", packet('L'))
		m.want("c", packet('N'))
		m.want("c", packet('B', strings.Repeat("y", 65535)))
		m.want("c", packet('B'))
		m.want("c", packet('E'))
		m.want("y550 ", rcpt("<x@c>"))
	}
	if s := d.Stats(); s.BadPackets != 0 || s.Open != 1 {
		t.Errorf("%+v", s)
	}
}

func TestLibrarysOwnClient(t *testing.T) {
	d := serve(t, "unix", &witness{}, Options{})
	client := gomilter.NewClientWithOptions(d.network, d.addr, gomilter.ClientOptions{})
	defer client.Close()
	s, err := client.Session()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := func(what string, code gomilter.ActionCode, a *gomilter.Action, err error) {
		t.Helper()
		if err != nil || a.Code != code {
			t.Fatalf("%s: %+v, %v", what, a, err)
		}
	}
	a, err := s.Conn("client.example", gomilter.FamilyInet, 25, "203.0.113.9")
	want("conn", gomilter.ActContinue, a, err)
	a, err = s.Helo("client.example")
	want("helo", gomilter.ActContinue, a, err)
	for range 3 {
		a, err = s.Mail("a@b.example", nil)
		want("mail", gomilter.ActContinue, a, err)
		a, err = s.Rcpt("x@c.example", nil)
		want("refused", gomilter.ActReplyCode, a, err)
		if a.SMTPCode != 550 || !strings.Contains(a.SMTPText, "203.0.113.9") {
			t.Errorf("reply %d %q", a.SMTPCode, a.SMTPText)
		}
		a, err = s.Rcpt("pass@l.example", nil)
		want("passed", gomilter.ActContinue, a, err)
		if err := s.Abort(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNoAllocationOfOursForARecipient(t *testing.T) {
	if raced {
		t.Skip("the race detector has pools forget")
	}
	j := &judgeOf{decision: refused}
	l := newListener(NewServer(j, Options{}), t.Context())
	c := newConn(l)
	c.wire = discard{}
	c.client = client4
	if _, err := c.session.Connect("", "", 0, nil, nil); err != nil {
		t.Fatal(err)
	}
	argument := []byte("<x@c.example>")
	told := macros('R', "{rcpt_mailer}", "smtp", "{rcpt_host}", "c.example", "{rcpt_addr}", "x@c.example", "{client_addr}", "203.0.113.9", "i", "Q1", "v", "Postfix 3.7.11")[5:]
	if n := testing.AllocsPerRun(1000, func() {
		c.takeMacros(told)
		c.argument = argument
		if _, err := c.session.RcptTo("x@c.example", nil); err != nil {
			t.Fatal(err)
		}
		c.done()
	}); n != 0 {
		t.Errorf("%v allocations for one recipient", n)
	}
}

// judgeOf is a judge without memory.
type judgeOf struct{ decision relay.Decision }

func (j *judgeOf) Judge(context.Context, *relay.Query) relay.Decision { return j.decision }
func (j *judgeOf) Reply(relay.Decision, netip.Addr) relay.Reply {
	return relay.Reply{Code: 550, Enhanced: "5.7.1", Text: "no"}
}
func (j *judgeOf) Generation() uint64 { return 1 }

// discard is a connection into which everything can be written.
type discard struct{ net.Conn }

func (discard) Write(p []byte) (int, error) { return len(p), nil }
