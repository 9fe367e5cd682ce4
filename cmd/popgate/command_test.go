package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"popgate/internal/relay"
)

// site is a popgate run inside the test: the whole daemon, on a directory of
// its own.
type site struct {
	t      *testing.T
	dir    string
	config string
	log    lockedBuffer
	fault  atomic.Pointer[error]
	stop   context.CancelFunc
	ended  chan int
}

const siteConfig = `listen:
  milter: [unix:%[1]s/milter.sock]
  control: unix:%[1]s/control.sock
local_domains: [example.org]
local_domains_from: none
sources:
  - {file: %[1]s/mail.log, format: dovecot}
state_dir: %[1]s/state
wait_for_login: 0
`

func newSite(t *testing.T) *site {
	t.Helper()
	dir, err := os.MkdirTemp("", "popgate") // t.TempDir is too long for a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &site{t: t, dir: dir, config: filepath.Join(dir, "milter.yaml")}
	s.write("milter.yaml", fmt.Sprintf(siteConfig, dir))
	s.write("mail.log", "")
	return s
}

func (s *site) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) env(out, errs *bytes.Buffer) env {
	e := processEnv()
	e.stdin, e.stdout, e.stderr = strings.NewReader(""), out, errs
	return e
}

func (s *site) start() {
	s.t.Helper()
	s.serve(s.daemonEnv())
	s.until("the source is up", func() bool { return strings.Contains(s.must("status", "--json"), `"state":"up"`) })
}

func (s *site) daemonEnv() env {
	e := processEnv()
	e.stdout, e.stderr = &s.log, &s.log
	e.hangup = make(chan os.Signal)
	e.storeFault = func() error {
		if f := s.fault.Load(); f != nil {
			return *f
		}
		return nil
	}
	return e
}

// serve starts the daemon and waits for its listeners.
func (s *site) serve(e env) {
	s.t.Helper()
	ctx, stop := context.WithCancel(s.t.Context())
	ready := make(chan struct{})
	e.ready = func() { close(ready) }
	s.stop, s.ended = stop, make(chan int, 1)
	go func() { s.ended <- run(ctx, []string{"serve", "-c", s.config}, e) }()
	s.t.Cleanup(s.end)
	select {
	case <-ready:
	case code := <-s.ended:
		s.ended <- code
		s.t.Fatalf("serve ended with %d: %s", code, s.log.String())
	}
}

func (s *site) end() {
	if s.stop == nil {
		return
	}
	s.stop()
	if code := <-s.ended; code != 0 {
		s.t.Errorf("serve ended with %d: %s", code, s.log.String())
	}
	s.stop = nil
}

func (s *site) run(args ...string) (out, errs string, code int) {
	var o, e bytes.Buffer
	code = run(s.t.Context(), append(args, "-c", s.config), s.env(&o, &e))
	return o.String(), e.String(), code
}

func (s *site) must(args ...string) string {
	s.t.Helper()
	out, errs, code := s.run(args...)
	if code != 0 && args[0] != "status" {
		s.t.Fatalf("popgate %s: exit %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func (s *site) want(code int, text string, args ...string) {
	s.t.Helper()
	out, errs, got := s.run(args...)
	if got != code || !strings.Contains(out+errs, text) {
		s.t.Errorf("popgate %s: exit %d, want %d with %q\n%s%s", strings.Join(args, " "), got, code, text, out, errs)
	}
}

func (s *site) until(what string, yes func() bool) {
	s.t.Helper()
	for end := time.Now().Add(10 * time.Second); !yes(); {
		if time.Now().After(end) {
			s.t.Fatalf("waited in vain until %s\n%s", what, s.log.String())
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (s *site) login(client string) {
	s.t.Helper()
	f, err := os.OpenFile(filepath.Join(s.dir, "mail.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		s.t.Fatal(err)
	}
	defer f.Close()
	fmt.Fprintf(f, "%s mx1 dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=%s, lip=192.0.2.1, mpid=4711, TLS, session=<abc>\n",
		time.Now().Format(time.Stamp), client)
}

func TestCommandsAgainstARunningDaemon(t *testing.T) {
	s := newSite(t)
	s.start()
	s.want(0, "no grants", "list")
	s.want(1, "refuse: no_grant", "ask", "198.51.100.7", "x@remote.test")
	s.want(0, "pass: local", "ask", "198.51.100.7", "bob@example.org")
	s.want(0, "pass: authenticated", "ask", "198.51.100.7", "x@remote.test", "--auth", "bob")
	s.want(0, "pass: trusted", "ask", "127.0.0.1", "x@remote.test")
	s.want(1, "defer: unsure", "ask", "198.51.100.7", "x@remote.test", "--mailer", "lmtp", "--addr", "x@remote.test", "--mta", "postfix")
	s.login("198.51.100.7")
	s.until("the login grants", func() bool { _, _, code := s.run("show", "198.51.100.7"); return code == 0 })
	s.want(0, "pass: grant", "ask", "198.51.100.7", "x@remote.test")
	s.want(0, "imap login", "list")
	var g map[string]any
	if err := json.Unmarshal([]byte(s.must("show", "198.51.100.7", "--json")), &g); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"client": "198.51.100.7", "user": "bob", "service": "imap", "format": "dovecot", "session": "abc", "prefix": 32.0} {
		if g[key] != want {
			t.Errorf("show --json: %s is %v, want %v", key, g[key], want)
		}
	}
	s.want(0, "1 grant revoked", "revoke", "198.51.100.7")
	s.want(1, "has no grant", "show", "198.51.100.7")
	s.want(1, "refuse", "ask", "198.51.100.7", "x@remote.test")
	s.want(0, "may relay until", "grant", "198.51.100.8", "--ttl", "2h", "--note", "copier")
	s.want(0, "copier", "list")
	s.want(1, "never_grant", "grant", "127.0.0.1")
	s.want(2, "24h", "grant", "198.51.100.8", "--ttl", "25h")
	s.want(2, "above 0", "grant", "198.51.100.8", "--ttl", "0s")
	s.want(2, "postfix or sendmail", "ask", "198.51.100.8", "x@remote.test", "--mta", "exim")
	s.want(0, "0 grants revoked", "revoke", "--user", "nobody", "--block", "1h")
	s.want(0, "health: ok", "status")
	s.must("revoke", "198.51.100.9", "--block", "1h")
	s.login("198.51.100.9")
	s.until("the blocked login is logged", func() bool { return strings.Contains(s.log.String(), "outcome=revoked") })
	s.want(1, "a block covers this client until", "ask", "198.51.100.9", "x@remote.test")
}

func TestUsageErrorsExitWith2(t *testing.T) {
	s := newSite(t)
	for _, args := range [][]string{{"no-such-command"}, {"ask", "198.51.100.7"}, {"ask", "copier", "x@y.test"}, {"revoke"},
		{"revoke", "198.51.100.7", "--all"}, {"revoke", "198.51.100.0/99"}, {"grant", "unknown"}, {"list", "--no-such-flag"}, {"show"},
		{"ask", "198.51.100.7", "x@y.test", "--addr", "x@y.test"}} {
		s.want(2, "popgate: ", args...)
	}
}

func TestUnreachableDaemonExitsWith3(t *testing.T) {
	s := newSite(t)
	for _, args := range [][]string{{"list"}, {"status"}, {"ask", "198.51.100.7", "x@y.test"}, {"reload"}, {"grant", "198.51.100.7"}, {"revoke", "--all"}} {
		s.want(3, "daemon not reachable", args...)
	}
}

func TestInvalidConfigurationExitsWith4(t *testing.T) {
	s := newSite(t)
	s.write("milter.yaml", "grant_tll: 5m\n")
	for _, args := range [][]string{{"serve"}, {"check"}} {
		s.want(4, "line 1: grant_tll", args...)
	}
	s.write("milter.yaml", "listn: {control: unix:/x.sock}\n")
	s.want(4, "name its control socket with --socket", "list")
	base := fmt.Sprintf(siteConfig, s.dir)
	for config, text := range map[string]string{
		"sources: [{journal: [perdition.service], format: perdition}]\n":                                             "milter.yaml: line 1: sources[0]: popgate does not know which program writes the lines of format perdition; name it",
		strings.Replace(base, "format: dovecot}", "format: mine}", 1) + "formats: {mine: {tag: x, pattern: '.*'}}\n": "milter.yaml: line",
	} {
		s.write("milter.yaml", config)
		s.want(4, text, "serve")
		s.want(4, text, "check")
	}
	os.Remove(s.config)
	s.want(4, "there is no such file; copy milter.yaml.example there", "serve")
}

func TestCheckFindsWhatServeWouldRefuse(t *testing.T) {
	base := func(s *site) string { return fmt.Sprintf(siteConfig, s.dir) }
	for name, tt := range map[string]struct {
		do   func(s *site)
		text string
	}{
		"socket in a missing directory": {func(s *site) {
			s.write("milter.yaml", strings.Replace(base(s), "/milter.sock", "/a/b/milter.sock", 1))
		}, "/a does not exist; make it"},
		"socket path is a file": {func(s *site) { s.write("milter.sock", "") }, "exists and is no socket"},
		"unknown group":         {func(s *site) { s.write("milter.yaml", base(s)+"socket_group: no-such-group\n") }, "no group no-such-group; install first what makes it"},
		"state_dir is a file":   {func(s *site) { s.write("state", "") }, "is no directory"},
		"state_dir is open to others": {func(s *site) {
			os.Mkdir(filepath.Join(s.dir, "state"), 0o755)
			os.Chmod(filepath.Join(s.dir, "state"), 0o755)
		}, "chmod 0700"},
		"state_dir has no parent": {func(s *site) {
			s.write("milter.yaml", strings.Replace(base(s), "/state\n", "/a/b/state\n", 1))
		}, "does not exist either"},
		"source is missing":        {func(s *site) { os.Remove(filepath.Join(s.dir, "mail.log")) }, "does the POP/IMAP server log there"},
		"source anybody can write": {func(s *site) { os.Chmod(filepath.Join(s.dir, "mail.log"), 0o666) }, "mail.log"},
		"no local domain": {func(s *site) {
			s.write("milter.yaml", strings.Replace(base(s), "local_domains: [example.org]\n", "", 1))
		}, "none is known"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.want(0, "ok    local domains", "check")
			tt.do(s)
			s.want(1, "FAIL", "check")
			s.want(1, tt.text, "check")
		})
	}
}

// A log that is never understood looks like one of a quiet night.
func TestCheckSaysWhichFormatALogIsIn(t *testing.T) {
	const (
		dovecot = "Nov 22 02:06:10 mx1 dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=198.51.100.7, lip=203.0.113.1, mpid=7, TLS, session=<abcdefghijk>\n"
		changed = "Nov 22 02:06:10 mx1 dovecot: imap-login: Login: user=<bob>, PLAIN, rip:198.51.100.7\n"
		courier = "Nov 22 02:06:10 mx1 pop3d: Connection, ip=[::ffff:198.51.100.7], port=[4444]\n" +
			"Nov 22 02:06:10 mx1 pop3d: LOGIN, user=bob, ip=[::ffff:198.51.100.7], port=[4444]\n"
	)
	for _, tt := range []struct{ name, format, log, want string }{
		{"Courier's log as dovecot", "dovecot", courier, "hold no login in the format dovecot, but 1 in courier; write format: courier"},
		{"a log that auto can't decide about", "auto", courier, "hold no login in the format auto, but 1 in courier"},
		{"changed by login_log_format", "dovecot", changed, "but 1 that look like one and match nothing"},
		{"the right one", "dovecot", dovecot + courier, ""},
		{"nobody logged in yet", "dovecot", "Nov 22 02:06:10 mx1 dovecot: master: Dovecot v2.3.19 starting up\n", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSite(t)
			s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), "format: dovecot", "format: "+tt.format, 1))
			s.write("mail.log", tt.log)
			out, _, code := s.run("check")
			if code != 0 || !strings.Contains(out, tt.want) || tt.want == "" && strings.Contains(out, "hold no login") {
				t.Errorf("exit %d, want 0 with %q: %s", code, tt.want, out)
			}
		})
	}
}

func TestDamagedStateBringsNoRevokedClientBack(t *testing.T) {
	s := newSite(t)
	s.start()
	s.login("198.51.100.7")
	s.until("the login grants", func() bool { _, _, code := s.run("show", "198.51.100.7"); return code == 0 })
	s.must("revoke", "198.51.100.7")
	s.end()
	files, _ := filepath.Glob(filepath.Join(s.dir, "state", "*"))
	for _, f := range files {
		if filepath.Base(f) != "lock" {
			os.WriteFile(f, []byte("this was a state file once"), 0o600)
		}
	}
	s.start()
	s.want(1, "defer: not_ready", "ask", "198.51.100.7", "x@remote.test")
	s.want(1, "has no grant", "show", "198.51.100.7")
	s.want(5, "damaged", "status")
	s.until("a new login grants", func() bool {
		s.login("198.51.100.8") // stamps are cut to the second, so the first may be too old
		_, _, code := s.run("show", "198.51.100.8")
		return code == 0
	})
}

func TestReloadBelievesNoLineThatWasNotBelieved(t *testing.T) {
	s := newSite(t)
	s.start()
	log := filepath.Join(s.dir, "mail.log")
	os.Chmod(log, 0o666)
	s.until("the log is distrusted", func() bool { return strings.Contains(s.must("status"), "degraded") })
	s.login("203.0.113.66")
	os.Chmod(log, 0o600)
	s.until("the log is read again", func() bool { return strings.Contains(s.must("status", "--json"), `"state":"up"`) })
	s.write("milter.yaml", strings.Replace(fmt.Sprintf(siteConfig, s.dir), "format: dovecot", "format: auto", 1))
	s.must("reload")
	s.login("198.51.100.7")
	s.until("a later login grants", func() bool { _, _, code := s.run("show", "198.51.100.7"); return code == 0 })
	s.want(1, "has no grant", "show", "203.0.113.66")
}

func TestSocketsHaveTheModeThatIsConfigured(t *testing.T) {
	s := newSite(t)
	s.write("milter.yaml", fmt.Sprintf(siteConfig, s.dir)+"socket_mode: 0600\n")
	s.start()
	info, err := os.Stat(filepath.Join(s.dir, "milter.sock"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestOnlyAllowedAddressesMayConnect(t *testing.T) {
	may := mayConnect([]netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")})
	for a, want := range map[string]bool{"127.0.0.1": true, "::1": true, "192.0.2.9": true, "::ffff:192.0.2.9": true, "198.51.100.7": false, "::ffff:198.51.100.7": false} {
		if may(netip.MustParseAddr(a)) != want {
			t.Errorf("%s may connect: %v, want %v", a, !want, want)
		}
	}
}

func TestLoginFromThisHostsOwnAddressGrantsNothing(t *testing.T) {
	var own ownAddresses
	own.read()
	addrs, err := net.InterfaceAddrs()
	if err != nil || len(addrs) == 0 {
		t.Skip("no addresses to see")
	}
	for _, a := range addrs {
		p := netip.MustParsePrefix(a.String())
		if !own.is(relay.Canonical(p.Addr())) {
			t.Errorf("%s is not among the host's own", p)
		}
	}
	if own.is(netip.MustParseAddr("198.51.100.7")) {
		t.Error("a stranger is among the host's own")
	}
	if got := broadcast(netip.MustParsePrefix("192.0.2.130/25")); got != netip.MustParseAddr("192.0.2.255") {
		t.Errorf("broadcast %s", got)
	}
}

func TestDomainFileChangesUnderARunningDaemon(t *testing.T) {
	s := newSite(t)
	s.write("domains", "one.test\n")
	s.write("milter.yaml", fmt.Sprintf(siteConfig, s.dir)+"local_domain_files: ["+s.dir+"/domains]\n")
	s.start()
	s.want(0, "pass: local", "ask", "198.51.100.7", "a@one.test")
	s.want(1, "refuse", "ask", "198.51.100.7", "a@two.test")
	s.write("domains", "one.test\ntwo.test\n")
	s.until("the new domain is taken", func() bool { _, _, code := s.run("ask", "198.51.100.7", "a@two.test"); return code == 0 })
}

func TestDegradedStatusExitsWith5(t *testing.T) {
	s := newSite(t)
	s.start()
	os.Remove(filepath.Join(s.dir, "mail.log"))
	s.until("the lost log is noticed", func() bool { _, _, code := s.run("status"); return code == 5 })
	s.want(5, "no such file", "status")
	s.want(1, "defer: not_ready", "ask", "198.51.100.7", "x@remote.test")
	s.want(0, "pass: local", "ask", "198.51.100.7", "bob@example.org")
	s.write("mail.log", "")
	s.until("it heals by itself", func() bool { _, _, code := s.run("status"); return code == 0 })
}

func TestStaleCopyIsATemporaryFailure(t *testing.T) {
	s := newSite(t)
	s.start()
	fault := fmt.Errorf("the copy is old")
	s.fault.Store(&fault)
	s.want(1, "defer: store_error", "ask", "198.51.100.7", "x@remote.test")
	s.want(0, "pass: local", "ask", "198.51.100.7", "bob@example.org")
	s.want(5, "the copy is old", "status")
}

func TestReloadIsAllOrNothing(t *testing.T) {
	s := newSite(t)
	s.start()
	s.must("grant", "198.51.100.7")
	base := fmt.Sprintf(siteConfig, s.dir)
	s.write("milter.yaml", base+"never_grant: [not-a-network]\n")
	s.want(4, "the old configuration stays in force", "reload")
	s.until("the log says so", func() bool { return strings.Contains(s.log.String(), "reload refused") })
	// The daemon can be asked all the same.
	s.want(5, "the last reload was refused", "status")
	s.want(0, "the daemon does not run by it: ", "ask", "198.51.100.7", "x@remote.test")
	s.write("milter.yaml", base)
	s.want(0, "pass: grant", "ask", "198.51.100.7", "x@remote.test")
	s.want(5, "the last reload was refused", "status")
	s.write("milter.yaml", strings.Replace(base, "/milter.sock", "/other.sock", 1))
	s.want(4, "listen.milter", "reload")
	s.write("milter.yaml", base+"never_grant: [198.51.100.0/24]\nreject: {text: no}\n")
	s.want(0, "1 grant purged that", "reload")
	s.want(1, "550 5.7.1 no", "ask", "198.51.100.7", "x@remote.test")
	s.want(0, "health: ok", "status")
}

func TestReloadKeepsUnchangedSourcesAndSwapsOthers(t *testing.T) {
	s := newSite(t)
	s.start()
	s.write("second.log", "")
	base := fmt.Sprintf(siteConfig, s.dir)
	both := strings.Replace(base, "format: dovecot}", "format: dovecot}\n  - {file: "+s.dir+"/second.log, format: courier}", 1)
	s.write("milter.yaml", both)
	s.must("reload")
	s.until("both are up", func() bool { return strings.Count(s.must("status", "--json"), `"state":"up"`) == 2 })
	s.until("the log tells of the second", func() bool {
		return strings.Contains(s.log.String(), "msg=\"source up\" source=file:"+s.dir+"/second.log")
	})
	if n := strings.Count(s.log.String(), "msg=\"source up\" source=file:"+s.dir+"/mail.log"); n != 1 {
		t.Errorf("the unchanged source came up %d times", n)
	}
	s.write("milter.yaml", base)
	s.must("reload")
	if strings.Contains(s.must("status"), "second.log") {
		t.Error("a source that is no longer configured is still there")
	}
	s.login("198.51.100.9")
	s.until("the first source still reads", func() bool { _, _, code := s.run("show", "198.51.100.9"); return code == 0 })
}

func TestRestartKeepsGrantsRevocationsAndPlaces(t *testing.T) {
	s := newSite(t)
	s.start()
	s.login("198.51.100.7")
	s.login("198.51.100.8")
	s.until("both grant", func() bool { return strings.Count(s.must("list"), "imap login") == 2 })
	s.must("revoke", "198.51.100.8")
	s.end()
	s.login("198.51.100.9") // while it is down
	s.start()
	s.want(0, "pass: grant", "ask", "198.51.100.7", "x@remote.test")
	s.want(1, "refuse", "ask", "198.51.100.8", "x@remote.test")
	s.want(0, "pass: grant", "ask", "198.51.100.9", "x@remote.test")
}

func TestDemoTellsTheStory(t *testing.T) {
	var out, errs bytes.Buffer
	e := processEnv()
	e.stdout, e.stderr = &out, &errs
	if code := run(t.Context(), []string{"demo"}, e); code != 0 {
		t.Fatalf("exit %d: %s%s", code, out.String(), errs.String())
	}
	for _, act := range []string{"a stranger sends to another site", "250 accepted", "550 5.7.1", "forged three log lines", "revoke", "expired",
		"smtpd_milters = $popgate", "INPUT_MAIL_FILTER", "milter_default_action = tempfail"} {
		if !strings.Contains(out.String(), act) {
			t.Errorf("the story lacks %q:\n%s", act, out.String())
		}
	}
	if strings.Contains(out.String(), "!!") {
		t.Errorf("an answer was not as it should be:\n%s", out.String())
	}
}

func TestTestLogCountsAndExits(t *testing.T) {
	s := newSite(t)
	s.login("198.51.100.7")
	s.want(0, "logins", "test-log", filepath.Join(s.dir, "mail.log"))
	s.want(1, "no login was found", "test-log", "--format", "courier", filepath.Join(s.dir, "mail.log"))
	s.want(2, "dovcot", "test-log", "--format", "dovcot", filepath.Join(s.dir, "mail.log"))
	s.want(1, "no such file", "test-log", filepath.Join(s.dir, "missing.log"))
	out := s.must("test-log", "--json", filepath.Join(s.dir, "mail.log"))
	var ev map[string]any
	if err := json.Unmarshal([]byte(out), &ev); err != nil {
		t.Fatalf("%v in %q", err, out)
	}
	for key, want := range map[string]any{"line": 1.0, "event": "login", "client": "198.51.100.7", "user": "bob", "service": "imap", "session": "abc", "format": "dovecot"} {
		if ev[key] != want {
			t.Errorf("test-log --json: %s is %v, want %v", key, ev[key], want)
		}
	}
	if _, err := time.Parse(time.RFC3339, fmt.Sprint(ev["time"])); err != nil {
		t.Error(err)
	}
}

func TestTheLogSaysOnceThatALocalUserCanForgeASyslogFile(t *testing.T) {
	s := newSite(t)
	s.start()
	s.must("reload")
	s.end()
	if n := strings.Count(s.log.String(), "can be forged by every local user"); n != 1 {
		t.Errorf("said %d times:\n%s", n, s.log.String())
	}
}
