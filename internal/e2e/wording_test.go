package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"popgate/contrib"
	"popgate/internal/lab"
)

// The documents quote what MTAs and popgate log, in blocks that begin with
//
//	```log MTA DOOR
//
// Each line there is one that a real MTA has logged in the run of this test, but
// for stamps, process ids and the like.

// quoted gives the lines that the documents quote, by MTA and door.
func quoted(t *testing.T) map[string][]string {
	t.Helper()
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil || len(pages) == 0 {
		t.Fatal("no documents: ", err)
	}
	out := map[string][]string{}
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile("(?ms)^```log (.*?)\n(.*?)^```").FindAllStringSubmatch(string(text), -1) {
			out[m[1]] = append(out[m[1]], strings.Split(strings.TrimSpace(m[2]), "\n")...)
		}
	}
	return out
}

// Whatever differs from run to run becomes one word.
var anyRun = []struct {
	what *regexp.Regexp
	word string
}{
	{regexp.MustCompile(`^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \S+ `), ""},
	{regexp.MustCompile(`time=\S+`), "time=T"},
	{regexp.MustCompile(`\[\d+\]`), "[N]"},
	{regexp.MustCompile(`\b\d+(\.\d+)?(ms|µs|ns|s)\b`), "Ns"},
	{regexp.MustCompile(`\b(queue=|msgid=)\S+`), "${1}Q"},
	{regexp.MustCompile(`\b[0-9A-F]{6,12}:`), "Q:"},      // Postfix
	{regexp.MustCompile(`\b[0-9A-Za-x]{8}\d{6}:`), "Q:"}, // sendmail
	{regexp.MustCompile(`\b\d{4}-\d\d-\d\dT\S+`), "T"},
}

func sameInAnyRun(line string) string {
	for _, r := range anyRun {
		line = r.what.ReplaceAllString(line, r.word)
	}
	return strings.TrimSpace(line)
}

// troubled brings a site into each state in which somebody has something to log,
// and gives what was logged.
func troubled(t *testing.T, s *site, socket string) (logged []string) {
	says := func() { logged = append(logged, strings.Split(s.popgate.Output.String(), "\n")...) }
	tries := func(subject string) {
		t.Helper()
		if r, err := lab.Attempt(mallet, "25", subject, "x@remote.test"); err != nil || !r.Is(4) && !r.Is(5) {
			t.Errorf("%s: %v %v, want it refused or deferred", subject, r, err)
		}
	}
	s.login(t, alice)
	s.relays(t, s.SMTP(t, alice), "granted")
	tries("stranger")
	s.popgate.Stop(t)
	says()
	s.popgate.Configure(t, strings.Replace(s.config(), lab.DovecotLog, "/var/log/elsewhere.log", 1))
	s.popgate.Start(t)
	tries("the source is missing")
	s.popgate.Stop(t)
	says()
	tries("stopped")
	s.popgate.Configure(t, s.config())
	s.popgate.Start(t)
	for _, mode := range []os.FileMode{0o600, 0o660} {
		if err := os.Chmod(socket, mode); err != nil {
			t.Fatal(err)
		}
		tries(fmt.Sprintf("socket of mode %o", mode))
	}
	if d := s.setup.door; d == nil || !d.patient {
		s.popgate.Freeze(t)
		tries("frozen")
		s.popgate.Thaw(t)
	}
	s.popgate.Kill()
	says()
	tries("killed") // perhaps over a connection from before
	tries("killed, connecting anew")
	// What was logged before this has come through when this has.
	s.Logs(t, 0, "lab", "the last line")
	lab.Until(t, "everything is logged", func() bool { return strings.Contains(s.Syslog.String(), "the last line") })
	return append(logged, strings.Split(s.Syslog.String(), "\n")...)
}

func TestDocumentsQuoteWhatMTAsLog(t *testing.T) {
	quotes := quoted(t)
	milter := setup{hasty: true, sendmail: lab.SendmailOptions{Timeouts: "T=C:1s;S:1s;R:1s;E:1s"},
		postfix: lab.PostfixOptions{Main: []string{"milter_connect_timeout = 1s", "milter_command_timeout = 1s"}}}
	type run struct {
		mta, socket string
		set         setup
	}
	runs := map[string]run{
		"postfix milter":  {"postfix", lab.PostfixSocket, milter},
		"sendmail milter": {"sendmail", lab.SendmailSocket, milter},
	}
	for _, d := range doors {
		set := setup{door: d, hasty: true}
		d.wire(&set, hasty.Replace(d.lines))
		name := d.mta + " " + d.listen
		if d.lines == contrib.SendmailDrac {
			name = "sendmail drac"
		}
		runs[name] = run{d.mta, d.socket, set}
	}
	for name := range quotes {
		if _, ok := runs[name]; !ok {
			t.Errorf("a document quotes %q, which is no MTA and door", name)
		}
	}
	for name, r := range runs {
		t.Run(name, func(t *testing.T) {
			on(t, r.mta, r.set, func(t *testing.T, s *site) {
				logged := troubled(t, s, r.socket)
				for i := range logged {
					logged[i] = sameInAnyRun(logged[i])
				}
				for _, line := range quotes[name] {
					if !slices.Contains(logged, sameInAnyRun(line)) {
						t.Errorf("the documents quote what %s did not log:\n%s", name, line)
					}
				}
			})
		})
	}
}
