package domains_test

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"popgate/internal/domains"
	"popgate/internal/lab"
	"popgate/internal/relay"
)

func want(t *testing.T, s *domains.Set, m relay.Match, names string) {
	t.Helper()
	for d := range strings.FieldsSeq(names) {
		if got := max(s.Current().Match(d), s.Ask(t.Context(), d, nil)); got != m {
			t.Errorf("%s is %v, want %v", d, got, m)
		}
	}
}

// settled makes the MTA's files a minute old: what was written just now is
// read twice, which is another test.
func settled(t *testing.T, paths ...string) {
	t.Helper()
	at := time.Now().Add(-time.Minute)
	for _, p := range paths {
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

func load(t *testing.T, from domains.From) *domains.Set {
	t.Helper()
	s := domains.New(domains.Options{From: from})
	if err := s.Load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if p := s.Problems(); len(p) > 0 {
		t.Errorf("problems %q", p)
	}
	return s
}

func TestRealPostfix(t *testing.T) {
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		h.Postfix(t, lab.PostfixOptions{
			Main: []string{
				"mydestination = $mydomain, localhost.$mydomain /etc/postfix/more texthash:/etc/postfix/table btree:/etc/postfix/tree",
				"virtual_alias_domains = inline:{inline.test=x, second.test=y} regexp:/etc/postfix/pattern",
				"virtual_mailbox_domains = $virtual_mailbox_maps",
				"relay_domains = backup.test",
			},
			Files: map[string]string{
				"more":      "# ours\nfile.test\n",
				"table":     "table.test x\n",
				"tree":      "tree.test x\n",
				"pattern":   "/^p[0-9]+\\.test$/ x\n",
				"mailboxes": "alice@virtual.test alice/\nbox.test x\n",
			},
		})
		if out, err := exec.Command("postmap", "btree:/etc/postfix/tree").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		settled(t, "/etc/postfix/main.cf", "/etc/postfix/more", "/etc/postfix/table", "/etc/postfix/tree", "/etc/postfix/tree.db")
		s := load(t, domains.Auto)
		want(t, s, relay.DomainFound, "local.test localhost.local.test file.test table.test tree.test inline.test second.test box.test backup.test sub.backup.test p17.test")
		want(t, s, relay.DomainOther, "virtual.test remote.test sub.local.test sub.inline.test px.test ours")
		if !s.Asks() {
			t.Error("a regexp table can be listed?")
		}
		for mailer, danger := range map[string]bool{"virtual": false, "smtp": true} {
			s := domains.New(domains.Options{From: domains.Auto, LocalMailers: []string{"local", mailer}})
			if err := s.Load(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := s.Tainted(); slices.Equal(got, []string{mailer}) != danger {
				t.Errorf("with %s as local: tainted %q, findings %+v", mailer, got, s.Findings())
			}
		}
	})
}

func TestRealSendmail(t *testing.T) {
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		h.Sendmail(t, lab.SendmailOptions{
			M4:    []string{"FEATURE(`use_cw_file')dnl", "RELAY_DOMAIN(`relay.test')dnl", "RELAY_DOMAIN_FILE(`/etc/mail/relay-domains')dnl"},
			Files: map[string]string{"local-host-names": "file.test\n", "relay-domains": "backup.test\n192.0.2\n"},
		})
		settled(t, "/etc/mail/sendmail.cf", "/etc/mail/local-host-names", "/etc/mail/relay-domains")
		s := load(t, domains.Auto)
		want(t, s, relay.DomainFound, "local.test virtual.test file.test relay.test sub.relay.test backup.test sub.backup.test mx1.local.test")
		want(t, s, relay.DomainOther, "remote.test sub.file.test 192.0.2")
	})
}

// The access map as sendmail's own makemap writes and prints it, and its text
// where popgate may not read it.
func TestRealAccessMap(t *testing.T) {
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		h.Sendmail(t, lab.SendmailOptions{
			Milter: true, // with promiscuous_relay
			M4:     []string{"FEATURE(`access_db', `hash -T<TMPF> -o /etc/mail/access')dnl"},
			Files:  map[string]string{"access": "To:backup.test\tRELAY\nBoth.test\tRELAY\nwell.test\tOK\nno.both.test\tREJECT\n192.0.2\tRELAY\n"},
		})
		if out, err := exec.Command("sh", "-c", "makemap hash /etc/mail/access < /etc/mail/access").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		settled(t, "/etc/mail/sendmail.cf", "/etc/mail/access", "/etc/mail/access.db")
		s := load(t, domains.FromSendmail)
		want(t, s, relay.DomainFound, "local.test backup.test sub.backup.test both.test")
		want(t, s, relay.DomainUnsure, "sub.both.test no.both.test")
		want(t, s, relay.DomainOther, "remote.test well.test")

		if err := os.WriteFile("/etc/mail/access.db", []byte("garbage"), 0o644); err != nil {
			t.Fatal(err)
		}
		settled(t, "/etc/mail/access.db")
		s = domains.New(domains.Options{From: domains.FromSendmail})
		if err := s.Load(t.Context()); err != nil {
			t.Fatal(err)
		}
		want(t, s, relay.DomainUnsure, "backup.test sub.backup.test both.test")
		want(t, s, relay.DomainOther, "remote.test well.test")
		if p := strings.Join(s.Problems(), "\n"); !strings.Contains(p, "put off") {
			t.Errorf("problems %q", p)
		}
	})
}
