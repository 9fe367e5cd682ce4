package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/internal/config"
	"popgate/watcher/format"
)

// A format in which a line is understood by those before it needs a way on
// which none is lost without notice. A format nobody has thought about is one
// of these.
func TestFormatsThatNeedEveryLineAreRefusedOverDatagrams(t *testing.T) {
	const own = "formats: {acme: {tag: acme, pattern: 'login (?P<user>[a-z]+) from (?P<client>[0-9.]+)'}}\n"
	for _, name := range append(format.Names(), "acme") {
		for _, network := range []string{"udp:127.0.0.1:1514", "unix:/run/popgate/log.sock", "unix-stream:/run/popgate/log.sock", "tcp:127.0.0.1:1514"} {
			scheme, _, _ := strings.Cut(network, ":")
			cfg, _, err := config.Parse("milter.yaml", fmt.Appendf(nil, "%ssources: [{syslog: %q, format: %s, insecure: true}]\n", own, network, name))
			if err != nil {
				t.Fatal(err)
			}
			_, err = planSources("milter.yaml", cfg)
			refused := err != nil
			single := name == "dovecot" || name == "cyrus" || name == "acme"
			if want := !single && (scheme == "udp" || scheme == "unix"); refused != want {
				t.Errorf("%s over %s: %v", name, scheme, err)
			}
			if refused && !strings.HasPrefix(err.Error(), "milter.yaml: line 2: sources[0]: "+name+" over "+scheme+": a datagram that ") {
				t.Errorf("%s over %s: %v", name, scheme, err)
			}
		}
	}
}

func TestDevLogIsNotTakenFromTheSyslogDaemon(t *testing.T) {
	cfg, _, err := config.Parse("milter.yaml", []byte("sources: [{syslog: 'unix:/dev/log', format: dovecot}]\n"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := planSources("milter.yaml", cfg); err == nil || !strings.Contains(err.Error(), "is where this host's syslog daemon listens") {
		t.Error(err)
	}
}

func TestCheckSaysByWhomASyslogSourceCanBeForged(t *testing.T) {
	for source, who := range map[string]string{
		"{syslog: 'unix:/run/popgate/log.sock', format: dovecot}":                                                                "every local user",
		"{syslog: 'tcp:127.0.0.1:1514', format: dovecot, insecure: true}":                                                        "on the network between",
		"{syslog: 'udp:127.0.0.1:1514', format: dovecot, insecure: true}":                                                        "a datagram that bears an allowed address",
		"{syslog: 'tls:127.0.0.1:1514', format: dovecot, insecure: true, tls: {cert: /etc/c.pem, key: /etc/k.pem}}":              "whoever can connect",
		"{syslog: 'tls:127.0.0.1:1514', format: dovecot, tls: {cert: /etc/c.pem, key: /etc/k.pem, client_ca: /etc/popgate.pem}}": "whose certificates count",
	} {
		cfg, _, err := config.Parse("milter.yaml", []byte("sources: ["+source+"]\n"))
		if err != nil {
			t.Fatal(err)
		}
		k := &checker{}
		k.sources(t.Context(), cfg)
		if last := k.findings[len(k.findings)-1]; last.Result != "WARN" || !strings.Contains(last.Text, who) {
			t.Errorf("%s: %+v", source, k.findings)
		}
	}
}

func TestCheckLooksAtTheCertificateOfASyslogSource(t *testing.T) {
	now := time.Now()
	for _, tt := range []struct {
		name  string
		until time.Time
		want  string // how the first finding begins
	}{
		{"a certificate that is good for long is well", now.AddDate(1, 0, 0), "WARN logins can be forged"},
		{"one that ends soon is told in time", now.Add(13 * 24 * time.Hour), "WARN tls.cert: CERT ends at "},
		{"one that has ended keeps every sender away", now.Add(-time.Minute), "FAIL tls.cert: CERT ended at "},
		{"one that isn't there", time.Time{}, "FAIL tls: stat CERT: no such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			cert, key := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
			if !tt.until.IsZero() {
				writeCertificate(t, cert, key, tt.until)
			}
			cfg, _, err := config.Parse("milter.yaml", fmt.Appendf(nil,
				"sources: [{syslog: 'tls:127.0.0.1:1514', format: dovecot, tls: {cert: %s, key: %s, client_ca: %s}}]\n", cert, key, cert))
			if err != nil {
				t.Fatal(err)
			}
			e := processEnv()
			k := &checker{e: &e}
			k.sources(t.Context(), cfg)
			got := k.findings[0].Result + " " + strings.ReplaceAll(k.findings[0].Text, cert, "CERT")
			if !strings.HasPrefix(got, tt.want) {
				t.Errorf("%q, want %q...", got, tt.want)
			}
		})
	}
}

// writeCertificate writes a certificate that signs itself, and its key.
func writeCertificate(t *testing.T, cert, key string, until time.Time) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	plate := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"popgate.example.org"}, NotBefore: until.AddDate(-1, 0, 0), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, plate, plate, secret.Public(), secret)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(secret)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
