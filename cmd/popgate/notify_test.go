package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// notices collects what a supervisor is told.
type notices struct {
	mu   sync.Mutex
	told []string
}

func (n *notices) tell(state string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.told = append(n.told, state)
}

func (n *notices) all() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.told)
}

func (n *notices) count(state string) (c int) {
	for _, s := range n.all() {
		if s == state {
			c++
		}
	}
	return c
}

func TestTheWatchdogHearsOfADaemonThatAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n notices
		ctx, stop := context.WithCancel(t.Context())
		go supervisor{tell: n.tell, watchdog: 20 * time.Second}.watch(ctx, func() bool { return true })
		time.Sleep(61 * time.Second)
		synctest.Wait()
		if c := n.count("WATCHDOG=1"); c != 13 {
			t.Errorf("told %d times in 61 s of a 20 s watchdog, want 13", c)
		}
		stop()
		synctest.Wait()
		if told := n.all(); told[len(told)-1] != "STOPPING=1" {
			t.Errorf("the last word is %q, want STOPPING=1", told[len(told)-1])
		}
	})
}

func TestTheWatchdogHearsNothingOfADaemonThatHangs(t *testing.T) {
	for _, tt := range []struct {
		name  string
		alive func() bool
	}{
		{"a lock that is never given back", func() bool { time.Sleep(time.Hour); return true }},
		{"a gate that answers wrongly", func() bool { return false }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var n notices
				ctx, stop := context.WithCancel(t.Context())
				go supervisor{tell: n.tell, watchdog: 20 * time.Second}.watch(ctx, tt.alive)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				if c := n.count("WATCHDOG=1"); c != 0 {
					t.Errorf("told %d times that it lives", c)
				}
				stop()
				time.Sleep(time.Hour) // the question comes back to nobody
			})
		})
	}
}

func TestALateAnswerBringsTheWatchdogBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n notices
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		late := 30 * time.Second
		go supervisor{tell: n.tell, watchdog: 20 * time.Second}.watch(ctx, func() bool {
			time.Sleep(late)
			late = 0
			return true
		})
		time.Sleep(29 * time.Second)
		synctest.Wait()
		if c := n.count("WATCHDOG=1"); c != 0 {
			t.Errorf("told %d times before the answer came", c)
		}
		time.Sleep(12 * time.Second)
		synctest.Wait()
		if c := n.count("WATCHDOG=1"); c < 2 {
			t.Errorf("told %d times after the answer came, want 2 or more", c)
		}
	})
}

func TestAReloadIsToldWithItsOutcome(t *testing.T) {
	var n notices
	s := supervisor{tell: n.tell}
	s.reload(func() error { return nil })
	s.reload(func() error { return errors.New("line 3: bad\nREADY=0\x1b[31m") })
	told := n.all()
	if len(told) != 4 {
		t.Fatalf("told %q, want 4 notices", told)
	}
	for i, want := range []string{"RELOADING=1\nMONOTONIC_USEC=", "READY=1\nSTATUS=serving", "RELOADING=1\nMONOTONIC_USEC=",
		"READY=1\nSTATUS=serving; the old configuration stays in force: line 3: bad READY=0 [31m"} {
		if i%2 == 0 && !strings.HasPrefix(told[i], want) || i%2 == 1 && told[i] != want {
			t.Errorf("notice %d is %q, want %q", i, told[i], want)
		}
	}
}

// The whole daemon, on what systemd gives a service: two sockets of one name
// and somebody who listens.
func TestUnderASupervisor(t *testing.T) {
	s := newSite(t)
	var n notices
	e := s.daemonEnv()
	e.supervisor = supervisor{tell: n.tell, watchdog: 20 * time.Millisecond}
	var handed []net.Listener
	for _, name := range []string{"one.sock", "two.sock"} {
		l, err := net.Listen("unix", filepath.Join(s.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		handed = append(handed, l)
	}
	e.listeners = map[string][]net.Listener{"policy": handed}
	s.write("milter.yaml", strings.Replace(fmt.Sprintf(siteConfig, s.dir), "listen:\n", "listen:\n  policy: [127.0.0.1:10025]\n", 1))
	s.serve(e)
	s.until("it says what it does not open", func() bool {
		return strings.Contains(s.log.String(), `not opened: systemd`) && strings.Contains(s.log.String(), `key="listen.policy: 127.0.0.1:10025"`)
	})
	if n := strings.Count(s.log.String(), "not opened"); n != 1 {
		t.Errorf("%d warnings of addresses that are not opened, want 1", n)
	}
	if told := n.all(); len(told) == 0 || !slices.Contains(told, "READY=1\nSTATUS=serving") {
		t.Errorf("told %q when ready", told)
	}
	for _, l := range handed {
		c, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=198.51.100.7\nrecipient=x@remote.test\n\n")
		b := make([]byte, 7)
		if _, err := io.ReadFull(c, b); err != nil || string(b) != "action=" {
			t.Errorf("%s: %q, %v; every socket of a name must be served", l.Addr(), b, err)
		}
	}
	s.until("the watchdog hears of it", func() bool { return n.count("WATCHDOG=1") > 2 })
	s.end()
	if told := n.all(); !slices.Contains(told, "STOPPING=1") {
		t.Error("its stop was not told")
	}
}
