// Package watcher reads logins from where POP and IMAP servers log them.
//
// A Source hides how its log is moved about: rotation, truncation, a file that
// is not there yet, a reader that must be started again. Watch turns what a
// source reads into events, in the order of the log, and hands each one over
// before the position that stands for it. A source's trouble goes to its
// health; it never ends the daemon and never invents a line.
//
// A log file is read here. The journal, syslog and what is told instead of being
// logged are sources in packages of their own, journal, syslog and push.
//
// What is promised about a line: it is handed over only whole, ended by \n, at
// most MaxLine bytes long and unchanged. Lines may be handed over twice (after
// a restart, or when a log is replaced by a copy of itself), never in pieces.
// Where a line may be missing a Gap stands in its place. What can't be promised:
// lines that copytruncate drops between its copy and its truncation, and whether
// the program that wrote a line to a syslog file was the one it names.
package watcher

import (
	"context"
	"iter"
	"time"

	"popgate/internal/relay"
)

// Kind says what a Record is.
type Kind uint8

const (
	Line     Kind = iota // Text is one whole line
	Gap                  // one or more lines may be missing here
	CaughtUp             // everything there was to read has been handed over
	Down                 // the source can't be read at the moment; Err says why. CaughtUp ends it
	Ended                // nothing more comes of this Stream
	Refused              // somebody sent who may not, or what nobody may; Err says who and why. It changes nothing else
	Told                 // the source was told by others: Event, unless it concerns no grant
)

// Record is one thing a source has to tell.
type Record struct {
	Kind    Kind
	Text    []byte       // Line: without its newline; good until the next record
	Event   *relay.Event // Told: all of it but Source, Format and Live; nil: it concerns no grant
	Arrived time.Time    // when it was read
	// Live says that the line was seen being written. A line that was already
	// there when its file was opened may be of any age, whatever its stamp
	// says: a stamp without a year comes round again.
	Live     bool
	Position relay.Position // not zero: everything up to it has been handed over once this record has
	// Lost says of a Gap that lines were passed over unread, or that this can't
	// be ruled out: nobody can tell any more who did not log in. Without it, all
	// there was has been read as far as can be told.
	Lost   bool
	Unread int64 // Lost: how many bytes, if that is known
	// Stream tells apart what several senders wrote side by side, so that each
	// is understood by itself. 0 where the order of the source is that of the
	// log; a Gap of stream 0 is one in every stream.
	Stream uint64
	// Withheld says of a Line that only its being there counts, and not what it
	// says.
	Withheld bool
	// Sent says of a Line that syslog daemons sent it on, which may have cut off
	// its end.
	Sent  bool
	Times uint64 // Refused: how often
	Unit  string // the trusted unit it came from, where the source knows one
	Err   error  // Down: where, what, and what would be right
}

// Source is one place logins are read from. Its records are read by one
// goroutine, and once at a time.
type Source interface {
	Name() string // as in the configuration and in status: "file:/var/log/mail.log"
	Type() string // file, journal, syslog or push
	// Records reads on from a position, or, when there is none or it can't be
	// found again, from about the time since. It ends when ctx does.
	Records(ctx context.Context, from relay.Position, since time.Time) iter.Seq[Record]
}
