package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/contrib"
	"popgate/internal/lab"
)

// found is one finding of `popgate check`.
type found struct{ Result, What, Text string }

// check runs `popgate check` and gives its findings, as the JSON has them.
func (s *site) check(t *testing.T, args ...string) (all []found, code int) {
	t.Helper()
	out, code := s.popgate.Run(t, append([]string{"check", "--json"}, args...)...)
	for line := range strings.Lines(out) {
		var f found
		if err := json.Unmarshal([]byte(line), &f); err != nil {
			t.Fatalf("check --json: %v in %q", err, line)
		}
		all = append(all, f)
	}
	return all, code
}

// finds runs check, which must find this and exit accordingly.
func (s *site) finds(t *testing.T, want found, args ...string) {
	t.Helper()
	all, code := s.check(t, args...)
	if want.Result == "FAIL" && code != 1 {
		t.Errorf("check exits with %d, want 1", code)
	}
	for _, f := range all {
		if f.Result == want.Result && strings.Contains(f.What, want.What) && strings.Contains(f.Text, want.Text) {
			return
		}
	}
	t.Errorf("check does not find %q; it finds", want)
	for _, f := range all {
		t.Logf("%s %s: %s", f.Result, f.What, f.Text)
	}
}

// well runs check, which must find nothing wrong, and no fault but these.
func (s *site) well(t *testing.T, except []string, args ...string) {
	t.Helper()
	all, code := s.check(t, args...)
	if code != 0 {
		t.Errorf("check exits with %d, want 0", code)
	}
findings:
	for _, f := range all {
		for _, e := range except {
			if strings.Contains(f.What+": "+f.Text, e) {
				continue findings
			}
		}
		if f.Result != "ok" {
			t.Errorf("check finds %s %s: %s", f.Result, f.What, f.Text)
		}
	}
}

// labFaults is what check rightly says of every lab: its clock is the machine's.
var labFaults = []string{"clock: "}

// with runs a test with changed files, and puts them back.
func with(t *testing.T, dir string, change func(), test func()) {
	t.Helper()
	saved := map[string][]byte{}
	names, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil {
			saved[name] = text
		}
	}
	defer func() {
		for name, text := range saved {
			if err := os.WriteFile(name, text, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		settle(t, dir)
	}()
	change()
	settle(t, dir)
	test()
}

// settle has files look as if nobody had written them just now: check waits for
// those to settle.
func settle(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		before := time.Now().Add(-time.Minute)
		if err := os.Chtimes(name, before, before); err != nil {
			t.Fatal(err)
		}
	}
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
	return string(out)
}

// faults are changes of a Postfix, as arguments of postconf, and what check
// must say of each.
type faults map[string]struct {
	postconf []string
	want     found
}

func (all faults) try(t *testing.T, s *site, args ...string) {
	for name, tt := range all {
		t.Run(name, func(t *testing.T) {
			with(t, "/etc/postfix", func() { command(t, "postconf", tt.postconf...) }, func() { s.finds(t, tt.want, args...) })
		})
	}
}

const rule = "smtpd_relay_restrictions"

func TestCheckFindsWhatIsWrongWithPostfixsMilter(t *testing.T) {
	set := setup{postfix: lab.PostfixOptions{Files: map[string]string{"t": "moved.test dovecot:\n", "virtual": "moved.test x\n"}}}
	on(t, "postfix", set, func(t *testing.T, s *site) {
		s.well(t, labFaults)
		s.well(t, labFaults, "--live")
		faults{
			"no door": {[]string{"-e", "smtpd_milters =", rule + " = permit_mynetworks, reject_unauth_destination"},
				found{"FAIL", "Postfix", "does not ask popgate at all"}},
			"the milter lost, the rule shut": {[]string{"-e", "smtpd_milters ="}, found{"FAIL", "Postfix", "does not ask popgate at all"}},
			"nothing refuses":                {[]string{"-e", "smtpd_milters =", rule + " = permit_mynetworks, defer_if_reject, permit"}, found{"FAIL", rule, "OPEN RELAY: nothing refuses"}},
			"nothing refuses, at one service of master.cf": {[]string{"-P", "127.0.0.1:25/inet/" + rule + "=permit", "127.0.0.1:25/inet/smtpd_milters="},
				found{"FAIL", "127.0.0.1:25/inet " + rule, "OPEN RELAY: nothing refuses"}},
			"warn_if_reject in front of what should refuse": {[]string{"-e", "smtpd_milters =", rule + " = permit_mynetworks, warn_if_reject reject_unauth_destination"},
				found{"FAIL", rule, "OPEN RELAY"}},
			"a restriction class that permits": {[]string{"-e", "smtpd_milters =", "smtpd_restriction_classes = open", "open = permit", rule + " = permit_mynetworks, open, reject_unauth_destination"},
				found{"FAIL", rule, "OPEN RELAY"}},
			"milter_default_action = accept": {[]string{"-e", "milter_default_action = accept"}, found{"FAIL", "milter_default_action", "write milter_default_action = tempfail"}},
			"milter_default_action = reject": {[]string{"-e", "milter_default_action = reject"}, found{"FAIL", "milter_default_action", "refused for good"}},
			"default_action of the milter itself": {[]string{"-e", "smtpd_milters = { unix:/popgate/milter.sock, default_action=accept }", "popgate = $smtpd_milters"},
				found{"FAIL", "smtpd_milters", "default_action=accept"}},
			"no_milters":              {[]string{"-e", "receive_override_options = no_milters"}, found{"FAIL", "receive_override_options", "never asked"}},
			"a rule that stays open":  {[]string{"-e", rule + " = permit_mynetworks, check_recipient_access static:OK, reject_unauth_destination"}, found{"FAIL", rule, "it does not shut itself"}},
			"a rule that permits all": {[]string{"-e", rule + " = permit_mynetworks, defer_if_reject, permit"}, found{"FAIL", rule, "it does not shut itself"}},
			"a rule without the emptied macro": {[]string{"-e", rule + " = permit_mynetworks, ${{$smtpd_milters|$milter_default_action|$receive_override_options|$smtpd_milter_maps} == {$popgate|tempfail||} ? {check_recipient_access static:OK}} reject_unauth_destination"},
				found{"FAIL", rule, "popgate="}},
			"a rule that minds the milter's address alone": {[]string{"-e", rule + " = permit_mynetworks, ${{$smtpd_milters} == {unix:/popgate/milter.sock} ? {check_recipient_access static:OK}} reject_unauth_destination"},
				found{"FAIL", rule, "milter_default_action=accept, or receive_override_options=no_milters, or smtpd_milter_maps=static:DISABLE"}},
			"the rule shut in front of the milter": {[]string{"-e", rule + " = permit_mynetworks, reject_unauth_destination"}, found{"FAIL", rule, "stays shut"}},
			"the socket elsewhere":                 {[]string{"-e", "popgate = unix:/popgate/other.sock"}, found{"FAIL", "other.sock", "does not exist"}},
			"outside of the chroot":                {[]string{"-F", "127.0.0.1:25/inet/chroot=n"}, found{"FAIL", "socket /popgate/milter.sock", "does not exist"}},
			"a network popgate does not trust": {[]string{"-e", "mynetworks = 127.0.0.0/8, [::1]/128, 192.0.2.0/24, [2001:db8:7::]/48"},
				found{"WARN", "mynetworks", "192.0.2.0/24, 2001:db8:7::/48"}},
			"a mailer in neither list": {[]string{"-e", "virtual_transport = lmtp:inet:127.0.0.1:2526"}, found{"WARN", "own domains", "virtual.test (lmtp)"}},
			"a mailer in neither list, in a transport table": {[]string{"-e", "transport_maps = texthash:/etc/postfix/t", "virtual_mailbox_domains = moved.test"},
				found{"WARN", "own domains", "moved.test (dovecot)"}},
			"relay_transport in neither list": {[]string{"-e", "relay_transport = uucp"}, found{"WARN", "own domains", "backup.test (uucp)"}},
		}.try(t, s)
		faults{
			"the daemon does not listen there": {[]string{"-e", "popgate = unix:/popgate/other.sock"}, found{"FAIL", "listener of Postfix's milter", "other.sock"}},
		}.try(t, s, "--live")

		// popgate's own side.
		for name, tt := range map[string]struct {
			config string
			want   found
		}{
			"domains popgate does not know":          {"local_domains: [local.test]\nlocal_domains_from: none", found{"FAIL", "own domains", ".backup.test"}},
			"grant_ttl below the polling of clients": {"grant_ttl: 4m", found{"WARN", "grant_ttl", "shorter than most clients"}},
		} {
			t.Run(name, func(t *testing.T) {
				s.popgate.Configure(t, s.replaced(tt.config))
				s.finds(t, tt.want)
				s.popgate.Configure(t, s.config())
			})
		}
		t.Run("a socket that postfix may not open", func(t *testing.T) {
			os.Chmod(lab.PostfixSocket, 0o600)
			s.finds(t, found{"FAIL", lab.PostfixSocket, "user postfix, from inside the chroot /var/spool/postfix may not connect"})
			os.Chmod(lab.PostfixSocket, 0o660)
			os.Chmod(filepath.Dir(lab.PostfixSocket), 0o700)
			s.finds(t, found{"FAIL", lab.PostfixSocket, "may not connect"})
			os.Chmod(filepath.Dir(lab.PostfixSocket), 0o755)
		})
		t.Run("a source that is silent, and one astray", func(t *testing.T) {
			old := time.Now().Add(-48 * time.Hour)
			s.login(t, alice)
			os.Chtimes(lab.DovecotLog, old, old)
			s.finds(t, found{"WARN", "source", "silent"})
			s.finds(t, found{"WARN", "source", "ahead of the time at which the file was last written"})
		})
		// What the doors themselves answer.
		for name, tt := range map[string]struct {
			config, postconf string
			want             found
		}{
			"a stranger's recipient passes":           {"local_domains: [example.com]", "", found{"FAIL", "test question of Postfix's milter", "OPEN RELAY: the stranger 203.0.113.251 may send to example.com"}},
			"the stranger is another if it has to be": {"trusted_networks: [127.0.0.0/8, \"::1/128\", 203.0.113.0/24]", "", found{"ok", "test question of Postfix's milter", "the stranger 198.51.100.251 may not send"}},
			"the site's own recipient is put off":     {"local_domains: [local.test]\nlocal_domains_from: none", "", found{"WARN", "test question of Postfix's milter", "the site's own postmaster@any.backup.test is put off"}},
			"the site's own recipient is refused":     {"local_domains: [local.test]\nlocal_domains_from: none", "relay_transport = smtp", found{"FAIL", "test question of Postfix's milter", "the site's own postmaster@any.backup.test is refused: 550"}},
		} {
			t.Run(name, func(t *testing.T) {
				with(t, "/etc/postfix", func() {
					if tt.postconf != "" {
						command(t, "postconf", "-e", tt.postconf)
					}
				}, func() {
					s.popgate.Configure(t, s.replaced(tt.config))
					s.popgate.Stop(t) // over a reload, a domain that is gone still counts for a while
					s.popgate.Start(t)
					s.finds(t, tt.want, "--live")
				})
			})
		}
		s.popgate.Configure(t, s.config())
		t.Run("not as root, nothing is called well that was not looked at", func(t *testing.T) {
			out, _ := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", lab.PopgatePath, "check", "-c", readable(t)).CombinedOutput()
			if !strings.Contains(string(out), "not looked at: only root can try it as the MTA's user") || strings.Contains(string(out), "takes connections of") {
				t.Errorf("check of nobody: %s", out)
			}
		})
		s.popgate.Stop(t)
		s.finds(t, found{"FAIL", lab.PostfixSocket, "is popgate running?"})
		s.finds(t, found{"FAIL", "daemon", "is popgate serve running"}, "--live")
	})
}

// replaced gives the site's milter.yaml with lines in the place of the usual ones.
func (s *site) replaced(lines string) string {
	changed := *s
	changed.setup.config = strings.Split(lines, "\n")
	return changed.config()
}

// readable copies the configuration to where everybody may read it.
func readable(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(lab.ConfigFile)
	if err != nil {
		t.Fatal(err)
	}
	path := "/run/popgate.yaml"
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheckFindsWhatIsWrongWithPostfixsClosedDoors(t *testing.T) {
	through(t, doors[:2], setup{}, func(t *testing.T, s *site) {
		s.well(t, labFaults)
		s.well(t, labFaults, "--live")
		lines, all := s.setup.door.lines, faults{}
		_, value, _ := strings.Cut(lines, "=")
		value = strings.Join(strings.Fields(value), " ")
		change := func(name, old, now string, want found) {
			changed := strings.Replace(value, old, now, 1)
			if changed == value {
				t.Fatalf("%s: %q is not in %q", name, old, value)
			}
			all[name] = struct {
				postconf []string
				want     found
			}{[]string{"-e", rule + " = " + changed}, want}
		}
		change("own mail asked about", "permit_auth_destination,", "", found{"WARN", rule, "write permit_auth_destination in front"})
		change("nothing refuses behind it", "reject_unauth_destination", "", found{"FAIL", rule, "OPEN RELAY"})
		if s.setup.door.listen == "policy" {
			change("open while popgate is down", "451 4.3.0 Relaying cannot be decided at the moment, try again later", "OK", found{"FAIL", rule, "OPEN RELAY whenever popgate is down"})
			change("refusing while popgate is down", "451 4.3.0 Relaying cannot be decided at the moment, try again later", "DUNNO", found{"WARN", rule, "refused for good"})
		} else {
			change("another map", ":postfix", ":sendmail", found{"FAIL", rule, "knows no map"})
			change("through proxymap", "socketmap:", "proxy:socketmap:", found{"WARN", rule, "take proxy: off"})
		}
		all["the other list refuses by itself"] = struct {
			postconf []string
			want     found
		}{[]string{"-e", "smtpd_recipient_restrictions = permit_mynetworks, reject_unauth_destination"}, found{"FAIL", "smtpd_recipient_restrictions", "without asking popgate"}}
		all.try(t, s)
	})
}

func TestCheckFindsWhatIsWrongWithSendmail(t *testing.T) {
	const feature = "FEATURE(`popgate')dnl"
	filter, promiscuous, _ := strings.Cut(contrib.SendmailMilter, "\n")
	on(t, "sendmail", byFeature(feature), func(t *testing.T, s *site) {
		s.well(t, labFaults)
		s.well(t, labFaults, "--live")
		for name, tt := range map[string]struct {
			options lab.SendmailOptions
			want    found
		}{
			"no door":            {lab.SendmailOptions{}, found{"FAIL", "sendmail", "does not ask popgate at all"}},
			"promiscuous alone":  {lab.SendmailOptions{M4: []string{promiscuous}}, found{"FAIL", "relay rule", "OPEN RELAY"}},
			"the two lines":      {lab.SendmailOptions{Milter: true}, found{"WARN", "relay rule", "FEATURE(`popgate')"}},
			"no F=T":             {lab.SendmailOptions{M4: []string{strings.Replace(filter, "F=T, ", "", 1), promiscuous}}, found{"FAIL", "milter popgate", "no F=T"}},
			"no F=T, open":       {lab.SendmailOptions{M4: []string{strings.Replace(filter, "F=T, ", "", 1), promiscuous}}, found{"FAIL", "relay rule", "OPEN RELAY"}},
			"F=R":                {lab.SendmailOptions{M4: []string{strings.Replace(filter, "F=T", "F=R", 1), promiscuous}}, found{"FAIL", "milter popgate", "refused while popgate is down"}},
			"defined, not used":  {lab.SendmailOptions{M4: []string{strings.Replace(filter, "INPUT_", "", 1), promiscuous}}, found{"WARN", "milter popgate", "never asked"}},
			"not used, and open": {lab.SendmailOptions{M4: []string{strings.Replace(filter, "INPUT_", "", 1), promiscuous}}, found{"FAIL", "relay rule", "OPEN RELAY"}},
			"a daemon without it": {lab.SendmailOptions{Milter: true, M4: []string{"DAEMON_OPTIONS(`Name=Other, Addr=127.0.0.1, Port=26, InputMailFilters=')dnl"}},
				found{"FAIL", "DaemonPortOptions", "filters of its own"}},
			"the rule shut behind the milter": {lab.SendmailOptions{M4: []string{filter}}, found{"FAIL", "relay rule", "stays shut"}},
			"drac with -T": {lab.SendmailOptions{M4: []string{"FEATURE(`drac', `socket -T<TMPF> local:/run/popgate/socketmap.sock')dnl"}},
				found{"FAIL", "map drac", "OPEN RELAY whenever popgate is down"}},
			"somebody else's drac with -T": {lab.SendmailOptions{M4: []string{"FEATURE(`drac', `socket -T<TMPF> local:/run/other.sock')dnl"}},
				found{"FAIL", "map drac", "OPEN RELAY whenever popgate is down"}},
			"the map without -T": {lab.SendmailOptions{Tail: []string{strings.Replace(contrib.SendmailSocketMap, "-T<TMPF> ", "", 1)}},
				found{"WARN", "map popgate", "without -T<TMPF>"}},
			"the map's socket missing": {lab.SendmailOptions{Tail: []string{contrib.SendmailSocketMap}}, found{"FAIL", "socketmap.sock", "does not exist"}},
			"a network popgate does not trust": {lab.SendmailOptions{M4: []string{feature, "RELAY_DOMAIN(`192.0.2')dnl"}},
				found{"WARN", "class R", "192.0.2.0/24"}},
			"a domain popgate does not know": {lab.SendmailOptions{M4: []string{feature, "RELAY_DOMAIN(`new.test')dnl"}}, found{"FAIL", "own domains", "new.test"}},
		} {
			t.Run(name, func(t *testing.T) {
				s.sendmail.Configure(t, tt.options)
				settle(t, "/etc/mail")
				s.finds(t, tt.want)
			})
		}
	})
}

func TestCheckFindsSendmailsClosedDoorsWell(t *testing.T) {
	through(t, doors[2:4], setup{}, func(t *testing.T, s *site) {
		s.well(t, labFaults)
		s.well(t, labFaults, "--live")
	})
}

// Root may read what popgate may not.
func TestCheckAsRootSeesTheLogAsPopgateSeesIt(t *testing.T) {
	on(t, "postfix", setup{}, func(t *testing.T, s *site) {
		if err := os.Chmod(lab.DovecotLog, 0o600); err != nil {
			t.Fatal(err)
		}
		s.finds(t, found{"FAIL", "source file:" + lab.DovecotLog, "permission denied"})
		if err := os.Chmod(lab.DovecotLog, 0o644); err != nil {
			t.Fatal(err)
		}
		s.finds(t, found{"ok", "source file:" + lab.DovecotLog, "bytes"})
	})
}
