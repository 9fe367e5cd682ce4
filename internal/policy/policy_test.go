package policy

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

const (
	bob   = "198.51.100.7"  // holds a grant
	eve   = "203.0.113.66"  // a stranger
	maybe = "203.0.113.99"  // nobody can tell
	bob6  = "2001:db8::7"   // holds a grant
	bob6s = "2001:0:0:0::7" // does not
)

// witness judges by the client's address and remembers what it was asked.
type witness struct {
	mu      sync.Mutex
	queries []relay.Query
	answer  func(ctx context.Context, q *relay.Query) relay.Decision // nil: by address
}

func (w *witness) JudgeClient(ctx context.Context, q *relay.Query) relay.Decision {
	w.mu.Lock()
	w.queries = append(w.queries, *q)
	w.mu.Unlock()
	if w.answer != nil {
		return w.answer(ctx, q)
	}
	switch client := q.Client; {
	case client == netip.MustParseAddr(bob), client == netip.MustParseAddr(bob6):
		return relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonGrant}
	case q.Authenticated():
		return relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonAuthenticated}
	case strings.HasSuffix(q.Rcpt, "@local.test"):
		return relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonLocal}
	case !client.IsValid():
		return relay.Decision{Verdict: relay.Defer, Reason: relay.ReasonNoClient}
	case client == netip.MustParseAddr(maybe):
		return relay.Decision{Verdict: relay.Defer, Reason: relay.ReasonNotReady}
	default:
		return relay.Decision{Verdict: relay.Refuse, Reason: relay.ReasonNoGrant}
	}
}

func (w *witness) asked() []relay.Query {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.queries)
}

const (
	yes       = "action=OK\n\n"
	dunno     = "action=DUNNO\n\n"
	putOff    = "action=451 4.7.1 Relaying cannot be decided at the moment, try again later\n\n"
	mapNo     = "9:NOTFOUND ,"
	mapPutOff = "62:TEMP Relaying cannot be decided at the moment, try again later,"
	mapNone   = "59:PERM no such map; there are postfix, popgate, drac and exim,"
)

// asPostfix gives a request as Postfix 3.7 sends it; changes are name=value, and
// a name alone takes the attribute away.
func asPostfix(client string, changes ...string) string {
	lines := []string{"request=smtpd_access_policy", "protocol_state=RCPT", "protocol_name=ESMTP", "client_address=" + client,
		"client_name=unknown", "client_port=45678", "reverse_client_name=unknown", "server_address=192.0.2.1", "server_port=25",
		"helo_name=copier", "sender=scan@local.test", "recipient=x@remote.test", "recipient_count=0", "queue_id=",
		"instance=1a2b.6563.0", "size=1234", "etrn_domain=", "stress=", "sasl_method=", "sasl_username=", "sasl_sender=",
		"ccert_subject=", "ccert_issuer=", "ccert_fingerprint=", "ccert_pubkey_fingerprint=", "encryption_protocol=",
		"encryption_cipher=", "encryption_keysize=0", "policy_context=", "compatibility_level=3.6", "mail_version=3.7.11"}
	for _, c := range changes {
		name, _, has := strings.Cut(c, "=")
		i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, name+"=") })
		switch {
		case !has:
			lines = slices.Delete(lines, i, i+1)
		case i < 0:
			lines = append(lines, c)
		default:
			lines[i] = c
		}
	}
	return strings.Join(lines, "\n") + "\n\n"
}

// added gives a request with further lines at its end.
func added(request string, lines ...string) string {
	return strings.TrimSuffix(request, "\n") + strings.Join(lines, "\n") + "\n\n"
}

// requestOf gives a request of a granted client that is so long.
func requestOf(length int) string {
	short := asPostfix(bob, "sender=")
	return asPostfix(bob, "sender="+strings.Repeat("a", length-len(short)))
}

func TestDelegation(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
		ends             bool // and counts as bad
	}{
		{"granted client", asPostfix(bob), yes, false},
		{"granted IPv6 client", asPostfix(bob6), yes, false},
		{"granted client written v4-mapped", asPostfix("::ffff:" + bob), yes, false},
		{"stranger is left to the rule behind", asPostfix(eve), dunno, false},
		{"cannot tell is a reply code", asPostfix(maybe), putOff, false},
		{"recipient of ours is left to Postfix", asPostfix(eve, "recipient=x@local.test"), dunno, false},
		{"recipient of ours, granted client", asPostfix(bob, "recipient=x@local.test"), yes, false},
		{"authenticated stranger", asPostfix(eve, "sasl_method=PLAIN", "sasl_username=alice"), yes, false},
		{"mechanism without a user", asPostfix(eve, "sasl_method=PLAIN"), dunno, false},
		{"anonymous authentication", asPostfix(eve, "sasl_method=ANONYMOUS", "sasl_username=alice"), dunno, false},
		{"attributes nobody knows", asPostfix(bob, "future_attribute=a=b==", "x y=z"), yes, false},
		{"only what is needed", "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=" + bob + "\nrecipient=x@remote.test\n\n", yes, false},

		{"granted client at CONNECT", asPostfix(bob, "protocol_state=CONNECT"), dunno, false},
		{"granted client at MAIL", asPostfix(bob, "protocol_state=MAIL"), dunno, false},
		{"granted client at DATA, several recipients", asPostfix(bob, "protocol_state=DATA", "recipient="), dunno, false},
		{"granted client at END-OF-MESSAGE", asPostfix(bob, "protocol_state=END-OF-MESSAGE"), dunno, false},
		{"granted client at VRFY", asPostfix(bob, "protocol_state=VRFY"), dunno, false},
		{"a state in lower case", asPostfix(bob, "protocol_state=rcpt"), dunno, false},
		{"cannot tell at MAIL", asPostfix(maybe, "protocol_state=MAIL"), dunno, false},

		{"no client address", asPostfix(bob, "client_address"), putOff, false},
		{"PTR that looks like an address", asPostfix(eve, "client_name="+bob, "reverse_client_name="+bob), dunno, false},
		{"name that begins like an address", asPostfix(bob + ".example"), putOff, false},
		{"address with a zone", asPostfix(bob6 + "%eth0"), putOff, false},
		{"link-local address with a zone", asPostfix("fe80::1%eth0"), putOff, false},
		{"address in brackets", asPostfix("[" + bob + "]"), putOff, false},
		{"address with a port", asPostfix(bob + ":25"), putOff, false},
		{"network", asPostfix(bob + "/32"), putOff, false},
		{"part of an address", asPostfix("198.51.100"), putOff, false},
		{"leading zero", asPostfix("198.51.100.07"), putOff, false},
		{"blank before the address", asPostfix(" " + bob), putOff, false},
		{"address with carriage return", asPostfix(bob + "\r"), putOff, false},
		{"unknown", asPostfix("unknown"), putOff, false},
		{"carriage return in a recipient ends no line", asPostfix(eve, "recipient=x\rclient_address="+bob+"@remote.test"), dunno, false},

		{"two client addresses", added(asPostfix(bob), "client_address="+eve), putOff, true},
		{"the same client address twice", added(asPostfix(bob), "client_address="+bob), putOff, true},
		{"two empty user names", added(asPostfix(bob), "sasl_username="), putOff, true},
		{"two states", added(asPostfix(bob), "protocol_state=RCPT"), putOff, true},
		{"NUL in a value", asPostfix(bob, "sender=a\x00b"), putOff, true},
		{"line without =", added(asPostfix(bob), "client_address"), putOff, true},
		{"line without a name", added(asPostfix(bob), "="+bob), putOff, true},
		{"CRLF ends no line", strings.ReplaceAll(asPostfix(bob), "\n", "\r\n") + "\n\n", putOff, true},
		{"no request", asPostfix(bob, "request"), putOff, true},
		{"another request", asPostfix(bob, "request=junk"), putOff, true},
		{"no state", asPostfix(bob, "protocol_state"), putOff, true},
		{"request without recipient", asPostfix(bob, "recipient"), putOff, true},
		{"request with an empty recipient", asPostfix(bob, "recipient="), putOff, true},
		{"nothing", "\n", putOff, true},
		{"largest request", requestOf(maxRequest), yes, false},
		{"largest request and one byte", requestOf(maxRequest + 1), putOff, true},
		{"oversized request", asPostfix(bob, "sender="+strings.Repeat("a", maxRequest)), putOff, true},
		{"oversized request without an end", strings.Repeat("a", maxRequest), putOff, true},
	} {
		t.Run(tt.name, func(t *testing.T) { conversation(t, NewDelegation, tt.text, tt.want, tt.ends) })
	}
}

// How much is read at once is not for the bound to rely on.
func TestARequestLongerThanTheLargestIsNoneThoughItsEndWasRead(t *testing.T) {
	for length, want := range map[int]bool{maxRequest: true, maxRequest + 1: false} {
		if n, ok := (&delegation{}).whole([]byte(requestOf(length) + "next")); n != length || ok != want {
			t.Errorf("%d bytes: %d, %t, want %t", length, n, ok, want)
		}
	}
}

func netstring(s string) string { return string(appendNetstring(nil, s)) }

func TestSocketMap(t *testing.T) {
	for _, tt := range []struct {
		name, text, want string
		ends             bool
	}{
		{"Postfix asks for a granted client", netstring("postfix " + bob), "5:OK OK,", false},
		{"sendmail asks for a granted client", netstring("popgate " + bob), "8:OK RELAY,", false},
		{"drac asks for a granted client", netstring("drac " + bob), "8:OK RELAY,", false},
		{"Exim asks for a granted client", netstring("exim " + bob), "8:OK RELAY,", false},
		{"sendmail's uncompressed IPv6", netstring("popgate IPv6:2001:db8:0:0:0:0:0:7"), "8:OK RELAY,", false},
		{"compressed IPv6", netstring("postfix " + bob6), "5:OK OK,", false},
		{"v4-mapped", netstring("popgate IPv6:::ffff:" + bob), "8:OK RELAY,", false},
		{"stranger", netstring("popgate " + eve), mapNo, false},
		{"IPv6 neighbour", netstring("popgate " + bob6s), mapNo, false},
		{"cannot tell", netstring("popgate " + maybe), mapPutOff, false},
		{"name", netstring("postfix mail.example"), mapNo, false},
		{"unknown", netstring("postfix unknown"), mapNo, false},
		{"PTR that looks like an address", netstring("postfix " + bob + ".example"), mapNo, false},
		{"PTR that ends like an address", netstring("postfix a." + bob), mapNo, false},
		{"part of an address", netstring("postfix 198.51.100"), mapNo, false},
		{"address with a zone", netstring("postfix " + bob6 + "%eth0"), mapNo, false},
		{"tag before an IPv4 address", netstring("popgate IPv6:" + bob), mapNo, false},
		{"address in brackets", netstring("popgate [" + bob + "]"), mapNo, false},
		{"blank behind the address", netstring("popgate " + bob + " "), mapNo, false},
		{"two blanks before the address", netstring("popgate  " + bob), mapNo, false},
		{"line feed behind the address", netstring("popgate " + bob + "\n"), mapNo, false},
		{"NUL behind the address", netstring("popgate " + bob + "\x00"), mapNo, false},
		{"carriage return behind the address", netstring("popgate " + bob + "\r"), mapNo, false},
		{"comma that belongs to the key", "21:popgate " + bob + ",,", mapNo, false},
		{"empty key", netstring("popgate "), mapNo, false},
		{"unknown map name", netstring("access " + bob), mapNone, false},
		{"map name in another case", netstring("POPGATE " + bob), mapNone, false},
		{"longest key", netstring("postfix " + strings.Repeat("a", maxKey-8)), mapNo, false},

		{"no key", netstring("popgate"), mapPutOff, true},
		{"empty netstring", "0:,", mapPutOff, true},
		{"wrong length, too short", "10:popgate " + bob + ",", mapPutOff, true},
		{"wrong length, too long by one", "21:popgate " + bob + ",1", mapPutOff, true},
		{"leading zero", "020:popgate " + bob + ",", mapPutOff, true},
		{"negative length", "-1:popgate " + bob + ",", mapPutOff, true},
		{"no length", ":popgate " + bob + ",", mapPutOff, true},
		{"length that overflows", "18446744073709551636:popgate " + bob + ",", mapPutOff, true},
		{"oversize", "4097:", mapPutOff, true},
		{"line", "popgate " + bob + "\n", mapPutOff, true},
	} {
		t.Run(tt.name, func(t *testing.T) { conversation(t, NewSocketMap, tt.text, tt.want, tt.ends) })
	}
}

// conversation sends one question on a connection and, if it should live on,
// two more behind it: one answer must open nothing else.
func conversation(t *testing.T, make func(Judge, Options) *Server, text, want string, ends bool) {
	inBubble(t, make(&witness{}, Options{}), func(t *testing.T, s *Server, p *pipes) {
		c := p.dial()
		defer c.Close()
		go func() { _, _ = c.Write([]byte(text)) }() // the server may answer before it has all
		if got := reads(t, c, len(want)); got != want {
			t.Fatalf("%.300q\nanswered %q\nwant     %q", text, got, want)
		}
		if ends {
			if got := reads(t, c, 1); got != "" {
				t.Errorf("then answered %q", got)
			}
			if n := s.Stats().BadRequests; n != 1 {
				t.Errorf("%d bad requests counted, want 1", n)
			}
			return
		}
		stranger, refused := asPostfix(eve), dunno
		if s.door == "socketmap" {
			stranger, refused = netstring("popgate "+eve), mapNo
		}
		for range 2 {
			if got := talk(t, c, stranger, len(refused)); got != refused {
				t.Errorf("a stranger behind it was answered %q", got)
			}
		}
		if n := s.Stats().BadRequests; n != 0 {
			t.Errorf("%d bad requests counted", n)
		}
	})
}

func TestWhatIsJudged(t *testing.T) {
	w := &witness{}
	d := &delegation{judge: w}
	d.answer(t.Context(), nil, []byte(asPostfix("::ffff:"+bob, "queue_id=4XyZ", "sasl_method=PLAIN", "sasl_username=alice")))
	q := w.asked()[0]
	q.Waits = nil
	if want := (relay.Query{Door: "policy", Client: netip.MustParseAddr(bob), Rcpt: "x@remote.test", Sender: "scan@local.test",
		Queue: "4XyZ", AuthType: "PLAIN", AuthUser: "alice"}); q != want {
		t.Errorf("judged %+v\nwant   %+v", q, want)
	}
	m := &socketMap{judge: w}
	m.answer(t.Context(), nil, []byte(netstring("popgate IPv6:2001:db8:0:0:0:0:0:7")))
	q = w.asked()[1]
	q.Waits = nil
	if want := (relay.Query{Door: "socketmap", Client: netip.MustParseAddr(bob6)}); q != want {
		t.Errorf("judged %+v\nwant   %+v", q, want)
	}
}

func TestOnlyAPassForTheClientOpens(t *testing.T) {
	for v := range relay.Verdict(4) { // and one nobody knows
		for r := range relay.Reasons + 1 {
			d := relay.Decision{Verdict: v, Reason: r}
			j := &witness{answer: func(context.Context, *relay.Query) relay.Decision { return d }}
			got := ask(t.Context(), j, &relay.Query{})
			want := cantTell
			switch {
			case v == relay.Pass && (r == relay.ReasonGrant || r == relay.ReasonTrusted || r == relay.ReasonAuthenticated):
				want = open
			case v == relay.Pass && r == relay.ReasonLocal, v == relay.Refuse:
				want = nothing
			}
			if got != want {
				t.Errorf("%v %v: %v, want %v", v, r, got, want)
			}
		}
	}
}

// A connection of smtpd or of sendmail carries the questions of many clients:
// what one has used up of waiting is not another's.
func TestWaits(t *testing.T) {
	var got []relay.Waits
	j := &witness{answer: func(_ context.Context, q *relay.Query) relay.Decision {
		got = append(got, *q.Waits)
		q.Waits.Transaction = true
		q.Waits.Count++
		return relay.Decision{Verdict: relay.Refuse, Reason: relay.ReasonNoGrant}
	}}
	d := &delegation{judge: j}
	for _, r := range []string{asPostfix(eve), asPostfix(eve), asPostfix(eve, "instance=2"), asPostfix(eve, "instance=2", "client_port=1"),
		asPostfix(bob, "instance=2", "client_port=1"), asPostfix(eve, "client_port"), asPostfix(eve, "client_port", "instance")} {
		d.answer(t.Context(), nil, []byte(r))
	}
	m := &socketMap{judge: j}
	for _, client := range []string{eve, eve, bob, eve} {
		m.answer(t.Context(), nil, []byte(netstring("postfix "+client)))
	}
	if want := []relay.Waits{{}, {Transaction: true, Count: 1}, {Count: 2}, {}, {}, {}, {Count: 1},
		{}, {Count: 1}, {}, {}}; !slices.Equal(got, want) {
		t.Errorf("waits %v\nwant  %v", got, want)
	}
}

// pipes is a listener without a network, for tests that bring their own time.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

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
func inBubble(t *testing.T, s *Server, f func(t *testing.T, s *Server, p *pipes)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(context.Background())
		p, ended := &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, make(chan error, 1)
		go func() { ended <- s.Serve(ctx, p) }()
		defer stop()
		f(t, s, p)
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if n := s.Stats().Open; n != 0 {
			t.Errorf("%d connections left open", n)
		}
	})
}

// reads gives what comes within a minute, n bytes at most.
func reads(t *testing.T, c net.Conn, n int) string {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(time.Minute))
	buf, have := make([]byte, n), 0
	for have < n {
		m, err := c.Read(buf[have:])
		have += m
		if err != nil {
			break
		}
	}
	return string(buf[:have])
}

func talk(t *testing.T, c net.Conn, text string, n int) string {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Errorf("sending %q: %v", text, err)
	}
	return reads(t, c, n)
}
