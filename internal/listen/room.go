package listen

import (
	"net"
	"net/netip"
	"sync"

	"popgate/internal/relay"
)

// Room bounds the connections that are open at once, in all and from one
// address, over any number of listeners. Peers on a unix socket have no address
// and share what there is in all.
type Room struct {
	max, maxPerPeer int
	allow           func(netip.Addr) bool

	mu      sync.Mutex
	perPeer map[netip.Addr]int
	counts  Counts
}

// Counts is what has happened at a Room's door.
type Counts struct {
	Open   int    // connections at the moment
	Total  uint64 // connections let in
	Capped uint64 // connections not let in because there were too many
	Denied uint64 // connections not let in because of their address
}

// NewRoom makes a room. allow says which addresses may connect over TCP; nil: all.
func NewRoom(max, maxPerPeer int, allow func(netip.Addr) bool) *Room {
	return &Room{max: max, maxPerPeer: maxPerPeer, allow: allow, perPeer: map[netip.Addr]int{}}
}

// Enter says whether a connection may come in. Who was let in must Leave.
func (r *Room) Enter(nc net.Conn) (peer netip.Addr, ok bool) {
	allowed := true
	if tcp, is := nc.RemoteAddr().(*net.TCPAddr); is {
		peer = relay.Canonical(tcp.AddrPort().Addr())
		allowed = r.allow == nil || r.allow(peer)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case !allowed:
		r.counts.Denied++
		return peer, false
	case r.counts.Open >= r.max || peer.IsValid() && r.perPeer[peer] >= r.maxPerPeer:
		r.counts.Capped++
		return peer, false
	}
	r.counts.Open++
	r.counts.Total++
	if peer.IsValid() {
		r.perPeer[peer]++
	}
	return peer, true
}

// Leave gives back the place of a connection.
func (r *Room) Leave(peer netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.counts.Open--
	if !peer.IsValid() {
		return
	}
	if r.perPeer[peer]--; r.perPeer[peer] == 0 {
		delete(r.perPeer, peer)
	}
}

// Counts gives what has happened so far.
func (r *Room) Counts() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.counts
}
