package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Postfix is told to send all strangers' mail through a transport that
// local_mailers takes for a local one, after popgate has started.
func TestAttackPostfixBecomesAnOpenRelayBehindTheRunningDaemon(t *testing.T) {
	s := newSite(t)
	conf := func(transport string) {
		t.Helper()
		s.write("postconf.out", fmt.Sprintf("mydestination = example.org\nconfig_directory = %s\ndefault_transport = %s\n", s.dir, transport))
		s.write("main.cf", "# default_transport = "+transport+"\n")
	}
	conf("smtp")
	script := fmt.Sprintf("#!/bin/sh\n[ \"$1\" = -Px ] || cat %s/postconf.out\n", s.dir)
	if err := os.WriteFile(filepath.Join(s.dir, "postconf"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", s.dir+":"+os.Getenv("PATH"))
	s.write("milter.yaml", strings.Replace(fmt.Sprintf(siteConfig, s.dir), "local_domains_from: none",
		"local_domains_from: postfix\nlocal_mailers: {postfix: [local, gw]}", 1))
	s.start()
	const finding = `default_transport goes through "gw"`
	stranger := func() string {
		out, _, _ := s.run("ask", "203.0.113.66", "x@remote.test", "--mailer", "gw", "--addr", "x@remote.test", "--mta", "postfix")
		return out
	}
	if out := stranger(); !strings.Contains(out, "pass: local") {
		t.Errorf("before, a recipient by way of gw: %s", out)
	}
	conf("gw")
	s.until("gw proves nothing", func() bool { return strings.Contains(stranger(), "defer: unsure") })
	s.want(exitDegraded, finding, "status")
	s.want(0, "pass: local", "ask", "203.0.113.66", "bob@example.org", "--mailer", "gw", "--addr", "bob@example.org", "--mta", "postfix")
	s.want(exitConfig, finding, "reload")
	s.want(exitConfig, finding, "check") // as serve would end, not as for what it can live with
	conf("smtp")
	s.until("gw is local again", func() bool { return strings.Contains(stranger(), "pass: local") })
}
