package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"
)

// FuzzReadList: whatever listens there, each line of what is shown can be read
// as a grant's end and address, holds no control character, and is in order.
func FuzzReadList(f *testing.F) {
	f.Add([]byte(`{"client":"192.0.2.1","expires":"2026-11-22T12:30:00.5Z"}` + "\n" + `{"client":"2001:db8::1","expires":"2026-11-22T12:30:00Z"}` + "\n"))
	f.Add([]byte("{}\n"))
	f.Add([]byte(`{"user":"\"client\":\"192.0.2.9","client":"192.0.2.1","expires":"2026-11-22T12:30:00Z"}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := readList(bytes.NewReader(text), nil)
		if err != nil {
			return
		}
		if n := bytes.Count(text, []byte{'\n'}); n != len(all) {
			t.Errorf("%d of %d lines", len(all), n)
		}
		for i, one := range all {
			if i > 0 && (all[i-1].end > one.end || all[i-1].end == one.end && all[i-1].client.Compare(one.client) > 0) {
				t.Errorf("line %d is out of order", i)
			}
			if bytes.ContainsFunc(one.line, func(r rune) bool { return r < ' ' }) || !bytes.Contains(text, one.line) {
				t.Errorf("%q", one.line)
			}
			// Where it is JSON, JSON's reader sees the same.
			var g Grant
			if json.Unmarshal(one.line, &g) == nil && bytes.Count(one.line, []byte(`":`)) == 2 && (g.Client != one.client || g.Expires.UnixNano() != one.end) {
				t.Errorf("%q: %v until %v", one.line, one.client, time.Unix(0, one.end))
			}
		}
	})
}

func BenchmarkReadList(b *testing.B) {
	var text []byte
	for i := range 100_000 {
		text = fmt.Appendf(text, `{"client":"11.%d.%d.%d","prefix":32,"user":"user%d@local.test","login":"2026-11-22T12:00:00Z","expires":"2026-11-22T%02d:30:00Z"}`+"\n",
			i>>16, i>>8&255, i&255, i, i%24)
	}
	b.ReportAllocs()
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		all, err := readList(bytes.NewReader(text), nil)
		if err != nil || !slices.IsSortedFunc(all, func(x, y listed) int { return int(x.end - y.end) }) {
			b.Fatal(err)
		}
	}
}
