package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"popgate/contrib"
	"popgate/internal/lab"
)

const bob = "198.51.100.8"

// packaged is a machine on which popgate came as a package.
type packaged struct {
	*lab.Host
	m    *lab.Machine
	main string // Postfix's main.cf without a door
}

// The whole life of a package on one machine, in the order in which an
// administrator meets it.
func TestPackageFromInstallToPurge(t *testing.T) {
	t.Parallel()
	lab.Booted(t, func(t *testing.T, h *lab.Host, m *lab.Machine) {
		p := &packaged{Host: h, m: m}
		p.dovecot(t)
		for _, chapter := range []struct {
			name string
			run  func(*testing.T)
		}{
			{"installed without an MTA it serves", p.installed},
			{"its sandbox is tight and hides other machines' journals", p.sandboxed},
			{"a login of the real Dovecot in the real journal grants", p.login},
			{"a journal that moves to memory and back to disk is followed", p.journalMoves},
			{"Postfix comes later and finds its sockets", p.postfixComes},
			{"mail through the chrooted Postfix before and after a login", p.mail},
			{"the milter behind the same chroot", p.milter},
			{"fifteen restarts refuse no connection", p.restarts},
			{"an upgrade that finds fault with the configuration leaves the old release running", p.upgradeRefused},
			{"an upgrade refuses no connection", p.upgrade},
			{"the watchdog restarts a daemon that stands still", p.watchdog},
			{"a crash loop never ends the sockets", p.crashLoop},
			{"a purge leaves nothing", p.purge},
		} {
			if !t.Run(chapter.name, chapter.run) {
				return // the rest of the story would tell of the same
			}
		}
	})
}

// dovecot lets the machine's Dovecot take clear-text passwords and gives it two
// users. Its log goes where Debian has it go.
func (p *packaged) dovecot(t *testing.T) {
	conf := "disable_plaintext_auth = no\nmail_location = maildir:~/mail\n"
	if strings.HasPrefix(p.m.Must(t, "dovecot", "--version"), "2.4") {
		conf = "auth_allow_cleartext = yes\nmail_driver = maildir\nmail_path = ~/mail\n"
	}
	p.m.Write(t, "/etc/dovecot/local.conf", conf+"auth_failure_delay = 0\n")
	p.m.Must(t, "sh", "-ec", "for u in alice bob; do useradd -m $u; echo $u:"+lab.Password+" | chpasswd; done; doveadm reload")
}

// status is what the tests read of `popgate status --json`.
type status struct {
	Health    string
	Listeners []struct{ Name, Address string }
	Sources   []struct{ Name, State, Error string }
}

func (p *packaged) status(t *testing.T) (s status) {
	t.Helper()
	out, _ := p.m.Run(t, "popgate", "status", "--json")
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatalf("popgate status: %v in %s", err, out)
	}
	return s
}

func (p *packaged) installed(t *testing.T) {
	p.m.Must(t, "apt-get", "-y", "install", lab.PackageFile)
	lab.Until(t, "the source is up", func() bool { return p.status(t).Health == "ok" })
	if s := p.status(t); len(s.Listeners) != 4 || len(s.Sources) != 1 || !strings.HasPrefix(s.Sources[0].Name, "journal:") {
		t.Errorf("%+v, want four listeners and a journal", s)
	}
	if out := p.m.Must(t, "stat", "-c", "%U:%G %a", "/etc/popgate/milter.yaml", "/run/popgate", "/run/popgate/milter.sock", "/run/popgate/control.sock", "/var/lib/popgate"); out !=
		"root:popgate 640\nroot:root 755\nroot:root 660\nroot:root 666\npopgate:popgate 700" {
		t.Errorf("owners and modes:\n%s", out)
	}
	if out := p.m.Must(t, "systemctl", "list-units", "--failed", "--plain", "--no-legend"); out != "" {
		t.Errorf("failed: %s", out)
	}
	if limit := p.m.Unit(t, "dovecot.service", "LogRateLimitIntervalUSec"); limit != "0" {
		t.Errorf("dovecot.service: rate limit interval of the log is %s, want 0", limit)
	}
	// Everybody is told who he is, and others than root may nothing.
	if out, code := p.m.Run(t, "runuser", "-u", "alice", "--", "popgate", "list"); code == 0 || !strings.Contains(out, "not permitted") {
		t.Errorf("popgate list as a user: exit %d: %s", code, out)
	}
}

func (p *packaged) sandboxed(t *testing.T) {
	out := p.m.Must(t, "systemd-analyze", "security", "--no-pager", "popgate.service")
	found := regexp.MustCompile(`exposure level for popgate.service: ([0-9.]+)`).FindStringSubmatch(out)
	if found == nil {
		t.Fatalf("systemd-analyze says no level: %s", out)
	}
	if level, err := strconv.ParseFloat(found[1], 64); err != nil || level > 1.2 {
		t.Errorf("exposure %s, want 1.2 at most:\n%s", found[1], out)
	}
	p.m.Must(t, "mkdir", "/var/log/journal/0123456789abcdef0123456789abcdef", "/var/log/journal/remote")
	p.m.Must(t, "systemctl", "restart", "popgate")
	own := strings.TrimSpace(p.m.Must(t, "cat", "/etc/machine-id"))
	if seen := p.m.Must(t, "nsenter", "--mount", "--target", p.m.Unit(t, "popgate.service", "MainPID"), "ls", "/var/log/journal"); seen != own {
		t.Errorf("below /var/log/journal popgate sees %q, want %q", seen, own)
	}
}

func (p *packaged) granted(t *testing.T, client string) bool {
	t.Helper()
	out, code := p.m.Run(t, "popgate", "show", client)
	return code == 0 && strings.Contains(out, client)
}

// logIn logs in and waits for the grant.
func (p *packaged) logIn(t *testing.T, client, user string) {
	t.Helper()
	p.POP3(t, client, user).Logout()
	lab.Until(t, "popgate has a grant for "+client, func() bool { return p.granted(t, client) })
}

func (p *packaged) login(t *testing.T) {
	p.POP3Fails(t, mallet, "alice")
	p.logIn(t, alice, "alice")
	if p.granted(t, mallet) {
		t.Error("a failed login granted")
	}
	// Any local user may write to the journal, under any name.
	p.m.Must(t, "runuser", "-u", "alice", "--", "logger", "-t", "dovecot",
		"pop3-login: Login: user=<alice>, method=PLAIN, rip="+mallet+", lip=127.0.0.1, mpid=1, session=<x>")
	p.logIn(t, bob, "bob") // read after the forged line
	if p.granted(t, mallet) {
		t.Error("a forged line granted")
	}
	p.m.Must(t, "popgate", "revoke", bob)
}

func (p *packaged) journalMoves(t *testing.T) {
	for _, storage := range []string{"volatile", "persistent"} {
		p.m.Write(t, "/etc/systemd/journald.conf.d/test.conf", "[Journal]\nStorage="+storage+"\n")
		// As a boot has it, which leaves no journal in memory behind.
		p.m.Must(t, "sh", "-ec", "systemctl stop systemd-journald 2>&1; rm -rf /run/log/journal/*; systemctl start systemd-journald")
		// What is logged before the new folder is in sight is lost to popgate, and
		// it knows; so log in until it has seen one.
		lab.Until(t, "a login grants from the "+storage+" journal", func() bool {
			p.POP3(t, bob, "bob").Logout()
			return p.granted(t, bob)
		})
		p.m.Must(t, "popgate", "revoke", bob)
	}
}

// postfixSockets are the sockets in the chroot.
var postfixSockets = []string{"/var/spool/postfix/popgate/milter.sock", "/var/spool/postfix/popgate/policy.sock", "/var/spool/postfix/popgate/socketmap.sock"}

func (p *packaged) postfixComes(t *testing.T) {
	p.m.Must(t, "sh", "-ec", `echo 'postfix postfix/main_mailer_type select Internet Site
postfix postfix/mailname string local.test' | debconf-set-selections
apt-get -y install postfix`)
	s := p.status(t)
	for _, path := range postfixSockets {
		if out := p.m.Must(t, "stat", "-c", "%U:%G %a", path); out != "root:postfix 660" {
			t.Errorf("%s: %s", path, out)
		}
		if !slices.ContainsFunc(s.Listeners, func(l struct{ Name, Address string }) bool { return l.Address == path }) {
			t.Errorf("%s is not served: %+v", path, s.Listeners)
		}
	}
	if !p.granted(t, alice) {
		t.Error("the restart for Postfix lost a grant")
	}
	if out := p.m.Must(t, "postconf", "-M", "smtp/inet"); strings.Fields(out)[4] != "y" {
		t.Errorf("smtpd is not in a chroot: %s", out)
	}
	p.m.Must(t, "postconf", "-e", "mydestination = local.test, localhost", "relayhost = [127.0.0.1]:"+p.Remote.Port(),
		"smtpd_peername_lookup = no", "disable_dns_lookups = yes", "smtpd_client_connection_rate_limit = 0", "smtpd_client_connection_count_limit = 0",
		"inet_protocols = ipv4", "maillog_file = /var/log/postfix.log")
	p.m.Must(t, "postconf", "-X", "smtpd_relay_restrictions")
	p.main = p.m.Must(t, "cat", "/etc/postfix/main.cf")
	p.postfix(t, contrib.PostfixPolicy)
}

// postfix gives Postfix a door and has it take it up.
func (p *packaged) postfix(t *testing.T, lines string) {
	t.Helper()
	p.m.Write(t, "/etc/postfix/main.cf", p.main+"\n"+lines)
	// On Debian 12 the instance: of postfix.service systemd says there that it has
	// been restarted while the old one still takes connections.
	p.m.Must(t, "sh", "-ec", "unit=postfix@-; systemctl --quiet is-active $unit || unit=postfix; systemctl restart $unit")
	// The domains are read anew when the file has changed.
	lab.Until(t, "popgate takes local.test for the site's own", func() bool {
		_, code := p.m.Run(t, "popgate", "ask", mallet, "alice@local.test")
		return code == 0
	})
}

// to sends a message and gives the reply to its recipient.
func (p *packaged) to(t *testing.T, from, rcpt, subject string) lab.Reply {
	t.Helper()
	c := p.SMTP(t, from)
	defer c.Close()
	return c.Send(subject, rcpt)[0]
}

func (p *packaged) mail(t *testing.T) {
	p.doors(t, "policy")
}

func (p *packaged) milter(t *testing.T) {
	p.m.Must(t, "popgate", "revoke", bob)
	p.postfix(t, contrib.PostfixMilter)
	p.doors(t, "milter")
}

// doors has bob refused before his login and taken after it.
func (p *packaged) doors(t *testing.T, door string) {
	if r := p.to(t, bob, "x@remote.test", door+" before"); !r.Is(5) {
		t.Errorf("before the login: %v, want a refusal", r)
	}
	if r := p.to(t, mallet, "alice@local.test", door+" local"); !r.Is(2) {
		t.Errorf("a stranger to a local user: %v", r)
	}
	p.logIn(t, bob, "bob")
	if r := p.to(t, bob, "x@remote.test", door+" after"); !r.Is(2) {
		t.Errorf("after the login: %v", r)
	}
	if r := p.to(t, mallet, "x@remote.test", door+" stranger"); !r.Is(5) {
		t.Errorf("a stranger: %v, want a refusal", r)
	}
	p.Remote.Wait(t, door+" after")
	for _, m := range p.Remote.Messages() {
		if !strings.HasSuffix(m.Subject, " after") {
			t.Errorf("relayed: %+v", m)
		}
	}
}

// stream asks the policy service, on a new connection each time, from several
// goroutines until it is stopped, like Postfix.
type stream struct {
	stop         func()
	mu           sync.Mutex
	asked, again int
	bad          []string
}

const policyRequest = "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=" + alice + "\nrecipient=x@remote.test\n\n"

func (p *packaged) stream(path string) *stream {
	s := &stream{}
	done := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond): // the service that is upgraded needs a processor too
					s.ask(p.m, path)
				}
			}
		})
	}
	s.stop = sync.OnceFunc(func() { close(done); all.Wait() })
	return s
}

func (s *stream) ask(m *lab.Machine, path string) {
	answer, again, err := askPatiently(m, path)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	if again {
		s.again++
	}
	if err != nil || answer != "action=OK" {
		s.bad = append(s.bad, fmt.Sprintf("%q %v", answer, err))
	}
}

// askPatiently asks again, once, when a connection ended without an answer.
func askPatiently(m *lab.Machine, path string) (answer string, again bool, err error) {
	if answer, err = askPolicy(m, path); err != io.EOF {
		return answer, false, err
	}
	answer, err = askPolicy(m, path)
	return answer, true, err
}

// askPolicy asks about a client that holds a grant. io.EOF is a connection that
// was taken and ended unanswered.
func askPolicy(m *lab.Machine, path string) (string, error) {
	c, err := m.Dial(path)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, policyRequest); err != nil {
		return "", io.EOF // hung up before it was written
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && !os.IsTimeout(err) {
		err = io.EOF
	}
	return strings.TrimSpace(line), err
}

// check ends the stream and fails the test if anything went wrong in it.
func (s *stream) check(t *testing.T) {
	t.Helper()
	s.stop()
	t.Logf("%d questions, %d of them asked twice", s.asked, s.again)
	if len(s.bad) > 0 {
		t.Errorf("%d of %d questions were not answered OK: %s", len(s.bad), s.asked, s.bad[0])
	}
	if s.asked == 0 {
		t.Error("nothing was asked")
	}
}

func (p *packaged) restarts(t *testing.T) {
	chroot, outside := p.stream(postfixSockets[1]), p.stream("/run/popgate/policy.sock")
	defer chroot.stop()
	defer outside.stop()
	for i := range 15 {
		before := p.m.Unit(t, "popgate.service", "MainPID")
		p.m.Must(t, "systemctl", "restart", "popgate")
		if p.m.Unit(t, "popgate.service", "MainPID") == before {
			t.Fatalf("restart %d left the old process", i)
		}
	}
	chroot.check(t)
	outside.check(t)
}

const configPath = "/etc/popgate/milter.yaml"

// configure writes the machine's configuration without changing whose it is.
func (p *packaged) configure(t *testing.T, text string) {
	t.Helper()
	p.m.Write(t, "/root/milter.yaml", text)
	p.m.Must(t, "sh", "-c", "cat /root/milter.yaml > "+configPath)
}

func (p *packaged) upgradeRefused(t *testing.T) {
	good := p.m.Must(t, "cat", configPath) + "\n"
	p.configure(t, good+"grant_ttl: for ever\n")
	before := p.m.Unit(t, "popgate.service", "MainPID")
	out := p.m.Must(t, "apt-get", "-y", "install", p.m.Repack(t, "0.1.0~dev+1"))
	if !strings.Contains(out, "finds fault with the configuration") || !strings.Contains(out, "for ever") {
		t.Errorf("the upgrade does not say what is wrong: %s", out)
	}
	if after := p.m.Unit(t, "popgate.service", "MainPID"); after != before || before == "0" {
		t.Errorf("process %s before the upgrade, %s after it", before, after)
	}
	if answer, err := askPolicy(p.m, postfixSockets[1]); answer != "action=OK" {
		t.Errorf("the old release answers %q, %v", answer, err)
	}
	p.configure(t, good)
}

func (p *packaged) upgrade(t *testing.T) {
	next := p.m.Repack(t, "0.1.0~dev+2")
	before := p.m.Unit(t, "popgate.service", "MainPID")
	s := p.stream(postfixSockets[1])
	defer s.stop()
	p.m.Must(t, "apt-get", "-y", "install", next)
	s.check(t)
	if after := p.m.Unit(t, "popgate.service", "MainPID"); after == before || after == "0" {
		t.Errorf("process %s before the upgrade, %s after it", before, after)
	}
}

// dropIn changes the unit, as `systemctl edit` does, and restarts it.
func (p *packaged) dropIn(t *testing.T, lines string) {
	t.Helper()
	p.m.Write(t, "/etc/systemd/system/popgate.service.d/test.conf", "[Service]\n"+lines+"\n")
	p.m.Must(t, "systemctl", "daemon-reload")
	p.m.Must(t, "systemctl", "restart", "popgate")
}

func (p *packaged) watchdog(t *testing.T) {
	p.dropIn(t, "WatchdogSec=2s")
	before := p.m.Unit(t, "popgate.service", "MainPID")
	// It lives longer than its watchdog's time, and only then stands still.
	lab.Until(t, "the watchdog has been told twice", func() bool {
		return p.m.Unit(t, "popgate.service", "WatchdogTimestampMonotonic") > p.m.Unit(t, "popgate.service", "ActiveEnterTimestampMonotonic")
	})
	p.m.Must(t, "systemctl", "kill", "--kill-whom=main", "--signal=STOP", "popgate")
	// The first may have been taken just before all stood still.
	if answer, _, err := askPatiently(p.m, postfixSockets[1]); answer != "action=OK" {
		t.Errorf("the connection that waited for the restart got %q, %v", answer, err)
	}
	if after := p.m.Unit(t, "popgate.service", "MainPID"); after == before {
		t.Error("the daemon that stood still was not replaced")
	}
}

func (p *packaged) crashLoop(t *testing.T) {
	good := p.m.Must(t, "cat", configPath) + "\n"
	p.configure(t, good+"nonsense: true\n")
	p.m.Write(t, "/etc/systemd/system/popgate.service.d/test.conf", "[Service]\nRestartSec=20ms\n")
	p.m.Must(t, "systemctl", "daemon-reload")
	p.m.Run(t, "systemctl", "restart", "popgate")
	waiting := make(chan string, 1)
	go func() {
		answer, err := askPolicy(p.m, postfixSockets[1])
		waiting <- fmt.Sprint(answer, err)
	}()
	// More than systemd's limits for services and for sockets, five and twenty.
	lab.Until(t, "it has crashed thirty times", func() bool {
		n, _ := strconv.Atoi(p.m.Unit(t, "popgate.service", "NRestarts"))
		return n > 30
	})
	if out := p.m.Must(t, "systemctl", "list-units", "--plain", "--no-legend", "--state=active", "popgate-*.socket"); strings.Count(out, "\n") != 6 {
		t.Errorf("not all seven sockets are alive:\n%s", out)
	}
	p.configure(t, good)
	if got := <-waiting; got != "action=OK<nil>" {
		t.Errorf("the connection that waited through the crashes got %s", got)
	}
}

func (p *packaged) purge(t *testing.T) {
	p.m.Must(t, "rm", "-r", "/etc/systemd/system/popgate.service.d")
	p.m.Must(t, "apt-get", "-y", "purge", "popgate")
	out := p.m.Must(t, "sh", "-c", `find / -xdev -name '*popgate*' -not -path '/root/*' -not -path '/proc/*'; find /run /tmp /var/tmp -name '*popgate*'; getent passwd popgate; getent group popgate
# Not the copies that the shadow tools make of their files before a change.
grep -l popgate -r /etc /var/lib/systemd 2>/dev/null | grep -v -e ^/etc/postfix/main.cf -e ^/etc/[a-z]*-$
systemctl list-units --all --plain --no-legend 'popgate*'; true`)
	out = strings.TrimSpace(out)
	if out != "" {
		t.Errorf("left behind:\n%s", out)
	}
}

// The same for the other MTA, up to the first relayed mail, by README.Debian.
func TestPackageWithSendmail(t *testing.T) {
	if os.Getenv("POPGATE_SOAK") == "" {
		t.Skip("set POPGATE_SOAK, as `make soak` does")
	}
	t.Parallel()
	lab.Booted(t, func(t *testing.T, h *lab.Host, m *lab.Machine) {
		p := &packaged{Host: h, m: m}
		p.dovecot(t)
		// Debian's sendmail lets its access map be read by one group only.
		healthy := func() bool { return p.status(t).Health == "ok" }
		p.m.Must(t, "apt-get", "-y", "install", lab.PackageFile)
		p.m.Must(t, "apt-get", "-y", "install", "sendmail")
		lab.Until(t, "popgate reads what sendmail is, which came later", healthy)
		p.m.Must(t, "apt-get", "-y", "purge", "popgate")
		if out := p.m.Must(t, "getent", "group", "smmsp"); strings.Contains(out, "popgate") {
			t.Errorf("the purge left popgate in %s", out)
		}
		p.m.Must(t, "apt-get", "-y", "install", lab.PackageFile)
		lab.Until(t, "popgate reads what sendmail is, which was there", healthy)
		// What a lab without name servers needs, and where its sink is. All of it
		// has to stand before the mailers.
		p.m.Write(t, "/etc/mail/service.switch", "hosts files\naliases files\n")
		p.m.Write(t, "/etc/hosts", "127.0.0.1 localhost\n127.0.1.1 mx1.local.test mx1\n"+bob+" bob.client.test\n"+mallet+" mallet.client.test\n")
		p.m.Write(t, "/root/lab.mc", "define(`SMART_HOST', `relay:[127.0.0.1]')dnl\ndefine(`RELAY_MAILER_ARGS', `TCP $h "+p.Remote.Port()+"')dnl\n"+
			"define(`confDOMAIN_NAME', `mx1.local.test')dnl\ndefine(`confSERVICE_SWITCH_FILE', `/etc/mail/service.switch')dnl\n"+
			"FEATURE(`accept_unresolvable_domains')dnl\nFEATURE(`nocanonify')dnl\n")
		p.m.Must(t, "sh", "-ec", `line=$(grep -n -m1 ^MAILER /etc/mail/sendmail.mc | cut -d: -f1)
sed -i "$((line-1))r /root/lab.mc" /etc/mail/sendmail.mc
echo local.test >> /etc/mail/local-host-names`)
		// README.Debian.
		p.m.Must(t, "sh", "-ec", `cat /usr/share/doc/popgate/examples/sendmail/socketmap.mc >> /etc/mail/sendmail.mc
make -C /etc/mail
systemctl restart sendmail`)
		lab.Until(t, "popgate takes local.test for the site's own", func() bool {
			_, code := p.m.Run(t, "popgate", "ask", mallet, "alice@local.test")
			return code == 0
		})
		if out := p.m.Must(t, "popgate", "status"); !strings.HasPrefix(out, "health: ok\n") {
			t.Errorf("%s", out)
		}
		p.doors(t, "socketmap")
	})
}

// What a package promises before it is installed anywhere.
func TestPackageIsReproducibleAndLintHasNothingToSay(t *testing.T) {
	t.Parallel()
	paths, lintian := lab.Packages(t, 2)
	for line := range strings.Lines(lintian) {
		if strings.HasPrefix(line, "E:") || strings.HasPrefix(line, "W:") {
			t.Errorf("lintian: %s", line)
		}
	}
	var debs [2][]byte
	for i, path := range paths {
		var err error
		if debs[i], err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(debs[0], debs[1]) {
		t.Error("two builds of the same sources differ")
	}
}

func TestPackageUnderPiuparts(t *testing.T) {
	if os.Getenv("POPGATE_SOAK") == "" {
		t.Skip("set POPGATE_SOAK, as `make soak` does")
	}
	t.Parallel()
	if out := lab.Piuparts(t); !strings.Contains(out, "PASS: All tests.") {
		t.Errorf("piuparts does not say that all tests passed:\n%s", out)
	}
}
