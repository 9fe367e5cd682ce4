//go:build !linux

package milter

import "net"

// quickAck is needed where the kernel delays acknowledgements and can be told
// not to, which only Linux can.
func quickAck(net.Conn) func() { return nil }
