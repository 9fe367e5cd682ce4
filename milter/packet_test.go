package milter

import (
	"io"
	"net/netip"
	"strings"
	"testing"

	"popgate/internal/relay"
)

// TestBadPackets: each costs its connection, is counted once, is answered by
// nothing, and leaves the daemon to others. TestMain sees that the library
// logged none of it.
func TestBadPackets(t *testing.T) {
	d := serve(t, "unix", &witness{}, Options{})
	for _, tt := range []struct {
		name  string
		begin bool // negotiate and connect first
		send  []byte
	}{
		{"length zero", true, []byte{0, 0, 0, 0, 'R'}},
		{"length beyond all bounds", true, []byte{0xff, 0xff, 0xff, 0xff, 'R'}},
		{"a recipient of 64 KiB", true, packet('R', strings.Repeat("x", 1<<16), "\x00")},
		{"macros of 64 KiB", true, macros('R', "v", strings.Repeat("x", 1<<16))},
		{"a body of more than 1 MiB", true, []byte{0, 0x20, 0, 0, 'B'}},
		{"unknown command", true, packet('?')},
		{"command U, which version 2 doesn't have", true, packet('U', "XFOO\x00")},
		{"command K, which version 2 doesn't have", true, packet('K')},
		{"an SMTP client", false, []byte("EHLO client.example\r\n")},
		{"a web browser", false, []byte("GET / HTTP/1.1\r\n\r\n")},
		{"a command before the negotiation", false, rcpt("<pass@l>")},
		{"macros before the negotiation", false, macros('C', "v", "x")},
		{"a negotiation without its numbers", false, packet('O', "\x00\x00\x00\x06")},
		{"a version before 2", false, offering(1, 0x1ff, 0x1fffff)},
		{"a second negotiation", true, optneg()},
		{"a second CONNECT, of another client", true, connect("198.51.100.1")},
		{"a second CONNECT, of the same client", true, connect("203.0.113.9")},
		{"CONNECT without a family", false, joined([][]byte{optneg(), packet('C', "host\x00")})},
		{"CONNECT without the end of its host name", false, joined([][]byte{optneg(), packet('C', "host")})},
		{"CONNECT without a port", false, joined([][]byte{optneg(), packet('C', "host\x004\x00")})},
		{"CONNECT without the end of its address", false, joined([][]byte{optneg(), packet('C', "host\x004\x00\x19203.0.113.9")})},
		{"a recipient without end", true, packet('R', "<pass@l>")},
		{"a recipient packet with nothing in it", true, packet('R')},
		{"a sender without end", true, packet('M', "<pass@l>")},
		{"macros for no command", true, packet('D')},
		{"a macro without value", true, packet('D', "Rv\x00")},
		{"a macro value without end", true, packet('D', "Rv\x00Postfix")},
		{"a macro with two values", true, macros('R', "{rcpt_mailer}", "local", "{rcpt_mailer}", "smtp")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := d.Stats().BadPackets
			m := dial(t, d)
			if tt.begin {
				m.want("O", optneg())
				m.want("c", connect("203.0.113.9"))
			}
			m.conn.Write(joined([][]byte{tt.send, rcpt("<pass@l>"), quit()}))
			for {
				if got := m.reply(); got == "end" {
					break
				} else if got[0] != 'O' {
					t.Fatalf("answered %q", got)
				}
			}
			d.until(t, "counted", func(s Stats) bool { return s.BadPackets == before+1 && s.Open == 0 })
		})
	}
	m := begun(t, d, client4)
	m.want("c", rcpt("<pass@l>"))
}

func TestPacketCutShort(t *testing.T) {
	d := serve(t, "unix", &witness{}, Options{})
	whole := macros('R', "{rcpt_mailer}", "local")
	for at := 1; at < len(whole); at++ {
		m := begun(t, d, client4)
		m.send(whole[:at])
		m.conn.Close()
		d.until(t, "counted", func(s Stats) bool { return s.BadPackets == uint64(at) && s.Open == 0 })
	}
	m := begun(t, d, client4)
	m.want("c", []byte{0, 1, 0, 0, 'B', 1, 2, 3}) // contents nobody needs
	m.conn.Close()
	d.until(t, "counted", func(s Stats) bool { return s.BadPackets == uint64(len(whole)) && s.Open == 0 })
}

func TestAHangUpBetweenPacketsIsNoFault(t *testing.T) {
	d := serve(t, "unix", &witness{}, Options{})
	dial(t, d).conn.Close()
	m := begun(t, d, client4)
	m.conn.Close()
	m = begun(t, d, client4)
	m.send(quit())
	m.ended()
	d.until(t, "ended", func(s Stats) bool { return s.Open == 0 && s.Total == 3 })
	if s := d.Stats(); s != (Stats{Total: 3}) {
		t.Errorf("%+v", s)
	}
}

func TestBufferGrowsAndIsGivenBack(t *testing.T) {
	l := newListener(NewServer(&judgeOf{}, Options{}), t.Context())
	large := macros('R', "{rcpt_addr}", strings.Repeat("x", 50_000))
	stream := &script{in: joined([][]byte{optneg(), large, rcpt("<x@y>")}), step: 7}
	c := newConn(l)
	c.wire = stream
	w := &worker{queue: alone{c}}
	for range 2 { // a length, then the rest, as the library reads
		for _, p := range [][]byte{make([]byte, 4), make([]byte, 20)} {
			if n, err := w.Read(p); n == 0 || err != nil {
				t.Fatal(n, err)
			}
		}
	}
	if n := len(c.macrosFor('R').value(macroAddr)); n != 50_000 {
		t.Fatalf("the large macro has %d bytes", n)
	}
	if n, err := w.Read(make([]byte, 4)); n != 0 || err != io.EOF {
		t.Fatalf("out of nothing: %d, %v", n, err)
	}
	if len(c.buf) > firstBuffer || c.macros != nil || cap(borrowMacros().text) > keepMacros {
		t.Errorf("a connection keeps %d bytes, and macros: %v", len(c.buf), c.macros)
	}
}

func TestReplies(t *testing.T) {
	for _, tt := range []struct {
		name  string
		reply relay.Reply
		want  string
	}{
		{"as configured", relay.Reply{Code: 550, Enhanced: "5.7.1", Text: "Relaying denied"}, "y550 5.7.1 Relaying denied\x00"},
		{"a temporary one", relay.Reply{Code: 450, Enhanced: "4.7.1", Text: "Later"}, "y450 4.7.1 Later\x00"},
		{"without enhanced code", relay.Reply{Code: 550, Text: "No"}, "y550 No\x00"},
		{"percent is doubled", relay.Reply{Code: 550, Enhanced: "5.7.1", Text: "100% of %s"}, "y550 5.7.1 100%% of %%s\x00"},
		{"no line ends, no NUL, nothing outside ASCII", relay.Reply{Code: 550, Enhanced: "5.7.1", Text: "a\r\n250 b\x00c\x7f\xe9"}, "y550 5.7.1 a  250 b c??\x00"},
		{"not in the enhanced code either", relay.Reply{Code: 550, Enhanced: "5.7.1\r\n%", Text: "x"}, "y550 5.7.1  %% x\x00"},
		{"fits a line", relay.Reply{Code: 550, Enhanced: "5.7.1", Text: strings.Repeat("x", 1000)}, "y550 5.7.1 " + strings.Repeat("x", maxReplyText) + "\x00"},
		{"none", relay.Reply{}, string(later[lengthSize:])},
		{"bare code", relay.Reply{Code: 550}, string(later[lengthSize:])},
		{"a success", relay.Reply{Code: 250, Enhanced: "2.0.0", Text: "ok"}, string(later[lengthSize:])},
		{"one that ends the client's session", relay.Reply{Code: 421, Enhanced: "4.7.1", Text: "x"}, string(later[lengthSize:])},
		{"no SMTP code", relay.Reply{Code: 5501, Text: "x"}, string(later[lengthSize:])},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := &witness{reply: func(relay.Decision, netip.Addr) relay.Reply { return tt.reply }}
			m := begun(t, serve(t, "unix", w, Options{}), client4)
			m.send(rcpt("<x@y>"))
			if got := m.reply(); got != tt.want {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
		})
	}
}

func TestVerdictNobodyKnowsIsNoPass(t *testing.T) {
	for v := range 256 {
		if relay.Verdict(v) == relay.Pass {
			continue
		}
		p := (&lastRefusal{}).refuse(&witness{}, relay.Decision{Verdict: relay.Verdict(v)}, client4)
		if p[lengthSize] != 'y' {
			t.Errorf("verdict %d: %q", v, p)
		}
	}
}

func TestRefusalIsMadeAnewWhenAnythingChanges(t *testing.T) {
	w := &witness{reply: func(d relay.Decision, client netip.Addr) relay.Reply {
		return relay.Reply{Code: 550, Enhanced: "5.7.1", Text: d.Reason.String() + " " + client.String()}
	}}
	m := begun(t, serve(t, "unix", w, Options{}), client4)
	step := func(want string, replies int64, packets ...[]byte) {
		t.Helper()
		m.want("y550 5.7.1 "+want, packets...)
		if n := w.replies.Load(); n != replies {
			t.Errorf("replies made: %d, want %d", n, replies)
		}
	}
	step("no_grant 203.0.113.9", 1, rcpt("<x@y>"))
	step("no_grant 203.0.113.9", 1, rcpt("<x@z>"))
	step("not_ready 203.0.113.9", 2, rcpt("<later@z>"))
	step("no_grant 203.0.113.9", 3, rcpt("<x@y>"))
	step("no_grant invalid IP", 4, macros('R', "{client_addr}", "198.51.100.1"), rcpt("<x@y>"))
	step("no_grant 203.0.113.9", 5, macros('R', "{client_addr}", "203.0.113.9"), rcpt("<x@y>"))
	w.generation.Add(1)
	step("no_grant 203.0.113.9", 6, rcpt("<x@y>"))
	step("no_grant 203.0.113.9", 6, rcpt("<x@y>"))
}
