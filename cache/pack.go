package cache

import (
	"encoding/binary"
	"math"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/relay"
)

// A grant is kept as one string: its key (which the map uses in place, so that
// it costs no allocation of its own), three times, and its texts one after the
// other. Source and format, of which a site has a handful, are numbers.
//
//	0  key                  40 prefix, service, flags
//	16 login (ns)           43 number of (source, format)
//	24 expires (ns)         45 lengths of user and session, as uvarints
//	32 deadline (ns)        .. address, unless the key is it; user; session; note
const (
	keySize = len(relay.Key{})
	fixed   = 45
)

const (
	flagOperator = 1 << iota
	flagForced
	flagOpen
	flagAddress // the key does not tell the full address
	flagSpelled // the source's name and the format are spelled out in the texts
)

// Times that are not between 1678 and 2262.
const (
	zeroTime = math.MinInt64
	pastTime = math.MinInt64 + 1
)

func nanos(t time.Time) int64 {
	switch {
	case t.IsZero():
		return zeroTime
	case t.Before(time.Unix(0, pastTime)):
		return pastTime
	case t.After(time.Unix(0, math.MaxInt64)):
		return math.MaxInt64
	default:
		return t.UnixNano()
	}
}

func fromNanos(n int64) time.Time {
	if n == zeroTime {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// pack makes the string that stands for a grant.
func (s *Store) pack(k *relay.Key, g *relay.Grant) string {
	var room [256]byte
	b := append(room[:0], k[:]...)
	b = binary.LittleEndian.AppendUint64(b, uint64(nanos(g.Login)))
	b = binary.LittleEndian.AppendUint64(b, uint64(nanos(g.Expires)))
	b = binary.LittleEndian.AppendUint64(b, uint64(g.Deadline))
	var flags byte
	for _, f := range [...]struct {
		set bool
		bit byte
	}{{g.Operator, flagOperator}, {g.Forced, flagForced}, {g.Open, flagOpen}, {g.Client != addressOf(string(k[:])), flagAddress}} {
		if f.set {
			flags |= f.bit
		}
	}
	n, known := s.words.number(g.Source, g.Format)
	if !known {
		flags |= flagSpelled
	}
	b = append(b, g.Prefix, byte(g.Service), flags)
	b = binary.LittleEndian.AppendUint16(b, n)
	b = binary.AppendUvarint(b, uint64(len(g.User)))
	b = binary.AppendUvarint(b, uint64(len(g.Session)))
	if !known {
		b = binary.AppendUvarint(b, uint64(len(g.Source)))
		b = binary.AppendUvarint(b, uint64(len(g.Format)))
		b = append(append(b, g.Source...), g.Format...)
	}
	if flags&flagAddress != 0 {
		b = append(b, byte(g.Client.BitLen()/8))
		b = append(b, g.Client.AsSlice()...)
	}
	b = append(append(append(b, g.User...), g.Session...), g.Note...)
	return string(b)
}

// unpack gives the grant back. Its texts are parts of the one string.
func (s *Store) unpack(p string) relay.Grant {
	flags := p[42]
	g := relay.Grant{
		Login:    fromNanos(int64(uint64At(p, 16))),
		Expires:  fromNanos(int64(uint64At(p, 24))),
		Deadline: deadline(p),
		Prefix:   p[40],
		Service:  relay.Service(p[41]),
		Operator: flags&flagOperator != 0,
		Forced:   flags&flagForced != 0,
		Open:     flags&flagOpen != 0,
	}
	user, rest := uvarint(p[fixed:])
	session, rest := uvarint(rest)
	if flags&flagSpelled != 0 {
		var source, format int
		source, rest = uvarint(rest)
		format, rest = uvarint(rest)
		g.Source, g.Format, rest = rest[:source], rest[source:source+format], rest[source+format:]
	} else {
		w := s.words.at(uint16(p[43]) | uint16(p[44])<<8)
		g.Source, g.Format = w.source, w.format
	}
	if flags&flagAddress != 0 {
		n := int(rest[0])
		g.Client, _ = netip.AddrFromSlice([]byte(rest[1 : 1+n]))
		rest = rest[1+n:]
	} else {
		g.Client = addressOf(p)
	}
	g.User, g.Session, g.Note = rest[:user], rest[user:user+session], rest[user+session:]
	return g
}

// addressOf reads a key as the address it is when nothing was cleared in it.
func addressOf(key string) netip.Addr {
	return netip.AddrFrom16([16]byte([]byte(key[:keySize]))).Unmap()
}

func expires(p string) int64          { return int64(uint64At(p, 24)) }
func deadline(p string) time.Duration { return time.Duration(uint64At(p, 32)) }

func uint64At(p string, i int) uint64 {
	p = p[i : i+8]
	return uint64(p[0]) | uint64(p[1])<<8 | uint64(p[2])<<16 | uint64(p[3])<<24 |
		uint64(p[4])<<32 | uint64(p[5])<<40 | uint64(p[6])<<48 | uint64(p[7])<<56
}

func uvarint(p string) (int, string) {
	n := 0
	for i := 0; ; i++ {
		n |= int(p[i]&0x7f) << (7 * i)
		if p[i] < 0x80 {
			return n, p[i+1:]
		}
	}
}

// word is what grants of one origin have in common.
type word struct{ source, format string }

// maxWords bounds the table of words. Sources and formats come from the
// configuration; should more ever turn up, they are spelled out in each grant.
const maxWords = 4096

// words numbers what few grants differ in. A number once given never changes.
type words struct {
	mu      sync.Mutex
	numbers map[word]uint16
	list    atomic.Pointer[[]word]
	last    atomic.Uint32 // the number given last: mostly the next one's as well
}

func (t *words) number(source, format string) (uint16, bool) {
	w := word{source, format}
	last := t.last.Load() // before the list, which then has it
	if list := t.list.Load(); list != nil && (*list)[last] == w {
		return uint16(last), true
	}
	n, ok := t.find(w)
	if ok {
		t.last.Store(uint32(n))
	}
	return n, ok
}

func (t *words) find(w word) (uint16, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n, ok := t.numbers[w]; ok {
		return n, true
	}
	var list []word
	if old := t.list.Load(); old != nil {
		list = *old
	}
	if len(list) == maxWords {
		return 0, false
	}
	if t.numbers == nil {
		t.numbers = map[word]uint16{}
	}
	n := uint16(len(list))
	w = word{strings.Clone(w.source), strings.Clone(w.format)} // they may be parts of something big
	// Readers of the old list don't look beyond its length.
	list = append(list, w)
	t.list.Store(&list)
	t.numbers[w] = n
	return n, true
}

func (t *words) at(n uint16) word { return (*t.list.Load())[n] }
