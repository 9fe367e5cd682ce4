package config

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
)

// FuzzConfig states what must hold for every text: it is refused with errors
// that name the file and read well, or it gives a configuration that can be
// run and opens nothing to strangers.
func FuzzConfig(f *testing.F) {
	seeds, err := filepath.Glob("../../cmd/popgate/testdata/badconfig/*.yaml")
	if err != nil || len(seeds) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, path := range append(seeds, "testdata/every-key.yaml", "../../milter.yaml.example") {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, warnings, err := Parse("milter.yaml", data)
		for _, w := range warnings {
			checkProblem(t, Error(w), data)
		}
		if err != nil {
			errs, ok := err.(Errors)
			if !ok || len(errs) == 0 || c != nil {
				t.Fatalf("error %#v with configuration %v", err, c)
			}
			for _, e := range errs {
				checkProblem(t, e, data)
			}
			if !slices.IsSortedFunc(errs, byLine) {
				t.Errorf("not in order of lines:\n%v", err)
			}
			return
		}
		checkConfig(t, c)
		again, _, err := Parse("milter.yaml", data)
		if err != nil || !reflect.DeepEqual(c, again) {
			t.Errorf("read twice it differs: %v", err)
		}
	})
}

func checkProblem(t *testing.T, e Error, data []byte) {
	t.Helper()
	s := e.Error()
	switch {
	case !strings.HasPrefix(s, "milter.yaml: "), strings.ContainsAny(s, "\n\r\x00\x1b"), len(s) > 2000:
		t.Errorf("an admin can't read %q", s)
	case strings.Contains(s, "yaml: ") && !strings.HasPrefix(s, "milter.yaml: ") || strings.Contains(s, "config.Config"):
		t.Errorf("the library speaks in %q", s)
	case e.Line < 0 || e.Line > 1+strings.Count(string(data), "\n")+strings.Count(string(data), "\r")+strings.Count(string(data), "\u0085")+
		strings.Count(string(data), "\u2028")+strings.Count(string(data), "\u2029"):
		t.Errorf("no such line: %q", s)
	}
}

func checkConfig(t *testing.T, c *Config) {
	t.Helper()
	r := c.Rules(nil)
	for _, stranger := range []string{"198.51.100.7", "203.0.113.9", "2001:db8::7", "2a00:1::1", "8.8.8.8", "1.1.1.1"} {
		a := netip.MustParseAddr(stranger)
		for _, p := range c.TrustedNetworks {
			if p.Contains(a) && p.Bits() < 8 {
				t.Errorf("%s trusts %s", p, a)
			}
		}
	}
	for _, m := range []relay.Mailers{c.PostfixMailers, c.SendmailMailers} {
		for _, bad := range []string{"smtp", "relay", "esmtp", "error", "discard"} {
			if slices.Contains(m.Local, bad) {
				t.Errorf("%s is local", bad)
			}
		}
	}
	reply := r.Reply(relay.Decision{Verdict: relay.Refuse}, netip.MustParseAddr("198.51.100.7"))
	if s := reply.String(); reply.Code < 400 || reply.Code > 599 || reply.Code == 421 || !isPrintable(s) || len(s) > 512 ||
		reply.Enhanced[0] != '0'+byte(reply.Code/100) || strings.ContainsAny(s, "{}") {
		t.Errorf("the reply %q", s)
	}
	switch {
	case c.GrantTTL < time.Second || c.GrantTTL > 24*time.Hour, c.IPv6Prefix < 48 || c.IPv6Prefix > 128, c.WaitForLogin < 0 || c.WaitForLogin > 2*time.Second,
		c.HoldOpenLogins < 0, c.MaxGrants < 1, c.MaxGrantsPerUser < 0, c.MaxWaiting < 1, len(c.Sources) == 0, len(c.Services) == 0,
		c.Listen.Control.Network != "unix", c.Store != "memory", c.SocketMode&^0o777 != 0:
		t.Errorf("a bound is missing: %+v", c)
	}
	for _, s := range c.Sources {
		if s.Location == nil || s.Name == "" || s.Format == "" {
			t.Errorf("source %+v", s)
		}
	}
	for _, a := range slices.Concat(c.Listen.Milter, c.Listen.Policy, c.Listen.Socketmap, []Address{c.Listen.Push, c.Listen.Metrics}) {
		if a.OffLoopback() && len(c.Listen.Allow) == 0 {
			t.Errorf("%s can be reached by anybody", a)
		}
	}
	if d := Diff(c, c); len(d) > 0 {
		t.Errorf("differs from itself in %q", d)
	}
}
