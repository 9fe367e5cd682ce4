package state

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"popgate/internal/relay"
)

// A batch's body is a row of records, each with its kind first. Numbers are
// varints; a time is seconds and nanoseconds, in a grant counted from its
// login. Words that many records share (sources, formats) are written where
// they first occur in a batch and by number from then on.
const (
	recordGrant = 1 + iota
	recordClose
	recordRevoke
	recordPosition
	recordEnd // of a snapshot: everything before it is all there was
)

const (
	flagOperator = 1 << iota
	flagForced
	flagOpen
	flagCeiling
	flagAll = 1
)

// maxText bounds the texts of one change. A log line has at most 64 KiB.
const maxText = 256 << 10

// encoder fills the body of one batch.
type encoder struct {
	b     []byte
	words []string
}

// take gives the body and begins the next.
func (e *encoder) take() []byte {
	b := e.b
	e.b, e.words = nil, e.words[:0]
	return b
}

// change adds a change. On an error nothing is added.
func (e *encoder) change(c *relay.Change) error {
	g := &c.Grant
	n := len(g.User) + len(g.Session) + len(g.Note) + len(g.Source) + len(g.Format) +
		len(c.Source) + len(c.Session) + len(c.Revocation.User)
	if n > maxText {
		return fmt.Errorf("state: a change with %d bytes of text can't be kept, at most %d can", n, maxText)
	}
	switch c.Kind {
	case relay.ChangeGrant:
		e.grant(g, c.Ceiling)
	case relay.ChangeClose:
		e.b = append(e.b, recordClose)
		e.word(c.Source)
		e.text(c.Session)
		e.time(c.At, time.Time{})
		e.time(c.Until, c.At)
	case relay.ChangeRevoke:
		e.revoke(&c.Revocation)
	default:
		return fmt.Errorf("state: a change of unknown kind %d can't be kept", c.Kind)
	}
	return nil
}

func (e *encoder) grant(g *relay.Grant, ceiling time.Time) {
	flags := set(g.Operator, flagOperator) | set(g.Forced, flagForced) | set(g.Open, flagOpen) | set(!ceiling.IsZero(), flagCeiling)
	e.b = append(e.b, recordGrant, flags, g.Prefix, byte(g.Service))
	e.address(g.Client)
	e.word(g.Source)
	e.word(g.Format)
	e.uint(uint64(len(g.User)))
	e.uint(uint64(len(g.Session)))
	e.uint(uint64(len(g.Note)))
	e.b = append(append(append(e.b, g.User...), g.Session...), g.Note...)
	e.time(g.Login, time.Time{})
	e.time(g.Expires, g.Login)
	if !ceiling.IsZero() {
		e.time(ceiling, g.Login)
	}
}

func (e *encoder) revoke(r *relay.Revocation) {
	e.b = append(e.b, recordRevoke, set(r.All, flagAll))
	if r.Network.IsValid() {
		e.address(r.Network.Addr())
		e.uint(uint64(r.Network.Bits()))
	} else {
		e.address(netip.Addr{})
	}
	e.text(r.User)
	e.time(r.Time, time.Time{})
	e.time(r.Block, r.Time)
	e.time(r.Until, r.Time)
}

func (e *encoder) position(source string, p relay.Position) {
	e.b = append(e.b, recordPosition)
	e.word(source)
	e.uint(p.Device)
	e.uint(p.Inode)
	e.int(p.Offset)
	e.b = binary.LittleEndian.AppendUint64(e.b, p.Sum)
	e.text(p.Cursor)
	e.time(p.Time, time.Time{})
}

func (e *encoder) end(changes uint64) {
	e.b = append(e.b, recordEnd)
	e.uint(changes)
}

func set(yes bool, flag byte) byte {
	if yes {
		return flag
	}
	return 0
}

func (e *encoder) uint(n uint64) { e.b = binary.AppendUvarint(e.b, n) }
func (e *encoder) int(n int64)   { e.b = binary.AppendVarint(e.b, n) }

func (e *encoder) text(s string) {
	e.uint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) word(s string) {
	for i, w := range e.words {
		if w == s {
			e.uint(uint64(i) + 1)
			return
		}
	}
	e.uint(0)
	e.text(s)
	if len(e.words) < maxWords {
		e.words = append(e.words, s)
	}
}

// maxWords bounds the search for a word that occurred before.
const maxWords = 16

func (e *encoder) address(a netip.Addr) {
	e.b = append(e.b, byte(a.BitLen()/8))
	e.b = append(e.b, a.AsSlice()...)
}

// time writes t as the distance from another. The seconds may wrap round, and
// do so again when read.
func (e *encoder) time(t, from time.Time) {
	e.int(t.Unix() - from.Unix())
	e.uint(uint64(t.Nanosecond()))
}

// decoder reads bodies. It owns what it gives: nothing points into a body.
type decoder struct {
	b     []byte
	bad   bool
	words []string
	known map[string]string // words of earlier bodies, so that each is kept once
}

// batch reads one body, and says whether it understood all of it. Unless it
// did, nothing of the body may be used.
func (d *decoder) batch(body []byte, to *batch) bool {
	d.b, d.bad, d.words = body, false, d.words[:0]
	to.changes, to.positions, to.end = to.changes[:0], to.positions[:0], false
	for len(d.b) > 0 && !d.bad {
		switch d.byte() {
		case recordGrant:
			to.changes = append(to.changes, relay.Change{})
			d.grant(&to.changes[len(to.changes)-1])
		case recordClose:
			c := relay.Change{Kind: relay.ChangeClose, Source: d.word(), Session: d.text(), At: d.time(time.Time{})}
			c.Until = d.time(c.At)
			to.changes = append(to.changes, c)
		case recordRevoke:
			to.changes = append(to.changes, d.revoke())
		case recordPosition:
			to.positions = append(to.positions, d.position())
		case recordEnd:
			to.end, to.total = true, d.uint()
		default:
			d.bad = true
		}
	}
	return !d.bad
}

// batch is what was in one body.
type batch struct {
	changes   []relay.Change
	positions []position
	end       bool   // of a snapshot
	total     uint64 // changes in it, when end
}

type position struct {
	source string
	relay.Position
}

func (d *decoder) grant(c *relay.Change) {
	c.Kind = relay.ChangeGrant
	g := &c.Grant
	flags := d.byte()
	g.Operator, g.Forced, g.Open = flags&flagOperator != 0, flags&flagForced != 0, flags&flagOpen != 0
	g.Prefix, g.Service = d.byte(), relay.Service(d.byte())
	g.Client = d.address()
	g.Source, g.Format = d.word(), d.word()
	user, session, note := d.uint(), d.uint(), d.uint()
	if user > maxText || session > maxText || note > maxText {
		d.bad = true
		return
	}
	all := string(d.bytes(user + session + note))
	if d.bad {
		return
	}
	g.User, g.Session, g.Note = all[:user], all[user:user+session], all[user+session:]
	g.Login = d.time(time.Time{})
	g.Expires = d.time(g.Login)
	if flags&flagCeiling != 0 {
		c.Ceiling = d.time(g.Login)
	}
}

func (d *decoder) revoke() relay.Change {
	r := relay.Revocation{All: d.byte()&flagAll != 0}
	if a := d.address(); a.IsValid() {
		if bits := d.uint(); bits <= uint64(a.BitLen()) {
			r.Network = netip.PrefixFrom(a, int(bits))
		} else {
			d.bad = true
		}
	}
	r.User = d.text()
	r.Time = d.time(time.Time{})
	r.Block = d.time(r.Time)
	r.Until = d.time(r.Time)
	return relay.Change{Kind: relay.ChangeRevoke, Revocation: r}
}

func (d *decoder) position() position {
	p := position{source: d.word()}
	p.Device, p.Inode, p.Offset = d.uint(), d.uint(), d.int()
	if sum := d.bytes(8); !d.bad {
		p.Sum = binary.LittleEndian.Uint64(sum)
	}
	p.Cursor = d.text()
	p.Time = d.time(time.Time{})
	return p
}

func (d *decoder) bytes(n uint64) []byte {
	if d.bad || n > uint64(len(d.b)) {
		d.bad = true
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) byte() byte {
	if b := d.bytes(1); !d.bad {
		return b[0]
	}
	return 0
}

func (d *decoder) uint() uint64 {
	n, size := binary.Uvarint(d.b)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) int() int64 {
	n, size := binary.Varint(d.b)
	if size <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[size:]
	return n
}

func (d *decoder) text() string { return string(d.bytes(d.uint())) }

func (d *decoder) word() string {
	n := d.uint()
	if n > 0 {
		if n > uint64(len(d.words)) {
			d.bad = true
			return ""
		}
		return d.words[n-1]
	}
	b := d.bytes(d.uint())
	w, ok := d.known[string(b)]
	if !ok {
		w = string(b)
		if d.known == nil {
			d.known = map[string]string{}
		}
		if len(d.known) < 4096 {
			d.known[w] = w
		}
	}
	if len(d.words) < maxWords {
		d.words = append(d.words, w)
	}
	return w
}

func (d *decoder) address() netip.Addr {
	n := d.byte()
	if n != 0 && n != 4 && n != 16 {
		d.bad = true
	}
	a, _ := netip.AddrFromSlice(d.bytes(uint64(n)))
	return a
}

func (d *decoder) time(from time.Time) time.Time {
	sec, nsec := d.int(), d.uint()
	if nsec > 999_999_999 {
		d.bad = true
	}
	if d.bad {
		return time.Time{}
	}
	return time.Unix(from.Unix()+sec, int64(nsec)).UTC()
}
