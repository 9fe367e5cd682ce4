package control

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"io"
	"net/netip"
	"slices"
	"time"
)

// listed is a line of a list, and what it is put in order by.
type listed struct {
	end    int64 // ns since 1970
	client netip.Addr
	line   []byte
}

// manyListed is from when on a list is much work, for whoever reads it as well.
const manyListed = 10_000

// readList reads a list, and gives it in order: next to expire first, and where
// many do at once, as stamps are often cut to the second, by address. It calls
// much when the list proves long.
func readList(from io.Reader, much func()) (all []listed, err error) {
	const longest = 1 << 20 // several times what a request can hold
	lines := bufio.NewReaderSize(from, longest)
	var room []byte // of which each line has a part: so many small ones would take more
	for {
		line, err := lines.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			inOrder(all)
			return all, nil
		case errors.Is(err, bufio.ErrBufferFull):
			return nil, errNoList
		case errors.Is(err, io.EOF):
			return nil, io.ErrUnexpectedEOF // in the middle of a line
		case err != nil:
			return nil, err
		}
		line = line[:len(line)-1]
		if cap(room)-len(room) < len(line) {
			room = make([]byte, 0, max(1<<20, len(line)))
		}
		at := len(room)
		room = append(room, line...)
		one, err := parseListed(room[at:len(room):len(room)])
		if err != nil {
			return nil, err
		}
		if all = append(all, one); len(all) == manyListed && much != nil {
			much()
		}
	}
}

func inOrder(all []listed) {
	slices.SortFunc(all, func(a, b listed) int {
		if a.end != b.end {
			return cmp.Compare(a.end, b.end)
		}
		return a.client.Compare(b.client)
	})
}

var errNoList = errors.New("what it lists is no grant; is it popgate that listens there?")

// parseListed looks at a line for its order. A line that holds control
// characters, which JSON never does and a terminal may obey, is no grant.
func parseListed(line []byte) (one listed, err error) {
	for _, b := range line {
		if b < ' ' {
			return one, errNoList
		}
	}
	client, err := netip.ParseAddr(string(valueOf(line, `"client":"`)))
	if err != nil || client.Zone() != "" { // no grant has one, and it may be any text
		return one, errNoList
	}
	end, err := time.Parse(time.RFC3339Nano, string(valueOf(line, `"expires":"`)))
	if err != nil {
		return one, errNoList
	}
	return listed{end.UnixNano(), client, line}, nil
}

// valueOf gives what stands behind a key. No text can hold that: in JSON a
// quotation mark inside a text is escaped.
func valueOf(line []byte, key string) []byte {
	_, rest, _ := bytes.Cut(line, []byte(key))
	value, _, _ := bytes.Cut(rest, []byte{'"'})
	return value
}
