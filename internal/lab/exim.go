package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// EximOptions say how the host's Exim differs from the usual one.
type EximOptions struct {
	Main []string // lines of the main section
	ACL  string   // statements of the RCPT ACL, before the last one, which denies
}

// EximSocketMapSocket is where contrib's ACL looks for popgate.
const EximSocketMapSocket = "/run/popgate/socketmap.sock"

// Exim is the host's Exim, listening on port 25 of 127.0.0.1 and ::1.
//
// It is responsible for local.test and virtual.test, with any user. Mail for
// these goes to Host.Local, all else to Host.Remote.
type Exim struct {
	*Program
}

// eximTree is where the host has Exim's package.
const eximTree = "/run/lab/exim"

// bindExim shows the unpacked package where Exim's own user may read it.
func bindExim(tree string) error {
	return errors.Join(os.MkdirAll(eximTree, 0o755), mount(tree, eximTree, "", syscall.MS_BIND, ""))
}

const eximConf = `primary_hostname = mx1.local.test
qualify_domain = local.test
exim_path = ` + eximTree + `/usr/sbin/exim4
domainlist local_domains = local.test : virtual.test
local_interfaces = <; 127.0.0.1 ; ::1
daemon_smtp_ports = 25
tls_advertise_hosts =
smtp_accept_max = 0
queue_run_max = 20
keep_environment =
log_file_path = syslog
syslog_timestamp = false
acl_smtp_rcpt = rcpt
%s
begin acl
rcpt:
  accept  domains = +local_domains
%s
  deny    message = relay not permitted
begin routers
ours:
  driver = manualroute
  domains = +local_domains
  route_list = * 127.0.0.1 byname
  self = send
  transport = local_sink
others:
  driver = manualroute
  route_list = * 127.0.0.1 byname
  self = send
  transport = remote_sink
begin transports
local_sink:
  driver = smtp
  port = %s
  allow_localhost
remote_sink:
  driver = smtp
  port = %s
  allow_localhost
begin retry
* * F,1h,2s
`

// Exim starts Exim and waits until it greets.
func (h *Host) Exim(t testing.TB, o EximOptions) *Exim {
	t.Helper()
	errs := []error{os.MkdirAll("/etc/exim4", 0o755), os.MkdirAll("/etc/ld.so.conf.d", 0o755)}
	for _, dir := range []string{"/var/spool/exim4", "/var/log/exim4"} {
		errs = append(errs, os.MkdirAll(dir, 0o750), os.Chown(dir, uidExim, uidExim))
	}
	libraries, err := filepath.Glob(eximTree + "/usr/lib/*-linux-*")
	if err := errors.Join(append(errs, err,
		os.WriteFile("/etc/exim4/exim4.conf", fmt.Appendf(nil, eximConf, strings.Join(o.Main, "\n"), o.ACL, h.Local.Port(), h.Remote.Port()), 0o644),
		// Exim starts itself with the rights of root, where LD_LIBRARY_PATH
		// doesn't count.
		os.WriteFile("/etc/ld.so.conf.d/exim.conf", []byte(strings.Join(libraries, "\n")+"\n"), 0o644))...); err != nil {
		t.Fatal(err)
	}
	if _, err := command("/sbin/ldconfig"); err != nil {
		t.Fatal(err)
	}
	e := &Exim{h.start(t, eximTree+"/usr/sbin/exim4", "-bdf", "-q2s")}
	waitGreeting(t, e.Program, "127.0.0.1:25", "[::1]:25")
	return e
}

// Drain waits until everything Exim has taken is delivered or bounced: from
// then on what is not in a sink will never be.
func (e *Exim) Drain(t testing.TB) {
	t.Helper()
	drained(t, "/var/spool/exim4", "input")
}
