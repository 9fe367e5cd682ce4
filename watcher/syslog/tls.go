package syslog

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// TLS is what a listener shows and asks for.
type TLS struct {
	Cert, Key string   // PEM files
	ClientCA  string   // empty: clients show no certificate
	Names     []string // names of client certificates that may send; empty: all of ClientCA
}

// certificates keeps a TLS configuration that follows its files.
type certificates struct {
	TLS

	mu      sync.Mutex
	present *tls.Config
	stamps  []stamp
}

// stamp tells one state of a file from another.
type stamp struct {
	size int64
	time time.Time
	file os.FileInfo
}

func newCertificates(o TLS) (*certificates, error) {
	c := &certificates{TLS: o}
	_, err := c.config()
	return c, err
}

// UsableTLS says whether a source could work with these files, and if not, why;
// until is when the first of its own certificates ends, for then no sender that
// looks at it connects any more.
func UsableTLS(o TLS) (until time.Time, err error) {
	c, err := newCertificates(o)
	if err != nil {
		return time.Time{}, err
	}
	for _, der := range c.present.Certificates[0].Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return time.Time{}, fmt.Errorf("%s: %w", o.Cert, err)
		}
		if until.IsZero() || cert.NotAfter.Before(until) {
			until = cert.NotAfter
		}
	}
	return until, nil
}

// config gives the configuration for one more client. With an error it is
// the one of before, if there was one.
func (c *certificates) config() (*tls.Config, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stamps, err := c.look()
	if err != nil {
		return c.present, err
	}
	if c.present != nil && same(stamps, c.stamps) {
		return c.present, nil
	}
	fresh, err := c.load()
	if err != nil {
		return c.present, err
	}
	c.present, c.stamps = fresh, stamps
	return fresh, nil
}

// look gives the present state of the files.
func (c *certificates) look() ([]stamp, error) {
	var all []stamp
	for _, path := range []string{c.Cert, c.Key, c.ClientCA} {
		if path == "" {
			continue
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		all = append(all, stamp{info.Size(), info.ModTime(), info})
	}
	return all, nil
}

func same(a, b []stamp) bool {
	for i := range a {
		if i >= len(b) || a[i].size != b[i].size || !a[i].time.Equal(b[i].time) || !os.SameFile(a[i].file, b[i].file) {
			return false
		}
	}
	return len(a) == len(b)
}

func (c *certificates) load() (*tls.Config, error) {
	cert, err := tls.LoadX509KeyPair(c.Cert, c.Key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", c.Cert, c.Key, err)
	}
	config := &tls.Config{
		MinVersion:             tls.VersionTLS12,
		Certificates:           []tls.Certificate{cert},
		SessionTicketsDisabled: true, // a certificate is looked at anew each time
	}
	if c.ClientCA == "" {
		return config, nil
	}
	pem, err := os.ReadFile(c.ClientCA)
	if err != nil {
		return nil, err
	}
	config.ClientCAs = x509.NewCertPool()
	if !config.ClientCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s: no certificate in it; name a PEM file of those who sign the senders' certificates", c.ClientCA)
	}
	config.ClientAuth = tls.RequireAndVerifyClientCert
	config.VerifyConnection = c.verify
	return config, nil
}

// verify looks whether the name in a client's certificate may send.
func (c *certificates) verify(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	names := namesOf(s.PeerCertificates[0])
	for _, want := range c.Names {
		for _, name := range names {
			if strings.EqualFold(want, name) {
				return nil
			}
		}
	}
	if len(c.Names) == 0 {
		return nil
	}
	return fmt.Errorf("the certificate's names %q are not in tls.names", names)
}

// namesOf gives the names of a certificate: those made for it or, where it has
// none, the common name, which older ones carry.
func namesOf(c *x509.Certificate) []string {
	names := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	if len(names) == 0 {
		names = append(names, c.Subject.CommonName)
	}
	return names
}
