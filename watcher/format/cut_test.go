package format

import (
	"fmt"
	"strings"
	"testing"
)

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
