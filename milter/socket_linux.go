package milter

import (
	"net"
	"syscall"
)

// quickAck gives what is to be done before each read of a TCP connection, nil
// for any other: sendmail writes macros and command separately, and without
// an acknowledgement at once Nagle's algorithm holds the second back for some
// 40 ms. The kernel drops the setting by itself, so once is not enough.
func quickAck(nc net.Conn) func() {
	tcp, ok := nc.(*net.TCPConn)
	if !ok {
		return nil
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil
	}
	set := func(fd uintptr) {
		// Without it answers are slow, not wrong.
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 1)
	}
	return func() { _ = raw.Control(set) }
}
