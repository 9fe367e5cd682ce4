package control

import (
	"encoding/json"
	"strconv"
	"time"

	"popgate/internal/relay"
)

// appendGrant adds a grant as json.Marshal(FromGrant(g)) would spell it. A list
// has up to millions of them, and whoever is answered meanwhile shares the
// processors with it.
func appendGrant(b []byte, g *relay.Grant) []byte {
	b = append(b, `{"client":"`...)
	if g.Client.IsValid() {
		b = g.Client.AppendTo(b)
	}
	b = append(b, `","prefix":`...)
	b = strconv.AppendUint(b, uint64(g.Prefix), 10)
	b = appendText(b, `,"user":`, g.User)
	b = appendText(b, `,"service":`, g.Service.String())
	b = appendText(b, `,"source":`, g.Source)
	b = appendText(b, `,"format":`, g.Format)
	b = append(b, `,"login":"`...)
	b = g.Login.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","expires":"`...)
	b = g.Expires.UTC().AppendFormat(b, time.RFC3339Nano)
	b = append(b, '"')
	b = appendText(b, `,"session":`, g.Session)
	if g.Open {
		b = append(b, `,"open":true`...)
	}
	b = appendText(b, `,"note":`, g.Note)
	if g.Operator {
		b = append(b, `,"operator":true`...)
	}
	return append(b, '}')
}

// appendText adds a key and its text, unless that is empty.
func appendText(b []byte, key, text string) []byte {
	if text == "" {
		return b
	}
	b = append(b, key...)
	for i := range len(text) {
		if c := text[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			spelled, _ := json.Marshal(text) // a string always can be
			return append(b, spelled...)
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}
