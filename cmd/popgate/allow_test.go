package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// distant is a listener on the loopback whose peers seem to connect from the
// address they first write.
type distant struct{ net.Listener }

func (l distant) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	var length [1]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return c, nil
	}
	text := make([]byte, length[0])
	if _, err := io.ReadFull(c, text); err != nil {
		return c, nil
	}
	return distantConn{c, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(string(text)), 25000))}, nil
}

type distantConn struct {
	net.Conn
	peer net.Addr
}

func (c distantConn) RemoteAddr() net.Addr { return c.peer }

func TestListenAllowHoldsAtEveryDoor(t *testing.T) {
	s := newSite(t)
	s.write("milter.yaml", strings.Replace(fmt.Sprintf(siteConfig, s.dir), "listen:\n", "listen:\n  allow: [192.0.2.0/24, 2001:db8::/64]\n", 1))
	e := s.daemonEnv()
	e.listeners = map[string][]net.Listener{}
	for _, d := range doors {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		e.listeners[d.name] = []net.Listener{distant{l}}
	}
	s.serve(e)
	for _, d := range doors {
		for peer, allowed := range map[string]bool{
			"127.0.0.1": true, "::1": true, "192.0.2.255": true, "2001:db8::7": true, "::ffff:192.0.2.7": true,
			"192.0.3.0": false, "203.0.113.66": false, "2001:db8:0:1::7": false,
		} {
			c, err := net.Dial("tcp", e.listeners[d.name][0].Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(10 * time.Second))
			fmt.Fprintf(c, "%c%s", len(peer), peer)
			got, err := d.speak(c, &question{client: netip.MustParseAddr("203.0.113.9"), recipient: "x@remote.test", asked: func() {}})
			if answered := got != silent; answered != allowed {
				t.Errorf("%s, from %s: %v (%v), want an answer: %t", d.name, peer, got, err, allowed)
			}
			c.Close()
		}
	}
}
