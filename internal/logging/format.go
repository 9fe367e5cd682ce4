package logging

import (
	"encoding/json"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"popgate/internal/gate"
)

// stamp is slog's: RFC 3339 with milliseconds.
const stamp = "2006-01-02T15:04:05.000Z07:00"

// appendDecisionText writes what slog's text handler would, without its
// allocations.
func appendDecisionText(b []byte, r *gate.Record) []byte {
	b = append(b, "time="...)
	b = r.At.AppendFormat(b, stamp)
	b = append(b, " level=INFO msg=decision"...)
	return append(appendDecision(b, r), '\n')
}

// appendDecision appends what is known about a decision, as attributes.
func appendDecision(b []byte, r *gate.Record) []byte {
	b = append(b, " verdict="...)
	b = append(b, r.Decision.Verdict.String()...)
	b = append(b, " reason="...)
	b = append(b, r.Decision.Reason.String()...)
	if r.Client.IsValid() {
		b = append(b, " client="...)
		b = r.Client.AppendTo(b)
	}
	b = appendText(b, " rcpt=", r.Rcpt)
	b = append(b, " recipient="...)
	b = append(b, r.Whose.String()...)
	if r.Sender != "" {
		b = appendText(b, " sender=", r.Sender)
	}
	if r.Queue != "" {
		b = appendText(b, " queue=", r.Queue)
	}
	b = appendText(b, " door=", r.Door)
	if r.Waited {
		b = append(b, " waited="...)
		b = append(b, r.Took.Round(time.Microsecond).String()...)
	}
	return b
}

func appendText(b []byte, key, value string) []byte {
	b = append(b, key...)
	if plain(value) {
		return append(b, value...)
	}
	return strconv.AppendQuote(b, value)
}

// plain says whether slog's text handler writes the value without quotes.
func plain(s string) bool {
	if s == "" {
		return false
	}
	for i := 0; i < len(s); {
		c := s[i]
		if c < utf8.RuneSelf {
			if c <= ' ' || c == '"' || c == '=' || c == 0x7f {
				return false
			}
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError || unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return false
		}
		i += n
	}
	return true
}

// decisionJSON is the line in JSON, keys in the order of the text line.
type decisionJSON struct {
	Time      string     `json:"time"`
	Level     string     `json:"level"`
	Msg       string     `json:"msg"`
	Verdict   string     `json:"verdict"`
	Reason    string     `json:"reason"`
	Client    netip.Addr `json:"client,omitzero"`
	Rcpt      string     `json:"rcpt"`
	Recipient string     `json:"recipient"`
	Sender    string     `json:"sender,omitempty"`
	Queue     string     `json:"queue,omitempty"`
	Door      string     `json:"door"`
	Waited    string     `json:"waited,omitempty"`
}

func appendDecisionJSON(b []byte, r *gate.Record) []byte {
	d := decisionJSON{
		Time: r.At.Format(stamp), Level: "INFO", Msg: "decision",
		Verdict: r.Decision.Verdict.String(), Reason: r.Decision.Reason.String(), Client: r.Client,
		Rcpt: r.Rcpt, Recipient: r.Whose.String(), Sender: r.Sender, Queue: r.Queue, Door: r.Door,
	}
	if r.Waited {
		d.Waited = r.Took.Round(time.Microsecond).String()
	}
	line, err := json.Marshal(d)
	if err != nil { // strings and an address: it can't fail
		return b
	}
	b = append(b, line...)
	return append(b, '\n')
}

func (q *Queue) appendDropped(b []byte, n uint64) []byte {
	const message = "log lines dropped: whoever reads the log is too slow"
	now, count := time.Now().Format(stamp), strconv.FormatUint(n, 10)
	switch q.form {
	case JSON:
		return append(b, `{"time":"`+now+`","level":"WARN","msg":"`+message+`","lines":`+count+"}\n"...)
	case Journal:
		return append(b, identifier+"4\nMESSAGE="+message+" lines="+count+"\nPOPGATE_LINES="+count+"\n"...)
	default:
		return append(b, "time="+now+` level=WARN msg="`+message+`" lines=`+count+"\n"...)
	}
}
