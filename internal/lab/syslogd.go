package lab

import (
	"os"
	"testing"
)

// Syslogd is a syslog daemon that reads /dev/log and passes messages on.
type Syslogd struct{ *Program }

// Where the daemons look for their configuration.
const (
	rsyslogConf  = "/etc/rsyslog.conf"
	syslogNGConf = "/etc/syslog-ng/syslog-ng.conf"
)

// Rsyslog starts rsyslog, which takes /dev/log over from the host's own
// reader, with a configuration to the lines that read /dev/log.
func (h *Host) Rsyslog(t testing.TB, conf string) *Syslogd {
	t.Helper()
	return h.syslogd(t, rsyslogConf, "module(load=\"imuxsock\")\n"+conf, "/usr/sbin/rsyslogd", "-n", "-f", rsyslogConf, "-i", "NONE")
}

// SyslogNG does the same with syslog-ng. The source of /dev/log is called
// s_src, as on Debian.
func (h *Host) SyslogNG(t testing.TB, conf string) *Syslogd {
	t.Helper()
	conf = "@version: 3.38\n@include \"scl.conf\"\nsource s_src { unix-dgram(\"/dev/log\"); internal(); };\n" + conf
	return h.syslogd(t, syslogNGConf, conf, "/usr/sbin/syslog-ng", "-F", "-f", syslogNGConf, "--no-caps", "-R", "/run/syslog-ng.persist", "-c", "/run/syslog-ng.ctl", "-p", "/run/syslog-ng.pid")
}

// BusyBoxSyslogd does the same with BusyBox, which has no configuration but
// its arguments.
func (h *Host) BusyBoxSyslogd(t testing.TB, args ...string) *Syslogd {
	t.Helper()
	return h.syslogd(t, "", "", "/bin/busybox", append([]string{"syslogd", "-n"}, args...)...)
}

// syslogd starts a daemon and waits until /dev/log is its own.
func (h *Host) syslogd(t testing.TB, path, conf, name string, args ...string) *Syslogd {
	t.Helper()
	if path != "" {
		if err := os.MkdirAll("/etc/syslog-ng", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Syslog.leave(); err != nil {
		t.Fatal(err)
	}
	d := &Syslogd{h.start(t, name, args...)}
	Until(t, name+" listens at /dev/log", func() bool {
		if !d.Running() {
			t.Fatalf("%s has ended: %s", name, d.Output)
		}
		_, err := os.Stat("/dev/log")
		return err == nil
	})
	return d
}
