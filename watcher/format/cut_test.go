package format

import (
	"fmt"
	"strings"
	"testing"
)

// TestAFailedLoginOfACustomFormatCutAtTheRightByte: what would have said that
// it failed is gone.
func TestAFailedLoginOfACustomFormatCutAtTheRightByte(t *testing.T) {
	p, err := NewCustom(Custom{Name: "own", Tag: "popd", Pattern: `session from=(?P<client>[0-9a-f.:]+) name=[a-z]+`})
	if err != nil {
		t.Fatal(err)
	}
	const line = "popd[7]: session from=203.0.113.66 name="
	sent := func(n int, header string) string { return line + strings.Repeat("x", n-len(header)-len(line)) }
	journal := func(n int) string {
		text := strings.TrimPrefix(sent(n, "<22>Nov 22 02:05:32 "), "popd[7]: ")
		return `{"__REALTIME_TIMESTAMP":"1763777132000000","SYSLOG_IDENTIFIER":"popd","MESSAGE":"` + text + `"}`
	}
	for _, tt := range []struct {
		name, before, line string
		want               Result
	}{
		{"1024 bytes", "", sent(1024, "<22>Nov 22 02:05:32 "), Unparsed},
		{"1024 bytes and the one that ends them", "", sent(1023, "<22>Nov 22 02:05:32 "), Unparsed},
		{"1024 bytes with the host, from another daemon", "", sent(1024, "<22>Nov 22 02:05:32 mx1 "), Unparsed},
		{"1024 bytes under a priority of one digit", "", sent(1024, "<6>Nov 22 02:05:32 "), Unparsed},
		{"1024 bytes under a priority of three digits", "", sent(1024, "<134>Nov 22 02:05:32 "), Unparsed},
		{"8192 bytes", "", sent(8192, "<22>Nov 22 02:05:32 "), Unparsed},
		{"1000 bytes", "", sent(1000, "<22>Nov 22 02:05:32 "), Login},
		{"1040 bytes", "", sent(1040, "<22>Nov 22 02:05:32 "), Login},
		{"256 bytes, at which only BusyBox cuts", "", sent(256, "<22>Nov 22 02:05:32 "), Login},
		{"256 bytes in BusyBox's file", "mail.info ", sent(256, "<22>Nov 22 02:05:32 "), Unparsed},
		{"280 bytes in BusyBox's file", "mail.info ", sent(280, "<22>Nov 22 02:05:32 "), Login},
		{"Dovecot's own piece of 4096", "", sent(4124, "<22>Nov 22 02:05:32 "), Unparsed},
		{"the same in the journal", "", journal(4124), Unparsed},
		{"1024 bytes in the journal, which cuts nothing", "", journal(1024), Login},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Message
			text := tt.line
			if text[0] != '{' {
				text = "Nov 22 02:05:32 mx1 " + tt.before + text
			}
			if !Split([]byte(text), &m) {
				t.Fatal("no line")
			}
			if _, got := p.Parse(&m); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// forgedProxied is what a proxying Dovecot with auth_verbose logs of a login
// that failed, up to where a logger has cut it: the name, of which the stranger
// chose the length too, is all that a good login says.
func forgedProxied(textLen int) string {
	const line = "imap-login: proxy(x,%s:1): Started proxying to <h> (0.1 secs): user=<x>, method=PLAIN, rip=203.0.113.66, lip=192.0.2.1, session=<AAAA>"
	return fmt.Sprintf(line, strings.Repeat("h", textLen-len(line)+len("%s")))
}

// TestALoginInTheNameOfAProxiedLoginCutAtTheRightByte is about a Dovecot that
// proxies whatever name it is given to the server that knows the passwords.
func TestALoginInTheNameOfAProxiedLoginCutAtTheRightByte(t *testing.T) {
	const busyBox = 256 - len("<22>Nov 22 02:05:32 dovecot: ")
	for _, tt := range []struct {
		name, line string
		want       Result
	}{
		{"1024 bytes in a file", "dovecot: " + forgedProxied(1024-29), Unparsed},
		{"480 bytes in a file", "dovecot: " + forgedProxied(480-29), Unparsed},
		{"8192 bytes in a file", "dovecot: " + forgedProxied(8192-29), Unparsed},
		{"the first piece of what Dovecot itself cuts", "dovecot: " + forgedProxied(4102), Unparsed},
		{"256 bytes in BusyBox's file", "mail.info dovecot: " + forgedProxied(busyBox), Unparsed},
		{"256 bytes with the byte that ends it", "mail.info dovecot: " + forgedProxied(busyBox-1), Unparsed},
		{"256 bytes with another facility's priority", "local0.info dovecot: " + forgedProxied(busyBox-2), Unparsed},
		{"1024 bytes in BusyBox's file", "mail.info dovecot: " + forgedProxied(1024-29), Unparsed},
		{"a login of a usual length", "dovecot: " + forgedProxied(399), Login},
		{"a login of a usual length in BusyBox's file", "mail.info dovecot: " + forgedProxied(busyBox-10), Login},
		{"a longer one in BusyBox's file", "mail.info dovecot: " + forgedProxied(busyBox+10), Login},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, got := parseLine(t, new(dovecot), tt.line); got != tt.want {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}

// Formats that understand a message by those before it are told of one that may
// have been cut without its text; the others are asked what it says.
func TestWhichFormatsRemember(t *testing.T) {
	for _, name := range Names() {
		p, err := New(name)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := Remembers(p), name == "courier" || name == "popa3d" || name == "auto"; got != want {
			t.Errorf("%s: %v", name, got)
		}
	}
	for line, want := range map[string]bool{opened: true, "pop3d-ssl: x": true, "popa3d[7]: Session from 192.0.2.7": true, "dovecot: x": false} {
		p := new(auto)
		parseLine(t, p, line)
		if got := Remembers(p); got != want {
			t.Errorf("auto after %q: %v", line, got)
		}
	}
}
