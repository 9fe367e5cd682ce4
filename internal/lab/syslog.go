package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"regexp"
	"sync"
	"testing"
)

// MailLog is the file into which the host's syslog writes.
const MailLog = "/var/log/mail.log"

// Syslog reads /dev/log and writes MailLog as rsyslog's traditional format
// does: stamp, host, tag, message, control bytes as #ooo.
type Syslog struct {
	name string
	all  *Log // everything since the start, whatever became of the file
	conn *net.UnixConn

	mu   sync.Mutex
	file *os.File
}

func newSyslog(t testing.TB, name string) *Syslog {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/dev/log", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod("/dev/log", 0o666); err != nil {
		t.Fatal(err)
	}
	s := &Syslog{name: name, all: newLog(), conn: conn}
	makeLog(t, MailLog)
	s.open(t)
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return
			}
			s.write(rsyslogLine(buf[:n], name))
		}
	})
	t.Cleanup(func() { conn.Close(); reader.Wait() })
	return s
}

// leave makes room for another reader of /dev/log. Programs that had it open
// open it anew when nobody reads there any more.
func (s *Syslog) leave() error {
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return err
	}
	if err := os.Remove("/dev/log"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// String gives everything that was logged.
func (s *Syslog) String() string { return s.all.String() }

// Rotate does what logrotate does: it renames MailLog, makes a new one, and
// has syslog open it. In between, before is called: servers go on writing to
// the old file until they are told.
func (s *Syslog) Rotate(t testing.TB, before func()) {
	t.Helper()
	rotate(t, MailLog, before)
	s.open(t)
}

// rotate renames a log and makes a new one.
func rotate(t testing.TB, path string, before func()) {
	t.Helper()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	before()
	makeLog(t, path)
}

// makeLog makes an empty log that group adm may read, as Debian has them.
func makeLog(t testing.TB, path string) {
	t.Helper()
	if err := errors.Join(os.WriteFile(path, nil, 0o640), os.Chmod(path, 0o640), os.Chown(path, 0, gidAdm)); err != nil {
		t.Fatal(err)
	}
}

func (s *Syslog) open(t testing.TB) {
	t.Helper()
	f, err := os.OpenFile(MailLog, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil {
		s.file.Close()
	}
	s.file = f
}

func (s *Syslog) write(line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.file.Write(line)
	s.all.Write(line)
}

var (
	priority = regexp.MustCompile(`^<\d+>`)
	stamp    = regexp.MustCompile(`^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d `)
)

// rsyslogLine turns a datagram of syslog(3) into a line of the file.
func rsyslogLine(datagram []byte, host string) []byte {
	text := bytes.TrimRight(datagram[len(priority.Find(datagram)):], "\x00\n")
	head := stamp.Find(text)
	line := append(bytes.Clone(head), host+" "...)
	for _, c := range text[len(head):] {
		if c < ' ' || c == 0x7f {
			line = fmt.Appendf(line, "#%03o", c)
		} else {
			line = append(line, c)
		}
	}
	return append(line, '\n')
}
