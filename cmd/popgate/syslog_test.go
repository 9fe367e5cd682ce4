package main

import (
	"fmt"
	"strings"
	"testing"

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
		if len(k.findings) != 1 || k.findings[0].Result != "WARN" || !strings.Contains(k.findings[0].Text, who) {
			t.Errorf("%s: %+v", source, k.findings)
		}
	}
}
