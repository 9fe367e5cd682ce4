package main

import (
	"errors"
	"fmt"
	"time"

	"popgate/internal/config"
	"popgate/watcher"
	"popgate/watcher/format"
	"popgate/watcher/syslog"
)

// planSyslog makes a syslog source, or says why the format can't be read that
// way.
func planSyslog(s *config.Source, custom bool) (watcher.Source, error) {
	single := format.Alone(s.Format)
	if !single && !custom {
		switch s.Listen.Network {
		case "udp":
			return nil, fmt.Errorf("%s over udp: a datagram that is lost makes the next one look like a login; send it over tls, tcp or unix-stream%s", s.Format, orNamed(s.Format))
		case "unix":
			return nil, fmt.Errorf("%s over unix: a datagram that the sender drops makes the next one look like a login; send it over unix-stream, tls or tcp%s", s.Format, orNamed(s.Format))
		}
	}
	if s.Listen.Network == "unix" && s.Listen.Address == "/dev/log" {
		return nil, errors.New("/dev/log is where this host's syslog daemon listens; have it send to a socket of popgate's own, such as unix:/run/popgate/log.sock")
	}
	o := syslog.Options{
		Network: s.Listen.Network, Address: s.Listen.Address,
		Allow: s.Allow, Hosts: s.Hosts, PeerUIDs: s.PeerUIDs,
		Ordered: !single && !custom,
	}
	if s.TLS != nil {
		o.TLS = syslog.TLS{Cert: s.TLS.Cert, Key: s.TLS.Key, ClientCA: s.TLS.ClientCA, Names: s.TLS.Names}
	}
	return syslog.New(o), nil
}

// orNamed has auto, which might turn out to be Courier, made definite.
func orNamed(name string) string {
	if name == "auto" {
		return ", or write dovecot or cyrus if that is what it is"
	}
	return ""
}

// expiring is how long before its end a certificate is worth a warning.
const expiring = 14 * 24 * time.Hour

// certificates says whether a source's own certificate would be taken by those
// who send.
func (k *checker) certificates(what string, t *config.TLS) {
	until, err := syslog.UsableTLS(syslog.TLS{Cert: t.Cert, Key: t.Key, ClientCA: t.ClientCA, Names: t.Names})
	if err != nil {
		k.fail(what, "tls: "+err.Error())
		return
	}
	switch left := until.Sub(k.e.now().Wall); {
	case left <= 0:
		k.fail(what, fmt.Sprintf("tls.cert: %s ended at %s, so that no sender that looks at it connects; put a new one in its place", t.Cert, stampOf(until)))
	case left < expiring:
		k.warn(what, fmt.Sprintf("tls.cert: %s ends at %s; put a new one in its place before", t.Cert, stampOf(until)))
	}
}

// syslog looks at a source's certificate, and says who could forge a login that
// it takes.
func (k *checker) syslog(what string, s *config.Source) {
	if s.TLS != nil {
		k.certificates(what, s.TLS)
	}
	var who string
	switch s.Listen.Network {
	case "udp":
		who = "by whoever can send a datagram that bears an allowed address, and by every local user of the hosts that send; use tls with client_ca, or let nobody else's datagrams reach the port"
	case "tcp":
		who = "by every local user of the hosts that may send, and by whoever sits on the network between; use tls with client_ca"
	case "tls":
		who = "by every local user of the hosts whose certificates count, unless their syslog daemon sends only what the server itself has written; docs/syslog.md shows how"
		if s.TLS.ClientCA == "" {
			who = "by whoever can connect: no certificate is asked for; add client_ca"
		}
	default:
		who = "by every local user, unless the syslog daemon that sends to it sends only what the server itself has written; docs/syslog.md shows how, or read the journal"
	}
	k.warn(what, "logins can be forged "+who)
}
