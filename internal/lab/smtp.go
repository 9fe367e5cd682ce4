package lab

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/textproto"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Reply is what a server answered, its lines joined by "\n".
type Reply struct {
	Code int
	Text string
}

// String gives the reply as one line.
func (r Reply) String() string {
	return fmt.Sprintf("%d %s", r.Code, strings.ReplaceAll(r.Text, "\n", " / "))
}

// Is says whether the reply has a code or, for 2, 4 and 5, is of its class.
func (r Reply) Is(code int) bool { return r.Code == code || r.Code/100 == code }

// Client is an SMTP connection from a chosen address. It sends what it is told
// to, byte for byte, and judges nothing.
type Client struct {
	Greeting Reply

	t    testing.TB
	conn net.Conn
	r    *textproto.Reader
}

// SMTP connects to port 25 from an address, reads the greeting and says EHLO.
func (h *Host) SMTP(t testing.TB, from string) *Client {
	t.Helper()
	return h.SMTPPort(t, from, "25")
}

// SMTPPort is SMTP on another port.
func (h *Host) SMTPPort(t testing.TB, from, port string) *Client {
	t.Helper()
	c := &Client{t: t}
	c.attach(dial(t, from, port))
	c.Greeting = c.reply()
	c.Must(2, "EHLO client.test")
	return c
}

// dial connects from an address to the loopback of its family.
func dial(t testing.TB, from, port string) net.Conn {
	t.Helper()
	conn, err := dialFrom(netip.MustParseAddr(from), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(2 * patience))
	return conn
}

func (c *Client) attach(conn net.Conn) {
	c.conn = conn
	c.r = textproto.NewReader(bufio.NewReader(conn))
}

func (c *Client) reply() Reply {
	c.t.Helper()
	code, text, err := c.r.ReadResponse(0)
	if err != nil {
		c.t.Fatalf("SMTP reply: %v", err)
	}
	return Reply{code, text}
}

// Say sends one line and does not wait for the reply.
func (c *Client) Say(line string) {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(line + "\r\n")); err != nil {
		c.t.Fatalf("SMTP %q: %v", line, err)
	}
}

// Reply waits for the reply to a line that was said.
func (c *Client) Reply() Reply {
	c.t.Helper()
	return c.reply()
}

// Heard says whether the server has begun to reply.
func (c *Client) Heard() bool {
	if c.r.R.Buffered() > 0 {
		return true
	}
	c.conn.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	defer c.conn.SetReadDeadline(time.Now().Add(2 * patience))
	_, err := c.r.R.Peek(1)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// Cmd sends one line and reads the reply.
func (c *Client) Cmd(line string) Reply {
	c.t.Helper()
	return c.Pipeline(line)[0]
}

// Pipeline sends lines in one packet and reads a reply to each.
func (c *Client) Pipeline(lines ...string) []Reply {
	c.t.Helper()
	if _, err := c.conn.Write([]byte(strings.Join(lines, "\r\n") + "\r\n")); err != nil {
		c.t.Fatalf("SMTP %q: %v", lines, err)
	}
	replies := make([]Reply, len(lines))
	for i := range lines {
		replies[i] = c.reply()
	}
	return replies
}

// Must sends one line whose reply must be a code or class.
func (c *Client) Must(code int, line string) Reply {
	c.t.Helper()
	r := c.Cmd(line)
	if !r.Is(code) {
		c.t.Fatalf("%s: %v, want %d", line, r, code)
	}
	return r
}

// Send tries a whole message and gives the replies to its recipients. It goes
// through DATA if at least one was taken, and that must succeed; else it
// resets.
func (c *Client) Send(subject string, rcpts ...string) []Reply {
	c.t.Helper()
	c.Must(2, "MAIL FROM:<sender@client.test>")
	replies, taken := make([]Reply, len(rcpts)), false
	for i, rcpt := range rcpts {
		replies[i] = c.Cmd("RCPT TO:<" + rcpt + ">")
		taken = taken || replies[i].Is(2)
	}
	if !taken {
		c.Must(2, "RSET")
		return replies
	}
	c.Must(354, "DATA")
	c.Body(subject)
	return replies
}

// Body sends a message after DATA's 354. It must be taken.
func (c *Client) Body(subject string) {
	c.t.Helper()
	c.Must(2, "From: sender@client.test\r\nSubject: "+subject+"\r\n\r\ntext\r\n.")
}

// StartTLS goes on encrypted and says EHLO again.
func (c *Client) StartTLS() {
	c.t.Helper()
	c.Must(2, "STARTTLS")
	// The certificate is the lab's own; nothing is proved by it.
	secured := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	if err := secured.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.attach(secured)
	c.Must(2, "EHLO client.test")
}

// Auth authenticates by AUTH PLAIN.
func (c *Client) Auth(user, password string) Reply {
	c.t.Helper()
	return c.Cmd("AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+user+"\x00"+password)))
}

// Close hangs up without QUIT.
func (c *Client) Close() { c.conn.Close() }

// pipe gives a client that speaks to a program's standard input and output, as
// `sendmail -bs` has it. It ends with the test.
func pipe(t testing.TB, name string, args ...string) *Client {
	t.Helper()
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout = theirs, theirs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); cmd.Process.Kill(); cmd.Wait() })
	conn.SetDeadline(time.Now().Add(2 * patience))
	c := &Client{t: t}
	c.attach(conn)
	c.Greeting = c.reply()
	c.Must(2, "EHLO client.test")
	return c
}
