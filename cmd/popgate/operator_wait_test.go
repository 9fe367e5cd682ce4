package main

import (
	"fmt"
	"net"
	"net/netip"
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
	n := byte(0)
	for _, door := range doors {
		if door.name == "socketmap" { // as policy
			continue
		}
		for name, grant := range map[string]func(string){"login": s.login, "operator": func(client string) { s.must("grant", client) }} {
			conn, err := net.Dial("unix", filepath.Join(s.dir, door.name+".sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			n++
			client := netip.AddrFrom4([4]byte{198, 51, 100, n})
			var began time.Time
			granted := make(chan struct{})
			q := &question{client: client, recipient: "x@remote.test", asked: func() {
				began = time.Now()
				time.AfterFunc(patience/20, func() { // it waits by then
					grant(client.String())
					close(granted)
				})
			}}
			got, err := door.speak(conn, q)
			took := time.Since(began)
			if err != nil || got != taken {
				t.Fatalf("%s, %s: %v, %v", door.name, name, got, err)
			}
			if took >= patience {
				t.Errorf("%s, %s: not answered before its time was over", door.name, name)
			}
			<-granted
		}
	}
}
