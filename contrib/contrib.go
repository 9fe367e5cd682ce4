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
