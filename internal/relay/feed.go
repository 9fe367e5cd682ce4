package relay

import "time"

// Batch is what the ledger hands to everyone who follows it: changes in the
// order in which they were applied, and the position of the source up to which
// they stand for all that was read. Followers see batches in one order.
type Batch struct {
	Changes  []Change
	Source   string   // name of the source the position belongs to; empty: none
	Position Position // meaningful when Source is set
	// Done, when not nil, is told once the batch is safe on disk, or why it is
	// not. It never blocks the teller: it has room for one answer.
	Done chan<- error
}

// Position is a place in a source from which reading can go on. The zero
// Position is none. It is opaque to all but the source that made it.
type Position struct {
	Device, Inode uint64    // file
	Offset        int64     // file: bytes up to and with the last judged line
	Sum           uint64    // file: hash of the bytes before Offset, so that another file in the same place is noticed; journal: hash of what an entry must show to be read, so that other rules begin anew
	Cursor        string    // journal: the last entry that was dealt with
	Time          time.Time // arrival of the last record; journal: everything logged up to then has been read
}

// IsZero says whether there is no position.
func (p Position) IsZero() bool { return p == Position{} }

// SourceStatus is where a source is in its life.
type SourceStatus uint8

const (
	SourceStarting SourceStatus = iota // not yet open, or its replay is not finished
	SourceUp                           // read up to the present
	SourceDown                         // can't be read at the moment
)

var sourceStatusNames = [...]string{"starting", "up", "down"}

// String gives the word used in log, metric and JSON.
func (s SourceStatus) String() string {
	if int(s) < len(sourceStatusNames) {
		return sourceStatusNames[s]
	}
	return "down"
}

// SourceState is a source's health as status shows it.
type SourceState struct {
	Name      string // as in the configuration: "file:/var/log/mail.log"
	Type      string // file, journal, syslog, push
	Status    SourceStatus
	Since     time.Time     // when Status last changed
	Error     string        // why it is down, with the remedy; empty when up
	LastLine  time.Time     // arrival of the last line
	LastLogin time.Time     // the last login's own time
	Lines     uint64        // records read
	Logins    uint64        // login events read
	Unparsed  uint64        // lines that look like a login and match nothing
	Gaps      uint64        // places where something may have been missed
	Missed    uint64        // those of them where lines were passed over unread, so that logins are missing as far as can be told
	Skipped   uint64        // bytes of these lines, where it can be told
	Lag       time.Duration // how far reading is behind, where the source can tell
}
