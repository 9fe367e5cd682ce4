package main

import (
	"context"
	"maps"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	"popgate/internal/gate"
	"popgate/internal/relay"
)

const (
	unsureEvery = time.Hour
	maxUnsure   = 1024 // domains remembered; strangers choose them
)

// noticeUnsure tells the administrator, once an hour for each domain, that mail
// was put off because nobody knows whose it is.
func (d *daemon) noticeUnsure(ctx context.Context) {
	told := map[string]time.Duration{} // when, on the clock that only runs forward
	for {
		var r gate.Record
		select {
		case <-ctx.Done():
			return
		case r = <-d.doubtful:
		}
		now := d.env.now().Mono
		maps.DeleteFunc(told, func(_ string, at time.Duration) bool { return now-at >= unsureEvery })
		domain, plain := relay.Strict(strings.ToLower(r.Rcpt))
		if _, known := told[domain]; known || len(told) >= maxUnsure {
			continue
		}
		told[domain] = now
		if plain {
			d.log.Warn("recipient put off: neither clearly local nor clearly foreign; if its domain is this site's, add it to local_domains",
				"rcpt", r.Rcpt, "domain", domain)
		} else {
			d.log.Warn("recipient put off: its form leaves open whose it is", "rcpt", r.Rcpt)
		}
	}
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
