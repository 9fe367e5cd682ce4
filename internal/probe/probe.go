// Package probe tries whether a running MTA relays for a stranger: it offers
// recipients at another site, in every shape that is known to have fooled some
// MTA, and takes each offer back before anything could be delivered.
//
// A recipient that is taken proves a relay, or a mailbox of that odd name. One
// that is refused proves a refusal of this client, of this sender and at this
// time. Nothing is proved about other clients, and less where recipients were
// put off or refused for other reasons than relaying.
package probe

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"time"
)

// Options say what is tried.
type Options struct {
	Target  string     // host:port
	From    netip.Addr // the client address; zero: the system's choice
	XCLIENT bool       // From is told by Postfix's XCLIENT and not connected from
	Local   string     // an address that the MTA must take
	Remote  string     // a domain of another site's
	Virtual string     // another domain of this site's; empty: none
	Sender  string
}

// The outcomes of a try.
const (
	Refused  = "refused"
	Deferred = "deferred"
	Taken    = "taken"
	Named    = "named" // taken, as a local address that is
	Weak     = "weak"  // refused, but for its domain: nothing is said about relaying
)

// Try is one recipient that was offered.
type Try struct {
	Sender  string `json:"sender"`
	Rcpt    string `json:"rcpt"` // the whole argument of RCPT TO
	Outcome string `json:"outcome"`
	Reply   string `json:"reply"`
}

// Result is what came of it.
type Result struct {
	Local Try   `json:"local"`
	Any   bool  `json:"any_local"` // the MTA takes any name in the local domain
	Tries []Try `json:"tries"`
}

// Count says how many tries had an outcome.
func (r *Result) Count(outcome string) (n int) {
	for _, t := range r.Tries {
		if t.Outcome == outcome {
			n++
		}
	}
	return n
}

// Plain gives the outcome of the plainest try, an address at another site. The
// other shapes may be refused as names that nobody has: without a refusal of
// this one nothing is shown to be closed.
func (r *Result) Plain() string { return r.Tries[0].Outcome }

// ErrUnreachable says that the MTA couldn't be asked.
var ErrUnreachable = errors.New("it can't be reached")

const (
	patience = 60 * time.Second // for one reply; a policy service may have the MTA wait
	perConn  = 8                // tries on one connection: MTAs hang up after some errors
	again    = 3                // connections for one try
)

// Run tries everything.
func Run(ctx context.Context, o Options) (*Result, error) {
	p := &prober{ctx: ctx, o: o}
	defer p.hangUp()
	_, local, ok := strings.Cut(o.Local, "@")
	if !ok || local == "" {
		return nil, fmt.Errorf("%q is no address", o.Local)
	}
	r := &Result{}
	var err error
	if r.Local, err = p.try(o.Sender, "<"+o.Local+">"); err != nil {
		return nil, err
	}
	any, err := p.try(o.Sender, fmt.Sprintf("<nobody-%d@%s>", time.Now().UnixNano(), local))
	if err != nil {
		return nil, err
	}
	alice, err := p.try(o.Sender, "<alice@"+local+">")
	if err != nil {
		return nil, err
	}
	r.Any = any.Outcome == Taken
	offer := func(sender, shape string) error {
		t, err := p.try(sender, Spell(shape, local, o.Remote, o.Virtual))
		if err != nil {
			return err
		}
		if t.Outcome == Taken && (r.Any && slices.Contains(names, shape) || alice.Outcome == Taken && slices.Contains(ofAlice, shape)) {
			t.Outcome = Named
		}
		r.Tries = append(r.Tries, t)
		return nil
	}
	for _, shape := range Shapes {
		if strings.Contains(shape, "V") && o.Virtual == "" {
			continue
		}
		if err := offer(o.Sender, shape); err != nil {
			return nil, err
		}
	}
	// Some rules look at who says he sends.
	for _, sender := range []string{"", o.Local, "popgate-probe@" + local} {
		if err := offer(sender, "<x@R>"); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// prober is one run.
type prober struct {
	ctx  context.Context
	o    Options
	conn net.Conn
	text *textproto.Conn
	used int
}

// reply is what the MTA answered.
type reply struct {
	code int
	text string
}

func (r reply) String() string {
	return fmt.Sprintf("%d %s", r.code, strings.ReplaceAll(r.text, "\n", " / "))
}

func (p *prober) hangUp() {
	if p.conn != nil {
		fmt.Fprint(p.conn, "QUIT\r\n")
		p.conn.Close()
		p.conn = nil
	}
}

// try offers one recipient. Where the MTA hangs up or says 421 it is offered
// once more on a fresh connection: a limit on errors is no answer.
func (p *prober) try(sender, rcpt string) (Try, error) {
	t := Try{Sender: sender, Rcpt: rcpt}
	var last error
	for range again {
		if err := p.ctx.Err(); err != nil {
			return t, err
		}
		if p.conn == nil || p.used >= perConn {
			p.hangUp()
			if err := p.connect(); err != nil {
				return t, err
			}
		}
		p.used++
		r, err := p.offer(sender, rcpt)
		if err != nil || r.code == 421 {
			last = err
			if err == nil {
				t.Outcome, t.Reply = Deferred, r.String()
			}
			p.hangUp()
			continue
		}
		t.Reply, t.Outcome = r.String(), outcome(r)
		return t, nil
	}
	if t.Outcome == "" {
		return t, fmt.Errorf("%w: %s: it hangs up at RCPT TO:%s: %v", ErrUnreachable, p.o.Target, rcpt, last)
	}
	return t, nil
}

// outcome says what a reply means.
func outcome(r reply) string {
	domain := false
	for _, code := range []string{"5.1.2", "5.1.10", "4.1.2", "4.4.3", "4.4.4", "5.4.4"} {
		domain = domain || strings.HasPrefix(r.text, code+" ") || strings.Contains(r.text, " "+code+" ")
	}
	switch {
	case r.code/100 == 2:
		return Taken
	case r.code/100 == 5 && (domain || r.code == 556):
		return Weak
	case r.code/100 == 5:
		return Refused
	default:
		return Deferred
	}
}

// offer goes through one transaction, and takes it back.
func (p *prober) offer(sender, rcpt string) (reply, error) {
	r, err := p.say("MAIL FROM:<" + sender + ">")
	if err != nil || r.code/100 != 2 {
		if err == nil && r.code != 421 {
			_, err = p.say("RSET")
		}
		return r, err
	}
	if r, err = p.say("RCPT TO:" + rcpt); err != nil || r.code == 421 {
		return r, err
	}
	if back, err := p.say("RSET"); err != nil || back.code/100 != 2 {
		p.hangUp() // which takes it back as well
	}
	return r, nil
}

func (p *prober) say(line string) (reply, error) {
	p.conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(p.conn, "%s\r\n", line); err != nil {
		return reply{}, err
	}
	return p.hear()
}

// most bounds what is read on one connection.
const most = 1 << 20

func (p *prober) hear() (reply, error) {
	p.conn.SetDeadline(time.Now().Add(patience))
	code, text, err := p.text.ReadResponse(0)
	if code != 0 {
		err = nil // an answer of another class than expected is an answer
	}
	return reply{code, text}, err
}

// connect opens a connection and says who is there.
func (p *prober) connect() error {
	d := net.Dialer{Timeout: patience}
	if p.o.From.IsValid() && !p.o.XCLIENT {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(p.o.From, 0))
	}
	conn, err := d.DialContext(p.ctx, "tcp", p.o.Target)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	p.conn, p.used = conn, 0
	p.text = textproto.NewConn(limited{conn, bufio.NewReader(conn), new(int)})
	r, err := p.hear()
	if err == nil && r.code == 220 {
		r, err = p.say("EHLO popgate-probe.invalid")
	}
	if err == nil && r.code/100 == 2 && p.o.XCLIENT {
		spelled := p.o.From.String()
		if p.o.From.Is6() {
			spelled = "IPV6:" + spelled
		}
		if r, err = p.say("XCLIENT NAME=[UNAVAILABLE] ADDR=" + spelled); err == nil && r.code == 220 {
			r, err = p.say("EHLO popgate-probe.invalid")
		} else if err == nil {
			p.hangUp()
			return fmt.Errorf("%w: %s does not take XCLIENT from here: %v; smtpd_authorized_xclient_hosts must name this host", ErrUnreachable, p.o.Target, r)
		}
	}
	if err != nil || r.code/100 != 2 {
		p.hangUp()
		return errors.Join(fmt.Errorf("%w: %s says %v", ErrUnreachable, p.o.Target, r), err)
	}
	return nil
}

// limited is a connection of which only so much is read.
type limited struct {
	net.Conn
	r    *bufio.Reader
	read *int
}

func (l limited) Read(b []byte) (int, error) {
	if *l.read > most {
		return 0, errors.New("it says too much")
	}
	n, err := l.r.Read(b)
	*l.read += n
	return n, err
}
