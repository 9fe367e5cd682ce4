package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"popgate/internal/control"
	"popgate/internal/lab"
)

const (
	pushKey    = "0123456789abcdef0123456789abcdef"
	pushFile   = "/etc/popgate/push.key"
	pushSource = "push:127.0.0.1:4001"
)

// reporting are the lines of docs/dovecot.md for Dovecot 2.3.
var reporting = []string{
	"auth_policy_server_url = http://127.0.0.1:4001/",
	"auth_policy_server_api_header = X-API-Key:" + pushKey,
	"auth_policy_hash_nonce = popgate",
	"auth_policy_check_before_auth = no",
	"auth_policy_check_after_auth = no",
	"auth_policy_request_attributes = login=%{requested_username} remote=%{rip} protocol=%s session_id=%{session} mech=%m host=%{passdb:host:no} nologin=%{passdb:nologin:no}",
}

// pushed is a site whose popgate reads no log.
func pushed(more ...string) setup {
	return setup{
		config:  []string{fmt.Sprintf("sources: [{push: 127.0.0.1:4001, format: dovecot, key_file: %s}]", pushFile)},
		dovecot: lab.DovecotOptions{Extra: append(append([]string{}, reporting...), more...)},
		prepare: func(t *testing.T) { writeKey(t, pushKey) },
	}
}

// writeKey writes popgate's key file as docs/dovecot.md has it done.
func writeKey(t *testing.T, key string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll("/etc/popgate", 0o755), os.WriteFile(pushFile, []byte(key+"\n"), 0o400)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "popgate", pushFile).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// source gives one source as status shows it.
func (s *site) source(t *testing.T, name string) control.Source {
	t.Helper()
	out, _ := s.popgate.Run(t, "status", "--json")
	var st control.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("popgate status --json: %v in %q", err, out)
	}
	for _, one := range st.Sources {
		if one.Name == name {
			return one
		}
	}
	t.Fatalf("no source %s in %s", name, out)
	return control.Source{}
}

// reportsTaken waits until popgate listens for reports.
func (s *site) reportsTaken(t *testing.T) {
	t.Helper()
	lab.Until(t, "popgate takes reports", func() bool { return s.source(t, pushSource).State == "up" })
}

func TestADovecotLoginThatIsReportedMayRelay(t *testing.T) {
	onBoth(t, pushed(), func(t *testing.T, s *site) {
		s.reportsTaken(t)
		deferred(t, s.SMTP(t, mallet), "who logged in before popgate listened is not known")
		s.login(t, alice)
		s.relays(t, s.SMTP(t, alice), "by POP3")
		s.IMAP(t, alice6, "bob").Logout()
		s.popgate.WaitGrant(t, alice6)
		s.relays(t, s.SMTP(t, alice6), "by IMAP")
		s.POP3Fails(t, mallet, "alice")
		deferred(t, s.SMTP(t, mallet), "a wrong password")
		s.onlySubjects(t, "by POP3", "by IMAP")
	})
}

// postLogin are the lines and the script of docs/dovecot.md that tell popgate of
// logins without Dovecot's reports.
const postLoginScript = `#!/bin/sh
# service = what Dovecot calls this script with: imap or pop3
service=$1; shift
if [ "$AUTH_MECH" != ANONYMOUS ]; then
	/usr/sbin/popgate login "$IP" --user="$USER" --service="$service" --socket=/run/popgate/push.sock || true
fi
exec "$@"
`

var postLogin = []string{
	"service imap {\n  executable = imap imap-postlogin\n}",
	"service pop3 {\n  executable = pop3 pop3-postlogin\n}",
	"service imap-postlogin {\n  executable = script-login /etc/dovecot/popgate-login imap\n  user = popgate\n  vsz_limit = 0\n  unix_listener imap-postlogin {\n  }\n}",
	"service pop3-postlogin {\n  executable = script-login /etc/dovecot/popgate-login pop3\n  user = popgate\n  vsz_limit = 0\n  unix_listener pop3-postlogin {\n  }\n}",
}

func TestAPostLoginScriptTellsOfALogin(t *testing.T) {
	set := setup{
		config: []string{
			"listen: {milter: [\"unix:" + lab.PostfixSocket + "\"], push: \"unix:/run/popgate/push.sock\"}",
			"socket_group: postfix",
			"sources: [{file: /var/log/nothing.log, format: dovecot}]",
			"ignore_users: [bob]",
		},
		dovecot: lab.DovecotOptions{Extra: append([]string{"auth_mechanisms = plain anonymous"}, postLogin...)},
		prepare: func(t *testing.T) {
			if err := os.WriteFile("/etc/dovecot/popgate-login", []byte(strings.ReplaceAll(postLoginScript, "/usr/sbin/popgate", lab.PopgatePath)), 0o755); err != nil {
				t.Fatal(err)
			}
		},
	}
	on(t, "postfix", set, func(t *testing.T, s *site) {
		s.IMAP(t, mallet, "bob").Logout()
		s.IMAPAnonymous(t, "198.51.100.9").Logout()
		s.IMAP(t, alice, "alice").Logout()
		s.popgate.WaitGrant(t, alice) // by now those before it have been judged
		s.relays(t, s.SMTP(t, alice), "by IMAP")
		s.POP3(t, alice6, "alice").Logout()
		s.popgate.WaitGrant(t, alice6)
		s.relays(t, s.SMTP(t, alice6), "by POP3")
		for who, client := range map[string]string{"ignored": mallet, "anonymous": "198.51.100.9"} {
			if s.popgate.Holds(t, client) {
				t.Errorf("%s: %s has a grant", who, client)
			}
		}
		lab.Until(t, "status shows the three logins that were told", func() bool {
			src := s.source(t, "push:unix:/run/popgate/push.sock")
			return src.State == "up" && src.Logins == 3
		})
		s.popgate.Must(t, "reload")
		s.IMAP(t, "198.51.100.10", "alice").Logout()
		s.popgate.WaitGrant(t, "198.51.100.10") // the socket is the one that was there
		s.popgate.Stop(t)
		s.IMAP(t, alice, "alice").Logout() // let in all the same
		s.popgate.Start(t)
		s.onlySubjects(t, "by IMAP", "by POP3")
	})
}

// reporting24 are the lines of docs/dovecot.md for Dovecot 2.4.
var reporting24 = []string{
	"auth_policy_server_url = http://127.0.0.1:4001/",
	"auth_policy_server_api_header = X-API-Key:" + pushKey,
	"auth_policy_hash_nonce = popgate",
	"auth_policy_check_before_auth = no",
	"auth_policy_check_after_auth = no",
	`auth_policy_request_attributes {
  login = %{requested_username}
  remote = %{remote_ip}
  protocol = %{protocol}
  session_id = %{session}
  mech = %{mechanism}
  host = %{passdb:host | default('no')}
}`,
}

// oddUsers is a second user database. What proxies to the POP3 port fails at
// once.
const (
	oddUsers = `shut:{PLAIN}secret::::::nologin=y
nets:{PLAIN}secret::::::allow_nets=10.0.0.0/8
proxied:{PLAIN}::::::proxy=y nopassword=y host=127.0.0.1 port=110
guest:{PLAIN}secret::::::
`
	oddUsersFile = "/etc/dovecot/odd-users"
)

// odd are the lines of the table below that both Dovecots understand.
var odd = []string{
	"auth_mechanisms = plain login anonymous",
	"auth_anonymous_username = guest",
	"mail_max_userip_connections = 1",
	"service imap {\n  executable = imap imap-postlogin\n}",
	"service imap-postlogin {\n  executable = script-login /etc/dovecot/shut-out\n  user = popgate\n  unix_listener imap-postlogin {\n  }\n}",
	// As documented: the secret is for root only.
	"!include_try " + secretConf,
}

// shutOut is a post-login script that ends one user's sessions.
const shutOut = "#!/bin/sh\ntest \"$USER\" = evil && exit 1\nexec \"$@\"\n"

const (
	shutOutFile = "/etc/dovecot/shut-out"
	secretConf  = "/etc/dovecot/popgate.conf"
)

// For each way in which Dovecot finds a password right and lets nobody in:
// whether it has reported a success before, and what popgate makes of it.
func reportsBeforeRefusals(t *testing.T, h *lab.Host, p *lab.Daemon, shutGrants bool) {
	held := h.IMAP(t, "198.51.100.20", "bob")
	defer held.Close()
	for _, tt := range []struct {
		what, from, command string
		ok, granted         bool
	}{
		{"a wrong password", "198.51.100.21", "LOGIN alice wrong", false, false},
		{"no such user", "198.51.100.22", "LOGIN nobody secret", false, false},
		{"allow_nets of others", "198.51.100.23", "LOGIN nets secret", false, false},
		{"proxied, with any password", "198.51.100.24", "LOGIN proxied wrong", false, false},
		{"anonymous under another name", "198.51.100.25", "AUTHENTICATE ANONYMOUS Zm9v", true, false},
		{"nologin", "198.51.100.26", "LOGIN shut secret", false, shutGrants},
		// The password was right: its owner is known.
		{"shut out by a post-login script", "198.51.100.27", "LOGIN evil secret", false, true},
		{"too many connections", "198.51.100.20", "LOGIN bob secret", false, true},
	} {
		answer := h.IMAPAnswers(t, tt.from, tt.command)
		if ok := strings.HasPrefix(answer, "OK"); ok != tt.ok {
			t.Errorf("%s: Dovecot answers %q", tt.what, answer)
		}
		// A login that is reported later is in the ledger later.
		marker := strings.Replace(tt.from, "198.51.100.", "203.0.113.", 1)
		h.POP3(t, marker, "alice").Logout()
		p.WaitGrant(t, marker)
		if got := p.Holds(t, tt.from); got != tt.granted {
			t.Errorf("%s: granted %v, want %v", tt.what, got, tt.granted)
		}
	}
}

// popgateForReports starts a popgate that takes reports, and no MTA.
func popgateForReports(t *testing.T, h *lab.Host) *lab.Daemon {
	t.Helper()
	writeKey(t, pushKey)
	return h.Popgate(t, fmt.Sprintf("local_domains: [local.test]\nlocal_domains_from: none\nsources: [{push: 127.0.0.1:4001, format: dovecot, key_file: %s}]\n", pushFile))
}

func TestWhatDovecot23ReportsBeforeItRefuses(t *testing.T) {
	t.Parallel()
	lab.WithDaemon(t, func(t *testing.T, h *lab.Host) {
		p := popgateForReports(t, h)
		if err := errors.Join(os.WriteFile(oddUsersFile, []byte(oddUsers), 0o644), os.WriteFile(shutOutFile, []byte(shutOut), 0o755),
			os.WriteFile(secretConf, []byte(strings.Join(reporting, "\n")+"\n"), 0o600)); err != nil {
			t.Fatal(err)
		}
		h.Dovecot(t, lab.DovecotOptions{Users: []string{"evil"}, Extra: append(odd, "passdb {\n  driver = passwd-file\n  args = "+oddUsersFile+"\n}")})
		reportsBeforeRefusals(t, h, p, false)
	})
}

func TestWhatDovecot24ReportsBeforeItRefuses(t *testing.T) {
	t.Parallel()
	lab.WithDovecot24(t, func(t *testing.T, h *lab.Host) {
		p := popgateForReports(t, h)
		h.Dovecot24(t, lab.DovecotOptions{Users: []string{"evil"}, Extra: append(odd, "passdb odd {\n  driver = passwd-file\n  passwd_file_path = "+oddUsersFile+"\n}")},
			map[string]string{oddUsersFile: oddUsers, shutOutFile: shutOut, secretConf: strings.Join(reporting24, "\n") + "\n"})
		reportsBeforeRefusals(t, h, p, true)
	})
}

// postLogin24 are the lines for Dovecot 2.4.
var postLogin24 = []string{
	"service imap {\n  executable = imap imap-postlogin\n}",
	"service pop3 {\n  executable = pop3 pop3-postlogin\n}",
	"service imap-postlogin {\n  executable = script-login /etc/dovecot/popgate-login imap\n  user = popgate\n  vsz_limit = unlimited\n  unix_listener imap-postlogin {\n  }\n}",
	"service pop3-postlogin {\n  executable = script-login /etc/dovecot/popgate-login pop3\n  user = popgate\n  vsz_limit = unlimited\n  unix_listener pop3-postlogin {\n  }\n}",
}

func TestAPostLoginScriptOfDovecot24TellsOfALogin(t *testing.T) {
	t.Parallel()
	lab.WithDovecot24(t, func(t *testing.T, h *lab.Host) {
		p := h.Popgate(t, "local_domains: [local.test]\nlocal_domains_from: none\nlisten: {push: \"unix:/run/popgate/push.sock\"}\nsources: [{file: /var/log/nothing.log, format: dovecot}]\n")
		h.Dovecot24(t, lab.DovecotOptions{Extra: postLogin24},
			map[string]string{"/etc/dovecot/popgate-login": strings.ReplaceAll(postLoginScript, "/usr/sbin/popgate", lab.PopgatePath)})
		h.IMAP(t, alice, "alice").Logout()
		p.WaitGrant(t, alice)
		h.POP3(t, alice6, "bob").Logout()
		p.WaitGrant(t, alice6)
		p.Stop(t)
		h.IMAP(t, alice, "alice").Logout() // let in all the same
	})
}

// Postfix asks Dovecot about SMTP AUTH, and Dovecot reports that too.
func TestSMTPAuthThatIsReportedIsNoLogin(t *testing.T) {
	set := pushed()
	set.postfix.Auth = true
	on(t, "postfix", set, func(t *testing.T, s *site) {
		s.reportsTaken(t)
		c := s.SMTP(t, mallet)
		if r := c.Auth("alice", lab.Password); !r.Is(235) {
			t.Fatalf("AUTH: %v", r)
		}
		s.login(t, alice)
		lab.Until(t, "both reports are counted", func() bool { return s.source(t, pushSource).Lines == 2 })
		if src := s.source(t, pushSource); src.Logins != 1 || s.popgate.Holds(t, mallet) {
			t.Errorf("SMTP AUTH counts as a login: %+v", src)
		}
	})
}

// Whatever becomes of popgate, users get at their mail.
func TestAFrozenPopgateHoldsUpNoLogin(t *testing.T) {
	t.Parallel()
	lab.WithDaemon(t, func(t *testing.T, h *lab.Host) {
		p := popgateForReports(t, h)
		h.Dovecot(t, lab.DovecotOptions{Extra: reporting})
		h.IMAP(t, alice, "alice").Logout()
		p.WaitGrant(t, alice)
		p.Freeze(t)
		for range 20 {
			start := time.Now()
			h.IMAP(t, alice6, "bob").Logout()
			if took := time.Since(start); took > time.Second {
				t.Errorf("a login took %v", took)
			}
		}
		p.Thaw(t)
		h.POP3(t, mallet, "alice").Logout()
		p.WaitGrant(t, mallet)
	})
}

func TestDovecotDocumentShowsTheLinesThatTheTestsRun(t *testing.T) {
	b, err := os.ReadFile("../../docs/dovecot.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(b), "SECRET", pushKey)
	for what, lines := range map[string]string{
		"reports, 2.3":      strings.Join(reporting, "\n"),
		"reports, 2.4":      strings.Join(reporting24, "\n"),
		"post-login, 2.3":   strings.Join(postLogin, "\n"),
		"post-login script": postLoginScript,
	} {
		if !strings.Contains(text, "\n"+strings.TrimSuffix(lines, "\n")+"\n```\n") {
			t.Errorf("docs/dovecot.md has other lines for %s:\n%s", what, lines)
		}
	}
	if in24 := strings.ReplaceAll(strings.Join(postLogin, "\n"), "vsz_limit = 0", "vsz_limit = unlimited"); in24 != strings.Join(postLogin24, "\n") {
		t.Error("the lines for 2.4 differ from those for 2.3 in more than vsz_limit")
	}
}
