package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"popgate/contrib"
)

// PostfixOptions say how the host's Postfix differs from the usual one.
type PostfixOptions struct {
	Milter bool              // with contrib.PostfixMilter; else with the relay rule of a site without popgate
	Main   []string          // lines at the end of main.cf; the last setting of a name counts
	Master []string          // lines at the end of master.cf
	Files  map[string]string // further files in /etc/postfix
	Auth   bool              // SMTP AUTH by the host's Dovecot, which must run
	TLS    bool              // STARTTLS
}

// PostfixSocket is where Postfix, whose smtpd lives in a chroot on Debian,
// looks for popgate.
const PostfixSocket = "/var/spool/postfix/popgate/milter.sock"

// Postfix is the host's Postfix, listening on port 25 of 127.0.0.1 and ::1.
//
// It is responsible for local.test (users alice bob carol postmaster abuse
// root), virtual.test (virtual mailboxes alice info), alias.test (aliases
// alice -> alice@local.test, out -> out@remote.test) and, as relay_domains,
// backup.test. Local mail goes to Host.Local, virtual mail to VirtualMail, all
// else to Host.Remote.
type Postfix struct {
	*Program
	host    *Host
	options PostfixOptions
}

// VirtualMail is where Postfix's virtual mailboxes lie, as maildirs.
const VirtualMail = "/var/mail/virtual"

const postfixMain = `compatibility_level = 3.6
myhostname = mx1.local.test
mydomain = local.test
myorigin = local.test
mydestination = local.test, localhost
mynetworks = 127.0.0.0/8 [::1]/128
inet_interfaces = 127.0.0.1, [::1]
inet_protocols = all
alias_maps =
alias_database =
local_recipient_maps = texthash:/etc/postfix/users
recipient_delimiter = +
virtual_mailbox_domains = virtual.test
virtual_mailbox_maps = texthash:/etc/postfix/mailboxes
virtual_mailbox_base = ` + VirtualMail + `
virtual_alias_domains = alias.test
virtual_alias_maps = texthash:/etc/postfix/aliases
relay_domains = backup.test
smtp_host_lookup = native
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_client_connection_rate_limit = 0
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000
smtpd_hard_error_limit = 2000
smtpd_tls_cert_file = /etc/ssl/lab.pem
smtpd_tls_key_file = /etc/ssl/lab.pem
`

const postfixMaster = `127.0.0.1:25 inet n - y - 200 smtpd
[::1]:25  inet  n - y - 200 smtpd
pickup    unix  n - n 60 1 pickup
cleanup   unix  n - n - 0 cleanup
qmgr      unix  n - n 300 1 qmgr
tlsmgr    unix  - - n 1000? 1 tlsmgr
rewrite   unix  - - n - - trivial-rewrite
bounce    unix  - - n - 0 bounce
defer     unix  - - n - 0 bounce
trace     unix  - - n - 0 bounce
verify    unix  - - n - 1 verify
flush     unix  n - n 1000? 0 flush
proxymap  unix  - - n - - proxymap
proxywrite unix - - n - 1 proxymap
smtp      unix  - - n - - smtp
relay     unix  - - n - - smtp
showq     unix  n - n - - showq
error     unix  - - n - - error
retry     unix  - - n - - error
discard   unix  - - n - - discard
local     unix  - n n - - local
virtual   unix  - n n - - virtual
lmtp      unix  - - n - - lmtp
anvil     unix  - - n - 1 anvil
scache    unix  - - n - 1 scache
postlog   unix-dgram n - n - 1 postlogd
`

// Postfix starts Postfix and waits until it greets.
func (h *Host) Postfix(t testing.TB, o PostfixOptions) *Postfix {
	t.Helper()
	p := &Postfix{host: h}
	if err := postfixTree(); err != nil {
		t.Fatal(err)
	}
	p.Configure(t, o)
	return p
}

// Configure stops Postfix, if it runs, and starts it with other options. The
// queue stays.
func (p *Postfix) Configure(t testing.TB, o PostfixOptions) {
	t.Helper()
	if p.Program != nil {
		p.Stop(t)
		Until(t, "no process of the last Postfix holds its lock", unlocked)
	}
	p.options = o
	var main, master strings.Builder
	main.WriteString(postfixMain)
	fmt.Fprintf(&main, "mailbox_transport = smtp:[127.0.0.1]:%s\nrelayhost = [127.0.0.1]:%s\n", p.host.Local.Port(), p.host.Remote.Port())
	fmt.Fprintf(&main, "virtual_uid_maps = static:%d\nvirtual_gid_maps = static:%d\n", uidVmail, uidVmail)
	if o.Milter {
		main.WriteString(contrib.PostfixMilter)
	} else {
		main.WriteString("smtpd_relay_restrictions = permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination\n")
	}
	if o.Auth {
		main.WriteString("smtpd_sasl_auth_enable = yes\nsmtpd_sasl_type = dovecot\nsmtpd_sasl_path = private/auth\n")
	}
	if o.TLS {
		writeCertificate(t)
		main.WriteString("smtpd_tls_security_level = may\n")
	}
	main.WriteString(strings.Join(o.Main, "\n") + "\n")
	master.WriteString(postfixMaster + strings.Join(o.Master, "\n") + "\n")
	files := map[string]string{
		"main.cf": main.String(), "master.cf": master.String(),
		"users":     "alice@local.test x\nbob@local.test x\ncarol@local.test x\npostmaster@local.test x\nabuse@local.test x\nroot@local.test x\n",
		"mailboxes": "alice@virtual.test alice/\ninfo@virtual.test info/\n",
		"aliases":   "alice@alias.test alice@local.test\nout@alias.test out@remote.test\n",
	}
	for name, text := range o.Files {
		files[name] = text
	}
	for name, text := range files {
		path := filepath.Join("/etc/postfix", name)
		// Postfix waits until a file has not been written for two seconds.
		settled := time.Now().Add(-time.Minute)
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o644), os.Chtimes(path, settled, settled)); err != nil {
			t.Fatal(err)
		}
	}
	// Straight to the master: the postfix(1) command checks for a second what
	// postfixTree has just made.
	p.Program = p.host.start(t, "/usr/lib/postfix/sbin/master", "-d", "-c", "/etc/postfix")
	waitGreeting(t, p.Program, "127.0.0.1:25", "[::1]:25")
}

// unlocked says whether a new master could start. A service that the last one
// was just starting as it ended, and had not yet run, keeps the lock for the
// second in which it tells of its death.
func unlocked() bool {
	f, err := os.Open("/var/spool/postfix/pid/master.pid")
	if err != nil {
		return os.IsNotExist(err)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil
}

// postfixTree makes the queue as the package's installation does, and room for
// the milter's socket in it.
func postfixTree() error {
	const spool = "/var/spool/postfix"
	dir := func(path string, mode os.FileMode, uid, gid int) error {
		return errors.Join(os.MkdirAll(path, mode), os.Chmod(path, mode), os.Chown(path, uid, gid))
	}
	errs := []error{
		dir("/etc/postfix", 0o755, 0, 0),
		dir(spool, 0o755, 0, 0),
		dir("/var/lib/postfix", 0o755, uidPostfix, uidPostfix),
		dir(VirtualMail, 0o755, uidVmail, uidVmail),
		dir(spool+"/maildrop", 0o730, uidPostfix, gidPostdrop),
		dir(spool+"/public", 0o710, uidPostfix, gidPostdrop),
		dir(spool+"/pid", 0o755, 0, 0),
		dir(spool+"/popgate", 0o755, 0, 0),
	}
	for _, name := range []string{"active", "bounce", "corrupt", "defer", "deferred", "flush", "hold", "incoming", "private", "saved", "trace"} {
		errs = append(errs, dir(spool+"/"+name, 0o700, uidPostfix, 0))
	}
	return errors.Join(errs...)
}

// Drain waits until everything Postfix has taken is delivered or bounced: from
// then on what is not in a sink will never be.
func (p *Postfix) Drain(t testing.TB) {
	t.Helper()
	// In the order in which a message moves, and back to active for a retry
	// from deferred, so that none slips past the reader.
	drained(t, "/var/spool/postfix", "maildrop", "incoming", "active", "deferred", "active", "hold")
}

// drained waits until two readings of the queue folders in a row find no file.
func drained(t testing.TB, queue string, dirs ...string) {
	t.Helper()
	empty := 0
	Until(t, "the mail queue is empty", func() bool {
		empty++
		for _, dir := range dirs {
			filepath.WalkDir(filepath.Join(queue, dir), func(_ string, e os.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					empty = 0
				}
				return nil
			})
		}
		return empty >= 2
	})
}

// waitGreeting waits until a server greets on every address.
func waitGreeting(t testing.TB, p *Program, addrs ...string) {
	t.Helper()
	for _, addr := range addrs {
		Until(t, "the server greets on "+addr, func() bool {
			if !p.Running() {
				t.Fatalf("%s has ended at start: %s", p.cmd.Path, p.Output)
			}
			conn, err := net.Dial("tcp", addr)
			if err != nil {
				return false
			}
			defer conn.Close()
			// The whole greeting: hanging up on unread bytes is a reset, which
			// servers log as trouble. One that dies of its configuration never greets.
			conn.SetReadDeadline(time.Now().Add(5 * time.Second))
			_, err = bufio.NewReader(conn).ReadString('\n')
			return err == nil
		})
	}
}
