package lab

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Syslogd is a syslog daemon that reads /dev/log and passes messages on.
type Syslogd struct{ *Program }

// Where the daemons look for their configuration.
const (
	rsyslogConf  = "/etc/rsyslog.conf"
	syslogNGConf = "/etc/syslog-ng/syslog-ng.conf"
)

// Rsyslog starts rsyslog, which takes /dev/log over from the host's own
// reader. The module that reads it is loaded unless the configuration does.
func (h *Host) Rsyslog(t testing.TB, conf string) *Syslogd {
	t.Helper()
	if !strings.Contains(conf, "imuxsock") {
		conf = "module(load=\"imuxsock\")\n" + conf
	}
	return h.syslogd(t, rsyslogConf, conf, "/usr/sbin/rsyslogd", "-n", "-f", rsyslogConf, "-i", "NONE")
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

// Certificates gives popgate and a syslog daemon that sends to it each a
// directory with cert.pem, key.pem and ca.pem, all signed by one authority.
func (h *Host) Certificates(t testing.TB, popgateDir, popgateName, senderDir, senderName string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca.test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	root := signed(t, ca, ca, key, key)
	for i, to := range []struct {
		dir, name string
		uid       int
	}{{popgateDir, popgateName, uidPopgate}, {senderDir, senderName, 0}} {
		own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		cert := signed(t, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: to.name}, DNSNames: []string{to.name},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		}, ca, own, key)
		raw, err := x509.MarshalPKCS8PrivateKey(own)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(to.dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, block := range map[string]*pem.Block{
			"cert.pem": {Type: "CERTIFICATE", Bytes: cert}, "ca.pem": {Type: "CERTIFICATE", Bytes: root}, "key.pem": {Type: "PRIVATE KEY", Bytes: raw},
		} {
			path := filepath.Join(to.dir, name)
			if err := errors.Join(os.WriteFile(path, pem.EncodeToMemory(block), 0o400), os.Chown(path, to.uid, to.uid)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// signed makes one certificate.
func signed(t testing.TB, plate, parent *x509.Certificate, own, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	plate.NotBefore, plate.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	raw, err := x509.CreateCertificate(rand.Reader, plate, parent, own.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// Logs has a user of the host log a message under a tag of his choice.
func (h *Host) Logs(t testing.TB, uid uint32, tag, message string) {
	t.Helper()
	cmd := exec.Command("logger", "-p", "mail.info", "-t", tag, message)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := run(cmd); err != nil {
		t.Fatal(err)
	}
}
