package main

import (
	"bufio"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A client that waits for its login is answered by whatever grants, a login or an
// operator, and not only when its time to wait is over.
func TestWhoWaitsIsAnsweredByALoginAndByAnOperator(t *testing.T) {
	const patience = 2 * time.Second
	s := newSite(t)
	s.write("milter.yaml", strings.NewReplacer("wait_for_login: 0", "wait_for_login: "+patience.String(),
		"  control:", "  policy: [unix:"+s.dir+"/policy.sock]\n  control:").Replace(fmt.Sprintf(siteConfig, s.dir)))
	s.start()
	for client, grant := range map[string]func(string){
		"198.51.100.7": s.login,
		"198.51.100.8": func(client string) { s.must("grant", client) },
	} {
		conn, err := net.Dial("unix", filepath.Join(s.dir, "policy.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		asked := time.Now()
		fmt.Fprintf(conn, "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=%s\nrecipient=x@remote.test\n\n", client)
		time.Sleep(patience / 20) // it waits by now
		grant(client)
		answer, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil || answer != "action=OK\n" {
			t.Errorf("%s: %q, %v", client, answer, err)
		}
		if time.Since(asked) >= patience {
			t.Errorf("%s was not answered before its time was over", client)
		}
	}
}
