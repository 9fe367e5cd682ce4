package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"popgate/internal/lab"
)

// unwired is a site whose MTA doesn't ask popgate yet, and whose popgate
// listens for it at one door.
func unwired(listen, socket string, set setup) setup {
	set.door = &door{listen: listen, socket: socket}
	// postfix check looks for the list of the package's files.
	set.postfix.Files = maps.Clone(set.postfix.Files)
	if set.postfix.Files == nil {
		set.postfix.Files = map[string]string{}
	}
	set.postfix.Files["postfix-files"] = "$queue_directory:d:root:-:755:u\n"
	return set
}

// works tries the scenario that all this is for.
func (s *site) works(t *testing.T) {
	t.Helper()
	c := s.SMTP(t, alice)
	turnedAway(t, c, "before the login")
	turnedAway(t, s.SMTP(t, mallet), "stranger")
	s.takesLocal(t, s.SMTP(t, mallet), "stranger's local mail")
	s.login(t, alice)
	s.relays(t, s.SMTP(t, alice), "after the login")
	turnedAway(t, s.SMTP(t, mallet), "stranger again")
	s.onlySubjects(t, "after the login")
}

// copies gives the copies that setup has made in a folder.
func copies(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(dir + "/*.popgate-*")
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func contents(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const mainCF = "/etc/postfix/main.cf"

func TestSetupWiresPostfixSoThatALoginOpensIt(t *testing.T) {
	debian := []string{rule + " = permit_mynetworks permit_sasl_authenticated defer_unauth_destination"}
	for name, tt := range map[string]struct {
		door string
		set  setup
		kept []string // words of the site's own that must still be in main.cf
		rare bool     // tried out by make soak only
	}{
		"policy":                           {door: "policy"},
		"socketmap":                        {door: "socketmap"},
		"milter":                           {door: "milter"},
		"policy, beside Debian's own rule": {rare: true, door: "policy", set: setup{postfix: lab.PostfixOptions{Main: debian}}, kept: []string{"defer_unauth_destination"}},
		"policy, beside a rule of the site's own": {door: "policy", set: setup{postfix: lab.PostfixOptions{
			Main:  []string{rule + " = permit_mynetworks, check_client_access texthash:/etc/postfix/clients, permit_auth_destination, reject_unauth_destination"},
			Files: map[string]string{"clients": "192.0.2.9 OK\n"}}}, kept: []string{"check_client_access texthash:/etc/postfix/clients,"}},
		"policy, where the other list refuses too": {door: "policy", set: setup{postfix: lab.PostfixOptions{
			Main: []string{"smtpd_recipient_restrictions = permit_mynetworks, reject_non_fqdn_recipient, reject_unauth_destination"}}}, kept: []string{"reject_non_fqdn_recipient"}},
		"policy, where only the other list refuses": {rare: true, door: "policy", set: setup{postfix: lab.PostfixOptions{
			Main: []string{rule + " =", "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination"}}}},
		"policy, in the place of the milter": {rare: true, door: "policy", set: setup{postfix: lab.PostfixOptions{Main: []string{
			rule + " = permit_mynetworks, ${popgate?{${{$smtpd_milters} == {$popgate} ? {check_recipient_access static:OK}}}}, reject_unauth_destination"}}}},
		"milter, where the other list refuses too": {rare: true, door: "milter", set: setup{postfix: lab.PostfixOptions{
			Main: []string{"smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination"}}}},
		"milter, outside of the chroot": {door: "milter", set: setup{prepare: func(t *testing.T) {
			command(t, "postconf", "-F", "127.0.0.1:25/inet/chroot=n", "[::1]:25/inet/chroot=n")
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.rare && os.Getenv("POPGATE_SOAK") == "" {
				t.Skip("internal/wiring tests the merging; make soak tries it out")
			}
			socket := "/var/spool/postfix/popgate/" + tt.door + ".sock"
			on(t, "postfix", unwired(tt.door, socket, tt.set), func(t *testing.T, s *site) {
				before := contents(t, mainCF)
				out := s.popgate.Must(t, "setup", "postfix", "--door", tt.door)
				if contents(t, mainCF) != before {
					t.Fatal("setup without --apply changes main.cf")
				}
				if !strings.Contains(out, rule) && !strings.Contains(out, "smtpd_recipient_restrictions") {
					t.Errorf("setup prints no relay rule: %s", out)
				}
				out = s.popgate.Must(t, "setup", "postfix", "--door", tt.door, "--apply", "--yes")
				t.Log(out)
				after := contents(t, mainCF)
				if deferring := strings.Contains(after, "defer_unauth_destination"); strings.Contains(out, "put off (454)") != deferring {
					t.Errorf("a rule that only puts strangers off (%t) is told otherwise: %s", deferring, out)
				}
				for _, word := range tt.kept {
					if !strings.Contains(after, word) {
						t.Errorf("%q of the site's own is gone:\n%s", word, after)
					}
				}
				kept := copies(t, "/etc/postfix")
				if len(kept) != 1 || contents(t, kept[0]) != before {
					t.Errorf("copies %q, want one of main.cf as it was", kept)
				}
				s.works(t)
				if out := s.popgate.Must(t, "setup", "postfix", "--door", tt.door, "--apply", "--yes"); !strings.Contains(out, "Nothing to change") || contents(t, mainCF) != after || len(copies(t, "/etc/postfix")) != 1 {
					t.Errorf("applied twice: %s", out)
				}
			})
		})
	}
}

// A site with a milter of its own keeps it.
func TestSetupKeepsTheMiltersThatAreThere(t *testing.T) {
	set := setup{postfix: lab.PostfixOptions{Main: []string{"smtpd_milters = { inet:127.0.0.1:1, default_action=accept }, inet:127.0.0.1:2"}}}
	on(t, "postfix", unwired("milter", lab.PostfixSocket, set), func(t *testing.T, s *site) {
		s.popgate.Must(t, "setup", "postfix", "--door", "milter", "--apply", "--yes")
		if got, want := command(t, "postconf", "-xh", "smtpd_milters"), "unix:/popgate/milter.sock, { inet:127.0.0.1:1, default_action=accept }, inet:127.0.0.1:2\n"; got != want {
			t.Errorf("smtpd_milters = %q, want %q", got, want)
		}
		all, _ := s.check(t)
		if !slices.ContainsFunc(all, func(f found) bool { return f.Result == "ok" && strings.Contains(f.Text, "it shuts itself") }) {
			t.Errorf("check: %q", all)
		}
		if out := s.popgate.Must(t, "setup", "postfix", "--door", "milter", "--apply", "--yes"); !strings.Contains(out, "Nothing to change") {
			t.Errorf("applied twice: %s", out)
		}
	})
}

func TestSetupChangesNothingWhereItWouldNotDo(t *testing.T) {
	on(t, "postfix", unwired("policy", "/var/spool/postfix/popgate/policy.sock", setup{}), func(t *testing.T, s *site) {
		for name, tt := range map[string]struct {
			postconf []string
			args     []string
			copied   bool
		}{
			"no terminal to ask at":                                     {},
			"a rule that is open already":                               {postconf: []string{"-e", rule + " = permit, reject_unauth_destination"}, args: []string{"--yes"}},
			"a rule made of variables":                                  {postconf: []string{"-e", "own = permit_mynetworks, reject_unauth_destination", rule + " = $own"}, args: []string{"--yes"}},
			"an open relay in master.cf, found by the check afterwards": {postconf: []string{"-P", "[::1]:25/inet/" + rule + "=permit"}, args: []string{"--yes"}, copied: true},
			"what postfix check refuses":                                {postconf: []string{"-e", "setgid_group = nobody-at-all"}, args: []string{"--yes"}, copied: true},
		} {
			t.Run(name, func(t *testing.T) {
				with(t, "/etc/postfix", func() {
					if tt.postconf != nil {
						command(t, "postconf", tt.postconf...)
					}
				}, func() { s.leavesAlone(t, tt.copied, tt.args...) })
			})
		}
		s.popgate.Stop(t)
		s.leavesAlone(t, false, "--yes")
	})
}

// leavesAlone runs setup postfix, which must fail and leave Postfix as it was.
func (s *site) leavesAlone(t *testing.T, copied bool, args ...string) {
	t.Helper()
	for _, name := range copies(t, "/etc/postfix") {
		os.Remove(name)
	}
	before, master := contents(t, mainCF), contents(t, "/etc/postfix/master.cf")
	out, code := s.popgate.Run(t, append([]string{"setup", "postfix", "--apply"}, args...)...)
	if code == 0 || contents(t, mainCF) != before || contents(t, "/etc/postfix/master.cf") != master {
		t.Errorf("exit %d, main.cf changed: %v\n%s", code, contents(t, mainCF) != before, out)
	}
	if got := len(copies(t, "/etc/postfix")) > 0; got != copied {
		t.Errorf("a copy was made: %v, want %v", got, copied)
	}
}

// labMakefile makes sendmail.cf as the lab does.
const labMakefile = "all: sendmail.cf\nsendmail.cf: sendmail.mc\n\tm4 -D_CF_DIR_=/usr/share/sendmail/cf/ /usr/share/sendmail/cf/m4/cf.m4 sendmail.mc > sendmail.cf.new\n\tmv sendmail.cf.new sendmail.cf\n"

func TestSetupWiresSendmailSoThatALoginOpensIt(t *testing.T) {
	for name, tt := range map[string]struct {
		door string
		set  setup
	}{
		"socketmap": {door: "socketmap"},
		"socketmap, beside rules of the site's own": {door: "socketmap", set: setup{sendmail: lab.SendmailOptions{Tail: []string{"LOCAL_CONFIG", "DZown", "LOCAL_RULESETS", "SLocal_check_mail", "R$*\t$@ $1"}}}},
		"milter": {door: "milter"},
		"milter, in the place of the two lines": {door: "milter", set: setup{sendmail: lab.SendmailOptions{M4: []string{
			"INPUT_MAIL_FILTER(`popgate', `S=local:/run/popgate/milter.sock, F=T, T=C:10s;S:10s;R:10s;E:30s')dnl", "FEATURE(`promiscuous_relay')dnl"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			on(t, "sendmail", unwired(tt.door, "/run/popgate/"+tt.door+".sock", tt.set), func(t *testing.T, s *site) {
				const mc = "/etc/mail/sendmail.mc"
				before := contents(t, mc)
				if err := os.WriteFile("/etc/mail/Makefile", []byte(labMakefile), 0o644); err != nil {
					t.Fatal(err)
				}
				// The package's files, as an administrator may write them.
				const feature = "/usr/share/sendmail/cf/feature"
				command(t, "cp", "-r", feature, "/run/feature")
				command(t, "mount", "--bind", "/run/feature", feature)
				s.popgate.Must(t, "setup", "sendmail", "--door", tt.door)
				if contents(t, mc) != before {
					t.Fatal("setup without --apply changes sendmail.mc")
				}
				t.Log(s.popgate.Must(t, "setup", "sendmail", "--door", tt.door, "--apply", "--yes"))
				after := contents(t, mc)
				s.sendmail.Restart(t)
				s.works(t)
				if out := s.popgate.Must(t, "setup", "sendmail", "--door", tt.door, "--apply", "--yes"); !strings.Contains(out, "Nothing to change") || contents(t, mc) != after {
					t.Errorf("applied twice: %s", out)
				}
			})
		})
	}
}

func TestSetupLeavesASendmailAloneThatItDoesNotUnderstand(t *testing.T) {
	on(t, "sendmail", unwired("milter", lab.SendmailSocket, setup{}), func(t *testing.T, s *site) {
		s.popgate.Stop(t)
		s.popgate.Configure(t, s.replaced("listen: {milter: [\"unix:/run/popgate/milter.sock\"], socketmap: [\"unix:/run/popgate/socketmap.sock\"]}"))
		s.popgate.Start(t)
		for name, tt := range map[string]struct {
			door     string
			sendmail lab.SendmailOptions
		}{
			"rules of the site's own in Local_check_rcpt": {"socketmap", lab.SendmailOptions{Tail: []string{"LOCAL_RULESETS", "SLocal_check_rcpt", "R$*\t$@ $1"}}},
			"promiscuous for a reason of its own":         {"milter", lab.SendmailOptions{M4: []string{"FEATURE(`promiscuous_relay')dnl"}}},
			"a closed door that could not be closed":      {"socketmap", lab.SendmailOptions{M4: []string{"FEATURE(`promiscuous_relay')dnl"}}},
			"what make refuses":                           {"socketmap", lab.SendmailOptions{}},
		} {
			t.Run(name, func(t *testing.T) {
				s.sendmail.Configure(t, tt.sendmail)
				if err := os.WriteFile("/etc/mail/Makefile", []byte("all:\n\techo broken > sendmail.cf; false\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				mc, cf := contents(t, "/etc/mail/sendmail.mc"), contents(t, "/etc/mail/sendmail.cf")
				out, code := s.popgate.Run(t, "setup", "sendmail", "--door", tt.door, "--apply", "--yes")
				if code == 0 || contents(t, "/etc/mail/sendmail.mc") != mc || contents(t, "/etc/mail/sendmail.cf") != cf {
					t.Errorf("exit %d, or files are changed: %s", code, out)
				}
			})
		}
	})
}

func TestSetupPrintsDovecotsLinesForItsVersion(t *testing.T) {
	on(t, "postfix", setup{config: []string{"sources: [{file: /var/log/dovecot.log, format: dovecot}, {push: \"127.0.0.1:4009\", format: dovecot, key_file: /etc/popgate/push.key}, {journal: [dovecot.service], format: dovecot}]"},
		prepare: func(t *testing.T) { writeKey(t, strings.Repeat("k", 64)) }}, func(t *testing.T, s *site) {
		out := s.popgate.Must(t, "setup", "dovecot")
		for _, want := range []string{"Dovecot 2.3.", "log_path = /var/log/dovecot.log", "http://127.0.0.1:4009/", "auth_policy_request_attributes = login=", "nothing to add"} {
			if !strings.Contains(out, want) {
				t.Errorf("it does not say %q: %s", want, out)
			}
		}
		// The lines are Dovecot's own language.
		_, push, _ := strings.Cut(out, "SECRET:\n\n")
		push, _, _ = strings.Cut(push, "\njournal")
		if err := os.WriteFile("/run/push.conf", []byte(contents(t, "/etc/dovecot/dovecot.conf")+push), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := command(t, "doveconf", "-c", "/run/push.conf", "-h", "auth_policy_server_url"); got != "http://127.0.0.1:4009/\n" {
			t.Errorf("doveconf reads %q out of\n%s", got, push)
		}
	})
}
