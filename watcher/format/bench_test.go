package format

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
)

// The path of a line: Split, then Parse. A line that is no login, which is
// nearly every line, must not allocate.
func benchmarkLine(b *testing.B, format, line string) {
	p, err := New(format)
	if format == "custom" {
		p, err = customFromDocs(b), nil
	}
	if err != nil {
		b.Fatal(err)
	}
	text := []byte(line)
	var m Message
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		if Split(text, &m) {
			p.Parse(&m)
		}
	}
}

const head = "Nov 22 02:05:32 mx1 "

var otherLines = []struct{ name, format, line string }{
	{"dovecot/postfix", "dovecot", head + "postfix/smtpd[12345]: connect from unknown[192.0.2.7]"},
	{"dovecot/logout of nobody", "dovecot", head + "dovecot: imap: Error: user bob: Initialization failed: Namespace '': Mailbox list driver maildir"},
	{"dovecot/failed", "dovecot", head + "dovecot: imap-login: Disconnected: Connection closed (auth failed, 2 attempts in 9 secs): user=<bob@example.net>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, TLS, session=<abcdefghijklmnop>"},
	{"dovecot/rfc3339", "dovecot", "2026-11-22T02:05:32.540141+00:00 mx1 postfix/smtpd[12345]: connect from unknown[192.0.2.7]"},
	{"dovecot/rfc5424", "dovecot", "<22>1 2026-11-22T02:05:32.540141+00:00 mx1 postfix/smtpd 12345 - -  connect from unknown[192.0.2.7]"},
	{"dovecot/journal", "dovecot", `{"_UID":"0","__REALTIME_TIMESTAMP":"1795312674521028","MESSAGE":"imap-login: Disconnected: Connection closed (no auth attempts in 0 secs): user=<>, rip=192.0.2.7, lip=192.0.2.1, session=<abc>","SYSLOG_IDENTIFIER":"dovecot","_SYSTEMD_UNIT":"dovecot.service","_HOSTNAME":"mx1","_PID":"12"}`},
	{"courier/connection", "courier", head + "pop3d: Connection, ip=[::ffff:192.0.2.7], port=[4711]"},
	{"courier/failed", "courier", head + "pop3d: LOGIN FAILED, user=bob@example.net, ip=[::ffff:192.0.2.7], port=[4711]"},
	{"cyrus/failed", "cyrus", head + "cyrus/imap[77]: badlogin: host.example.net [192.0.2.7] plaintext (bob) [SASL(-13): authentication failure: checkpass failed]"},
	{"perdition/failed", "perdition", head + `perdition.imap4: Auth: 192.0.2.7:4711->192.0.2.1:143 client-secure=plaintext authorisation_id=NONE authentication_id="bob" server="192.0.2.9:143" protocol=IMAP4 server-secure=plaintext status="failed: Re-Authentication Failure"`},
	{"imapproxy/failed", "imapproxy", head + `imapproxyd: LOGIN: '"bob"' (192.0.2.7:4711) failed: non-OK server response to LOGIN command: A0001 NO`},
	{"solid-pop3d/failed", "solid-pop3d", head + "solid-pop3d[77]: authentication failed: no such user: bob - 192.0.2.7"},
	{"popa3d/session", "popa3d", head + "popa3d[77]: Session from 192.0.2.7"},
	{"popa3d/failed", "popa3d", head + "popa3d[77]: Authentication failed for UNKNOWN USER"},
	{"uw/failed", "uw", head + "imapd[77]: Login failed user=bob auth=bob host=host.example.net [192.0.2.7]"},
	{"qpopper/stats", "qpopper", head + "qpopper[77]: Stats: bob 0 0 0 0 host.example.net 192.0.2.7 [pop_updt.c:297]"},
	{"dbmail/failed", "dbmail", head + "dbmail/imap4d[77]: Notice:[imap] dbmail_imap_session_handle_auth(+1199): [0x55d0c0ffee] login rejected: user [bob] from [192.0.2.7:4711]"},
	{"auto/undecided", "auto", head + "postfix/smtpd[12345]: connect from unknown[192.0.2.7]"},
	{"custom/failed", "custom", head + "dovecot: imap-login: Disconnected: Aborted login by logging out (auth failed, 1 attempts in 2 secs) :: rip=192.0.2.7, lip=192.0.2.1, user=<x>, PLAIN, session=<iPNB>"},
}

func BenchmarkOtherLine(b *testing.B) {
	for _, l := range otherLines {
		b.Run(l.name, func(b *testing.B) { benchmarkLine(b, l.format, l.line) })
	}
}

func TestOtherLineAllocatesNothing(t *testing.T) {
	for _, l := range otherLines {
		t.Run(l.name, func(t *testing.T) {
			p, err := New(l.format)
			if l.format == "custom" {
				p, err = customFromDocs(t), nil
			}
			if err != nil {
				t.Fatal(err)
			}
			text := []byte(l.line)
			var m Message
			var result Result
			ok := Split(text, &m)
			if n := testing.AllocsPerRun(100, func() {
				ok = ok && Split(text, &m)
				_, result = p.Parse(&m)
			}); n != 0 || !ok || result != None {
				t.Errorf("%v allocations, split %v, result %v", n, ok, result)
			}
		})
	}
}

func BenchmarkLogin(b *testing.B) {
	for _, l := range slices.Concat(logins, popLogins) {
		if l.format == "popa3d" {
			continue // a session counts for one login
		}
		b.Run(l.name, func(b *testing.B) {
			p, err := New(l.format)
			if err != nil {
				b.Fatal(err)
			}
			if l.before != "" {
				parseLine(b, p, l.before)
			}
			text := []byte(head + l.line)
			var m Message
			b.SetBytes(int64(len(text)))
			b.ReportAllocs()
			for b.Loop() {
				Split(text, &m)
				if _, result := p.Parse(&m); result != Login {
					b.Fatal(result)
				}
			}
		})
	}
	b.Run("custom", func(b *testing.B) {
		benchmarkLine(b, "custom", head+"dovecot: imap-login: Login :: rip=192.0.2.7, lip=192.0.2.1, user=<bob>, PLAIN, TLS, session=<Y5ra/dNgVYAg>, lport=993, orig=bob, rport=32853, u=bob")
	})
}

// BenchmarkMixedLog reads a log of a busy host, logins and all, from memory.
func BenchmarkMixedLog(b *testing.B) {
	var log []byte
	for i := range 2000 {
		switch {
		case i%20 == 0:
			log = fmt.Appendf(log, "%sdovecot: imap-login: Login: user=<user%d@example.net>, method=PLAIN, rip=192.0.2.%d, lip=198.51.100.25, mpid=%d, TLS, session=<abcdefghijklmnop>\n", head, i, i%250+1, i)
		case i%7 == 0:
			log = fmt.Appendf(log, "%sdovecot: imap(user%d@example.net)<%d><abcdefghijklmnop>: Disconnected: Logged out in=900 out=9000 deleted=0 expunged=0\n", head, i, i)
		case i%9 == 0:
			log = fmt.Appendf(log, "%sdovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): user=<user%d@example.net>, method=PLAIN, rip=192.0.2.9, lip=198.51.100.25, TLS, session=<abcdefghijklmnop>\n", head, i)
		default:
			log = fmt.Appendf(log, "%spostfix/qmgr[%d]: 0123456789: from=<user%d@example.net>, size=%d, nrcpt=1 (queue active)\n", head, i, i, i)
		}
	}
	p, _ := New("dovecot")
	var m Message
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	for b.Loop() {
		for rest := log; len(rest) > 0; {
			n := bytes.IndexByte(rest, '\n')
			if MayMatter(p, rest[:n]) && Split(rest[:n], &m) {
				p.Parse(&m)
			}
			rest = rest[n+1:]
		}
	}
}
