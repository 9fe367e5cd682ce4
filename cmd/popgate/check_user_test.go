package main

import (
	"bytes"
	"errors"
	"os/exec"
	"strings"
	"testing"
)

// The daemon's user, whose process may be anybody's by now, tells root what it
// has found.
func TestADaemonsUserCannotHaveCheckCallABrokenReportWell(t *testing.T) {
	exit := func(code string) error { return exec.Command("/bin/sh", "-c", "exit "+code).Run() }
	const well = `{"result":"ok","what":"source a"}` + "\n"
	for name, tt := range map[string]struct {
		out    string
		err    error
		failed bool
	}{
		"a report":                          {out: well},
		"one that found something wanting":  {out: well, err: exit("1")},
		"nothing":                           {failed: true},
		"one that ends in a panic":          {out: well, err: exit("2"), failed: true},
		"one that a signal ended":           {out: well, err: exit("$(kill -9 $$)"), failed: true},
		"one with a result of its own":      {out: well + `{"result":"fine","what":"x"}`, failed: true},
		"one cut short":                     {out: well + `{"result":"FA`, failed: true},
		"one whose program was not started": {out: well, err: errors.New("no such program"), failed: true},
	} {
		var out bytes.Buffer
		k := &checker{e: &env{stdout: &out}}
		k.told("popgate", tt.out, "", tt.err)
		if failed := k.report(false) != nil; failed != tt.failed {
			t.Errorf("%s: failed: %v, want %v: %s", name, failed, tt.failed, out.String())
		}
	}
}

func TestADaemonsUserCannotSpeakToRootsTerminal(t *testing.T) {
	var out bytes.Buffer
	k := &checker{e: &env{stdout: &out}}
	k.told("popgate", `{"result":"ok","what":"source \u001b]0;x\u0007","text":"\u009b31m\rok\u202e ünd"}`, "", nil)
	k.report(false)
	if got, want := out.String(), `ok    source \x1b]0;x\a: \u009b31m\rok\u202e ünd`+"\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestADaemonsUserCannotAddAFindingToRootsReport(t *testing.T) {
	var out bytes.Buffer
	k := &checker{e: &env{stdout: &out}}
	k.told("popgate", `{"result":"WARN","what":"source a\nok    source b","text":"x\nok    source c"}`, "", nil)
	k.report(false)
	if got := strings.Count(out.String(), "\n"); got != 1 {
		t.Errorf("%d lines of one finding: %q", got, out.String())
	}
}

func TestADaemonsUserCannotFillRootsMemory(t *testing.T) {
	u := &upTo{left: 8}
	for range 1000 {
		if n, err := u.Write([]byte(strings.Repeat("x", 5))); n != 5 || err != nil {
			t.Fatal(n, err)
		}
	}
	if u.Len() != 8 {
		t.Errorf("%d bytes are kept", u.Len())
	}
}
