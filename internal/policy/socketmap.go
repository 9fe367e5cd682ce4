package policy

import (
	"bytes"
	"context"
	"net/netip"
	"strconv"

	"popgate/internal/relay"
)

// The socket map of sendmail (and of Postfix's socketmap_table(5)): the
// question is the netstring of "map key", the answer the netstring of "OK
// value", "NOTFOUND ", "TEMP text" or "PERM text".

const (
	maxKey       = 4096           // map name and key; the longest name of a host has 255 bytes
	maxNetstring = maxKey + 4 + 2 // with length, colon and comma
)

// granted gives what each map answers for a client that may relay: what
// Postfix's access(5) and what sendmail's and Exim's rules ask for.
func granted(name []byte) (answer string, known bool) {
	switch string(name) {
	case "postfix":
		return "OK OK", true
	case "popgate", "drac", "exim":
		return "OK RELAY", true
	default:
		return "", false
	}
}

// socketMap is one connection of an MTA.
type socketMap struct {
	judge  Judge
	waits  relay.Waits
	client netip.Addr // of the question before
}

func (m *socketMap) whole(read []byte) (length int, ok bool) {
	_, length, ok = parseNetstring(read)
	return length, ok
}

// parseNetstring reads the netstring with which read begins, and gives what it
// holds and its length. Length 0 means that more must be read. A length is
// digits without leading zeros, so that each netstring has one spelling.
func parseNetstring(read []byte) (text []byte, length int, ok bool) {
	n := 0
	for i, c := range read {
		switch {
		case '0' <= c && c <= '9':
			if n = 10*n + int(c-'0'); n > maxKey || i > 0 && read[0] == '0' {
				return nil, 0, false
			}
			continue
		case c != ':' || i == 0:
			return nil, 0, false
		}
		end := i + 1 + n
		if len(read) <= end {
			return nil, 0, true
		}
		return read[i+1 : end], end + 1, read[end] == ','
	}
	return nil, 0, true
}

func (m *socketMap) answer(ctx context.Context, to, question []byte) ([]byte, bool) {
	text, _, ok := parseNetstring(question)
	if !ok {
		return m.later(to), false
	}
	name, key, ok := bytes.Cut(text, []byte{' '})
	if !ok {
		return m.later(to), false
	}
	yes, known := granted(name)
	if !known {
		return appendNetstring(to, "PERM no such map; there are postfix, popgate, drac and exim"), true
	}
	client, ok := literal(key)
	if !ok {
		return appendNetstring(to, "NOTFOUND "), true
	}
	switch ask(ctx, m.judge, &relay.Query{Door: "socketmap", Client: client, Waits: m.budget(client)}) {
	case open:
		return appendNetstring(to, yes), true
	case nothing:
		return appendNetstring(to, "NOTFOUND "), true
	default:
		return m.later(to), true
	}
}

// budget takes the questions about one client that follow each other for one
// SMTP session, each of them for a message: the socket map tells of neither.
func (m *socketMap) budget(client netip.Addr) *relay.Waits {
	if client != m.client {
		m.client, m.waits = client, relay.Waits{}
	}
	m.waits.Begin()
	return &m.waits
}

func (m *socketMap) later(to []byte) []byte {
	return appendNetstring(to, "TEMP "+relay.Later.Text)
}

func appendNetstring(to []byte, text string) []byte {
	to = strconv.AppendInt(to, int64(len(text)), 10)
	to = append(to, ':')
	to = append(to, text...)
	return append(to, ',')
}
