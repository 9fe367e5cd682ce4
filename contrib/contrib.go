// Package contrib holds the lines that go into the MTAs' configurations. What
// the commands print, the documents show and the tests run is this text.
package contrib

import _ "embed"

// PostfixMilter goes into main.cf. Remote recipients are let through to the
// milter only while every setting that makes Postfix ask it, and wait for its
// answer, is as it is here; whatever is lost or changed, reject_unauth_destination
// remains.
//
//go:embed postfix/milter.cf
var PostfixMilter string

// SendmailMilter goes into sendmail.mc. The second line alone is an open relay.
//
//go:embed sendmail/milter.mc
var SendmailMilter string

// SendmailFeature is feature/popgate.m4 of sendmail's configuration files. The
// line FEATURE(`popgate') stands for both lines of SendmailMilter, and neither
// is there without the other.
//
//go:embed sendmail/feature/popgate.m4
var SendmailFeature string

// The closed doors: what follows leaves the MTA's own relay rule shut and asks
// popgate only about clients to which it would refuse a recipient. With popgate
// down, remote recipients get a temporary failure, and local mail flows.

// PostfixPolicy goes into main.cf. permit_auth_destination must stand in front,
// or Postfix's own mail waits for popgate; reject_unauth_destination must stand
// behind, it is what refuses. The socket's path is relative to the queue
// directory, so that it is the same for an smtpd in a chroot and for one
// outside. A second try is for the connection that a restart of popgate has cut.
//
//go:embed postfix/policy.cf
var PostfixPolicy string

// PostfixSocketMap goes into main.cf where the policy service can't. Postfix
// asks for the client's name as well as for its address, and only the address is
// answered. Not through proxymap, where one client's wait would hold up others,
// and not with check_reverse_client_hostname_access, which asks for names that
// nobody has verified.
//
//go:embed postfix/socketmap.cf
var PostfixSocketMap string

// SendmailSocketMap goes to the end of sendmail.mc. Left and right-hand sides are
// separated by tabs. A client that may relay skips the rest of check_rcpt, the
// access map with it.
//
//go:embed sendmail/socketmap.mc
var SendmailSocketMap string

// SendmailDrac is one line that does less: sendmail can't put a recipient off
// because of it, so that a client gets a 550 while popgate is down or can't tell.
// It takes every answer but "not found" for a permission: with -T<TMPF> in its
// arguments it is an open relay as long as popgate is down.
//
//go:embed sendmail/drac.mc
var SendmailDrac string

// EximSocketMap goes into the ACL of acl_smtp_rcpt, behind the statements that
// accept local domains, trusted hosts and authenticated clients, and before the
// one that denies the rest. Every answer but the two that are compared whole,
// and none, puts the recipient off.
//
//go:embed exim/socketmap.conf
var EximSocketMap string

// DovecotPush goes into Dovecot's configuration where a push source takes its
// reports: in a file that only root can read, with the key in the place of
// SECRET. This is for Dovecot 2.3 and before.
//
//go:embed dovecot/push-2.3.conf
var DovecotPush string

// DovecotPush24 is the same for Dovecot 2.4.
//
//go:embed dovecot/push-2.4.conf
var DovecotPush24 string
