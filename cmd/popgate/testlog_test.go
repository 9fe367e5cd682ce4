package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"popgate/internal/control"
	"popgate/internal/lab"
	"popgate/internal/relay"
)

const testLogs = "testdata/testlog"

// testLog runs test-log at a fixed time, in UTC, without a configuration
// unless args name one.
func testLog(t *testing.T, stdin io.Reader, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	env := processEnv()
	env.stdin, env.stdout, env.stderr = stdin, &o, &e
	env.now = func() relay.Now { return relay.Now{Wall: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)} }
	code = run(t.Context(), append([]string{"test-log", "--time-zone", "UTC"}, args...), env)
	return o.String(), e.String(), code
}

func fixture(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(testLogs, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestTestLogPrints(t *testing.T) {
	dir := t.TempDir()
	rules := filepath.Join(dir, "milter.yaml")
	text := "ignore_users: [backup]\nnever_grant: [198.51.100.7]\ngrant_ttl: 45m\n" +
		"formats:\n  ours: {tag: dovecot, pattern: 'imap-login: Login: user=<(?P<user>[a-z]+)>, method=PLAIN, rip=(?P<client>[0-9.]+), lip=[0-9.]+, mpid=[0-9]+, TLS, session=<[a-z]+>', service: imap}\n"
	if err := os.WriteFile(rules, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	here, err := filepath.Abs(testLogs)
	if err != nil {
		t.Fatal(err)
	}
	pattern := `imap-login: Login: user=<(?P<user>[a-z]+)>, method=PLAIN, rip=(?P<client>[0-9.]+), lip=[0-9.]+, mpid=[0-9]+, TLS, session=<(?P<session>[a-z]+)>`
	for _, tt := range []struct {
		want string
		code int
		args []string
	}{
		{"defaults.want", 0, nil},
		{"rules.want", 0, []string{"-c", rules}},
		{"configured-format.want", 0, []string{"-c", rules, "--format", "ours"}},
		{"lines.want", 0, []string{"--format", "dovecot", "--logins", "--unparsed"}},
		{"json.want", 0, []string{"--json"}},
		{"json-all.want", 0, []string{"--json", "--unparsed", "--none"}},
		{"wrong-format.want", 1, []string{"--format", "courier"}},
		{"pattern.want", 0, []string{"--tag", "dovecot", "--service", "imap", "--pattern", pattern, "--none"}},
		{"pattern-wrong-tag.want", 1, []string{"--tag", "dovecott", "--pattern", pattern}},
		{"pattern-no-match.want", 1, []string{"--tag", "dovecot", "--pattern", "logged in from (?P<client>[0-9.]+)"}},
	} {
		t.Run(tt.want, func(t *testing.T) {
			t.Chdir(testLogs)
			out, errs, code := testLog(t, nil, append([]string{"mail.log"}, tt.args...)...)
			out = strings.NewReplacer(here, "/var/log", rules, "/etc/popgate/milter.yaml").Replace(out)
			want, err := os.ReadFile(tt.want)
			if err != nil {
				t.Error(err)
			}
			if out != string(want) || errs != "" || code != tt.code {
				t.Errorf("exit %d, want %d; %s\ngot\n%s\nwant\n%s", code, tt.code, errs, out, want)
			}
		})
	}
}

func TestTestLogJSONIsWhatTheEncoderWouldWrite(t *testing.T) {
	for _, s := range []string{"plain", "", "a b", `qu"ote`, `back\slash`, "<bob>&", "line\nfeed", "\x1b[31m", "\x7f", "é", "\u2028", "\u009b", "😀", "\xff"} {
		var want strings.Builder
		if err := printJSON(&want, s); err != nil {
			t.Fatal(err)
		}
		if got := string(appendJSONString(nil, s)) + "\n"; got != want.String() {
			t.Errorf("%q: got %s, want %s", s, got, want.String())
		}
	}
}

func gzipped(t *testing.T, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := io.WriteString(z, text); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTestLogReadsGzippedLogs(t *testing.T) {
	log := fixture(t, "mail.log")
	packed := gzipped(t, log)
	for name, tt := range map[string]struct {
		file        []byte
		code, lines int
		says        string
	}{
		"whole":                          {packed, 0, 10, ""},
		"members one behind the other":   {append(bytes.Clone(packed), packed...), 0, 20, ""},
		"a line across two members":      {append(gzipped(t, log[:300]), gzipped(t, log[300:])...), 0, 10, ""},
		"padded with zeros":              {append(bytes.Clone(packed), make([]byte, 512)...), 0, 10, "not gzipped, and left out"},
		"garbage behind it":              {append(bytes.Clone(packed), "garbage that is no member"...), 0, 10, "not gzipped, and left out"},
		"a forged login as the garbage":  {append(bytes.Clone(packed), strings.Repeat(log, 2)...), 0, 10, "not gzipped, and left out"},
		"cut off":                        {packed[:len(packed)-20], 1, -1, "cut off"},
		"checksum wrong":                 {append(bytes.Clone(packed[:len(packed)-8]), "12345678"...), 1, 10, "damaged"},
		"only its first bytes are right": {[]byte("\x1f\x8bthis is no gzip file"), 1, 0, "gzip"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "mail.log.2.gz")
			if err := os.WriteFile(file, tt.file, 0o600); err != nil {
				t.Fatal(err)
			}
			out, errs, code := testLog(t, nil, "--format", "dovecot", file)
			if code != tt.code || tt.says == "" && errs != "" || !strings.Contains(errs, tt.says) {
				t.Errorf("exit %d, want %d with %q: %s", code, tt.code, tt.says, errs)
			}
			lines := -2
			fmt.Sscanf(out, "lines %d", &lines)
			if tt.lines >= 0 && lines != tt.lines {
				t.Errorf("%d lines counted, want %d:\n%s", lines, tt.lines, out)
			}
			if tt.code == 0 && !strings.Contains(out, "- file: "+filepath.Dir(file)+"/mail.log\n") {
				t.Errorf("the hint does not name the log that was rotated:\n%s", out)
			}
		})
	}
}

func TestGzipBombTakesNoMemory(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	zeros := make([]byte, 1<<20)
	for range 64 { // one line of 64 MiB
		z.Write(zeros)
	}
	fmt.Fprintf(z, "\n%s", fixture(t, "mail.log"))
	z.Close()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	out, errs, code := testLog(t, &b, "--format", "dovecot", "-")
	runtime.ReadMemStats(&after)
	if code != 0 || !strings.Contains(out, "longer than 64 KiB") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
	if n := after.TotalAlloc - before.TotalAlloc; n > 8<<20 {
		t.Errorf("%d MiB allocated in all for a bomb of 64 MiB", n>>20)
	}
}

func TestTestLogReadsSeveralLogsAndSaysWhatItCouldNot(t *testing.T) {
	dir := t.TempDir()
	log := fixture(t, "mail.log")
	for name, text := range map[string]string{"a.log": log, "b.log": log + "Nov 22 02:59:59 mx1 dovecot: imap-lo"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Chdir(dir)
	out, errs, code := testLog(t, strings.NewReader(log), "a.log", "missing.log", "-", dir, "b.log")
	if code != 1 {
		t.Errorf("exit %d with a log that is missing, want 1", code)
	}
	for _, text := range []string{"missing.log: no such file or directory", "is a directory"} {
		if !strings.Contains(errs, text) {
			t.Errorf("stderr lacks %q: %s", text, errs)
		}
	}
	for _, text := range []string{"30\n  a.log ", "  10  6 logins, 1 unparsed\n  missing.log ", "   0  0 logins, not read to its end\n  -  ", "  18  in the format dovecot", "   1  the last line: not judged"} {
		if !strings.Contains(out, text) {
			t.Errorf("stdout lacks %q:\n%s", text, out)
		}
	}
}

func TestTestLogWithoutALoginSaysWhy(t *testing.T) {
	mailutils := "Nov 22 02:06:10 mx1 imap4d[371]: User 'alice' logged in\n"
	for _, tt := range []struct{ name, log, says string }{
		{"an empty log", "", "no line was read"},
		{"a server that logs no address", mailutils, "Mailutils' pop3d and imap4d log no client address"},
		{"another program's log", "Nov 22 02:06:10 mx1 sshd[371]: Accepted password for bob from 198.51.100.7\n", "the programs in it: sshd (1)"},
		{"no log at all", "What a nice day\n", "is this the POP/IMAP server's log"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if out, errs, code := testLog(t, strings.NewReader(tt.log)); code != 1 || errs != "" || !strings.Contains(out, tt.says) {
				t.Errorf("exit %d, want 1 with %q: %s%s", code, tt.says, out, errs)
			}
		})
	}
}

func TestStatusTellsWhatASourceMissesAndHowFarBehindItIs(t *testing.T) {
	var out bytes.Buffer
	e := processEnv()
	e.stdout = &out
	st := control.Status{Health: "ok", Sources: []control.Source{{Name: "file:/var/log/mail\x1b.log", Type: "file", State: "starting", Lag: 5400, Gaps: 3, Missed: 2, Skipped: 300}}}
	if err := printStatus(&e, &st); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{`"file:/var/log/mail\x1b.log": starting`, "still reading what was logged 1h30m ago", "1 gap, where lines may be missing", "logins may have been missed 2 times; 300 bytes were passed over unread"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("status lacks %q:\n%s", text, out.String())
		}
	}
}

func TestStatusTellsLoginsFromLogoutsAndAWrongClockFromAnAge(t *testing.T) {
	var out bytes.Buffer
	e := processEnv()
	e.stdout = &out
	e.now = func() relay.Now { return relay.Now{Wall: time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)} }
	ahead := e.now().Wall.Add(9 * time.Hour)
	st := control.Status{Health: "ok", PutOff: true, Events: map[string]uint64{"granted": 7, "closed": 6},
		Sources: []control.Source{{Name: "a", State: "up", LastLogin: &ahead, Gaps: 1, Missed: 1}}}
	if err := printStatus(&e, &st); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"put off instead of refused until a source is up", "logouts        closed: 6", "logins         granted: 7",
		"last login 9h0m0s ahead of this host's clock", "logins may have been missed 1 time\n"} {
		if !strings.Contains(out.String(), text) {
			t.Errorf("status lacks %q:\n%s", text, out.String())
		}
	}
	if strings.Contains(out.String(), "where lines may be missing") {
		t.Errorf("a gap that missed logins is told of twice:\n%s", out.String())
	}
}

// A syslog daemon that does not reach popgate is the commonest mistake of all.
func TestASourceThatNobodySendsToIsAProblemAfterAMinute(t *testing.T) {
	s := newSite(t)
	file := fmt.Sprintf("{file: %s/mail.log, format: dovecot}", s.dir)
	s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), file, fmt.Sprintf("{syslog: \"unix:%s/log.sock\", format: dovecot}", s.dir), 1))
	var later atomic.Int64
	e := s.daemonEnv()
	now := e.now
	e.now = func() relay.Now {
		n, d := now(), time.Duration(later.Load())
		return relay.Now{Wall: n.Wall.Add(d), Mono: n.Mono + d}
	}
	s.serve(e)
	s.want(0, "starting, 0 lines", "status")
	s.until("the source has begun", func() bool { return strings.Contains(s.must("status", "--json"), `"type":"syslog"`) })
	later.Store(int64(61 * time.Second))
	s.want(5, "has had no message that counts since 2", "status")
	s.want(5, "does the syslog daemon send to it?", "status")
}

func TestPatternsAreRefusedInTheConfigurationsWords(t *testing.T) {
	for name, tt := range map[string]struct {
		flags map[string]string
		word  string // which flag is at fault
	}{
		"address in reach of a stranger's text": {map[string]string{"tag": "x", "pattern": "login (?P<user>.*) from (?P<client>.*)"}, ""},
		"user before client, not kept apart":    {map[string]string{"tag": "x", "pattern": `login of (?P<user>[^,]+) at (?P<client>[0-9.]+)`}, ""},
		"no fixed text":                         {map[string]string{"tag": "x", "pattern": `in (?P<client>[0-9.]+)`}, ""},
		"no client":                             {map[string]string{"tag": "x", "pattern": "login from ([0-9.]+)"}, "--pattern"},
		"unknown group":                         {map[string]string{"tag": "x", "pattern": "from (?P<ip>[0-9.]+)"}, "--pattern"},
		"group twice":                           {map[string]string{"tag": "x", "pattern": "from (?P<client>[0-9.]+) or (?P<client>[0-9.]+)"}, "--pattern"},
		"not RE2":                               {map[string]string{"tag": "x", "pattern": "from (?=x)(?P<client>[0-9.]+)"}, "--pattern"},
		"empty":                                 {map[string]string{"tag": "x", "pattern": ""}, "--pattern"},
		"no tag":                                {map[string]string{"pattern": "login from (?P<client>[0-9.]+)"}, "--pattern"},
		"tag with its colon":                    {map[string]string{"tag": "x:", "pattern": "login from (?P<client>[0-9.]+)"}, "--tag"},
		"logout without session":                {map[string]string{"tag": "x", "pattern": "login from (?P<client>[0-9.]+)", "logout": "bye bye"}, "--logout"},
		"unknown service":                       {map[string]string{"tag": "x", "pattern": "login from (?P<client>[0-9.]+)", "service": "http"}, "--service"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			yaml, args := "formats:\n  mine:\n", []string{"test-log"}
			for flag, value := range tt.flags {
				yaml += fmt.Sprintf("    %s: '%s'\n", flag, value)
				args = append(args, "--"+flag+"="+value)
			}
			s.write("milter.yaml", yaml+fmt.Sprintf("sources: [{file: %s/mail.log, format: mine}]\n", s.dir))
			_, said, code := s.run("check")
			if code != 4 {
				t.Fatalf("the configuration is taken: exit %d, %s", code, said)
			}
			// What the configuration says, without file, line and key.
			said, _, _ = strings.Cut(said, "\n")
			_, text, _ := strings.Cut(said, ": line ")
			_, text, _ = strings.Cut(text, ": ")
			_, text, _ = strings.Cut(text, ": ")
			s.write("milter.yaml", fmt.Sprintf(siteConfig, s.dir))
			_, errs, code := s.run(append(args, filepath.Join(s.dir, "mail.log"))...)
			if tt.word != "" {
				text = tt.word + ": " + text
			}
			if first, _, _ := strings.Cut(errs, "\n"); code != 2 || first != "popgate: "+text {
				t.Errorf("exit %d, %s\nwant 2, popgate: %s", code, errs, text)
			}
		})
	}
}

func TestTestLogFlagsThatDoNotGoTogether(t *testing.T) {
	for _, tt := range []struct{ want, args string }{
		{"--tag goes with --pattern", "--tag x"},
		{"--logout goes with --pattern", "--logout x"},
		{"--since goes with --journal", "--since 2h"},
		{"leave out --format", "--pattern x --tag x --format dovecot"},
		{`--time-zone: "Mars/Base" is not a time zone`, "--time-zone Mars/Base"},
		{`--journal: "dovecot" is not the full name of a unit; write dovecot.service`, "--journal dovecot"},
		{`--since: "lately" is no time`, "--journal dovecot.service --since lately"},
		{`"dovcot" is not a log format popgate reads`, "--format dovcot"},
	} {
		if _, errs, code := testLog(t, strings.NewReader(""), strings.Fields(tt.args)...); code != 2 || !strings.Contains(errs, tt.want) {
			t.Errorf("%s: exit %d, want 2 with %q: %s", tt.args, code, tt.want, errs)
		}
	}
	if _, errs, code := testLog(t, nil, "-c", filepath.Join(t.TempDir(), "none")); code != 4 {
		t.Errorf("a configuration that is named and not there: exit %d, %s", code, errs)
	}
}

func TestTestLogTakesTheTimeZone(t *testing.T) {
	t.Chdir(testLogs)
	out, _, _ := testLog(t, nil, "--time-zone", "America/New_York", "--json", "mail.log")
	var first struct{ Time string }
	if err := json.Unmarshal([]byte(strings.SplitN(out, "\n", 2)[0]), &first); err != nil {
		t.Fatal(err)
	}
	// Read as New York's, it would lie four hours ahead.
	if first.Time != "2026-11-21T22:00:00-05:00" {
		t.Errorf("02:05:32 in New York, read at 03:00 UTC, is %s; a stamp never lies ahead of its reading", first.Time)
	}
	out, _, _ = testLog(t, nil, "--time-zone", "Asia/Tokyo", "--json", "mail.log")
	if !strings.HasPrefix(out, `{"file":"mail.log","line":2,"event":"login","client":"198.51.100.7","user":"bob","service":"imap","session":"aaa","time":"2026-11-22T02:05:32+09:00"`) {
		t.Errorf("got %s", out)
	}
	if out, _, _ = testLog(t, nil, "--time-zone", "Asia/Tokyo", "mail.log"); !strings.Contains(out, "      time_zone: Asia/Tokyo\n") {
		t.Errorf("the hint lacks the time zone:\n%s", out)
	}
}

func TestStrangersTextInALogIsHarmless(t *testing.T) {
	name := filepath.Join(t.TempDir(), "mail\x1b[31m.log")
	line := "Nov 22 02:50:04 mx1 dovecot: imap-login: Login: user=<x>, rip=\x1b]0;owned\x07\u009b2J, rip=198.51.100.66, session=<g>\n"
	login := "Nov 22 02:50:05 mx1 dovecot: imap-login: Login: user=<b\u00f6b>, method=PLAIN, rip=198.51.100.7, lip=192.0.2.1, mpid=4711, TLS, session=<a>\n"
	if err := os.WriteFile(name, []byte(line+login+"\x1b[2Jno log line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{}, {"--logins"}, {"--unparsed"}, {"--none"}, {"--json", "--unparsed", "--none"}, {"--format", "cyrus"}} {
		out, errs, _ := testLog(t, nil, append(args, name)...)
		for _, c := range out + errs {
			if c != '\n' && (c < ' ' || c > '~') {
				t.Errorf("%q: the character %U comes through:\n%q", args, c, out+errs)
				break
			}
		}
	}
}

func TestTestLogReadsTheJournalAsTheDaemonWould(t *testing.T) {
	t.Parallel()
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		const dovecotLog = "/usr/lib/dovecot/log"
		j := h.Journal(t, lab.JournalOptions{})
		h.Replace(t, dovecotLog, "/usr/bin/logger")
		dovecot := j.Pipe(t, "dovecot.service", 0, dovecotLog, "-t", "dovecot", "-p", "mail.info")
		forger := j.Pipe(t, "session-1.scope", 1000, "/usr/bin/logger", "-t", "dovecot", "-p", "mail.info")
		line := "imap-login: Login: user=<%s>, method=PLAIN, rip=%s, lip=192.0.2.1, mpid=4711, session=<abc>\n"
		fmt.Fprintf(forger, line, "eve", "203.0.113.66")
		fmt.Fprintf(dovecot, line, "bob", "198.51.100.7")
		journal := func(args ...string) (string, string, int) {
			var o, e bytes.Buffer
			env := processEnv()
			env.stdout, env.stderr = &o, &e
			code := run(t.Context(), append([]string{"test-log", "--journal", "dovecot.service"}, args...), env)
			return o.String(), e.String(), code
		}
		until := time.Now().Add(20 * time.Second)
		out, errs, code := journal("--logins")
		for code != 0 && time.Now().Before(until) { // until the line has come through logger and journald
			out, errs, code = journal("--logins")
		}
		if code != 0 || !strings.Contains(out, ": login 198.51.100.7 imap bob\n") || strings.Contains(out, "203.0.113.66") ||
			!strings.Contains(out, "journal: [dovecot.service]\n      format: dovecot\n") {
			t.Errorf("exit %d: %s%s", code, out, errs)
		}
		if out, errs, code = journal("--since", "2001-01-01", "--json"); code != 0 || strings.Count(out, "\n") != 1 || !strings.Contains(out, `{"file":"journal:dovecot.service","line":1,"event":"login","client":"198.51.100.7","user":"bob"`) {
			t.Errorf("in JSON, exit %d: %s%s", code, out, errs)
		}
		if out, errs, code = journal("--programs", "/usr/sbin/other"); code != 1 || !strings.Contains(out, "--programs and --users name others") {
			t.Errorf("with another program, exit %d: %s%s", code, out, errs)
		}
		if out, errs, code = journal("--tag", "dovecot", "--pattern", "login from (?P<client>[0-9.]+)"); code != 1 || !strings.Contains(errs, "does not know which program writes the lines of format mine") {
			t.Errorf("a format whose programs are unknown, exit %d: %s%s", code, out, errs)
		}
	})
}

// endless is a terminal at which nobody types.
type endless struct{ asked chan struct{} }

func (e endless) Read([]byte) (int, error) {
	close(e.asked)
	select {}
}

func TestTestLogThatWaitsForATerminalCanBeInterrupted(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	e := processEnv()
	var out, errs bytes.Buffer
	in := endless{make(chan struct{})}
	e.stdin, e.stdout, e.stderr = in, &out, &errs
	done := make(chan int, 1)
	go func() { done <- run(ctx, []string{"test-log"}, e) }()
	<-in.asked
	stop()
	select {
	case code := <-done:
		if code != 1 || !strings.Contains(errs.String(), "interrupted; the counts are up to here") || !strings.Contains(out.String(), "lines") {
			t.Errorf("exit %d: %s%s", code, out.String(), errs.String())
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits on")
	}
}

func TestProgressIsShownOnATerminalOnly(t *testing.T) {
	var out bytes.Buffer
	now := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	p := newProgress(&out, func() time.Time { return now })
	lines := 0
	r := p.begin(strings.NewReader(strings.Repeat("x", 4<<20)), "mail.log", 4<<20, &lines)
	read := func(n int, after time.Duration) string {
		t.Helper()
		out.Reset()
		now = now.Add(after)
		lines += 1000
		if _, err := io.ReadFull(r, make([]byte, n)); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if s := read(1<<20, 900*time.Millisecond); s != "" {
		t.Errorf("within the first second it shows %q", s)
	}
	if s := read(1<<20, 100*time.Millisecond); s != "\rmail.log: 2 MiB of 4 MiB (50%), 2000 lines, 2000 lines/s" {
		t.Errorf("after a second it shows %q", s)
	}
	if s := read(1<<20, 100*time.Millisecond); s != "" {
		t.Errorf("a moment later it shows %q", s)
	}
	out.Reset()
	if p.end(); strings.Trim(out.String(), " ") != "\r\r" && strings.TrimSpace(out.String()) != "" {
		t.Errorf("at the end %q stands there", out.String())
	}
	if isTerminal(&out) || isTerminal(fileOf(t)) {
		t.Error("a buffer or a file is taken for a terminal")
	}
	var none *progress
	if r := none.begin(strings.NewReader("x"), "", 0, nil); r == nil {
		t.Error("without progress nothing is read")
	}
	none.end()
}

func fileOf(t *testing.T) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
