package format

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"popgate/internal/relay"
)

// eachLine calls do with every third line of the corpus logs that match: seeds
// enough of every shape.
func eachLine(f *testing.F, glob string, do func(line []byte)) {
	logs, err := filepath.Glob(glob)
	if err != nil || len(logs) == 0 {
		f.Fatalf("no logs %s: %v", glob, err)
	}
	for _, log := range logs {
		lines, _ := readCorpus(f, log)
		for i := 0; i < len(lines); i += 3 {
			do(lines[i])
		}
	}
}

// eachMessage calls do with the messages of the complete logs.
func eachMessage(f *testing.F, server string, do func(m *Message)) {
	eachLine(f, "testdata/"+server+"*/*-syslog*.log", func(line []byte) {
		var m Message
		if Split(line, &m) {
			do(&m)
		}
	})
}

var (
	splitISO  = `[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:Z|[+-](?:[0-9]{2}:[0-9]{2}|[0-9]{4}))`
	splitTrad = `[A-S][a-z]{2} [ 0-9][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2}`
	splitRest = ` ([A-Za-z0-9._%:-]*[A-Za-z0-9._%-]) PRI([A-Za-z0-9._/+-]+)(?:\[([0-9]+)\])?:(?: (.*))?`

	splitPri  = `<(?:[0-9]|[1-9][0-9]|1[0-8][0-9]|19[01])>`
	splitData = strings.ReplaceAll(`(?:-|(?:\[NAME(?: NAME="(?:[^"\\\]]|\\.)*")*\])+)`, "NAME", `[!#-<>-\\^-~]+`)

	oracleSplits = []struct {
		transport Transport
		re        *regexp.Regexp
	}{
		{Syslog, anchored(`(?s)(` + splitTrad + `)` + strings.Replace(splitRest, "PRI", "", 1))},
		{BusyBox, anchored(`(?s)(` + splitTrad + `)` + strings.Replace(splitRest, "PRI", `[a-z0-9]+\.[a-z0-9]+ `, 1))},
		{ISO, anchored(`(?s)(` + splitISO + `)` + strings.Replace(splitRest, "PRI", "", 1))},
		{RFC5424, anchored(`(?s)` + splitPri + `1 (` + splitISO + `) (?:-|([!-~]+)) ([!-~]+) (?:-|([!-~]+)) [!-~]+ ` + splitData + `(?: ?| (?:\x{feff}| ?)(.*))`)},
		// The host may be missing.
		{RFC3164, anchored(`(?s)` + splitPri + `(` + splitTrad + `|` + splitISO + `)(?: ([A-Za-z0-9._%:-]*[A-Za-z0-9._%-]))? ([A-Za-z0-9._/+-]+)(?:\[([0-9]+)\])?:(?: (.*))?`)},
		{DovecotFile, anchored(`(?s)(` + splitTrad + `|` + splitISO + `)()()() ([a-z0-9-]+(?:\(.*|: (?:Info|Debug|Warning|Error|Fatal|Panic): .*))`)},
	}
)

func FuzzSplit(f *testing.F) {
	eachLine(f, "testdata/*/*.log", func(line []byte) { f.Add(line) })
	for _, seed := range []string{
		"Nov 22 02:05:35 pop3-login: Info: x", "Nov 22 02:05:35 a: b: x", "Nov 22 02:05:35 mx1 x: Info: y",
		"2026-11-22T02:05:32+0000 mx1 dovecot[1]: x", "<22>1 2026-11-22T02:05:32Z mx1 a - - - x",
		"<22>Nov 22 02:05:35 mx1 x[7]: y", "<22>2026-11-22T02:05:32+00:00 x: y\nz", "<191>Nov 22 02:05:35 a:b c: d",
		`<22>1 2026-11-22T02:05:32Z - a 7 - [m a="1" b="\"\\\]"][n] ` + "\ufeffx",
		`{"__REALTIME_TIMESTAMP":"1","MESSAGE":"a\u00e9\ud83d\ude00\n","SYSLOG_IDENTIFIER":"x"}`,
		`{"__REALTIME_TIMESTAMP":"1","MESSAGE":["a","b"]}`, `{"__REALTIME_TIMESTAMP":"1","MESSAGE":null}`,
	} {
		f.Add([]byte(seed))
	}
	arrived := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	f.Fuzz(func(t *testing.T, line []byte) {
		kept := bytes.Clone(line)
		var m Message
		ok := Split(line, &m)
		if !bytes.Equal(line, kept) {
			t.Fatalf("%q: changed to %q", kept, line)
		}
		checkSplitFor(t, line)
		if ok {
			if at, zoned, ok := m.Stamp.Time(arrived, time.UTC); ok && !zoned && at.After(arrived) {
				t.Errorf("%q: stamp %v lies after the arrival", line, at)
			}
		}
		for _, name := range Names() {
			p, _ := New(name)
			if ok && !MayMatter(p, line) {
				if e, result := p.Parse(&m); result != None {
					t.Errorf("%q: %T ruled it out, but it is %v %+v", line, p, result, e)
				}
			}
		}
		if len(line) > 0 && line[0] == '{' {
			checkJournal(t, line, ok, &m)
			return
		}
		for _, o := range oracleSplits {
			g := o.re.FindSubmatch(line)
			if g == nil {
				continue
			}
			text := g[5]
			if (o.transport == RFC3164 || o.transport == RFC5424) && regexp.MustCompile(`[\x00-\x1f]`).Match(text) != m.Withheld {
				t.Errorf("%q: withheld %v", line, m.Withheld)
			}
			if m.Withheld {
				text = nil
			}
			if !ok || m.Transport != o.transport || m.Stamp.String() != string(g[1]) || !bytes.Equal(m.Host, g[2]) ||
				!bytes.Equal(m.Tag, g[3]) || !bytes.Equal(m.PID, g[4]) || !bytes.Equal(m.Text, text) {
				t.Errorf("%q:\ngot %v %v, want %v %q", line, ok, &m, o.transport, g)
			}
			return
		}
		if ok {
			t.Errorf("%q: taken for %v", line, m.Transport)
		}
	})
}

// checkJournal holds what Split made of a JSON line against encoding/json.
func checkJournal(t *testing.T, line []byte, ok bool, m *Message) {
	if !ok {
		return
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(line, &fields); err != nil {
		t.Fatalf("%q: taken, but %v", line, err)
	}
	if !utf8.Valid(line) {
		return // encoding/json repairs it
	}
	text := func(name string) string {
		var s string
		if json.Unmarshal(fields[name], &s) != nil {
			return ""
		}
		return s
	}
	message, quoted := text("MESSAGE"), bytes.HasPrefix(fields["MESSAGE"], []byte(`"`))
	if withheld := !quoted || strings.Contains(message, "\n"); withheld != m.Withheld {
		t.Errorf("%q: withheld %v", line, m.Withheld)
	} else if !withheld && string(m.Text) != message {
		t.Errorf("%q: text %q, want %q", line, m.Text, message)
	}
	for name, got := range map[string][]byte{"SYSLOG_IDENTIFIER": m.Tag, "_HOSTNAME": m.Host, "_SYSTEMD_UNIT": m.Unit, "__REALTIME_TIMESTAMP": m.Stamp.text} {
		if want := text(name); string(got) != want && !bytes.Contains(fields[name], []byte(`\`)) {
			t.Errorf("%q: %s %q, want %q", line, name, got, want)
		}
	}
}

// agree holds a parser's answer against the second reading's.
func agree(t *testing.T, text string, got relay.Event, result Result, want relay.Event) {
	t.Helper()
	if got != want {
		t.Errorf("%q:\ngot  %v %+v\nwant %+v", text, result, got, want)
	}
	if kinds := map[Result]relay.EventKind{Login: relay.Login, Logout: relay.Logout, Restart: relay.Restart}; got.Kind != kinds[result] {
		t.Errorf("%q: result %v with an event of kind %v", text, result, got.Kind)
	}
	if got.Kind == relay.Login && (!got.Client.IsValid() || got.Client.Is4In6() || got.User == "") {
		t.Errorf("%q: login without client or user: %+v", text, got)
	}
}

func FuzzDovecot(f *testing.F) {
	eachMessage(f, "dovecot", func(m *Message) { f.Add(string(m.Text), false) })
	eachLine(f, "testdata/dovecot23/dovecot23-file.log", func(line []byte) {
		var m Message
		if Split(line, &m) {
			f.Add(string(m.Text), true)
		}
	})
	for _, a := range attacks {
		if a.format == "dovecot" {
			f.Add(a.lines[len(a.lines)-1][len("dovecot: "):], false)
		}
	}
	for _, l := range anonymousLogins {
		f.Add(strings.TrimPrefix(l.line, "dovecot: "), false)
	}
	f.Fuzz(func(t *testing.T, text string, file bool) {
		m := Message{Tag: []byte("dovecot"), Transport: Syslog, Text: []byte(text)}
		if file {
			m.Tag, m.Transport = nil, DovecotFile
		}
		e, result := new(dovecot).Parse(&m)
		agree(t, text, e, result, oracleDovecot(text, file))
	})
}

func FuzzCyrus(f *testing.F) {
	eachMessage(f, "cyrus", func(m *Message) { f.Add(string(m.Tag), string(m.Text)) })
	for _, l := range anonymousLogins {
		_, text, _ := strings.Cut(l.line, ": ")
		f.Add("cyrus/imap", text)
	}
	f.Fuzz(func(t *testing.T, tag, text string) {
		e, result := new(cyrus).Parse(&Message{Tag: []byte(tag), Text: []byte(text)})
		agree(t, tag+": "+text, e, result, oracleCyrusEvent(tag, text))
	})
}

// FuzzCourier reads logs: each line is "second tag: text", and "gap" is one.
func FuzzCourier(f *testing.F) {
	var seed []string
	second := 0
	eachMessage(f, "courier", func(m *Message) {
		second++
		seed = append(seed, fmt.Sprintf("%d %s: %s", second, m.Tag, m.Text))
		if len(seed) == 12 {
			f.Add(strings.Join(seed, "\n"))
			seed = nil
		}
	})
	for _, a := range attacks {
		if a.format == "courier" {
			f.Add("1 " + strings.Join(a.lines, "\n1 "))
		}
	}
	for _, l := range anonymousLogins {
		f.Add("1 " + opened + "\n1 " + l.line)
	}
	f.Fuzz(func(t *testing.T, input string) {
		var log []courierRecord
		gap := false
		for line := range strings.Lines(input) {
			line = strings.TrimSuffix(line, "\n")
			var r courierRecord
			head, text, _ := strings.Cut(line, ": ")
			if n, _ := fmt.Sscanf(head, "%d %s", &r.second, &r.tag); n != 2 || r.second < 0 || r.second > 1e9 || strings.HasPrefix(r.tag, "rsyslogd") || r.tag == "systemd-journald" {
				gap = gap || line == "gap"
				continue
			}
			r.text, r.gap, gap = text, gap, false
			log = append(log, r)
		}
		if len(log) > maxLogs {
			return
		}
		p := new(courier)
		want := oracleCourierEvents(log)
		for i, r := range log {
			if r.gap {
				p.Gap()
			}
			stamp := Stamp{text: fmt.Appendf(nil, "%d000000", r.second), form: micros}
			e, result := p.Parse(&Message{Stamp: stamp, Tag: []byte(r.tag), Text: []byte(r.text)})
			agree(t, r.tag+": "+r.text, e, result, want[i])
		}
	})
}

// others are the formats whose lines need no memory, apart from the large ones.
var others = []string{"dbmail", "imapproxy", "perdition", "qpopper", "solid-pop3d", "uw"}

func FuzzOthers(f *testing.F) {
	for _, server := range []string{"misc", "solidpop3d", "uw", "qpopper"} {
		eachMessage(f, server, func(m *Message) { f.Add(string(m.Tag), string(m.PID), string(m.Text)) })
	}
	add := func(format, line string) {
		var m Message
		if slices.Contains(others, format) && Split([]byte(head+line), &m) {
			f.Add(string(m.Tag), string(m.PID), string(m.Text))
		}
	}
	for _, a := range attacks {
		for _, line := range a.lines {
			add(a.format, line)
		}
	}
	for _, l := range slices.Concat(logins, popLogins) {
		add(l.format, l.line)
	}
	for _, line := range []string{
		`perdition.managesieve: Closing session: 192.0.2.7:5->192.0.2.1:4190 authorisation_id="carol" authentication_id="bob" received=10 sent=20`,
		`imapproxyd: LOGOUT: '"bob"' from server sd [12]`, `imapproxyd: LOGOUT: 'bob' from server sd [12]`,
		"solid-pop3d[7]: autologout time elapsed for mapped user bob - 2001:db8::7",
		"imapd[7]: Logout user=??? host=[192.0.2.7]", "ipop3d[7]: Logout user=bob host=a [192.0.2.7] nmsgs=1 ndele=1",
	} {
		tag, _, _ := strings.Cut(line, ":")
		tag, _, _ = strings.Cut(tag, "[")
		f.Add(tag, "7", line[strings.Index(line, ": ")+2:])
	}
	f.Fuzz(func(t *testing.T, tag, pid, text string) {
		for _, name := range others {
			p, err := New(name)
			if err != nil {
				t.Fatal(err)
			}
			e, result := p.Parse(&Message{Transport: Syslog, Tag: []byte(tag), PID: []byte(pid), Text: []byte(text)})
			agree(t, name+": "+tag+": "+text, e, result, oracleOther(name, tag, pid, text))
		}
	})
}

// FuzzPopa3d reads logs: each line is "second pid text", and "gap" is one.
func FuzzPopa3d(f *testing.F) {
	var seed []string
	second := 0
	eachLine(f, "testdata/popa3d/popa3d-syslog.log", func(line []byte) {
		var m Message
		if Split(line, &m) {
			second++
			seed = append(seed, fmt.Sprintf("%d %s %s", second, m.PID, m.Text))
		}
	})
	f.Add(strings.Join(seed, "\n"))
	for _, a := range attacks {
		if a.format == "popa3d" {
			text := strings.NewReplacer("popa3d[", "1 ", "]: ", " ").Replace(strings.Join(a.lines, "\n"))
			f.Add(text)
		}
	}
	f.Add("1 7 Session from 192.0.2.7\n2 8 Session from 192.0.2.8\n3 7 pam_x: y\n601 7 Authentication passed for bob\n700 8 Authentication passed for bob")
	f.Fuzz(func(t *testing.T, input string) {
		var log []popa3dRecord
		gap := false
		for line := range strings.Lines(input) {
			line = strings.TrimSuffix(line, "\n")
			stamp, rest, _ := strings.Cut(line, " ")
			pid, text, _ := strings.Cut(rest, " ")
			second, err1 := strconv.ParseUint(stamp, 10, 30)
			n, err2 := strconv.ParseUint(pid, 10, 22)
			if err1 != nil || err2 != nil {
				gap = gap || line == "gap"
				continue
			}
			log = append(log, popa3dRecord{int(second), int(n), text, gap})
			gap = false
		}
		if len(log) > maxPopa3dSessions {
			return
		}
		p := new(popa3d)
		for i, r := range log {
			if r.gap {
				p.Gap()
			}
			e, result := p.Parse(&Message{
				Stamp: Stamp{text: fmt.Appendf(nil, "%d000000", r.second), form: micros},
				Host:  []byte("mx1"), Tag: []byte("popa3d"), PID: fmt.Append(nil, r.pid), Text: []byte(r.text),
			})
			agree(t, r.text, e, result, oraclePopa3d(log, i))
		}
	})
}

// FuzzCustom invents patterns and messages. Of an accepted pattern every
// reading of a message must name the same client: the greedy one, the
// reluctant one, and the longest.
func FuzzCustom(f *testing.F) {
	const client = `(?P<client>[0-9a-fA-F.:]+)`
	for _, seed := range [][2]string{
		{`login (?P<user>[a-z]+) from ` + client, "login bob from 192.0.2.7"},
		{`(?:pop3|imap)-login: Login :: rip=` + client + `, user=<(?P<user>[^>]*)>.*`, "imap-login: Login :: rip=192.0.2.7, user=<x>, rip=203.0.113.66, user=<y>"},
		{`user "(?P<user>[^"]*)" \[` + client + `\] ok`, `user "x" [203.0.113.66] ok" [192.0.2.7] ok`},
		{`user (?P<user>.*?), (?:x, )?ip=` + client, "user a, ip=203.0.113.66, ip=192.0.2.7"},
		{`Login from ` + client + ` by (?:(?P<user>[a-z]+) )*`, "Login from 192.0.2.7 by a b c "},
		{`from a?b?` + client + `;`, "from ab192.0.2.7;"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, expr, text string) {
		p, err := NewCustom(Custom{Name: "x", Tag: "x", Pattern: expr})
		if err != nil {
			return
		}
		e, result := p.Parse(&Message{Tag: []byte("x"), Text: []byte(text)})
		re := regexp.MustCompile(`\A(?:` + expr + `)\z`)
		longest := regexp.MustCompile(`\A(?:` + expr + `)\z`)
		longest.Longest()
		readings := []*regexp.Regexp{re, longest}
		if reluctant, err := regexp.Compile(`(?U)\A(?:` + expr + `)\z`); err == nil {
			readings = append(readings, reluctant)
		}
		first := ""
		for i, re := range readings {
			g := re.FindStringSubmatch(text)
			if g == nil {
				if result == Login || i > 0 && first != "" {
					t.Fatalf("%q with %q: %v, but no match", text, expr, result)
				}
				continue
			}
			got := g[re.SubexpIndex("client")]
			if i == 0 {
				first = got
			}
			if got != first {
				t.Fatalf("%q can be read in two ways by %q: client %q or %q", text, expr, first, got)
			}
			if a, ok := oracleAddr(got); result == Login && (!ok || a != e.Client) {
				t.Fatalf("%q with %q: client %v, want %q", text, expr, e.Client, got)
			}
		}
	})
}

func FuzzParseAddr(f *testing.F) {
	for _, seed := range []string{
		"192.0.2.7", "192.0.2.07", "192.0.2", "192.0.2.256", "::", "::1", "1::", "::ffff:192.0.2.7", "2001:db8::1",
		"1:2:3:4:5:6:7:8", "1:2:3:4:5:6:7::", "1:2:3:4:5:6:7:8::", "::1:2:3:4:5:6:7:8", "1:2:3:4:5:6:192.0.2.7",
		"1:2:3:4:5:6:7:192.0.2.7", "1::2::3", ":1", "1:", "12345::", "::192.0.2.7:1", "fe80::1%eth0", "1:::2", "a.1.2.3", "::a.1.2.3",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, ok := parseAddr([]byte(s))
		want, wantOK := oracleAddr(s)
		if strings.Contains(s, "%") {
			wantOK = false
		}
		if ok != wantOK || ok && got != want {
			t.Errorf("%q: %v %v, want %v %v", s, got, ok, want, wantOK)
		}
	})
}
