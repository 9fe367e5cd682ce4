package relay

import (
	"fmt"
	"net/netip"
	"strings"
)

// ParseClient reads a client address as a log or an MTA writes it and gives
// the one spelling popgate uses: sendmail's "IPv6:" tag taken off, IPv4-mapped
// addresses unmapped, no zone. The address must be a full literal; names,
// networks and ports are errors.
func ParseClient(s string) (netip.Addr, error) {
	t := s
	if len(t) > 5 && strings.EqualFold(t[:5], "IPv6:") {
		t = t[5:]
	}
	a, err := netip.ParseAddr(t)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("client address %q: not an IP address", s)
	}
	return Canonical(a), nil
}

// Canonical gives the one spelling of a client address: IPv4-mapped addresses
// unmapped, no zone. The zero Addr stays the zero Addr.
func Canonical(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// Key is where a grant lies in the store: the client address with the bits
// after the prefix cleared, IPv4 in its mapped form. The zero Key belongs to
// no client that can hold a grant (it is the unspecified address).
type Key [16]byte

// wholeNets are IPv6 ranges in which one prefix holds hosts of many owners, so
// that a shorter prefix would hand one host's grant to another's: NAT64
// (RFC 6052, RFC 8215), Teredo (RFC 4380), 6to4 (RFC 3056) and the
// IPv4-compatible range.
var wholeNets = [...]netip.Prefix{
	netip.MustParsePrefix("64:ff9b::/96"),
	netip.MustParsePrefix("64:ff9b:1::/48"),
	netip.MustParsePrefix("2001::/32"),
	netip.MustParsePrefix("2002::/16"),
	netip.MustParsePrefix("::/96"),
}

// PrefixFor gives how many leading bits of the client address a grant covers
// when the configured ipv6_prefix is bits: 32 for IPv4, 128 for the ranges
// where neighbours are strangers, else bits.
func PrefixFor(client netip.Addr, bits int) int {
	client = Canonical(client)
	if client.Is4() {
		return 32
	}
	if bits >= 128 || bits <= 0 {
		return 128
	}
	for _, p := range wholeNets {
		if p.Contains(client) {
			return 128
		}
	}
	return bits
}

// KeyOf gives the key of a client address under the configured ipv6_prefix.
// Writers and look-ups both use it, so that they can't disagree.
func KeyOf(client netip.Addr, bits int) Key {
	client = Canonical(client)
	n := PrefixFor(client, bits)
	k := Key(client.As16())
	if n < 128 && !client.Is4() {
		p, _ := client.Prefix(n)
		k = Key(p.Addr().As16())
	}
	return k
}

// neverNets6 are IPv6 addresses no login can come from honestly, or that stand
// for more than one host.
var neverNets6 = [...]netip.Prefix{
	netip.MustParsePrefix("::/128"),
	netip.MustParsePrefix("::1/128"),
	netip.MustParsePrefix("fe80::/10"),
	netip.MustParsePrefix("ff00::/8"),
}

// never4 says the same of an IPv4 address: 0.0.0.0/8, 127.0.0.0/8,
// 169.254.0.0/16, and from 224.0.0.0 on, multicast, reserved and broadcast. Nearly
// each login is asked about here.
func never4(a [4]byte) bool {
	return a[0] == 0 || a[0] == 127 || a[0] == 169 && a[1] == 254 || a[0] >= 224
}

// NeverClient says whether the address is one that no login may open, whatever
// the configuration says: loopback, unspecified, link-local, multicast,
// broadcast, reserved, or no address at all.
func NeverClient(a netip.Addr) bool {
	if !a.IsValid() {
		return true
	}
	if a = Canonical(a); a.Is4() {
		return never4(a.As4())
	}
	for i := range neverNets6 {
		if neverNets6[i].Contains(a) {
			return true
		}
	}
	return false
}
