//go:build !linux

package milter

import (
	"net"
	"syscall"
)

// socket is a saving for Linux; elsewhere connections are read by package net.
type socket struct {
	raw  syscall.RawConn
	read func(fd uintptr) bool
	to   []byte
	got  int
	lend bool
}

func newSocket(net.Conn) *socket { return nil }
