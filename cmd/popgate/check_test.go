package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/internal/config"
)

// findings runs a part of check.
func findings(part func(k *checker)) (all []finding) {
	e := processEnv()
	k := &checker{e: &e}
	part(k)
	return k.findings
}

func TestCheckSaysWhatTheKernelKnowsOfTheClock(t *testing.T) {
	real := synchronized
	defer func() { synchronized = real }()
	for _, tt := range []struct {
		well   bool
		err    error
		result string
	}{{true, nil, "ok"}, {false, nil, "WARN"}, {true, errors.New("not allowed"), "WARN"}} {
		synchronized = func() (bool, error) { return tt.well, tt.err }
		if got := findings((*checker).clock); len(got) != 1 || got[0].Result != tt.result {
			t.Errorf("synchronized %v, %v: %+v, want %s", tt.well, tt.err, got, tt.result)
		}
	}
}

func TestCheckComparesTheLastStampWithTheTimeOfWriting(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	now := time.Now()
	for name, tt := range map[string]struct {
		stamp   time.Time
		zone    *time.Location
		layout  string
		warning string
	}{
		"the same":                           {now, time.Local, time.Stamp, ""},
		"half a minute is nothing":           {now.Add(-30 * time.Second), time.Local, time.Stamp, ""},
		"two minutes behind":                 {now.Add(-2 * time.Minute), time.Local, time.Stamp, "behind"},
		"two minutes ahead":                  {now.Add(2 * time.Minute), time.Local, time.Stamp, "ahead of"},
		"another zone, named":                {now.In(time.FixedZone("", 5*3600)), time.FixedZone("", 5*3600), time.Stamp, ""},
		"another zone, not named":            {now.In(time.FixedZone("", 5*3600)), time.UTC, time.Stamp, "write time_zone"},
		"with its zone in the stamp, astray": {now.Add(-time.Hour), time.UTC, time.RFC3339, "set the clock"},
	} {
		line := tt.stamp.Format(tt.layout) + " mx1 dovecot: imap-login: Login: user=<a>\n"
		if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
			t.Fatal(err)
		}
		got := findings(func(k *checker) { k.stamps("source", &config.Source{Path: path, Location: tt.zone}, now) })
		if tt.warning == "" && len(got) > 0 || tt.warning != "" && (len(got) != 1 || got[0].Result != "WARN" || !strings.Contains(got[0].Text, tt.warning)) {
			t.Errorf("%s: %+v, want %q", name, got, tt.warning)
		}
	}
}

func TestNetworksAreReadAsTheMTAsWriteThem(t *testing.T) {
	for text, want := range map[string]string{
		"127.0.0.0/8": "127.0.0.0/8", "[::1]/128": "::1/128", "[2001:db8::]/32": "2001:db8::/32", "192.0.2.9": "192.0.2.9/32",
		"192.0.2": "192.0.2.0/24", "10": "10.0.0.0/8", "2001:db8::9": "2001:db8::9/128",
		"cidr:/etc/postfix/nets": "", "!192.0.2.9": "", "example.org": "", "": "", "300.1": "",
	} {
		p, ok := network(text)
		if got := p.String(); ok != (want != "") || ok && got != want {
			t.Errorf("%q: %v, %v, want %q", text, got, ok, want)
		}
	}
}

func TestListenersAreFoundHoweverTheyAreWritten(t *testing.T) {
	for text, want := range map[string][2]string{
		"unix:/run/m": {"unix", "/run/m"}, "local:/run/m": {"unix", "/run/m"}, "/run/m": {"unix", "/run/m"}, // systemd's
		"inet:8891@localhost": {"tcp", "localhost:8891"}, "inet:127.0.0.1:8891": {"tcp", "127.0.0.1:8891"}, "[::1]:8891": {"tcp", "[::1]:8891"},
	} {
		if network, address := listenerAddress(text); network != want[0] || address != want[1] {
			t.Errorf("%q: %s %s, want %v", text, network, address, want)
		}
	}
	if !sameAddress("tcp", "localhost:1", "tcp", "127.0.0.1:1") || sameAddress("tcp", "127.0.0.1:1", "tcp", "127.0.0.1:2") || sameAddress("unix", "/a", "tcp", "/a") {
		t.Error("addresses are compared wrongly")
	}
}

func TestADifferenceShowsWhatChangesAndLittleElse(t *testing.T) {
	const old = "a\nb\nc\nd\ne\nf\ng\nh\n"
	for now, want := range map[string]string{
		old:                                   "",
		"a\nb\nc\nd\ne\nf\ng\nh\nnew\n":       "--- F\n+++ F, with popgate\n g\n h\n+new\n",
		"a\nB\nc\nd\ne\nf\ng\nh\n":            "--- F\n+++ F, with popgate\n a\n-b\n+B\n c\n d\n",
		"A\nb\nc\nd\ne\nf\ng\n":               "--- F\n+++ F, with popgate\n-a\n+A\n b\n c\n...\n f\n g\n-h\n",
		"a\nb\nc\nd\ne\nf\ng\nh\nno line end": "--- F\n+++ F, with popgate\n g\n h\n+no line end\n",
	} {
		if got := difference("F", old, now); got != want {
			t.Errorf("to %q: %q, want %q", now, got, want)
		}
	}
}
