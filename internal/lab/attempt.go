package lab

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"time"
)

// Attempt sends one message and gives the reply that decided it: the first that
// is not a yes, else the last. It fails no test, so that clients may run beside
// one; an error says that the server hung up or kept silent.
func Attempt(from, port, subject, rcpt string) (Reply, error) {
	local, err := netip.ParseAddr(from)
	if err != nil {
		return Reply{}, err
	}
	conn, err := dialFrom(local, port)
	if err != nil {
		return Reply{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * patience))
	r := textproto.NewReader(bufio.NewReader(conn))
	var last Reply
	for _, line := range []string{"", "EHLO client.test", "MAIL FROM:<sender@client.test>", "RCPT TO:<" + rcpt + ">", "DATA",
		"From: sender@client.test\r\nSubject: " + subject + "\r\n\r\ntext\r\n."} {
		if line != "" { // else for the greeting
			if _, err := fmt.Fprintf(conn, "%s\r\n", line); err != nil {
				return Reply{}, fmt.Errorf("%s: %w", line, err)
			}
		}
		code, text, err := r.ReadResponse(0)
		if err != nil {
			return Reply{}, fmt.Errorf("after %q: %w", line, err)
		}
		if last = (Reply{code, text}); code >= 400 {
			break
		}
	}
	fmt.Fprint(conn, "QUIT\r\n")
	return last, nil
}

// dialFrom connects from an address to the loopback of its family.
func dialFrom(local netip.Addr, port string) (net.Conn, error) {
	host := "127.0.0.1"
	if local.Is6() {
		host = "::1"
	}
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(local, 0)), Timeout: patience}
	return d.Dial("tcp", net.JoinHostPort(host, port))
}
