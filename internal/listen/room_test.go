package listen

import (
	"net"
	"net/netip"
	"testing"
)

// caller is a connection from an address; "" is a unix socket.
type caller struct {
	net.Conn
	from string
}

func (c caller) RemoteAddr() net.Addr {
	if c.from == "" {
		return &net.UnixAddr{}
	}
	return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.from))
}

func TestRoomKeepsItsBounds(t *testing.T) {
	r := NewRoom(4, 2, func(a netip.Addr) bool { return a != netip.MustParseAddr("192.0.2.66") })
	enter := func(from string, want bool) netip.Addr {
		t.Helper()
		peer, ok := r.Enter(caller{from: from})
		if ok != want {
			t.Errorf("%q let in: %v, want %v", from, ok, want)
		}
		return peer
	}
	enter("192.0.2.66:1", false)
	enter("[::ffff:192.0.2.66]:1", false) // in another spelling
	one := enter("192.0.2.1:1", true)
	enter("[::ffff:192.0.2.1]:2", true)
	enter("192.0.2.1:3", false) // its own cap
	enter("", true)
	enter("", true)
	enter("192.0.2.2:1", false) // the cap of all
	if got, want := r.Counts(), (Counts{Open: 4, Total: 4, Capped: 2, Denied: 2}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	r.Leave(one)
	r.Leave(one)
	r.Leave(netip.Addr{})
	r.Leave(netip.Addr{})
	if len(r.perPeer) != 0 || r.Counts().Open != 0 {
		t.Errorf("%d open, addresses remembered: %v", r.Counts().Open, r.perPeer)
	}
	enter("192.0.2.1:4", true)
}
