package syslog

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// authority signs certificates.
type authority struct {
	*testing.T
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	n    int64
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{T: t}
	plate := &x509.Certificate{Subject: pkix.Name{CommonName: "ca.test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.key = newKey(t)
	a.cert = a.sign(plate, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (a *authority) sign(plate *x509.Certificate, key *ecdsa.PrivateKey) *x509.Certificate {
	a.Helper()
	a.n++
	plate.SerialNumber = big.NewInt(a.n)
	plate.NotBefore, plate.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent := a.cert
	if parent == nil {
		parent = plate
	}
	raw, err := x509.CreateCertificate(rand.Reader, plate, parent, key.Public(), a.key)
	if err != nil {
		a.Fatal(err)
	}
	cert, err := x509.ParseCertificate(raw)
	if err != nil {
		a.Fatal(err)
	}
	return cert
}

// host gives a host a certificate; without a name for it in the certificate's
// own place if it is old.
func (a *authority) host(name string, old bool) tls.Certificate {
	a.Helper()
	plate := &x509.Certificate{Subject: pkix.Name{CommonName: name}}
	if !old {
		plate.Subject.CommonName = "something else"
		plate.DNSNames = []string{name}
	}
	return a.certify(plate)
}

func (a *authority) certify(plate *x509.Certificate) tls.Certificate {
	a.Helper()
	key := newKey(a.T)
	return tls.Certificate{Certificate: [][]byte{a.sign(plate, key).Raw}, PrivateKey: key}
}

// write writes a certificate, its key and the authority's certificate.
func (a *authority) write(dir string, c tls.Certificate) TLS {
	a.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		a.Fatal(err)
	}
	o := TLS{Cert: filepath.Join(dir, "cert.pem"), Key: filepath.Join(dir, "key.pem"), ClientCA: filepath.Join(dir, "ca.pem")}
	put := func(path, kind string, raw []byte) error {
		return os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: raw}), 0o600)
	}
	if err := errors.Join(put(o.Cert, "CERTIFICATE", c.Certificate[0]), put(o.Key, "PRIVATE KEY", key), put(o.ClientCA, "CERTIFICATE", a.cert.Raw)); err != nil {
		a.Fatal(err)
	}
	return o
}

func TestWhichCertificatesCount(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	o := Options{Network: "tls", TLS: ours.write(t.TempDir(), ours.host("log.test", false))}
	o.TLS.Names = []string{"mx1.test"}
	e := startSyslog(t, o)
	for _, tt := range []struct {
		name   string
		config *tls.Config
		counts bool
	}{
		{"a name that is listed", &tls.Config{Certificates: []tls.Certificate{ours.host("mx1.test", false)}}, true},
		{"in other letters", &tls.Config{Certificates: []tls.Certificate{ours.host("MX1.test", false)}}, true},
		{"an old certificate's common name", &tls.Config{Certificates: []tls.Certificate{ours.host("mx1.test", true)}}, true},
		{"TLS 1.2", &tls.Config{Certificates: []tls.Certificate{ours.host("mx1.test", false)}, MaxVersion: tls.VersionTLS12}, true},
		{"a name that is not listed", &tls.Config{Certificates: []tls.Certificate{ours.host("mx2.test", false)}}, false},
		{"the listed name under another domain", &tls.Config{Certificates: []tls.Certificate{ours.host("mx1.test.evil.test", false)}}, false},
		{"the listed name only where people look, in a certificate for another host", &tls.Config{Certificates: []tls.Certificate{
			ours.certify(&x509.Certificate{Subject: pkix.Name{CommonName: "mx1.test"}, DNSNames: []string{"evil.test"}})}}, false},
		{"somebody else's signature", &tls.Config{Certificates: []tls.Certificate{theirs.host("mx1.test", false)}}, false},
		{"no certificate", &tls.Config{}, false},
		{"TLS 1.1", &tls.Config{Certificates: []tls.Certificate{ours.host("mx1.test", false)}, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.RootCAs = x509.NewCertPool()
			tt.config.RootCAs.AddCert(ours.cert)
			tt.config.ServerName = "log.test"
			raw, err := net.Dial("tcp", e.address)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			c := tls.Client(raw, tt.config)
			c.Write([]byte(sent("mx1", tt.name) + "\n")) // an error comes later, or now
			if tt.counts {
				e.wait(sent("mx1", tt.name))
				return
			}
			for _, n := range e.wait("REFUSED tls:" + e.address + ": 127.0.0.1: TLS: ") {
				if n != "ENDED" {
					t.Errorf("told: %q", n)
				}
			}
		})
	}
}

func TestCertificatesAreReadAgainWhenTheyChange(t *testing.T) {
	a := newAuthority(t)
	dir := t.TempDir()
	o := Options{Network: "tls", TLS: a.write(dir, a.host("old.test", false))}
	e := startSyslog(t, o)
	shows := func() string {
		c, err := tls.Dial("tcp", e.address, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{a.host("mx1.test", false)}})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		return c.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if got := shows(); got != "old.test" {
		t.Errorf("shown at first: %s", got)
	}
	if err := os.WriteFile(o.TLS.Cert, []byte("half a certif"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := shows(); got != "old.test" {
		t.Errorf("shown while the file is broken: %s", got)
	}
	e.wait("REFUSED tls:" + e.address + ": " + o.TLS.Cert)
	a.write(dir, a.host("new.test", false))
	if got := shows(); got != "new.test" {
		t.Errorf("shown afterwards: %s", got)
	}
}
