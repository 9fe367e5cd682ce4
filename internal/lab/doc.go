// Package lab runs the real thing for tests: Postfix, sendmail, Exim and
// Dovecot as Debian ships them, popgate beside them, a sink that takes what
// they deliver, and clients that connect from foreign addresses.
//
// A test calls Isolated (or WithDaemon) and is run again in a child process
// that has a host of its own: its own network, process table, host name, /etc,
// /usr, /var, /run and /dev/log. Nothing is installed on the machine, nothing a
// test starts outlives it, ports 25, 110 and 143 are free in each, and tests
// may run side by side. Whatever a test writes there ends with it.
//
// Waiting is always for a condition, with a deadline; see Until.
//
// The lab needs root and a Debian with its apt sources. Where one of these is
// missing a test is skipped with the reason, or fails if the environment says
// CI=true.
package lab
