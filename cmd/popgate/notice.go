package main

import (
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/gate"
	"popgate/internal/relay"
)

// unsureNotices tells the administrator once an hour about a domain for which
// mail was put off because nobody knows whose it is.
type unsureNotices struct {
	mu   sync.Mutex
	told map[string]time.Duration // when, on the clock that only runs forward
}

const (
	unsureEvery = time.Hour
	maxUnsure   = 1024 // domains remembered; strangers choose them
)

func (u *unsureNotices) note(log *slog.Logger, r *gate.Record, now time.Duration) {
	domain, ok := relay.Strict(r.Rcpt)
	if !ok {
		domain = ""
	}
	u.mu.Lock()
	at, known := u.told[domain]
	quiet := known && now-at < unsureEvery || !known && len(u.told) >= maxUnsure
	if !quiet {
		if u.told == nil {
			u.told = map[string]time.Duration{}
		}
		u.told[domain] = now
	}
	u.mu.Unlock()
	switch {
	case quiet:
	case domain == "":
		log.Warn("recipient put off: its form leaves open whose it is", "rcpt", r.Rcpt)
	default:
		log.Warn("recipient put off: neither clearly local nor clearly foreign; if the domain is this site's, add the line",
			"rcpt", r.Rcpt, "add", "local_domains: ["+domain+"]")
	}
}

func (u *unsureNotices) forget(now time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	maps.DeleteFunc(u.told, func(_ string, at time.Duration) bool { return now-at >= unsureEvery })
}

// ownAddresses are this host's own, from which no login is a client's.
type ownAddresses struct {
	set atomic.Pointer[map[netip.Addr]bool]
}

// read takes the addresses anew; if they can't be had the last reading stays.
func (o *ownAddresses) read() {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return
	}
	set := map[netip.Addr]bool{}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil {
			continue
		}
		set[relay.Canonical(p.Addr())] = true
		if p.Addr().Is4() && p.Bits() < 31 {
			set[broadcast(p)] = true
		}
	}
	o.set.Store(&set)
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := range 32 {
		if i >= p.Bits() {
			b[i/8] |= 1 << (7 - i%8)
		}
	}
	return netip.AddrFrom4(b)
}

func (o *ownAddresses) is(a netip.Addr) bool {
	set := o.set.Load()
	return set != nil && (*set)[a]
}
