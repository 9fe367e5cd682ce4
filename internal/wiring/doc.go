// Package wiring reads how this host's Postfix and sendmail are tied to
// popgate, out of their own configurations as their own programs tell them, and
// says what is wrong with it. What a setting comes to is found by trying it:
// postconf evaluates the relay rule with one setting after the other taken
// away, sendmail's test mode asks its own rules about a stranger's recipient.
//
// It changes nothing. What it could not look at it says; nothing that it could
// not look at is ever called well. It knows the rules of the files that contrib
// ships, and settings near to them: a relay rule that a site has built out of
// tables of its own is that site's, and only a probe of the running MTA shows
// what it lets through.
package wiring
