// Package e2e has no code of its own: its tests run popgate beside a real
// Postfix, a real sendmail and a real Dovecot, each test on a private host
// (package lab), and look for what arrived at the sink rather than at what was
// answered.
package e2e
