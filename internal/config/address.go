package config

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Address is where a listener listens. The zero Address is none.
type Address struct {
	Network string // unix, tcp, tcp4, tcp6; of syslog sources also unix-stream, udp, tls
	Address string // a path, or host:port with a literal host
	Text    string // as the file has it
}

// IsZero says whether there is no address.
func (a Address) IsZero() bool { return a == Address{} }

// String gives the address as the file has it.
func (a Address) String() string { return a.Text }

// OffLoopback says whether another host can reach the listener.
func (a Address) OffLoopback() bool {
	if a.local() || a.IsZero() {
		return false
	}
	ap, err := netip.ParseAddrPort(a.Address)
	return err != nil || !ap.Addr().Unmap().IsLoopback()
}

// local says whether the listener is a socket in the file system.
func (a Address) local() bool { return a.Network == "unix" || a.Network == "unix-stream" }

// equal says whether two addresses mean the same, however they are written.
func (a Address) equal(b Address) bool { return a.Network == b.Network && a.Address == b.Address }

// same says whether two listeners would be in each other's way.
func (a Address) same(b Address) bool {
	return (a.Network == "unix") == (b.Network == "unix") && a.Address == b.Address
}

const addressForms = "write unix:/path, host:port, inet:port@host or inet6:port@host"

// parseAddress reads the forms Postfix and sendmail know.
func parseAddress(s string) (Address, error) {
	scheme, rest, found := strings.Cut(s, ":")
	if found {
		switch scheme {
		case "unix", "local":
			return unixAddress(s, rest)
		case "inet", "inet6":
			return inetAddress(s, scheme, rest)
		}
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Address{}, fmt.Errorf("%q is not an address to listen on; %s", clip(s), addressForms)
	}
	return tcpAddress(s, "tcp", host, port)
}

// inetAddress reads sendmail's inet:port@host and Postfix's inet:host:port.
func inetAddress(s, scheme, rest string) (Address, error) {
	network := "tcp"
	if scheme == "inet6" {
		network = "tcp6"
	}
	if port, host, found := strings.Cut(rest, "@"); found {
		if scheme == "inet" {
			network = "tcp4"
		}
		return tcpAddress(s, network, strings.TrimSuffix(strings.TrimPrefix(host, "["), "]"), port)
	}
	host, port, err := net.SplitHostPort(rest)
	if err != nil {
		return Address{}, fmt.Errorf("%q is not an address to listen on; %s", clip(s), addressForms)
	}
	return tcpAddress(s, network, host, port)
}

func unixAddress(s, path string) (Address, error) {
	if reason := badPath(path); reason != "" {
		return Address{}, fmt.Errorf("%q: the socket's path %q %s", clip(s), clip(path), reason)
	}
	if path == "/" || len(path) > 107 { // the room in sockaddr_un
		return Address{}, fmt.Errorf("%q: a socket's path has 2 to 107 characters", clip(s))
	}
	return Address{"unix", path, s}, nil
}

// tcpAddress wants a literal host: what a name resolves to can't be checked
// here, and may change.
func tcpAddress(s, network, host, port string) (Address, error) {
	n, err := strconv.Atoi(port)
	if err != nil || !digits(port) || n < 1 || n > 65535 {
		return Address{}, fmt.Errorf("%q: the port %q is not a number from 1 to 65535", clip(s), clip(port))
	}
	if strings.EqualFold(host, "localhost") {
		host = "127.0.0.1"
		if network == "tcp6" {
			host = "::1"
		}
	}
	a, err := netip.ParseAddr(host)
	if err != nil || a.Zone() != "" {
		return Address{}, fmt.Errorf("%q: the host %q is not an IP address; write one, such as 127.0.0.1 or [::1]", clip(s), clip(host))
	}
	if a.Is4In6() || network == "tcp4" && !a.Is4() || network == "tcp6" && a.Is4() {
		return Address{}, fmt.Errorf("%q: the host %s does not go with inet%s", clip(s), host, strings.TrimPrefix(strings.TrimPrefix(network, "tcp"), "4"))
	}
	return Address{network, netip.AddrPortFrom(a, uint16(n)).String(), s}, nil
}

func (v value) address(to *Address) {
	if v.n.ShortTag() == "!!int" {
		v.fail("%s is not an address to listen on; %s", v.shown(), addressForms)
		return
	}
	s, ok := v.text()
	if !ok {
		return
	}
	a, err := parseAddress(s)
	if err != nil {
		v.fail("%v", err)
		return
	}
	*to = a
}

// unixOnly reads an address that must be a socket in the file system, since
// whoever connects is judged by the kernel's word on who he is.
func (v value) unixOnly(to *Address) {
	var a Address
	if v.address(&a); a.Network == "unix" {
		*to = a
	} else if !a.IsZero() {
		v.fail("%q is not a unix socket; write unix:/path", clip(a.Text))
	}
}

// orOff reads an address, or "off" for none.
func (v value) orOff(to *Address, read func(value, *Address)) {
	if s := v.n.Value; v.n.ShortTag() == "!!str" && (s == "off" || s == "") {
		*to = Address{}
		return
	}
	read(v, to)
}

// addresses reads a list of addresses, none of them twice.
func (v value) addresses(to *[]Address) {
	items, ok := v.list()
	if !ok {
		return
	}
	list := []Address{}
	for _, item := range items {
		var a Address
		if item.address(&a); !a.IsZero() {
			list = append(list, a)
		}
	}
	*to = list
}

// Listen is everything popgate listens on but its sources.
type Listen struct {
	Milter    []Address
	Control   Address
	Push      Address // zero: off
	Policy    []Address
	Socketmap []Address
	Metrics   Address        // zero: off
	Allow     []netip.Prefix // networks that may connect from off loopback
}

func (l *Listen) read(v value) {
	given, ok := v.fields(
		field{"milter", func(v value) { v.addresses(&l.Milter) }},
		field{"control", func(v value) { v.unixOnly(&l.Control) }},
		field{"push", func(v value) { v.orOff(&l.Push, value.unixOnly) }},
		field{"policy", func(v value) { v.addresses(&l.Policy) }},
		field{"socketmap", func(v value) { v.addresses(&l.Socketmap) }},
		field{"metrics", func(v value) { v.orOff(&l.Metrics, value.address) }},
		field{"allow", func(v value) { v.networks(&l.Allow, value.connecting) }},
	)
	if ok {
		l.check(v, given)
	}
}

// connecting refuses a network that lets everybody connect.
func (v value) connecting(p netip.Prefix) {
	if p.Bits() == 0 {
		v.fail("%s lets every host in the world connect; name the networks of the hosts that should", p)
	}
}

// check holds what the addresses must be to each other.
func (l *Listen) check(v value, given map[string]value) {
	at := func(key string) value {
		if k, ok := given[key]; ok {
			return k
		}
		return v
	}
	type use struct {
		key string
		a   Address
	}
	var all []use
	add := func(key string, list ...Address) {
		for _, a := range list {
			if !a.IsZero() {
				all = append(all, use{key, a})
			}
		}
	}
	add("milter", l.Milter...)
	add("control", l.Control)
	add("push", l.Push)
	add("policy", l.Policy...)
	add("socketmap", l.Socketmap...)
	add("metrics", l.Metrics)
	for i, u := range all {
		for _, earlier := range all[:i] {
			if u.a.same(earlier.a) {
				k := at(u.key)
				v.r.fail(k.n.Line, join(v.key, u.key), "%q is taken by %s already; each listener needs an address of its own",
					u.a.Text, join(v.key, earlier.key))
				break
			}
		}
		if u.a.OffLoopback() && len(l.Allow) == 0 {
			k := at(u.key)
			v.r.fail(k.n.Line, join(v.key, u.key), "%q can be reached from other hosts; name those that may connect in listen.allow, or listen on 127.0.0.1 or a unix socket", u.a.Text)
		}
	}
	if len(l.Milter)+len(l.Policy)+len(l.Socketmap) == 0 {
		v.warn("no milter, policy or socketmap address: nobody can ask, unless systemd hands over a socket")
	}
}
