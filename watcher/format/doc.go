// Package format turns lines of POP/IMAP servers' logs into events. Split
// finds a line's transport and takes it apart; a Parser reads the message of
// one server.
//
// Log lines hold text that strangers chose: user names above all, sent without
// a password. So nothing here searches: a transport is anchored at the line's
// first byte, a tag is exact, a message is matched from its first byte to its
// last by a strict, case-sensitive grammar, and whatever can be read in two
// ways is not a login. A line that looks like a login and matches nothing is
// Unparsed, so that a server's new release is noticed instead of being
// guessed at.
//
// What the package can't promise: that the server wrote the line. Who may
// write to a text log through syslog can write any line; and Courier's own
// logger cuts long messages so that a stranger's text can start a record,
// which only the records before it give away (see courier.go).
//
// There is no I/O here, no clock and no configuration. A Parser belongs to one
// goroutine.
package format
