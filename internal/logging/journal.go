package logging

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"popgate/internal/gate"
)

// JournalSocket is where journald takes entries in its own protocol
// (systemd.io/JOURNAL_NATIVE_PROTOCOL).
const JournalSocket = "/run/systemd/journal/socket"

// ToJournal says whether a file is a stream into the journal, by what systemd
// has put into JOURNAL_STREAM ("device:inode"): then journald gets the fields
// of each line apart, at JournalSocket, and not as text.
func ToJournal(stream string, out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok || stream == "" {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	is, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", is.Dev, is.Ino)
}

// journal is journald's socket. A write is one entry. It is connected anew when
// a write fails, since journald may have been started again.
type journal struct {
	path string
	conn *net.UnixConn // nil: the last write failed
}

// OpenJournal gives a writer to journald, whose every Write is one entry of the
// form Journal. Its error is that journald does not listen there.
func OpenJournal(path string) (io.Writer, error) {
	j := &journal{path: path}
	return j, j.dial()
}

func (j *journal) dial() (err error) {
	j.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: j.path, Net: "unixgram"})
	return err
}

// entryTime bounds one entry: journald that hangs costs lines of the log, as
// any reader of it that is too slow.
const entryTime = time.Second

func (j *journal) Write(entry []byte) (int, error) {
	if j.conn != nil && j.send(entry) == nil {
		return len(entry), nil
	}
	if j.conn != nil {
		j.conn.Close()
	}
	if err := j.dial(); err != nil {
		j.conn = nil
		return 0, err
	}
	if err := j.send(entry); err != nil {
		return 0, err
	}
	return len(entry), nil
}

func (j *journal) send(entry []byte) error {
	if err := j.conn.SetWriteDeadline(time.Now().Add(entryTime)); err != nil {
		return err
	}
	_, err := j.conn.Write(entry)
	return err
}

// identifier is what popgate's entries are found by, with its unit.
const identifier = "SYSLOG_IDENTIFIER=popgate\nPRIORITY="

// appendField appends one field. A value may hold anything a stranger sent: one
// with a line feed is written with its length, so that it can't end early.
func appendField(b []byte, name, value string) []byte {
	b = append(b, name...)
	if strings.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = append(b, '\n')
		b = binary.LittleEndian.AppendUint64(b, uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}

// fieldName is a key's name in the journal: journalctl POPGATE_CLIENT=...
func fieldName(key string) string {
	return "POPGATE_" + strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, key)
}

func appendDecisionEntry(b []byte, r *gate.Record) []byte {
	b = append(b, identifier...)
	b = append(b, "6\nMESSAGE=decision"...)
	b = appendDecision(b, r)
	b = append(b, '\n')
	b = appendField(b, "POPGATE_VERDICT", r.Decision.Verdict.String())
	b = appendField(b, "POPGATE_REASON", r.Decision.Reason.String())
	if r.Client.IsValid() {
		b = append(b, "POPGATE_CLIENT="...)
		b = r.Client.AppendTo(b)
		b = append(b, '\n')
	}
	b = appendField(b, "POPGATE_RCPT", r.Rcpt)
	b = appendField(b, "POPGATE_RECIPIENT", r.Whose.String())
	if r.Sender != "" {
		b = appendField(b, "POPGATE_SENDER", r.Sender)
	}
	if r.Queue != "" {
		b = appendField(b, "POPGATE_QUEUE", r.Queue)
	}
	b = appendField(b, "POPGATE_DOOR", r.Door)
	return b
}

// entries is a slog handler that queues each record as an entry of the journal.
// Its message holds the attributes too, as text: that is what journalctl shows.
type entries struct {
	queue  *Queue
	level  slog.Leveler
	text   *handler // of the attributes
	attrs  []slog.Attr
	prefix string // of the groups that are open
}

// bare leaves out of the text what the entry has fields for.
func bare(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && (a.Key == slog.TimeKey || a.Key == slog.LevelKey || a.Key == slog.MessageKey) {
		return slog.Attr{}
	}
	return a
}

func (e *entries) Enabled(_ context.Context, l slog.Level) bool { return l >= e.level.Level() }

func (e *entries) Handle(ctx context.Context, r slog.Record) error {
	text, err := e.text.format(ctx, r)
	if err != nil {
		return err
	}
	b := append([]byte(nil), identifier...)
	b = strconv.AppendInt(b, priority(r.Level), 10)
	b = append(b, '\n')
	message := r.Message
	if rest := strings.TrimSuffix(string(text), "\n"); rest != "" {
		message += " " + rest
	}
	b = appendField(b, "MESSAGE", message)
	for _, a := range e.attrs {
		b = appendAttr(b, "", a)
	}
	r.Attrs(func(a slog.Attr) bool {
		b = appendAttr(b, e.prefix, a)
		return true
	})
	e.queue.text(b)
	return nil
}

func appendAttr(b []byte, prefix string, a slog.Attr) []byte {
	if v := a.Value.Resolve(); v.Kind() != slog.KindGroup {
		return appendField(b, fieldName(prefix+a.Key), v.String())
	}
	for _, in := range a.Value.Group() {
		b = appendAttr(b, prefix+a.Key+"_", in)
	}
	return b
}

// priority is a level in the journal's numbers (syslog's, RFC 5424 6.2.1).
func priority(l slog.Level) int64 {
	switch {
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

func (e *entries) WithAttrs(a []slog.Attr) slog.Handler {
	c := *e
	c.text = e.text.WithAttrs(a).(*handler)
	c.attrs = append([]slog.Attr(nil), e.attrs...)
	for _, one := range a {
		one.Key = e.prefix + one.Key
		c.attrs = append(c.attrs, one)
	}
	return &c
}

func (e *entries) WithGroup(name string) slog.Handler {
	c := *e
	c.text = e.text.WithGroup(name).(*handler)
	c.prefix += name + "_"
	return &c
}
