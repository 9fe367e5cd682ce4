package config

import (
	"net/netip"
	"strings"
)

// prefix reads a network. A bare address stands for that one host.
func (v value) prefix() (netip.Prefix, bool) {
	s, ok := v.text()
	if !ok {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil || a.Zone() != "" {
			v.fail("%q is not a network; write one as 192.0.2.0/24 or 2001:db8::/32", clip(s))
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			v.fail("%q mixes IPv4 and IPv6; write the IPv4 network", clip(s))
			return netip.Prefix{}, false
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p != p.Masked() {
		v.fail("%q has bits set behind its /%d; write %s for the network or %s for the one host",
			clip(s), p.Bits(), p.Masked(), p.Addr())
		return netip.Prefix{}, false
	}
	return p, true
}

// networks reads a list of networks and shows each to check.
func (v value) networks(to *[]netip.Prefix, check func(value, netip.Prefix)) {
	items, ok := v.list()
	if !ok {
		return
	}
	list := []netip.Prefix{}
	for _, item := range items {
		p, ok := item.prefix()
		if !ok {
			continue
		}
		if check != nil {
			check(item, p)
		}
		list = append(list, p)
	}
	*to = list
}

// trusted refuses networks so wide that strangers are among them. No site
// holds more than a /8 of IPv4, or more than a /16 of the IPv6 in use; wider
// ones are the private ranges.
func (v value) trusted(p netip.Prefix) {
	switch {
	case p.Bits() == 0:
		v.fail("%s trusts every host in the world, which makes an open relay; name this site's own networks", p)
	case p.Addr().Is4() && p.Bits() < 8,
		p.Addr().Is6() && p.Bits() < 16 && p.Overlaps(netip.MustParsePrefix("2000::/3")):
		v.fail("%s is wider than any one site: strangers in it could relay; name this site's own networks", p)
	}
}

// nobody notes a never_grant that leaves nobody to grant to.
func (v value) nobody(p netip.Prefix) {
	if p.Bits() == 0 {
		family := "IPv4"
		if p.Addr().Is6() {
			family = "IPv6"
		}
		v.warn("%s: no %s client can ever be granted anything", p, family)
	}
}

// names reads a list of texts that must not be empty or begin or end with a
// blank.
func (v value) names(to *[]string, check func(value, string) bool) {
	items, ok := v.list()
	if !ok {
		return
	}
	list := []string{}
	for _, item := range items {
		s, ok := item.text()
		switch {
		case !ok:
		case s == "" || s != strings.TrimSpace(s):
			item.fail("%q is empty or has a blank at its end", clip(s))
		case check == nil || check(item, s):
			list = append(list, s)
		}
	}
	*to = list
}
