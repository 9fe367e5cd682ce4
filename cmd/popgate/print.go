package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf16"

	"popgate/internal/control"
)

func printJSON(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(asciiJSON(b), '\n'))
	return err
}

// asciiJSON spells the characters outside of ASCII, and DEL, as escapes, which
// means the same in JSON: a stranger's text may hold some that a terminal obeys.
func asciiJSON(b []byte) []byte {
	plain := true
	for _, c := range b {
		plain = plain && c < 0x7f
	}
	if plain {
		return b
	}
	out := make([]byte, 0, 2*len(b))
	for _, r := range string(b) {
		switch {
		case r < 0x7f:
			out = append(out, byte(r))
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// isTerminal says whether somebody may be looking.
func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// table prints columns; flush it at the end.
func table(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 2, ' ', 0) }

// quoted makes text that a stranger may have chosen safe to show on a
// terminal.
func quoted(s string) string {
	for _, r := range s {
		if r < ' ' || r == 0x7f || r > '~' {
			return fmt.Sprintf("%+q", s)
		}
	}
	return s
}

// shown spells what a terminal would obey, in a text that may hold others'
// words, and leaves the rest as it is.
func shown(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return r != '\n' && !strconv.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if r == '\n' || strconv.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
	}
	return b.String()
}

// oneWord is quoted for a line of key=value pairs: the text can't end before it
// does, nor look like another pair.
func oneWord(s string) string {
	for _, r := range s {
		if r <= ' ' || r > '~' || r == '=' || r == '"' || r == '\\' {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return quoted(s)
}

func stampOf(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// covered gives what a grant covers: one address, or a network.
func covered(g control.Grant) string {
	if g.Prefix < g.Client.BitLen() {
		if p, err := g.Client.Prefix(g.Prefix); err == nil {
			return p.String()
		}
	}
	return g.Client.String()
}

// left says how long a grant has still to go.
func left(g control.Grant, now time.Time) string {
	d := g.Expires.Sub(now).Round(time.Second)
	if d <= 0 {
		return "ended"
	}
	switch {
	case d >= time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return d.String()
}

// proof says in one line why a grant was made.
func proof(g control.Grant) string {
	if g.Operator {
		return "operator " + orDash(g.Note)
	}
	open := ""
	if g.Open {
		open = " (session open)"
	}
	return fmt.Sprintf("%s login at %s%s", orDash(g.Service), stampOf(g.Login), open)
}
