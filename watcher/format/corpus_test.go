package format

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"popgate/internal/relay"
)

// want is one row of a .tsv beside a log.
type want struct {
	event, ip, user, service, note string
}

// readCorpus gives the lines of a corpus log and what each must yield.
func readCorpus(t testing.TB, log string) (lines [][]byte, wants []want) {
	t.Helper()
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile(strings.TrimSuffix(log, ".log") + ".tsv")
	if err != nil {
		t.Fatal(err)
	}
	lines = bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	rows := strings.Split(strings.TrimSuffix(string(table), "\n"), "\n")[1:]
	if len(rows) != len(lines) {
		t.Fatalf("%s: %d lines, %d rows in the table", log, len(lines), len(rows))
	}
	for i, row := range rows {
		f := strings.Split(row, "\t")
		if len(f) != 6 || f[0] != fmt.Sprint(i+1) {
			t.Fatalf("%s: bad row %d: %q", log, i+1, row)
		}
		wants = append(wants, want{f[1], f[2], f[3], f[4], f[5]})
	}
	return lines, wants
}

// mayBeMissed says whether silence is right, too: the user or the session
// can't be told from the text around it, the transport has lost the service,
// the address stands in a line that the log no longer has, or nowhere, or a
// logout names no session.
func (w want) mayBeMissed(server, transport string) bool {
	return strings.Contains(w.note, "attacker-chosen") || strings.ContainsAny(w.user, "<>,[]") ||
		strings.HasPrefix(server, "cyrus") && transport == "rfc5424" ||
		server == "popa3d" && transport != "syslog" && strings.HasPrefix(w.note, "ip only through pid") ||
		strings.HasSuffix(transport, "customformat") && w.event == "logout" || server == "misc"
}

// formatsFor names the formats a server's logs are read with: its own and
// auto; and all of them, where none can be right.
func formatsFor(server string) []string {
	switch name := strings.TrimRight(server, "0123456789"); name {
	case "misc":
		return Names()
	case "solidpop3d":
		return []string{"solid-pop3d", "auto"}
	default:
		return []string{name, "auto"}
	}
}

// tally is what a corpus log yielded.
type tally struct{ logins, logouts, restarts, unparsed, missed int }

// corpus says what each log must yield in all. missed are the logins and
// logouts that mayBeMissed lets go; everything else is found, exactly.
//
//	logins, logouts, restarts, unparsed, missed
var corpus = map[string]tally{
	"courier10-busybox":             {28, 35, 0, 10, 4},
	"courier10-journal-json":        {28, 35, 0, 10, 4},
	"courier10-journal-short":       {28, 35, 0, 10, 4},
	"courier10-rfc3339":             {32, 41, 0, 10, 4},
	"courier10-rfc5424":             {28, 35, 0, 10, 4},
	"courier10-syslog":              {62, 62, 0, 10, 4},
	"courier10-syslogng":            {28, 35, 0, 10, 4},
	"courier14-busybox":             {18, 21, 0, 0, 0},
	"courier14-journal-json":        {18, 21, 0, 0, 0},
	"courier14-journal-short":       {18, 21, 0, 0, 0},
	"courier14-rfc3339":             {21, 25, 0, 0, 0},
	"courier14-rfc5424":             {18, 21, 0, 0, 0},
	"courier14-syslog":              {33, 33, 0, 0, 0},
	"courier14-syslogng":            {18, 21, 0, 0, 0},
	"cyrus310-busybox":              {12, 0, 0, 0, 0},
	"cyrus310-journal-json":         {12, 0, 0, 0, 0},
	"cyrus310-journal-short":        {12, 0, 0, 0, 0},
	"cyrus310-rfc3339":              {14, 0, 0, 0, 0},
	"cyrus310-rfc5424":              {0, 0, 0, 12, 12},
	"cyrus310-syslog":               {19, 0, 0, 0, 0},
	"cyrus310-syslogng":             {12, 0, 0, 0, 0},
	"cyrus36-busybox":               {21, 0, 0, 0, 0},
	"cyrus36-journal-json":          {21, 0, 0, 0, 0},
	"cyrus36-journal-short":         {21, 0, 0, 0, 0},
	"cyrus36-rfc3339":               {23, 0, 0, 0, 0},
	"cyrus36-rfc5424":               {0, 0, 0, 21, 21},
	"cyrus36-syslog":                {34, 0, 0, 0, 0},
	"cyrus36-syslogng":              {21, 0, 0, 0, 0},
	"dovecot23-busybox":             {24, 25, 4, 2, 3},
	"dovecot23-file":                {16, 16, 0, 0, 0},
	"dovecot23-journal-json":        {34, 31, 4, 2, 3},
	"dovecot23-journal-short":       {34, 31, 4, 2, 3},
	"dovecot23-rfc3339":             {39, 37, 6, 2, 3},
	"dovecot23-rfc5424":             {34, 31, 4, 2, 3},
	"dovecot23-syslog":              {52, 57, 6, 2, 3},
	"dovecot23-syslog-customformat": {15, 0, 0, 0, 15},
	"dovecot23-syslogng":            {34, 31, 4, 2, 3},
	"dovecot24-busybox":             {30, 25, 4, 1, 2},
	"dovecot24-journal-json":        {30, 25, 4, 1, 2},
	"dovecot24-journal-short":       {30, 25, 4, 1, 2},
	"dovecot24-rfc3339":             {33, 28, 5, 1, 2},
	"dovecot24-rfc5424":             {30, 25, 4, 1, 2},
	"dovecot24-syslog":              {39, 38, 5, 1, 2},
	"dovecot24-syslogng":            {30, 25, 4, 1, 2},
	"misc-busybox":                  {0, 0, 0, 0, 8},
	"misc-journal-json":             {0, 0, 0, 0, 5},
	"misc-rfc3339":                  {0, 0, 0, 0, 9},
	"misc-rfc5424":                  {0, 0, 0, 0, 8},
	"misc-syslog":                   {0, 0, 0, 0, 9},
	"misc-syslogng":                 {0, 0, 0, 0, 8},
	"popa3d-busybox":                {2, 0, 0, 2, 2},
	"popa3d-journal-json":           {2, 0, 0, 2, 2},
	"popa3d-journal-short":          {2, 0, 0, 2, 2},
	"popa3d-rfc3339":                {3, 0, 0, 1, 1},
	"popa3d-rfc5424":                {2, 0, 0, 2, 2},
	"popa3d-syslog":                 {4, 0, 0, 0, 0},
	"popa3d-syslogng":               {2, 0, 0, 2, 2},
	"qpopper-syslog":                {2, 0, 0, 0, 0},
	"solidpop3d-busybox":            {4, 3, 0, 0, 0},
	"solidpop3d-journal-json":       {4, 2, 0, 0, 0},
	"solidpop3d-journal-short":      {4, 2, 0, 0, 0},
	"solidpop3d-rfc3339":            {4, 3, 0, 0, 0},
	"solidpop3d-rfc5424":            {4, 3, 0, 0, 0},
	"solidpop3d-syslog":             {4, 3, 0, 0, 0},
	"solidpop3d-syslogng":           {4, 3, 0, 0, 0},
	"uw-syslog":                     {2, 1, 0, 0, 0},
}

func TestCorpus(t *testing.T) {
	logs, err := filepath.Glob("testdata/*/*.log")
	if err != nil {
		t.Fatal(err)
	}
	if len(logs) != len(corpus) {
		t.Errorf("%d logs in testdata, %d known", len(logs), len(corpus))
	}
	for _, log := range logs {
		base := strings.TrimSuffix(filepath.Base(log), ".log")
		server, transport, _ := strings.Cut(base, "-")
		for _, name := range formatsFor(server) {
			t.Run(base+"/"+name, func(t *testing.T) {
				var p Parser
				if strings.Contains(transport, "customformat") {
					p = customFromDocs(t)
				} else if p, err = New(name); err != nil {
					t.Fatal(err)
				}
				if got := runCorpus(t, p, log, server, transport); got != corpus[base] {
					t.Errorf("got %+v, want %+v", got, corpus[base])
				}
			})
		}
	}
}

// TestMayMatterLosesNothing reads each log with every parser twice, once all
// of it and once without the lines that MayMatter rules out.
func TestMayMatterLosesNothing(t *testing.T) {
	logs, _ := filepath.Glob("testdata/*/*.log")
	for _, log := range logs {
		lines, _ := readCorpus(t, log)
		for _, name := range append(Names(), "custom") {
			all, filtered, dropped := customFromDocs(t), customFromDocs(t), 0
			if name != "custom" {
				all, _ = New(name)
				filtered, _ = New(name)
			}
			for i, line := range lines {
				var m Message
				if !Split(line, &m) {
					continue
				}
				e, result := all.Parse(&m)
				var e2 relay.Event
				var result2 Result
				if MayMatter(filtered, line) {
					e2, result2 = filtered.Parse(&m)
				} else {
					dropped++
				}
				if e != e2 || result != result2 {
					t.Errorf("%s, line %d, %s: %v %+v, filtered %v %+v", log, i+1, name, result, e, result2, e2)
				}
			}
			if name == "cyrus" && strings.Contains(log, "dovecot23-syslog.log") && dropped == 0 {
				t.Errorf("%s: no line ruled out", log)
			}
		}
	}
}

// runCorpus reads a log with one parser, checks every line, and counts.
func runCorpus(t *testing.T, p Parser, log, server, transport string) (n tally) {
	lines, wants := readCorpus(t, log)
	var m Message
	for i, line := range lines {
		if !Split(line, &m) {
			if server == "misc" && transport == "syslogng" && wants[i].event == "none" {
				continue // syslog-ng wrote a message's line end as it was
			}
			t.Errorf("line %d: no transport found in %q", i+1, line)
			continue
		}
		e, result := p.Parse(&m)
		if want := formatOf(p, server); e.Kind != relay.NoEvent && e.Format != want {
			t.Errorf("line %d: format %q, want %q", i+1, e.Format, want)
		}
		e.Format = ""
		w := wants[i]
		got := "none"
		switch result {
		case Login:
			n.logins, got = n.logins+1, "login"
		case Logout:
			n.logouts, got = n.logouts+1, "logout"
		case Restart:
			n.restarts++
			if e != (relay.Event{Kind: relay.Restart}) {
				t.Errorf("line %d: restart with details: %+v", i+1, e)
			}
		case Unparsed:
			n.unparsed++
		}
		if got != w.event {
			if got == "none" && w.mayBeMissed(server, transport) {
				n.missed++
				continue
			}
			t.Errorf("line %d: got %v, want %s (%s)\n%q", i+1, result, w.event, w.note, line)
			continue
		}
		if got != "none" {
			checkEvent(t, i+1, e, w)
		} else if result != Restart && e != (relay.Event{}) {
			t.Errorf("line %d: %v with an event: %+v", i+1, result, e)
		}
	}
	return n
}

// formatOf gives what a parser says of its format: only auto does.
func formatOf(p Parser, server string) string {
	if _, ok := p.(*auto); ok {
		return formatsFor(server)[0]
	}
	return ""
}

func checkEvent(t *testing.T, line int, e relay.Event, w want) {
	t.Helper()
	if e.Client.IsValid() && e.Client.String() != w.ip {
		t.Errorf("line %d: client %v, want %s", line, e.Client, w.ip)
	}
	if e.Kind == relay.Login && e.Client != netip.MustParseAddr(w.ip) {
		t.Errorf("line %d: login of client %v, want %s", line, e.Client, w.ip)
	}
	if e.User != w.user || e.Service.String() != w.service {
		t.Errorf("line %d: user %q service %v, want %q %s", line, e.User, e.Service, w.user, w.service)
	}
	if id, ok := strings.CutPrefix(w.note, "ip only through session id "); ok && e.Session != id {
		t.Errorf("line %d: session %q, want %q", line, e.Session, id)
	}
}
