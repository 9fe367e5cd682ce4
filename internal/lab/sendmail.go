package lab

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"popgate/contrib"
)

// SendmailOptions say how the host's sendmail differs from the usual one.
type SendmailOptions struct {
	Milter      bool              // with contrib.SendmailMilter; else without a milter, and without promiscuous_relay
	Timeouts    string            // of the milter, in place of contrib's
	VirtUser    []string          // lines added to the virtusertable, key and value separated by a tab
	VirtDomains []string          // further domains of the virtusertable
	MailerTable []string          // lines of the mailertable
	M4          []string          // lines before the MAILER lines; FEATURE(`popgate') may be one
	Tail        []string          // lines after them
	Files       map[string]string // further files in /etc/mail
	Auth        bool              // SMTP AUTH by Cyrus SASL, users alice and bob with the password Password
	TLS         bool              // STARTTLS
}

// SendmailSocket is where sendmail looks for popgate.
const SendmailSocket = "/run/popgate/milter.sock"

// Sendmail is the host's sendmail, listening on port 25 of 127.0.0.1 and ::1.
//
// It is responsible for local.test (any user) and, through the virtusertable,
// virtual.test (alice, info -> bob, fwd -> out@remote.test, no others). Mail
// for users goes to Host.Local, all else to Host.Remote.
type Sendmail struct {
	*Program
	host *Host
}

const sendmailConf = "/etc/mail/sendmail.cf"

const sendmailM4 = `divert(0)dnl
VERSIONID(` + "`lab'" + `)dnl
OSTYPE(` + "`linux'" + `)dnl
define(` + "`confDOMAIN_NAME', `mx1.local.test'" + `)dnl
define(` + "`confLOG_LEVEL', `12'" + `)dnl
define(` + "`QUEUE_DIR', `/var/spool/mqueue'" + `)dnl
define(` + "`STATUS_FILE', `/run/lab/statistics'" + `)dnl
define(` + "`HELP_FILE', `/etc/mail/helpfile'" + `)dnl
define(` + "`confPID_FILE', `/run/lab/sendmail.pid'" + `)dnl
undefine(` + "`ALIAS_FILE'" + `)dnl
define(` + "`confSERVICE_SWITCH_FILE', `/etc/mail/service.switch'" + `)dnl
define(` + "`confCT_FILE', `-o /etc/mail/trusted-users'" + `)dnl
define(` + "`confTO_IDENT', `0s'" + `)dnl
define(` + "`confDONT_PROBE_INTERFACES', `True'" + `)dnl
define(` + "`confBAD_RCPT_THROTTLE', `0'" + `)dnl
define(` + "`confMAX_DAEMON_CHILDREN', `0'" + `)dnl
define(` + "`confQUEUE_LA', `999'" + `)dnl
define(` + "`confREFUSE_LA', `999'" + `)dnl
define(` + "`confDELAY_LA', `0'" + `)dnl
define(` + "`LOCAL_MAILER_PATH', `[IPC]'" + `)dnl
define(` + "`LOCAL_MAILER_FLAGS', `Xmn9A:'" + `)dnl
define(` + "`LOCAL_MAILER_EOL', `\\r\\n'" + `)dnl
MODIFY_MAILER_FLAGS(` + "`LOCAL', `-w'" + `)dnl
FEATURE(` + "`no_default_msa'" + `)dnl
FEATURE(` + "`nocanonify'" + `)dnl
FEATURE(` + "`accept_unresolvable_domains'" + `)dnl
FEATURE(` + "`accept_unqualified_senders'" + `)dnl
FEATURE(` + "`virtusertable', `text -k0 -v1 -z\t /etc/mail/virtusertable'" + `)dnl
FEATURE(` + "`mailertable', `text -k0 -v1 -z\t /etc/mail/mailertable'" + `)dnl
LOCAL_DOMAIN(` + "`local.test localhost'" + `)dnl
DAEMON_OPTIONS(` + "`Name=MTA, Family=inet, Addr=127.0.0.1, Port=25, Listen=512'" + `)dnl
DAEMON_OPTIONS(` + "`Name=MTA6, Family=inet6, Addr=::1, Port=25, Listen=512'" + `)dnl
`

// Sendmail starts sendmail and waits until it greets.
func (h *Host) Sendmail(t testing.TB, o SendmailOptions) *Sendmail {
	t.Helper()
	s := &Sendmail{host: h}
	s.Configure(t, o)
	return s
}

// Configure stops sendmail, if it runs, and starts it with other options. The
// queue stays.
func (s *Sendmail) Configure(t testing.TB, o SendmailOptions) {
	t.Helper()
	if s.Program != nil {
		s.Stop(t)
	}
	files := map[string]string{
		"service.switch": "hosts\tfiles\naliases\tfiles\npasswd\tfiles\n",
		"helpfile":       "",
		"trusted-users":  "",
		"virtusertable": strings.Join(append(slices.Clone(o.VirtUser), "alice@virtual.test\talice", "info@virtual.test\tbob",
			"fwd@virtual.test\tout@remote.test", "@virtual.test\terror:nouser 550 User unknown"), "\n") + "\n",
		"mailertable": strings.Join(o.MailerTable, "\n") + "\n",
		"sendmail.mc": s.m4(o),
	}
	maps.Copy(files, o.Files)
	for _, dir := range []string{"/etc/mail", "/var/spool/mqueue"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range files {
		if err := os.WriteFile(filepath.Join("/etc/mail", name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if o.TLS {
		writeCertificate(t)
	}
	if o.Auth {
		sendmailAuth(t)
	}
	cf := sendmailFeature(t)
	text, err := command("m4", "-D_CF_DIR_="+cf, cf+"m4/cf.m4", "/etc/mail/sendmail.mc")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sendmailConf, []byte(text+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	s.launch(t)
}

// Restart stops sendmail and starts it with the sendmail.cf that is there now.
func (s *Sendmail) Restart(t testing.TB) {
	t.Helper()
	s.Stop(t)
	s.launch(t)
}

func (s *Sendmail) launch(t testing.TB) {
	t.Helper()
	s.Program = s.host.start(t, "/usr/libexec/sendmail/sendmail", "-C", sendmailConf, "-bD", "-q2s")
	waitGreeting(t, s.Program, "127.0.0.1:25", "[::1]:25")
}

// sendmailFeature gives sendmail's configuration files with contrib's feature
// among them.
func sendmailFeature(t testing.TB) (dir string) {
	t.Helper()
	dir = filepath.Join(work, "cf")
	if _, err := os.Stat(dir); err == nil {
		return dir + "/"
	}
	if _, err := command("cp", "-rs", "/usr/share/sendmail/cf", dir); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "feature", "popgate.m4"), []byte(contrib.SendmailFeature), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir + "/"
}

// m4 gives the macro file.
func (s *Sendmail) m4(o SendmailOptions) string {
	var b strings.Builder
	b.WriteString(sendmailM4)
	remote := "TCP [127.0.0.1] " + s.host.Remote.Port()
	for name, value := range map[string]string{
		"SMART_HOST":        "relay:[127.0.0.1]",
		"RELAY_MAILER_ARGS": remote, "SMTP_MAILER_ARGS": remote, "ESMTP_MAILER_ARGS": remote,
		"LOCAL_MAILER_ARGS": "TCP [127.0.0.1] " + s.host.Local.Port(),
	} {
		fmt.Fprintf(&b, "define(`%s', `%s')dnl\n", name, value)
	}
	fmt.Fprintf(&b, "VIRTUSER_DOMAIN(`%s')dnl\n", strings.Join(append([]string{"virtual.test"}, o.VirtDomains...), " "))
	if o.Milter {
		lines := contrib.SendmailMilter
		if o.Timeouts != "" {
			lines = regexp.MustCompile(`T=[^']*'`).ReplaceAllLiteralString(lines, o.Timeouts+"'")
		}
		b.WriteString(lines)
	}
	if o.Auth {
		b.WriteString("define(`confAUTH_MECHANISMS', `PLAIN LOGIN')dnl\nTRUST_AUTH_MECH(`PLAIN LOGIN')dnl\n")
	}
	if o.TLS {
		for _, name := range []string{"confSERVER_CERT", "confSERVER_KEY", "confCACERT"} {
			fmt.Fprintf(&b, "define(`%s', `%s')dnl\n", name, certificateFile)
		}
		b.WriteString("define(`confCACERT_PATH', `/etc/ssl')dnl\n")
	}
	for _, line := range o.M4 {
		b.WriteString(line + "\n")
	}
	b.WriteString("MAILER(`local')dnl\nMAILER(`smtp')dnl\n")
	for _, line := range o.Tail {
		b.WriteString(line + "\n")
	}
	return b.String()
}

// sendmailAuth gives sendmail users that may authenticate, from a database of
// Cyrus SASL.
func sendmailAuth(t testing.TB) {
	t.Helper()
	if err := os.MkdirAll("/etc/sasl2", 0o755); err != nil {
		t.Fatal(err)
	}
	conf := "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nmech_list: PLAIN LOGIN\n"
	if err := os.WriteFile("/etc/sasl2/Sendmail.conf", []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, user := range []string{"alice", "bob"} {
		cmd := exec.Command("saslpasswd2", "-p", "-c", "-u", "mx1.local.test", user)
		cmd.Stdin = strings.NewReader(Password)
		if err := run(cmd); err != nil {
			t.Fatal(err)
		}
	}
}

// Drain waits until everything sendmail has taken is delivered or bounced: from
// then on what is not in a sink will never be.
func (s *Sendmail) Drain(t testing.TB) {
	t.Helper()
	drained(t, "/var/spool", "mqueue")
}

// Stdio gives a client of `sendmail -bs`, which has no client address.
func (s *Sendmail) Stdio(t testing.TB) *Client {
	t.Helper()
	return pipe(t, "/usr/libexec/sendmail/sendmail", "-C", sendmailConf, "-bs")
}
