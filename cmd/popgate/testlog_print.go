package main

import (
	"encoding/json"
	"strconv"
	"strings"
	"time"

	"popgate/internal/relay"
	"popgate/watcher/format"
)

// What test-log prints for single lines. Millions of them are printed at times,
// so no more is done for each than to append it to what there is.

// head begins the line that is printed.
func (f *logFile) head() []byte {
	b := append(f.text[:0], f.shown...)
	b = append(b, ':')
	b = strconv.AppendInt(b, int64(f.n), 10)
	return append(b, ": "...)
}

func (f *logFile) write(b []byte) {
	b = append(b, '\n')
	f.out.Write(b) // its error comes back at the last Flush
	f.text = b
}

// print prints a line of the log.
func (f *logFile) print(line []byte) {
	if f.asJSON {
		f.printJSON(line, format.None)
		return
	}
	f.write(append(f.head(), quoted(string(line))...))
}

// printEvent prints a login or a logout.
func (f *logFile) printEvent(ev *relay.Event, result format.Result) {
	b := append(f.head(), result.String()...)
	b = append(b, ' ')
	if ev.Client.IsValid() {
		b = ev.Client.AppendTo(b)
	} else {
		b = append(b, '-')
	}
	b = append(b, ' ')
	b = append(b, orDash(ev.Service.String())...)
	b = append(b, ' ')
	f.write(append(b, orDash(ev.User)...))
}

// printEventJSON prints the object of a login or a logout.
func (f *logFile) printEventJSON(ev *relay.Event, result format.Result, timed bool) {
	b := strconv.AppendInt(append(f.text[:0], f.front...), int64(f.n), 10)
	b = append(b, `,"event":"`...)
	b = append(b, result.String()...)
	b = append(b, '"')
	if ev.Client.IsValid() {
		b = append(b, `,"client":"`...)
		b = ev.Client.AppendTo(b)
		b = append(b, '"')
	}
	for _, field := range [...]struct{ key, value string }{
		{`,"user":`, ev.User}, {`,"service":`, ev.Service.String()}, {`,"session":`, ev.Session},
	} {
		if field.value != "" {
			b = appendJSONString(append(b, field.key...), field.value)
		}
	}
	if timed {
		b = append(b, `,"time":"`...)
		b = append(ev.Time.AppendFormat(b, time.RFC3339Nano), '"')
	}
	b = append(b, `,"format":`...)
	f.write(append(appendJSONString(b, f.format), '}'))
}

// printJSON prints the object of a line that is no event.
func (f *logFile) printJSON(line []byte, result format.Result) {
	b := strconv.AppendInt(append(f.text[:0], f.front...), int64(f.n), 10)
	b = append(b, `,"event":"`...)
	b = append(b, result.String()...)
	b = append(b, `","text":`...)
	f.write(append(appendJSONString(b, string(line)), '}'))
}

// jsonPlain are the bytes that stand in JSON as they are.
var jsonPlain = func() (plain [256]bool) {
	for c := ' '; c < 0x7f; c++ {
		plain[c] = !strings.ContainsRune(`"\<>&`, c)
	}
	return plain
}()

// appendJSONString writes what printJSON would.
func appendJSONString(b []byte, s string) []byte {
	for i := range len(s) {
		if !jsonPlain[s[i]] {
			quoted, _ := json.Marshal(s) // a string: it can't fail
			return append(b, asciiJSON(quoted)...)
		}
	}
	b = append(b, '"')
	b = append(b, s...)
	return append(b, '"')
}
