package syslog

import (
	"fmt"
	"strings"
	"testing"
)

// A Dovecot that proxies, over a daemon that cuts: the stranger's name is all
// that a good login says, up to the cut.
func TestALoginInAProxiedNameCutOnTheWay(t *testing.T) {
	e, l := understand(t, Options{Network: "tcp"}, "dovecot")
	const line = "<22>Nov 22 02:05:32 mx1 dovecot: imap-login: proxy(x,%s:1): Started proxying to <h> (0.1 secs): user=<x>, method=PLAIN, rip=%s, lip=192.0.2.1, session=<AAAA>\n"
	proxied := func(client string, length int) string {
		text := fmt.Sprintf(line, "%s", client)
		return fmt.Sprintf(text, strings.Repeat("h", length-len(text)+len("%s\n")))
	}
	a := e.dial()
	for _, limit := range []int{256, 480, 512, 1024, 2048, 8192} {
		for _, n := range []int{limit - 1, limit, limit + len("mx1 ") - 1, limit + len("mx1 ")} {
			say(t, a, proxied(attacker, n))
		}
	}
	say(t, a, proxied(honest, 240))
	l.wait(t, honest)
}
