package syslog

import (
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"time"
)

// Strangers who connect and show no certificate fill the room. Who has one
// comes in all the same, and stays.
func TestStrangersWithoutCertificatesKeepNobodyOut(t *testing.T) {
	a := newAuthority(t)
	o := Options{Network: "tls", TLS: a.write(t.TempDir(), a.host("log.test", false))}
	o.TLS.Names = []string{"mx1.test"}
	e := startSyslog(t, o)
	config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{a.host("mx1.test", false)}}
	sender := func(what string) *tls.Conn {
		t.Helper()
		c, err := tls.Dial("tcp", e.address, config)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Cleanup(func() { c.Close() })
		say(t, c, sent("mx1", what)+"\n")
		e.wait(sent("mx1", what))
		return c
	}
	first := sender("before they came")
	crowd := func(from func(i int) string) {
		for i := range maxConns + maxOfOne {
			local := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from(i))}, Timeout: 10 * time.Second}
			c, err := local.Dial("tcp", e.address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
		}
	}
	crowd(func(i int) string { return fmt.Sprintf("127.0.1.%d", 1+i/(maxOfOne-1)) })
	sender("from another address than they")
	crowd(func(int) string { return "127.0.0.1" })
	sender("from the same")
	say(t, first, sent("mx1", "still here")+"\n")
	e.wait(sent("mx1", "still here"))
}
