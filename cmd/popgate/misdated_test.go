package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A login whose stamp can't be right grants nothing; but its client did log in,
// so it must not be refused for good.
func TestALiveLoginWithAWrongStampPutsStrangersOff(t *testing.T) {
	for name, off := range map[string]time.Duration{"an hour old": -time.Hour, "an hour ahead": time.Hour} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.start()
			s.login("192.0.2.1") // from here on lines are seen being written
			s.until("it is granted", func() bool { _, _, code := s.run("show", "192.0.2.1"); return code == 0 })
			s.want(1, "refuse: no_grant", "ask", "198.51.100.7", "x@remote.test")
			f, err := os.OpenFile(filepath.Join(s.dir, "mail.log"), os.O_WRONLY|os.O_APPEND, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			fmt.Fprintf(f, "%s mx1 dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=198.51.100.7, lip=203.0.113.1, mpid=7, TLS, session=<abcdefghijk>\n",
				time.Now().Add(off).Format(time.RFC3339))
			s.until("it is put off", func() bool {
				out, _, _ := s.run("ask", "198.51.100.7", "x@remote.test")
				return strings.Contains(out, "defer: not_ready")
			})
			s.until("the log says why", func() bool { return strings.Contains(s.log.String(), "a stamp that is not of now") })
			s.want(0, "put off instead of refused until 2", "status")
			s.want(0, "pass: local", "ask", "198.51.100.7", "bob@example.org")
			if _, _, code := s.run("show", "198.51.100.7"); code == 0 {
				t.Error("it has a grant")
			}
		})
	}
}
