package format

import (
	"fmt"
	"strings"
	"testing"

	"popgate/internal/relay"
)

var filler = strings.Repeat("M", 486) // with "LOGIN FAILED, user=" the 505 bytes of a piece

const opened = "pop3d: Connection, ip=[::ffff:192.0.2.46], port=[60137]"

// attacks are logs, each line "tag: text", in which no line is a login for
// anybody to use: forged without a password, or not to be told from such.
// 203.0.113.66 and up are what the attacker would like to be granted, and
// 192.0.2.46 is himself where a server adds his address.
var attacks = []struct {
	name, format string
	lines        []string
}{
	{"split record: own address, no password", "courier", []string{
		opened,
		"pop3d: LOGIN FAILED, user=" + filler,
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: any address, tail pushed into a third record", "courier", []string{
		opened,
		"pop3d: LOGIN FAILED, user=" + filler,
		"pop3d: LOGIN, user=" + strings.Repeat("v", 440) + ", ip=[::ffff:203.0.113.69], port=[4444]",
		"pop3d: ZZ, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: rest of a rest", "courier", []string{
		opened,
		"pop3d: LOGIN FAILED, user=" + filler,
		"pop3d: " + strings.Repeat("M", 511),
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: pieces of two connections mingle", "courier", []string{
		opened,
		"pop3d: Connection, ip=[::ffff:192.0.2.46], port=[60138]",
		"pop3d: LOGIN FAILED, user=" + filler,
		"pop3d: LOGIN FAILED, user=" + filler,
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60138]",
	}},
	{"split record: first piece lost in a gap", "courier", []string{
		opened,
		"gap",
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: lost in a gap, and the rest is a forged Connection", "courier", []string{
		"gap",
		"pop3d: Connection, ip=[::ffff:192.0.2.46], port=[60137]",
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: dropped by rsyslog's rate limit", "courier", []string{
		opened,
		"rsyslogd: imuxsock[pid 77]: begin to drop messages due to rate-limiting",
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: dropped by journald's rate limit", "courier", []string{
		opened,
		"systemd-journald: Suppressed 17 messages from courier-pop.service",
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: cut shorter by some other logger", "courier", []string{
		opened,
		"pop3d: LOGIN FAILED, user=" + filler[:100],
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: first piece in words unknown", "courier", []string{
		opened,
		"pop3d: " + strings.Repeat("x", 480),
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"split record: a login that is a piece itself", "courier", []string{
		opened,
		"pop3d: LOGIN, user=" + strings.Repeat("v", 390) + ", ip=[::ffff:192.0.2.46], port=[60137], stls=" + strings.Repeat("1", 60),
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"login before any connection", "courier", []string{
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"real account named like a tail", "courier", []string{
		opened,
		"pop3d: LOGIN, user=a, ip=[::ffff:203.0.113.66], port=[1], ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"failed login with a login in its user", "courier", []string{
		opened,
		"pop3d: LOGIN FAILED, user=LOGIN, user=victim, ip=[::ffff:203.0.113.66], port=[4444], ip=[::ffff:192.0.2.46], port=[60137]",
	}},
	{"lower case", "courier", []string{opened, "pop3d: login, user=victim, ip=[::ffff:192.0.2.46], port=[60137]"}},
	{"capitals", "courier", []string{opened, "pop3d: LOGIN, USER=victim, IP=[::ffff:192.0.2.46], PORT=[60137]"}},
	{"tag of another program", "courier", []string{opened, "pop3dx: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]"}},
	{"no port", "courier", []string{opened, "pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46]"}},
	{"imap login without its protocol", "courier", []string{
		"imapd: Connection, ip=[::ffff:192.0.2.46], port=[60137]",
		"imapd: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	}},

	{"first rip= is the attacker's, in a failed login", "dovecot", []string{
		"dovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): user=<x>, rip=203.0.113.66, lip=1.2.3.4>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"whole login in the user of a failed login", "dovecot", []string{
		"dovecot: imap-login: Login aborted: Logged out (auth failed, 1 attempts in 2 secs) (auth_failed): user=<Login: user=<victim>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=99, session=<abcdEFGH>>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"real account named like a field", "dovecot", []string{
		"dovecot: imap-login: Login: user=<a>, rip=203.0.113.66, lip=1.2.3.4>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"real account that completes the line", "dovecot", []string{
		"dovecot: imap-login: Login: user=<a>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<x>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"second rip= in the user", "dovecot", []string{
		"dovecot: imap-login: Login: user=<a rip=203.0.113.66>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"second rip= behind the first", "dovecot", []string{
		"dovecot: imap-login: Login: user=<a>, method=PLAIN, rip=192.0.2.46, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"last rip= in a session id of a trusted host", "dovecot", []string{
		"dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, mpid=1, secured, session=<a>, rip=203.0.113.66,x=<b>",
	}},
	{"last rip= in a session id, blanks and all", "dovecot", []string{
		"dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, mpid=1, secured, session=<a>, rip=203.0.113.66>",
	}},
	{"upper-cased mechanism", "dovecot", []string{
		"dovecot: pop3-login: Disconnected: Connection closed (tried to use unsupported auth mechanism): user=<>, method=X>,RIP=203.0.113.66, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"piece from the middle of what Dovecot itself has cut", "dovecot", []string{
		"dovecot: imap-login: proxy(" + strings.Repeat("x", 4084),
		"dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<" + strings.Repeat("a", 4090-86) + ">",
		"dovecot: imap-login: xxxx,192.0.2.9:143): Login failed: no: user=<xxx...>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"tag that begins like Dovecot's", "dovecot", []string{
		"dovecotx: imap-login: Login: user=<bob>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"upper-cased login", "dovecot", []string{
		"dovecot: IMAP-LOGIN: LOGIN: USER=<BOB>, METHOD=PLAIN, RIP=203.0.113.66, LIP=192.0.2.1, MPID=1, SESSION=<ABCD>",
	}},
	{"lower-cased login", "dovecot", []string{
		"dovecot: imap-login: login: user=<bob>, method=plain, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"login in a password that is logged", "dovecot", []string{
		"dovecot: auth: passwd-file(alice,192.0.2.46,<abcd>): Password mismatch (given password: imap-login: Login: user=<victim>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<AAAA>)",
	}},
	{"login in an IMAP ID that is logged", "dovecot", []string{
		"dovecot: imap-login: ID sent: name=x, version=Login: user=<v>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<AAAA>: user=<>, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"login in a backend's refusal", "dovecot", []string{
		"dovecot: imap-login: proxy(bob,192.0.2.9:143): Login failed: Started proxying to remote host (0.000 secs): user=<bob>, method=PLAIN, rip=203.0.113.66: user=<bob>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"proxied user that differs from the prefix", "dovecot", []string{
		"dovecot: imap-login: proxy(bob,192.0.2.9:143): Started proxying to remote host (0.000 secs): user=<alice>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"level word that only Dovecot's own file has", "dovecot", []string{
		"dovecot: imap-login: Info: Login: user=<bob>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"address with a zone", "dovecot", []string{
		"dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=fe80::1%eth0, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"address with a leading zero", "dovecot", []string{
		"dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=203.0.113.066, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"line end in the user", "dovecot", []string{
		"dovecot: imap-login: Login: user=<a\nb>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"text direction turned round in the user", "dovecot", []string{
		"dovecot: imap-login: Login: user=<a\u202eb>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},
	{"too many connections: the password was right", "dovecot", []string{
		"dovecot: imap-login: Disconnected: Maximum number of connections from user+IP exceeded (mail_max_userip_connections=2): user=<bob>, method=PLAIN, rip=192.0.2.46, lip=192.0.2.1, session=<abcd>",
	}},
	{"CVE-2001-1075: a login in another program's message", "dovecot", []string{
		"postfix/smtpd: warning: 203.0.113.66: hostname dovecot: imap-login: Login: user=<v>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd> verification failed",
	}},
	{"CVE-2001-1075: at the start of another program's message", "dovecot", []string{
		"ftpd: imap-login: Login: user=<v>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
	}},

	{"login that names no mail process", "dovecot", []string{
		"dovecot: imap-login: Login: user=<v>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, session=<abcd>",
		"dovecot: imap-login: Logged in: user=<v>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, TLS, session=<abcd>",
		"dovecot: imap-login: Login: user=<v>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=, session=<abcd>",
	}},

	{"reverse name that is an address, in a failed login", "cyrus", []string{
		"cyrus/imap: badlogin: 203.0.113.66 [192.0.2.46] plaintext (x [203.0.113.66] victim plaintext User logged in) [SASL(-13): user not found: checkpass failed]",
	}},
	{"two words before the address", "cyrus", []string{
		"cyrus/imap: login: a [203.0.113.66] [192.0.2.46] victim plaintext User logged in SESSIONID=<a-1>",
	}},
	{"user that ends a field", "cyrus", []string{
		"cyrus/imap: login: [192.0.2.46] a[203.0.113.66] plaintext User logged in SESSIONID=<a-1>",
	}},
	{"whole login as reverse name", "cyrus", []string{
		"cyrus/imap: login: [203.0.113.66] victim plaintext User logged in SESSIONID=<a-1> [192.0.2.46] alice plaintext User logged in SESSIONID=<b-1>",
	}},
	{"user of two words", "cyrus", []string{
		"cyrus/imap: login: [192.0.2.46] a b plaintext User logged in SESSIONID=<a-1>",
	}},
	{"other case", "cyrus", []string{
		"cyrus/imap: login: [203.0.113.66] victim plaintext user logged in sessionid=<a-1>",
	}},
	{"password not checked at all (imapd -N)", "cyrus", []string{
		"cyrus/imap: login: [203.0.113.66] victim nopassword User logged in SESSIONID=<a-1>",
	}},
	{"no session", "cyrus", []string{"cyrus/imap: login: [203.0.113.66] victim plaintext User logged in"}},
	{"tag without a service", "cyrus", []string{"cyrus: login: [203.0.113.66] victim plaintext User logged in SESSIONID=<a-1>"}},
	{"another program of Cyrus's", "cyrus", []string{"cyrus/ctl_cyrusdb: login: [203.0.113.66] victim plaintext User logged in SESSIONID=<a-1>"}},

	{"quotation mark in the user, and the rest of a login", "perdition", []string{
		`perdition.pop3: Auth: 192.0.2.46:60137->192.0.2.1:110 client-secure=plaintext authorisation_id=NONE authentication_id="v" server="a:1" protocol=POP3 server-secure=plaintext status="ok"" server="192.0.2.9:110" protocol=POP3 server-secure=plaintext status="failed: Re-Authentication Failure"`,
	}},
	{"the same, and a refusal that ends like a login", "perdition", []string{
		`perdition.pop3: Auth: 192.0.2.46:60137->192.0.2.1:110 client-secure=plaintext authorisation_id=NONE authentication_id="v" server="a:1" protocol=POP3 server-secure=plaintext status="ok"" server="192.0.2.9:110" protocol=POP3 server-secure=plaintext status="failed: status="ok"`,
	}},
	{"control characters in the user", "perdition", []string{
		"perdition.pop3: Auth: 192.0.2.46:60137->192.0.2.1:110 client-secure=plaintext authorisation_id=NONE authentication_id=\"v\x1b[2J\" server=\"a:1\" protocol=POP3 server-secure=plaintext status=\"ok\"",
	}},
	{"the same, of the length at which a logger cuts", "perdition", []string{
		`perdition.pop3: Auth: 192.0.2.46:60137->192.0.2.1:110 client-secure=plaintext authorisation_id=NONE authentication_id="` + strings.Repeat("v", 330) + `" server="a:1" protocol=POP3 server-secure=plaintext status="ok"`,
	}},
	{"the same in the other identity", "perdition", []string{
		`perdition.imap4: Auth: 192.0.2.46:60137->192.0.2.1:143 client-secure=ssl authorisation_id="` + strings.Repeat("v", 300) + `" authentication_id="v" server="a:1" protocol=IMAP4 server-secure=ssl status="ok"`,
	}},
	{"a login behind an identity that is none", "perdition", []string{
		`perdition.imap4: Auth: 192.0.2.46:60137->192.0.2.1:143 client-secure=ssl authorisation_id="x" authentication_id="v" authentication_id="w" server="a:1" protocol=IMAP4 server-secure=ssl status="ok"`,
	}},
	{"password in the line", "perdition", []string{
		`perdition.imap4: Auth: 192.0.2.46:60137->192.0.2.1:143 client-secure=ssl authorisation_id=NONE authentication_id="v" passwd="x" server="a:1" protocol=IMAP4 server-secure=ssl status="ok"`,
	}},
	{"address without a port", "perdition", []string{
		`perdition.imap4: Auth: 203.0.113.66->192.0.2.1:143 client-secure=ssl authorisation_id=NONE authentication_id="v" server="a:1" protocol=IMAP4 server-secure=ssl status="ok"`,
	}},
	{"tag that begins like one of Perdition's", "perdition", []string{
		`perdition-x: Auth: 203.0.113.66:1->192.0.2.1:143 client-secure=ssl authorisation_id=NONE authentication_id="v" server="a:1" protocol=IMAP4 server-secure=ssl status="ok"`,
	}},

	{"whole login in a name, refused", "imapproxy", []string{
		"imapproxyd: LOGIN: 'x' (203.0.113.66:1) on new sd [4]' (192.0.2.46:60137) failed: non-OK server response to LOGIN command: A0001 NO",
	}},
	{"whole login in a name, of the length at which BusyBox cuts", "imapproxy", []string{
		"imapproxyd: LOGIN: '" + strings.Repeat("x", 176) + "' (203.0.113.66:1) on new sd [4]",
	}},
	{"whole login in a quoted name, cut by something else", "imapproxy", []string{
		`imapproxyd: LOGIN: '"x' (203.0.113.66:1) on new sd [4]`,
	}},
	{"the same with an escaped quotation mark", "imapproxy", []string{
		`imapproxyd: LOGIN: '"x\"' (203.0.113.66:1) on new sd [4]`,
	}},
	{"login in a backend's refusal", "imapproxy", []string{
		"imapproxyd: LOGIN: 'x' (192.0.2.46:60137) failed: non-OK server response to LOGIN command: LOGIN: 'x' (203.0.113.66:1) on new sd [4]",
	}},
	{"line end in a backend's refusal, which the journal keeps", "imapproxy", []string{
		"imapproxyd: LOGIN: 'x' (192.0.2.46:60137) failed: non-OK server response to LOGIN command: NO\nLOGIN: 'x' (203.0.113.66:1) on new sd [4]",
	}},
	{"attempt that has not been judged yet", "imapproxy", []string{
		"imapproxyd: LOGIN: 'x' (203.0.113.66:1) no previous connection: creating a new one",
	}},

	{"login in a name that does not exist", "solid-pop3d", []string{
		"solid-pop3d[7]: authentication failed: no such user: v authenticated - 203.0.113.66 - 192.0.2.46",
		"solid-pop3d[7]: user v authenticated - 203.0.113.66 not found",
		"solid-pop3d[7]: can't find APOP secret for user v authenticated - 203.0.113.66 - 192.0.2.46",
	}},
	{"account named like a login", "solid-pop3d", []string{
		"solid-pop3d[7]: user v authenticated - 203.0.113.66 authenticated - 192.0.2.46",
	}},
	{"raw control bytes in a name", "solid-pop3d", []string{
		"solid-pop3d[7]: user a\x1b[2Kb authenticated - 203.0.113.66",
		"solid-pop3d[7]: user a\rb authenticated - 203.0.113.66",
	}},
	{"reverse name that ends in an address", "solid-pop3d", []string{
		"solid-pop3d[7]: user bob authenticated - host.example.net 203.0.113.66",
		"solid-pop3d[7]: user bob authenticated - 203.0.113.66.example.net",
	}},
	{"name that was cut", "solid-pop3d", []string{
		"solid-pop3d[7]: user " + strings.Repeat("a", 40) + " authenticated - 203.0.113.66",
	}},

	{"password without a session", "popa3d", []string{"popa3d[7]: Authentication passed for bob"}},
	{"session of another process", "popa3d", []string{
		"popa3d[8]: Session from 203.0.113.66",
		"popa3d[7]: Authentication passed for bob",
	}},
	{"pid that came round: session refused before", "popa3d", []string{
		"popa3d[7]: Session from 203.0.113.66",
		"popa3d[7]: Authentication failed for UNKNOWN USER",
		"popa3d[7]: Authentication passed for bob",
	}},
	{"pid that came round: session without an attempt before", "popa3d", []string{
		"popa3d[7]: Session from 203.0.113.66",
		"popa3d[7]: Didn't attempt authentication",
		"popa3d[7]: Authentication passed for bob",
	}},
	{"session lost in a gap", "popa3d", []string{
		"popa3d[7]: Session from 203.0.113.66",
		"gap",
		"popa3d[7]: Authentication passed for bob",
	}},
	{"session lost to a rate limit", "popa3d", []string{
		"popa3d[7]: Session from 203.0.113.66",
		"rsyslogd: imuxsock[pid 7]: begin to drop messages due to rate-limiting",
		"popa3d[7]: Authentication passed for bob",
	}},
	{"session of the same pid under another tag", "popa3d", []string{
		"popa3dx[7]: Session from 203.0.113.66",
		"popa3d[7]: Authentication passed for bob",
	}},
	{"no pid", "popa3d", []string{
		"popa3d: Session from 203.0.113.66",
		"popa3d: Authentication passed for bob",
	}},
	{"session from a name", "popa3d", []string{
		"popa3d[7]: Session from 203.0.113.66",
		"popa3d[7]: Session from host.example.net",
		"popa3d[7]: Authentication passed for bob",
	}},
	{"UNKNOWN USER", "popa3d", []string{
		"popa3d[7]: Session from 203.0.113.66",
		"popa3d[7]: Authentication passed for UNKNOWN USER",
	}},

	{"reverse name that looks like an address, more than one word", "uw", []string{
		"imapd[7]: Login user=bob host=x [203.0.113.66] y [192.0.2.46]",
		"imapd[7]: Login user=bob host=203.0.113.66 192.0.2.46",
		"imapd[7]: Login user=bob host=203.0.113.66",
	}},
	{"account with a host in its name", "uw", []string{
		"imapd[7]: Login user=v host=[203.0.113.66] host=[192.0.2.46]",
	}},
	{"failed login with a login in its name", "uw", []string{
		"imapd[7]: Login failed user=Login user=v host=[203.0.113.66] auth=x host=[192.0.2.46]",
		"imapd[7]: Login excessive user=v host=[203.0.113.66]",
		"ipop3d[7]: Login failure user=v host=[203.0.113.66] nmsgs=1/1",
	}},
	{"login to a host of the client's choice", "uw", []string{
		"ipop3d[7]: IMAP login to host=evil.example.net user=v host=[203.0.113.66]",
	}},
	{"no password was checked", "uw", []string{
		"imapd[7]: Login anonymous=me@example.net host=[203.0.113.66]",
		"imapd[7]: Login anonymous=x user=v host=[203.0.113.66]",
		"imapd[7]: Preauthenticated user=v host=[203.0.113.66]",
		"imapd[7]: Authenticated anonymous=v host=[203.0.113.66]",
	}},
	{"an admin's password for another's mailbox", "uw", []string{"imapd[7]: Admin Login user=v host=[203.0.113.66]"}},
	{"host that was cut", "uw", []string{
		"ipop3d[7]: Login user=v host=" + strings.Repeat("a", 65) + " [203.0.113.66 nmsgs=1/1",
		"imapd[7]: Login user=v host=[203.0.113.6",
		"imapd[7]: Login user=v host=" + strings.Repeat("a", 80) + " [203.0.113.66]",
	}},
	{"name that was cut", "uw", []string{"imapd[7]: Login user=" + strings.Repeat("v", 80) + " host=[203.0.113.66]"}},
	{"POP login without its mailbox, IMAP login with one", "uw", []string{
		"ipop3d[7]: Login user=v host=[203.0.113.66]",
		"imapd[7]: Login user=v host=[203.0.113.66] nmsgs=1/1",
	}},

	{"reverse name that looks like an address", "qpopper", []string{
		`qpopper[7]: (v4.0.9) POP login by user "bob" at (203.0.113.66) host.example.net`,
		`qpopper[7]: (v4.0.9) POP login by user "bob" at (x) 203.0.113.66) 192.0.2.46`,
		`qpopper[7]: (v4.0.9) POP login by user "bob" at (203.0.113.66)`,
	}},
	{"account named like a login", "qpopper", []string{
		`qpopper[7]: (v4.0.9) POP login by user "v" at (x) 203.0.113.66" at (y) 192.0.2.46`,
		`qpopper[7]: (v4.0.9) POP login by user "v" at (x) 203.0.113.66 [" at (y) 192.0.2.46`,
	}},
	{"login in a failure", "qpopper", []string{
		`qpopper[7]: [AUTH] Failed attempted login to (v4) POP login by user "v" at (x) 203.0.113.66 from host (y) 192.0.2.46`,
	}},
	{"address that a logger has cut", "qpopper", []string{
		`qpopper[7]: (v4.0.9) POP login by user "` + strings.Repeat("v", 200) + `" at (` + strings.Repeat("a", 170) + `) 203.0.113.6`,
	}},

	{"account named like an origin", "dbmail", []string{
		"dbmail/imap4d[7]: Notice:[imap] dbmail_imap_session_handle_auth(+1207): [0x55d0c0ffee] login accepted: id [3] user [v] from [203.0.113.66:1]] from [192.0.2.46:60137]",
	}},
	{"failed login", "dbmail", []string{
		"dbmail/imap4d[7]: Notice:[imap] dbmail_imap_session_handle_auth(+1199): [0x55d0c0ffee] login rejected: user [x] from [203.0.113.66:1]",
	}},
	{"login in another function's message", "dbmail", []string{
		"dbmail/imap4d[7]: Debug:[imap] imap4_tokenizer_main(+1): [0x1] tokenize [dbmail_imap_session_handle_auth(+1): [0x1] login accepted: id [3] user [v] from [203.0.113.66:1]]",
	}},
	{"host name where the address should be", "dbmail", []string{
		"dbmail/imap4d[7]: Notice:[imap] dbmail_imap_session_handle_auth(+1207): [0x55d0c0ffee] login accepted: id [3] user [v] from [203.0.113.66.example.net:1]",
	}},

	{"login on a tag that several servers share", "auto", []string{
		opened, "pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
		"imapd[7]: Login user=v host=[203.0.113.66]",
		`popper[7]: (v4.0.9) POP login by user "v" at (x) 203.0.113.66`,
	}},
	{"unknown program whose tag begins like a server's", "auto", []string{
		"perditionx: x",
		`perditionx: Auth: 203.0.113.66:1->192.0.2.1:143 client-secure=ssl authorisation_id=NONE authentication_id="v" server="a:1" protocol=IMAP4 server-secure=ssl status="ok"`,
	}},
	{"change of mind, once a server is known", "auto", []string{
		"popa3d[7]: Didn't attempt authentication",
		"dovecot: imap-login: Login: user=<v>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=1, session=<abcd>",
		"solid-pop3d[7]: user v authenticated - 203.0.113.66",
		"imapd[7]: Login user=v host=[203.0.113.66]",
	}},
	{"change of mind", "auto", []string{
		"dovecot: master: Warning: SIGHUP received - reloading configuration",
		"pop3d-ssl: Connection, ip=[::ffff:192.0.2.46], port=[60137]",
		"pop3d-ssl: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
		"cyrus/imap: login: [203.0.113.66] victim plaintext User logged in SESSIONID=<a-1>",
	}},
}

func TestAttacks(t *testing.T) {
	for _, a := range attacks {
		t.Run(a.format+": "+a.name, func(t *testing.T) {
			p, err := New(a.format)
			if err != nil {
				t.Fatal(err)
			}
			for _, line := range a.lines {
				if line == "gap" {
					p.Gap()
					continue
				}
				if e, result := parseLine(t, p, line); result != None && result != Unparsed || e != (relay.Event{}) {
					t.Errorf("%q gave %v %+v", line, result, e)
				}
			}
		})
	}
}

// anonymousLogins are lines of logins that needed no password. They are of a
// known form, so they aren't counted as unparsed either.
var anonymousLogins = []struct{ name, format, line string }{
	{"SASL ANONYMOUS", "dovecot", "dovecot: imap-login: Login: user=<anonymous>, method=ANONYMOUS, rip=203.0.113.66, lip=192.0.2.1, mpid=7, session=<abc>"},
	{"SASL ANONYMOUS, 2.4", "dovecot", "dovecot: pop3-login: Logged in: user=<anonymous>, method=ANONYMOUS, rip=203.0.113.66, lip=192.0.2.1, mpid=7, TLS, session=<abc>"},
	{"SASL ANONYMOUS, anonymous_username of the site's own", "dovecot", "dovecot: imap-login: Login: user=<archive>, method=ANONYMOUS, rip=203.0.113.66, lip=192.0.2.1, mpid=7, session=<abc>"},
	{"SASL ANONYMOUS, proxied", "dovecot", "dovecot: imap-login: proxy(archive,192.0.2.9:143): Started proxying to remote host (0.010 secs): user=<archive>, method=ANONYMOUS, rip=203.0.113.66, lip=192.0.2.1, session=<abc>"},
	{"SASL ANONYMOUS, end of a proxied session", "dovecot", "dovecot: imap-login: proxy(archive,192.0.2.9:143): Disconnected by client (1s idle, in=4, out=5): user=<archive>, method=ANONYMOUS, rip=203.0.113.66, lip=192.0.2.1, session=<abc>"},
	{"the anonymous user by another mechanism, as a proxy passes it on", "dovecot", "dovecot: imap-login: Login: user=<Anonymous>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, mpid=7, session=<abc>"},
	{"SASL ANONYMOUS", "cyrus", "cyrus/imap[7]: login: [203.0.113.66] anonymous ANONYMOUS User logged in SESSIONID=<x-1-2-3>"},
	{"SASL ANONYMOUS with TLS and a name", "cyrus", "cyrus/pop3s[7]: login: a.example [203.0.113.66] archive ANONYMOUS+TLS User logged in SESSIONID=<x-1-2-3>"},
	{"mechanism in the client's case", "cyrus", "cyrus/imap[7]: login: [203.0.113.66] anonymous anonymous User logged in SESSIONID=<x-1-2-3>"},
	{"allowanonymouslogin", "cyrus", "cyrus/imap[7]: login: [203.0.113.66] anonymous me@example.net"},
	{"allowanonymouslogin with a login as password", "cyrus", "cyrus/imap[7]: login: [203.0.113.66] anonymous plaintext User logged in SESSIONID=<x-1-2-3>"},
	{"an account that is open to all", "perdition", `perdition.imap4: Auth: 203.0.113.66:1->192.0.2.1:143 client-secure=ssl authorisation_id=NONE authentication_id="anonymous" server="a:1" protocol=IMAP4 server-secure=ssl status="ok"`},
	{"an account that is open to all", "imapproxy", `imapproxyd: LOGIN: '"Anonymous"' (203.0.113.66:1) on new sd [4]`},
	{"an account that is open to all", "solid-pop3d", "solid-pop3d[7]: user anonymous authenticated - 203.0.113.66"},
	{"an account that is open to all", "uw", "imapd[7]: Login user=ANONYMOUS host=[203.0.113.66]"},
	{"SASL ANONYMOUS", "uw", "imapd[7]: Authenticated user=v host=[203.0.113.66] mech=ANONYMOUS"},
	{"an account that is open to all", "qpopper", `qpopper[7]: (v4.0.9) POP login by user "anonymous" at (x) 203.0.113.66`},
	{"an account that is open to all", "dbmail", "dbmail/imap4d[7]: Notice:[imap] dbmail_imap_session_handle_auth(+1207): [0x5] login accepted: id [3] user [anonymous] from [203.0.113.66:1]"},
	{"an account that is open to all", "courier", "pop3d: LOGIN, user=anonymous, ip=[::ffff:203.0.113.66], port=[60137]"},
}

func TestAnonymousLoginGrantsNothing(t *testing.T) {
	for _, l := range anonymousLogins {
		t.Run(l.format+": "+l.name, func(t *testing.T) {
			p, err := New(l.format)
			if err != nil {
				t.Fatal(err)
			}
			parseLine(t, p, opened)
			if e, result := parseLine(t, p, l.line); result != None || e != (relay.Event{}) {
				t.Errorf("%q gave %v %+v, want none", l.line, result, e)
			}
		})
	}
}

// What only looks like the anonymous user is somebody's real name.
func TestAccountNamedLikeTheAnonymousUserIsRead(t *testing.T) {
	for format, line := range map[string]string{
		"dovecot": "dovecot: imap-login: Login: user=<anonymous@example.net>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=7, session=<abc>",
		"cyrus":   "cyrus/imap[7]: login: [192.0.2.7] anonymous.coward PLAIN User logged in SESSIONID=<x-1-2-3>",
		"courier": "pop3d: LOGIN, user=anonymouse, ip=[::ffff:192.0.2.7], port=[60137]",
	} {
		p, err := New(format)
		if err != nil {
			t.Fatal(err)
		}
		parseLine(t, p, opened)
		if _, result := parseLine(t, p, line); result != Login {
			t.Errorf("%q: %v, want login", line, result)
		}
	}
}

// parseLine reads "tag: text" as it stands in a traditional log.
func parseLine(t testing.TB, p Parser, line string) (relay.Event, Result) {
	t.Helper()
	var m Message
	if !Split([]byte("Nov 22 02:05:32 mx1 "+line), &m) {
		t.Fatalf("no transport found for %q", line)
	}
	return p.Parse(&m)
}

// logins are one login of each shape.
var logins = []struct{ name, format, before, line, session string }{
	{"dovecot 2.3", "dovecot", "", "dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=11, TLS, session=<ab+/=>", "ab+/="},
	{"dovecot 2.4", "dovecot", "", "dovecot: imap-login: Logged in: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=11, secured, session=<ab+/=>", "ab+/="},
	{"dovecot, connection already broken", "dovecot", "", "dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=11, TLS: Connection closed, session=<ab>", "ab"},
	{"dovecot proxy", "dovecot", "", "dovecot: imap-login: proxy(bob,[2001:db8::9]:143): Started proxying to <2001:db8::9> (0.010 secs): user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, session=<ab>", "ab"},
	{"courier imap", "courier", "imapd: Connection, ip=[::ffff:192.0.2.7], port=[4711]", "imapd: LOGIN, user=bob, ip=[::ffff:192.0.2.7], port=[4711], protocol=IMAP, starttls=1", "192.0.2.7:4711"},
	{"cyrus", "cyrus", "", "cyrus/imaps[77]: login: host.example.net [192.0.2.7] bob PLAIN+TLS User logged in SESSIONID=<mx1-1-2-3>", ""},
	{"perdition", "perdition", "", `perdition.imap4s[77]: Auth: 192.0.2.7:4711->192.0.2.1:993 client-secure=ssl authorisation_id=NONE authentication_id="bob" server="192.0.2.9:143" protocol=IMAP4S server-secure=plaintext status="ok"`, "192.0.2.7:4711"},
	{"imapproxy", "imapproxy", "", `imapproxyd[77]: LOGIN: '"bob"' (192.0.2.7:4711) on existing sd [12]`, ""},
	{"uw imapd", "uw", "", "imapd[77]: Authenticated user=bob host=host.example.net [192.0.2.7] mech=PLAIN", "77/192.0.2.7"},
	{"dbmail", "dbmail", "", "dbmail/imap4d[77]: Notice:[imap] dbmail_imap_session_handle_auth(+1207): [0x55d0c0ffee] login accepted: id [3] user [bob] from [192.0.2.7:4711]", ""},
}

// popLogins are the same of servers that speak POP only, whose lines end in
// what can be cut short and still be something.
var popLogins = []struct{ name, format, before, line, session string }{
	{"solid-pop3d", "solid-pop3d", "", "solid-pop3d[77]: user bob authenticated - 192.0.2.7", "77/192.0.2.7"},
	{"solid-pop3d, mapped", "solid-pop3d", "", "solid-pop3d[77]: mapped user bob authenticated - 192.0.2.7", "77/192.0.2.7"},
	{"solid-pop3d, APOP", "solid-pop3d", "", "solid-pop3d[77]: user bob authenticated through APOP - 192.0.2.7", "77/192.0.2.7"},
	{"popa3d", "popa3d", "popa3d[77]: Session from 192.0.2.7", "popa3d[77]: Authentication passed for bob", ""},
	{"uw ipop3d", "uw", "", "ipop3d[77]: APOP user=bob host=host.example.net [192.0.2.7] nmsgs=3/4", "77/192.0.2.7"},
	{"uw ipop3d, no mailbox", "uw", "", "ipop3d[77]: Login user=bob host=[192.0.2.7] no mailbox", "77/192.0.2.7"},
	{"qpopper", "qpopper", "", `in.qpopper[77]: (v4.0.9) POP login by user "bob" at (host.example.net) 192.0.2.7 [pop_log.c:244]`, ""},
	{"qpopper 4.0.5", "qpopper", "", `qpopper[77]: (v4.0.5) POP login by user "bob" at (192.0.2.7) 192.0.2.7`, ""},
	{"perdition", "perdition", "", `perdition[77]: Auth: 2001:db8::7:4711->2001:db8::1:110 client-secure=starttls authorisation_id="carol" authentication_id="bob" server="mail.example.net:110" protocol=POP3 server-secure=starttls status="ok"`, "[2001:db8::7]:4711"},
}

func TestPOPLogins(t *testing.T) {
	for _, l := range popLogins {
		t.Run(l.name, func(t *testing.T) {
			for _, name := range []string{l.format, "auto"} {
				p, err := New(name)
				if err != nil {
					t.Fatal(err)
				}
				if l.before != "" {
					parseLine(t, p, l.before)
				}
				e, result := parseLine(t, p, l.line)
				client := "192.0.2.7"
				if strings.Contains(l.line, "2001:db8::7:") {
					client = "2001:db8::7"
				}
				want := relay.Event{Kind: relay.Login, User: "bob", Service: relay.POP3, Session: l.session}
				want.Client, _ = oracleAddr(client)
				if name == "auto" {
					want.Format = l.format
				}
				if result != Login || e != want {
					t.Errorf("%s: %v %+v, want %+v", name, result, e, want)
				}
			}
		})
	}
}

// TestMailutilsIsRefusedWithTheReason: it logs no address.
func TestMailutilsIsRefusedWithTheReason(t *testing.T) {
	_, err := New("mailutils")
	if err == nil || !strings.Contains(err.Error(), "log no client address") || !strings.Contains(err.Error(), "proxy") {
		t.Errorf("got %v", err)
	}
}

func TestPopa3dSessions(t *testing.T) {
	const from, passed = "popa3d[7]: Session from 192.0.2.7", "popa3d[7]: Authentication passed for bob"
	for _, tt := range []struct {
		name  string
		lines []string
		want  string // clients of the logins
	}{
		{"sessions that interleave", []string{
			from, "popa3d[8]: Session from 192.0.2.8", "popa3d[9]: Session from 2001:db8::9",
			"popa3d[9]: Authentication passed for carol", passed, "popa3d[8]: Authentication failed for alice",
		}, "2001:db8::9 192.0.2.7"},
		{"what PAM says in between", []string{from, "popa3d[7]: pam_unix(popa3d:auth): check pass; user unknown", passed}, "192.0.2.7"},
		{"a session grants once", []string{from, passed, passed}, "192.0.2.7"},
		{"the latest session of a pid", []string{"popa3d[7]: Session from 203.0.113.66", from, passed}, "192.0.2.7"},
		{"a session after a gap", []string{"gap", from, passed}, "192.0.2.7"},
		{"a mapped address", []string{"popa3d[7]: Session from ::ffff:192.0.2.7", passed}, "192.0.2.7"},
		{"of the same pid on another host", []string{from, "\x00popa3d[7]: Authentication passed for bob"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := new(popa3d)
			var got []string
			for _, line := range tt.lines {
				if line == "gap" {
					p.Gap()
					continue
				}
				var m Message
				host := "mx1 "
				if line[0] == 0 {
					host, line = "mx2 ", line[1:]
				}
				if !Split([]byte("Nov 22 02:05:32 "+host+line), &m) {
					t.Fatal(line)
				}
				if e, result := p.Parse(&m); result == Login {
					got = append(got, e.Client.String())
				}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("logins of %q, want %q", got, tt.want)
			}
		})
	}
	t.Run("a session counts for ten minutes", func(t *testing.T) {
		for stamp, want := range map[string]Result{"02:05:32": Login, "02:15:32": Login, "02:15:33": Unparsed, "02:05:31": Unparsed} {
			p := new(popa3d)
			parseLine(t, p, from)
			var m Message
			Split([]byte("Nov 22 "+stamp+" mx1 "+passed), &m)
			if _, got := p.Parse(&m); got != want {
				t.Errorf("%s: %v, want %v", stamp, got, want)
			}
		}
	})
	t.Run("what is remembered is bounded, and what is too old makes room", func(t *testing.T) {
		p := new(popa3d)
		for i := range maxPopa3dSessions + 10 {
			parseLine(t, p, fmt.Sprintf("popa3d[%d]: Session from 192.0.2.7", i))
		}
		if len(p.sessions) != maxPopa3dSessions {
			t.Errorf("%d sessions remembered, want %d", len(p.sessions), maxPopa3dSessions)
		}
		var m Message
		Split([]byte("Nov 22 02:15:33 mx1 popa3d[900000]: Session from 192.0.2.7"), &m)
		p.Parse(&m)
		if len(p.sessions) != 1 {
			t.Errorf("%d sessions remembered after ten minutes, want 1", len(p.sessions))
		}
	})
}

func TestPIDAndAddressPairLogoutWithLogin(t *testing.T) {
	for _, tt := range []struct{ format, login, logout, other string }{
		{"solid-pop3d", "solid-pop3d[7]: user bob authenticated - 192.0.2.7", "solid-pop3d[7]: session ended for user bob - 192.0.2.7", "solid-pop3d[8]: autologout time elapsed for user bob - 192.0.2.7"},
		{"uw", "ipop3d[7]: Login user=bob host=[192.0.2.7] nmsgs=1/1", "ipop3d[7]: Logout user=bob host=x [192.0.2.7] nmsgs=0 ndele=1", "ipop3d[7]: Logout user=bob host=[192.0.2.8]"},
		{"perdition", `perdition.pop3: Auth: 192.0.2.7:5->192.0.2.1:110 client-secure=plaintext authorisation_id=NONE authentication_id="bob" server="a:110" protocol=POP3 server-secure=plaintext status="ok"`,
			`perdition.pop3: Closing session: 192.0.2.7:5->192.0.2.1:110 authorisation_id=NONE authentication_id="bob" received=10 sent=20`,
			`perdition.pop3: Closing session: 192.0.2.7:6->192.0.2.1:110 authorisation_id=NONE authentication_id="bob" received=10 sent=20`},
	} {
		t.Run(tt.format, func(t *testing.T) {
			p, _ := New(tt.format)
			in, r1 := parseLine(t, p, tt.login)
			out, r2 := parseLine(t, p, tt.logout)
			other, r3 := parseLine(t, p, tt.other)
			if r1 != Login || r2 != Logout || r3 != Logout || in.Session == "" || in.Session != out.Session || in.Service != out.Service || other.Session == in.Session {
				t.Errorf("%v %+v, %v %+v, %v %+v", r1, in, r2, out, r3, other)
			}
		})
	}
}

func TestLoginCutAnywhereIsNoLogin(t *testing.T) {
	for _, l := range logins {
		t.Run(l.name, func(t *testing.T) {
			line := "Nov 22 02:05:32 mx1 " + l.line
			for n := range len(line) + 1 {
				p, err := New(l.format)
				if err != nil {
					t.Fatal(err)
				}
				if l.before != "" {
					parseLine(t, p, l.before)
				}
				var m Message
				if !Split([]byte(line[:n]), &m) {
					continue
				}
				e, result := p.Parse(&m)
				whole := n == len(line)
				want := relay.Event{Kind: relay.Login, User: "bob", Service: relay.IMAP, Session: l.session}
				want.Client, _ = oracleAddr("192.0.2.7")
				if whole && (result != Login || e != want) {
					t.Errorf("whole line: got %v %+v, want %+v", result, e, want)
				}
				// An optional last field leaves a whole line without it.
				optional := l.format == "courier" && strings.HasSuffix(line[:n], ", protocol=IMAP") || l.format == "uw" && n >= strings.Index(line, " mech=")
				if !whole && result == Login && (e != want || !optional) {
					t.Errorf("cut at %d: %q gave %+v", n, line[:n], e)
				}
			}
		})
	}
}

func TestLoginWithAnyByteChangedNamesNoOtherClient(t *testing.T) {
	for _, l := range logins {
		t.Run(l.name, func(t *testing.T) {
			addr := strings.Index(l.line, "192.0.2.7")
			end := addr + len("192.0.2.7")
			addr = strings.LastIndexAny(l.line[:addr], "=[( ") + 1
			for i := range len(l.line) {
				if addr <= i && i < end {
					continue // another address, rightly
				}
				for _, c := range []byte("\x00\n \"'(),.:;<=>[]aA0\x7f\x80") {
					line := []byte("Nov 22 02:05:32 mx1 " + l.line)
					at := len(line) - len(l.line) + i
					line[at] = c
					p, _ := New(l.format)
					if l.before != "" {
						parseLine(t, p, l.before)
					}
					var m Message
					if !Split(line, &m) {
						continue
					}
					if e, result := p.Parse(&m); result == Login && e.Client.String() != "192.0.2.7" {
						t.Errorf("%q gave %+v", line, e)
					}
				}
			}
		})
	}
}

func TestCourierLogin(t *testing.T) {
	const login = "pop3d: LOGIN, user=bob, ip=[::ffff:192.0.2.7], port=[4711]"
	const own = "pop3d: Connection, ip=[::ffff:192.0.2.7], port=[4711]"
	const other = "pop3d: Connection, ip=[::ffff:192.0.2.8], port=[4712]"
	long := "pop3d: LOGIN FAILED, user=" + filler
	for _, tt := range []struct {
		name  string
		lines []string
		want  Result
	}{
		{"after its connection", []string{own, login}, Login},
		{"after any connection, where nothing was missed", []string{other, login}, Login},
		{"over a connection opened after a gap", []string{"gap", other, own, login}, Login},
		{"over a connection opened before a gap", []string{own, "gap", other, other, login}, Unparsed},
		{"over a connection opened after the pieces", []string{other, long, "pop3d: rest", own, login}, Login},
		{"over a connection opened before the pieces", []string{own, long, "pop3d: rest", login}, Unparsed},
		{"over a connection opened between pieces", []string{other, long, "pop3d: rest", own, long, "pop3d: rest", login}, Unparsed},
		{"pieces of another tag", []string{own, "imapd: LOGIN FAILED, user=" + filler, login}, Login},
		{"tag seen for the first time after a gap", []string{"gap", "pop3d: x", own, login}, Login},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p, _ := New("courier")
			var result Result
			for _, line := range tt.lines {
				if line == "gap" {
					p.Gap()
					continue
				}
				_, result = parseLine(t, p, line)
			}
			if result != tt.want {
				t.Errorf("got %v, want %v", result, tt.want)
			}
		})
	}
}

func TestCourierBounds(t *testing.T) {
	t.Run("logs of too many hosts are not read", func(t *testing.T) {
		p := new(courier)
		var m Message
		for i := range 2 * maxLogs {
			for _, text := range []string{"Connection, ip=[192.0.2.7], port=[1]", "LOGIN, user=bob, ip=[192.0.2.7], port=[1]"} {
				Split(fmt.Appendf(nil, "Nov 22 02:05:32 host%d pop3d: %s", i, text), &m)
				if _, result := p.Parse(&m); (result == Login) != (i < maxLogs && text[0] == 'L') {
					t.Fatalf("host %d, %q: %v", i, text, result)
				}
			}
		}
		if len(p.logs) != maxLogs {
			t.Errorf("%d logs remembered, want %d", len(p.logs), maxLogs)
		}
	})
	t.Run("the oldest connection is forgotten", func(t *testing.T) {
		p := new(courier)
		p.Gap()
		parseLine(t, p, "pop3d: x")
		for i := range maxOpened + 1 {
			parseLine(t, p, fmt.Sprintf("pop3d: Connection, ip=[192.0.2.7], port=[%d]", i))
		}
		for port, want := range map[int]Result{0: Unparsed, 1: Login, maxOpened: Login} {
			if _, got := parseLine(t, p, fmt.Sprintf("pop3d: LOGIN, user=bob, ip=[192.0.2.7], port=[%d]", port)); got != want {
				t.Errorf("connection %d: %v, want %v", port, got, want)
			}
		}
		if l := p.logs[0]; len(l.opened) != maxOpened || len(l.order) != maxOpened {
			t.Errorf("%d and %d connections remembered, want %d", len(l.opened), len(l.order), maxOpened)
		}
	})
	t.Run("a withheld record is a piece", func(t *testing.T) {
		p := new(courier)
		parseLine(t, p, opened)
		p.Parse(&Message{Host: []byte("mx1"), Tag: []byte("pop3d"), Withheld: true})
		if _, got := parseLine(t, p, "pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]"); got != Unparsed {
			t.Errorf("the record after it: %v", got)
		}
	})
}

func TestNewReleaseIsNoticed(t *testing.T) {
	for _, line := range []string{
		"dovecot: imap-login: Login succeeded: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=1, session=<ab>",
		"dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=1, country=<x>, session=<ab>",
		"dovecot: jmap-login: Logged in: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=1, session=<ab>",
		"dovecot: imap-login: proxy(bob): started proxying to 192.0.2.9:143: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1",
		"cyrus/imap: login: [192.0.2.7] bob plaintext User logged in SESSIONID=<a> COUNTRY=<x>",
		"courier\x00pop3d: LOGIN, user=bob, ip=[::ffff:192.0.2.7], port=[1], protocol=POP4",
		`perdition: Auth: 192.0.2.7:1->192.0.2.1:143 authentication_id="bob" country="x" status="ok"`,
		"imapproxy\x00imapproxyd: LOGIN: 'bob' (192.0.2.7:1) on new sd [4] (TLS)",
		"solid-pop3d: user bob authenticated with TLS - 192.0.2.7",
		"popa3d: Authentication passed for bob from 192.0.2.7",
		"uw\x00imapd: Login user=bob host=[192.0.2.7] country=x",
		`qpopper: (v5.0.1) POP login by user "bob" at (x) 192.0.2.7 TLS`,
		"dbmail\x00dbmail/imap4d: Notice:[imap] dbmail_imap_session_handle_auth(+1): [0x1] login accepted: user [bob] from [192.0.2.7:1]",
	} {
		format, rest, ok := strings.Cut(line, "\x00")
		if line = rest; !ok {
			line = format
			format, _, _ = strings.Cut(format, ":")
		}
		p, err := New(strings.TrimSuffix(format, "/imap"))
		if err != nil {
			t.Fatal(err)
		}
		if _, result := parseLine(t, p, line); result != Unparsed {
			t.Errorf("%q: %v, want unparsed", line, result)
		}
	}
}

func TestPlainUser(t *testing.T) {
	for user, want := range map[string]bool{
		"bob": true, "bob@example.net": true, "eve space@example.com": true, "o'brien": true, "per%cent": true,
		"\u00fcnal@ex\u00e4mple.com": true, "a*master": true, "ship=1": false,
		"": false, "a<b": false, "a>b": false, "a,b": false, "a[b": false, "a]b": false, "rip=1": false, "ip=1": false,
		"a\x00b": false, "a\tb": false, "a\x1bb": false, "a\x7fb": false, "a\x80b": false, "a\u0085b": false,
		"a\u200bb": false, "a\u202eb": false, "a\u2028b": false, "a\u2029b": false,
		strings.Repeat("a", maxUser): true, strings.Repeat("a", maxUser+1): false,
	} {
		if got := plainUser([]byte(user)); got != want {
			t.Errorf("%q: %v, want %v", user, got, want)
		}
	}
}

func TestDovecotRefusesUsersThatEndFields(t *testing.T) {
	for _, user := range []string{"", "a,b", "a<b", "a[b", "a]b", "a\x1bb"} {
		for _, line := range []string{
			"dovecot: imap-login: Login: user=<" + user + ">, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=1, session=<ab>",
			"dovecot: imap-login: proxy(" + user + ",192.0.2.9:143): Started proxying to remote host (0.0 secs): user=<" + user + ">, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, session=<ab>",
			"dovecot: imap(" + user + ")<1><ab>: Disconnected: Logged out",
		} {
			if e, result := parseLine(t, new(dovecot), line); result != None && result != Unparsed {
				t.Errorf("%q gave %v %+v", line, result, e)
			}
		}
	}
}

func TestDovecotLogoutPrefixes(t *testing.T) {
	for _, tt := range []struct {
		line, user, client, session string
		want                        Result
	}{
		{"imap(bob)<1><ab>: Disconnected: Logged out in=1", "bob", "invalid IP", "ab", Logout},
		{"imap(bob): Logged out in=1", "bob", "invalid IP", "", Logout},
		{"imap(bob,192.0.2.7): Connection closed in=1", "bob", "192.0.2.7", "", Logout},
		{"imap(bob,192.0.2.7)<1><ab>: Disconnected: x", "", "", "", None},
		{"imap(bob,bob): Disconnected: x", "", "", "", None},
		{"imap(b(ob)<1><ab>: Disconnected: x", "", "", "", None},
		{"imap(b)ob)<1><ab>: Disconnected: x", "", "", "", None},
		{"imap(bob)<ab>: Disconnected: x", "", "", "", None},
		{"imap(bob)<1><a b>: Disconnected: x", "", "", "", None},
		{"imap(bob)<1><ab>: copy from INBOX: Disconnected: x", "", "", "", None},
		{"imap(bob)<1><ab>: Disconnected: a\x00b", "", "", "", None},
		{"lmtp(bob)<1><ab>: Disconnected: x", "", "", "", None},
	} {
		e, result := parseLine(t, new(dovecot), "dovecot: "+tt.line)
		if result != tt.want || result == Logout && (e.User != tt.user || e.Client.String() != tt.client || e.Session != tt.session) {
			t.Errorf("%q: got %v %+v, want %v", tt.line, result, e, tt.want)
		}
	}
}
