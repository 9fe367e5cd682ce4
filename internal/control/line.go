package control

import (
	"encoding/json"
	"strconv"
	"time"

	"popgate/internal/relay"
)

// speller spells grants as json.Marshal(FromGrant(g)) would. A list has up to
// millions of them, and whoever is answered meanwhile shares the processors with
// it; so what is the same in many is spelled once. The zero speller is ready.
type speller struct {
	logins, ends   day
	source, format string
	origin         []byte // both as spelled last
}

// appendGrant adds a grant.
func (s *speller) appendGrant(b []byte, g *relay.Grant) []byte {
	b = append(b, `{"client":`...)
	switch {
	case !g.Client.IsValid():
		b = append(b, `""`...)
	case g.Client.Zone() != "": // no grant has one, and it may be any text
		b = appendText(b, "", g.Client.String())
	default:
		b = append(g.Client.AppendTo(append(b, '"')), '"')
	}
	b = append(b, `,"prefix":`...)
	b = strconv.AppendUint(b, uint64(g.Prefix), 10)
	b = appendText(b, `,"user":`, g.User)
	b = appendText(b, `,"service":`, g.Service.String())
	if g.Source != s.source || g.Format != s.format {
		s.source, s.format = g.Source, g.Format
		s.origin = appendText(appendText(s.origin[:0], `,"source":`, g.Source), `,"format":`, g.Format)
	}
	b = append(b, s.origin...)
	b = append(b, `,"login":"`...)
	b = s.logins.appendTime(b, g.Login)
	b = append(b, `","expires":"`...)
	b = s.ends.appendTime(b, g.Expires)
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

// plain are the bytes that JSON has as they are.
var plain = func() (t [256]bool) {
	for c := byte(' '); c <= '~'; c++ {
		t[c] = true
	}
	for _, c := range []byte(`"\<>&`) {
		t[c] = false
	}
	return t
}()

// appendText adds a key and its text, unless that is empty.
func appendText(b []byte, key, text string) []byte {
	if text == "" {
		return b
	}
	b = append(b, key...)
	for i := range len(text) {
		if !plain[text[i]] {
			spelled, _ := json.Marshal(text) // a string always can be
			return append(b, spelled...)
		}
	}
	b = append(b, '"')
	b = append(b, text...)
	return append(b, '"')
}

// day is the day that was spelled last.
type day struct {
	start int64 // s since 1970
	text  []byte
}

// appendTime adds a time in UTC by time.RFC3339Nano.
func (d *day) appendTime(b []byte, t time.Time) []byte {
	const length = 24 * 60 * 60
	second := t.Unix() - d.start
	if d.text == nil || second < 0 || second >= length {
		second = t.Unix() % length
		if second < 0 {
			second += length
		}
		d.start = t.Unix() - second
		d.text = time.Unix(d.start, 0).UTC().AppendFormat(d.text[:0], time.DateOnly+"T")
	}
	b = append(b, d.text...)
	hour, minute := second/3600, second/60%60
	second %= 60
	b = append(b, '0'+byte(hour/10), '0'+byte(hour%10), ':', '0'+byte(minute/10), '0'+byte(minute%10), ':', '0'+byte(second/10), '0'+byte(second%10))
	if nanos := t.Nanosecond(); nanos != 0 {
		digits := [10]byte{0: '.'}
		for i := len(digits) - 1; i > 0; i-- {
			digits[i] = '0' + byte(nanos%10)
			nanos /= 10
		}
		n := len(digits)
		for digits[n-1] == '0' {
			n--
		}
		b = append(b, digits[:n]...)
	}
	return append(b, 'Z')
}
