package domains

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"popgate/internal/relay"
)

func TestOpenRelayByPostfixConfiguration(t *testing.T) {
	own := relay.NewDomains(map[string]relay.Match{"ours.example": relay.DomainFound, "+wide.example": relay.DomainWritten})
	pattern := filepath.Join(t.TempDir(), "pattern")
	if err := os.WriteFile(pattern, []byte("/x/ smtp:\n/./   lmtp:unix:private/lmtp\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, conf, master string
		says               map[string]string
		certain, unsure    string // what the finding names; empty: no finding
	}{
		{name: "an unchanged Postfix is well", conf: "default_transport = smtp\nsender_dependent_default_transport_maps =\ntransport_maps =\n"},
		{name: "a smart host is well", conf: "default_transport = relay:[192.0.2.1]\n"},
		{name: "default_transport is local", conf: "default_transport = lmtp:[192.0.2.1]\n", certain: `default_transport goes through "lmtp"`},
		{name: "default_transport for one service in master.cf", conf: "default_transport = smtp\n", master: "rewrite/unix/default_transport = local\n",
			certain: `master.cf rewrite/unix/default_transport goes through "local"`},
		{name: "a stranger picks the transport by his sender address", conf: "default_transport = smtp\nsender_dependent_default_transport_maps = hash:/etc/s\n",
			says:    map[string]string{"postmap -s hash:/etc/s": "@ours.example\tlmtp:[192.0.2.1]\n"},
			certain: `sender_dependent_default_transport_maps hash:/etc/s: @ours.example goes through "lmtp"`},
		{name: "static", conf: "default_transport = smtp\nsender_dependent_default_transport_maps = static:lmtp:[192.0.2.1]\n", certain: `goes through "lmtp"`},
		{name: "transport table for another's domain", conf: "default_transport = smtp\ntransport_maps = proxy:hash:/etc/t\n",
			says:    map[string]string{"postmap -s hash:/etc/t": "ours.example\tlmtp:\nremote.example\tlmtp:[192.0.2.1]\n"},
			certain: `transport_maps hash:/etc/t: remote.example goes through "lmtp"`},
		{name: "transport table for all", conf: "default_transport = smtp\ntransport_maps = texthash:/etc/t\n",
			says: map[string]string{"postmap -s texthash:/etc/t": "*\tlocal\n"}, certain: `: * goes through "local"`},
		{name: "transport table for our own domains is well", conf: "default_transport = smtp\ntransport_maps = hash:/etc/t\n",
			says: map[string]string{"postmap -s hash:/etc/t": "ours.example\tlmtp:\nbob@ours.example\tlocal:\n.wide.example\tlmtp:\nremote.example\tsmtp:[192.0.2.1]\n"}},
		{name: "subdomains of a domain that is ours alone", conf: "default_transport = smtp\ntransport_maps = hash:/etc/t\n",
			says: map[string]string{"postmap -s hash:/etc/t": ".ours.example\tlmtp:\n"}, certain: `.ours.example goes through "lmtp"`},
		{name: "transport table of patterns", conf: "default_transport = smtp\ntransport_maps = regexp:" + pattern + "\n", certain: `/./ goes through "lmtp"`},
		{name: "a table that can't be listed", conf: "default_transport = smtp\ntransport_maps = ldap:/etc/t\n", unsure: "transport_maps ldap:/etc/t: it can't be listed"},
		{name: "a table that can't be read", conf: "default_transport = smtp\ntransport_maps = hash:/etc/none\n", unsure: "transport_maps hash:/etc/none: "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			says := map[string]string{"postconf": tt.conf, "postconf -Px": tt.master + "smtp/inet/smtpd_tls_security_level = none\n"}
			for k, v := range tt.says {
				says[k] = v
			}
			found, _, err := postfixDanger(t.Context(), (&mta{says: says}).run, []string{"local", "virtual", "lmtp"},
				func(_ context.Context, domain string, _ *relay.Waits) relay.Match { return own.Match(domain) })
			if err != nil {
				t.Fatal(err)
			}
			text := tt.certain + tt.unsure
			switch {
			case text == "" && len(found) > 0:
				t.Errorf("found %+v, want nothing", found)
			case text != "" && (len(found) != 1 || !strings.Contains(found[0].Text, text) || found[0].Certain != (tt.certain != "")):
				t.Errorf("found %+v, want %q", found, text)
			}
		})
	}
	o, m := postfixSite(t, site{t, t.TempDir()}, map[string]string{
		"postconf":                             "mydestination = ldap:/etc/l\nrelay_domains =\ndefault_transport = smtp\ntransport_maps = hash:/etc/t\n",
		"postconf -Px":                         "",
		"postmap -s hash:/etc/t":               "asked.example\tlmtp:\ndown.example\tlmtp:\n",
		"postmap -q asked.example ldap:/etc/l": "1\n"})
	m.fails["postmap -q down.example ldap:/etc/l"] = errBroken
	found, _, err := postfixDanger(t.Context(), m.run, []string{"lmtp"}, loaded(t, o).Ask)
	if err != nil || len(found) != 1 || found[0].Certain || !strings.Contains(found[0].Text, "down.example") {
		t.Errorf("with a Set: %+v, %v; want the one domain that can't be asked for, as uncertain", found, err)
	}
	if _, _, err := postfixDanger(t.Context(), (&mta{fails: map[string]error{"postconf": errBroken}}).run, nil, nil); err == nil {
		t.Error("a postconf that can't be run is no error")
	}
}
