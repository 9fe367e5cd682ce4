package format

import (
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
)

// TestJudgedPatternsWithstandHostileText makes patterns at random, and for
// each one that is accepted lines as a server would write them: fixed text,
// the server's own words and the client's address as they must be, and in
// every other place whatever a stranger likes, made of the pattern's own text
// and an address of his choice.
// No such line may be read as a login of another client.
func TestJudgedPatternsWithstandHostileText(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(from ...string) string { return from[r.IntN(len(from))] }
	const client, real, forged = `(?P<client>[0-9a-f.:]+)`, "192.0.2.7", "203.0.113.66"
	accepted, read := 0, 0
	for range 20000 {
		var expr, fixed, line []string
		hostile := func() string {
			var b strings.Builder
			for range r.IntN(5) {
				b.WriteString(pick(append([]string{"bob", "x", " ", ",", ">", forged, forged, ", ip=" + forged}, fixed...)...))
			}
			return b.String()
		}
		at := 1 + r.IntN(4)
		parts := at + 1 + r.IntN(3)
		for i := range parts {
			text := pick(" from ", ", ip=", "user=<", ">, ", " ", "login ", "[", "] ", ", TLS", "ip")
			expr, fixed = append(expr, regexp.QuoteMeta(text)), append(fixed, text)
			if i == at {
				expr = append(expr, client)
			} else {
				expr = append(expr, pick(`[a-z]+`, `[^>]*`, `[^,]+`, `\S+`, `.*`, `.*?`, `[a-z0-9.]+`, `(?:pop3|imap)`, `(?:, TLS)?`, `(?:, [a-z]+)?`, `x?`, `(?P<user>bob|x)`, `(?P<user>.*)`, ``, ``))
			}
		}
		pattern := "login:" + strings.Join(expr, "")
		p, err := NewCustom(Custom{Name: "x", Tag: "x", Pattern: pattern})
		if err != nil {
			continue
		}
		accepted++
		for range 20 {
			line = append(line[:0], "login:")
			for i, text := range fixed {
				line = append(line, text)
				switch {
				case i == at:
					line = append(line, real)
				case expr[2*i+1] == `(?:pop3|imap)`:
					line = append(line, "imap")
				case expr[2*i+1] == `(?:, TLS)?`:
					line = append(line, pick("", ", TLS"))
				case expr[2*i+1] == `x?`:
					line = append(line, pick("", "x"))
				case expr[2*i+1] != ``:
					line = append(line, hostile())
				}
			}
			message := strings.Join(line, "")
			e, result := p.Parse(&Message{Tag: []byte("x"), Text: []byte(message)})
			if result != Login {
				continue
			}
			read++
			if e.Kind != relay.Login || e.Client.String() != real {
				t.Fatalf("pattern %s\nreads  %q\nas a login of %v", pattern, message, e.Client)
			}
		}
	}
	if accepted < 100 || read < 100 {
		t.Errorf("%d patterns accepted, %d lines read as logins: too few to show anything", accepted, read)
	}
	t.Logf("%d patterns accepted, %d lines read as logins", accepted, read)
}
