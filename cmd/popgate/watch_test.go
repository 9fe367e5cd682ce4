package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"popgate/internal/control"
	"popgate/internal/gate"
	"popgate/internal/relay"
)

// watched is a `popgate watch` that runs beside the daemon.
type watched struct {
	out, errs lockedBuffer
	stop      context.CancelFunc
	ended     chan int
}

// watch starts one.
func (s *site) watch(args ...string) *watched {
	s.t.Helper()
	w := &watched{ended: make(chan int, 1)}
	e := processEnv()
	e.stdout, e.stderr = &w.out, &w.errs
	ctx, stop := context.WithCancel(s.t.Context())
	w.stop = stop
	go func() { w.ended <- run(ctx, append([]string{"watch", "-c", s.config}, args...), e) }()
	return w
}

// shows waits until a line of the watch has all these texts.
func (s *site) shows(w *watched, texts ...string) (line string) {
	s.t.Helper()
	s.until(fmt.Sprintf("watch shows %q", texts), func() bool {
		for l := range strings.Lines(w.out.String()) {
			all := true
			for _, text := range texts {
				all = all && strings.Contains(l, text)
			}
			if all {
				line = strings.TrimSuffix(l, "\n")
				return true
			}
		}
		return false
	})
	return line
}

func TestWatchShowsLoginsGrantsAndDecisionsAcrossAReload(t *testing.T) {
	s := newSite(t)
	s.start()
	all, logins, asJSON := s.watch(), s.watch("--logins"), s.watch("--json", "--grants", "--decisions")
	s.until("all three watch", func() bool { return strings.Contains(s.must("status", "--json"), `"watchers":3`) })
	s.login("198.51.100.7")
	s.shows(all, " login    client=198.51.100.7 user=bob service=imap source=file:", "format=dovecot session=abc time=", "outcome=granted expires=")
	s.shows(all, " grant    client=198.51.100.7 user=bob service=imap ")
	s.shows(logins, " login    client=198.51.100.7")
	q := &question{client: netip.MustParseAddr("198.51.100.7"), recipient: "x@remote.test", asked: func() {}}
	if o, err := doors[0].ask(s.dir, 10*time.Second, q); o != taken || err != nil {
		t.Fatalf("the milter answered %v, %v", o, err)
	}
	s.shows(all, " decision verdict=pass reason=grant client=198.51.100.7 rcpt=x@remote.test recipient=foreign sender=sender@client.test queue=4Bq1x2 door=milter")
	s.must("revoke", "--user", "eve", "--block", "1h")
	s.shows(all, " revocation user=eve block=")
	s.must("reload")
	s.must("grant", "198.51.100.8", "--note", "a copier")
	s.shows(all, " grant    client=198.51.100.8 source=operator time=", `operator=true note="a copier"`)

	var got control.Seen
	if err := json.Unmarshal([]byte(s.shows(asJSON, `"event":"decision"`)), &got); err != nil {
		t.Fatal(err)
	}
	if got.Verdict != "pass" || got.Reason != "grant" || got.Rcpt != "x@remote.test" || got.Door != "milter" || got.Client != netip.MustParseAddr("198.51.100.7") {
		t.Errorf("the decision in JSON is %+v", got)
	}
	if strings.Contains(asJSON.out.String(), `"login"`+`,"time"`) {
		t.Errorf("a watch of grants and decisions shows a login:\n%s", asJSON.out.String())
	}
	if text := logins.out.String(); strings.Contains(text, " grant ") || strings.Contains(text, " decision ") {
		t.Errorf("a watch of logins shows more:\n%s", text)
	}

	logins.stop()
	if code := <-logins.ended; code != 0 {
		t.Errorf("an interrupted watch exits with %d: %s", code, logins.errs.String())
	}
	s.end()
	if code := <-all.ended; code != 3 || !strings.Contains(all.errs.String(), "it has stopped") {
		t.Errorf("when the daemon stops watch exits with %d: %s", code, all.errs.String())
	}
	<-asJSON.ended
}

func TestWatchedTextOfAStrangerIsOneWordAndHarmless(t *testing.T) {
	at := time.Date(2026, 11, 23, 6, 0, 0, 120_000_000, time.UTC)
	for name, tt := range map[string]struct{ rcpt, want string }{
		"plain":                     {"x@remote.test", "rcpt=x@remote.test"},
		"a forged pair":             {"x verdict=pass", `rcpt="x verdict=pass"`},
		"a forged line":             {"x\n2026-11-23 login", `rcpt="x\n2026-11-23 login"`},
		"terminal escape":           {"\x1b[2Jx", `rcpt="\x1b[2Jx"`},
		"C1 control sequence":       {"\u009b2Jx", `rcpt="\u009b2Jx"`},
		"text direction turned":     {"x\u202e", `rcpt="x\u202e"`},
		"quotes":                    {`x" y`, `rcpt="x\" y"`},
		"bytes that are no text":    {"\xff", `rcpt="\xff"`},
		"backslash, as if escaped":  {`\x1b`, `rcpt="\\x1b"`},
		"equals sign, a pair of it": {"a=b", `rcpt="a=b"`},
	} {
		t.Run(name, func(t *testing.T) {
			line := string(appendSeen(nil, &control.Seen{Event: "decision", Time: at, Verdict: "defer", Reason: "unsure", Rcpt: tt.rcpt}))
			if want := at.Local().Format("2006-01-02 15:04:05.000") + " decision verdict=defer reason=unsure " + tt.want + "\n"; line != want {
				t.Errorf("got %q, want %q", line, want)
			}
			var b strings.Builder
			if err := printJSON(&b, control.Seen{Event: "decision", Rcpt: tt.rcpt}); err != nil {
				t.Fatal(err)
			}
			for _, c := range strings.TrimSuffix(b.String(), "\n") {
				if c < ' ' || c > '~' {
					t.Errorf("JSON with the character %U: %s", c, b.String())
				}
			}
			var back control.Seen
			if err := json.Unmarshal([]byte(b.String()), &back); err != nil || back.Rcpt != strings.ToValidUTF8(tt.rcpt, "\ufffd") {
				t.Errorf("JSON %s reads back as %q, %v", b.String(), back.Rcpt, err)
			}
		})
	}
}

// Whatever strangers choose, an event is one line of plain ASCII, with the pairs
// it has and no other; and its JSON says the same.
func FuzzSeenStaysOneLine(f *testing.F) {
	f.Add("bob", "x verdict=pass", "a\nb")
	f.Add("\x1b[2J", "\u009b\u202e", `"\`)
	f.Add("\xff\xfe", "=", " ")
	f.Add("0", "```", "'")
	f.Fuzz(func(t *testing.T, user, rcpt, note string) {
		s := control.Seen{Event: "grant", User: user, Rcpt: rcpt, Note: note}
		line := string(appendSeen(nil, &s))
		body, ended := strings.CutSuffix(line, "\n")
		if !ended {
			t.Fatalf("%q does not end", line)
		}
		for _, c := range body {
			if c < ' ' || c > '~' {
				t.Fatalf("%q has the character %U", line, c)
			}
		}
		_, rest, _ := strings.Cut(body, " grant   ")
		for _, want := range []struct{ key, value string }{{"user", user}, {"note", note}, {"rcpt", rcpt}} {
			if want.value == "" {
				continue
			}
			after, ok := strings.CutPrefix(rest, " "+want.key+"=")
			if !ok {
				t.Fatalf("%q lacks %s where it should be", line, want.key)
			}
			value, _, _ := strings.Cut(after, " ")
			got := value
			if strings.HasPrefix(after, `"`) {
				var err error
				if value, err = strconv.QuotedPrefix(after); err != nil {
					t.Fatalf("%q: %s: %v", line, want.key, err)
				}
				got, _ = strconv.Unquote(value)
			}
			if got != want.value {
				t.Fatalf("%q: %s reads %q", line, want.key, got)
			}
			rest = after[len(value):]
		}
		if rest != "" {
			t.Fatalf("%q goes on with %q", line, rest)
		}
		for _, text := range []string{user, rcpt, note} {
			var want strings.Builder
			if err := printJSON(&want, text); err != nil {
				t.Fatal(err)
			}
			if got := string(appendJSONString(nil, text)) + "\n"; got != want.String() {
				t.Fatalf("%q is %s in JSON, want %s", text, got, want.String())
			}
		}
	})
}

func TestDroppedEventsAreSaid(t *testing.T) {
	line := string(appendSeen(nil, &control.Seen{Event: "dropped", Dropped: 17}))
	if !strings.HasSuffix(line, " dropped  17 events: this watcher is too slow\n") {
		t.Errorf("got %q", line)
	}
}

func TestWatchWithoutADaemonExitsWith3(t *testing.T) {
	newSite(t).want(3, "daemon not reachable", "watch")
}

// decisionPath is what a decision costs the daemon after it has been made, with
// the log at warn.
func decisionPath() (*daemon, gate.Record) {
	d := &daemon{doubtful: make(chan gate.Record, 1)}
	d.level.Set(8)
	e := processEnv()
	d.env = &e
	return d, gate.Record{Decision: relay.Decision{Verdict: relay.Refuse, Reason: relay.ReasonNoGrant},
		Client: netip.MustParseAddr("203.0.113.9"), Rcpt: "x@remote.test", Sender: "y@remote.test", Door: "milter"}
}

func TestUnwatchedDecisionAllocatesNothing(t *testing.T) {
	d, r := decisionPath()
	if n := testing.AllocsPerRun(1000, func() { d.record(r) }); n != 0 {
		t.Errorf("%v allocations for a decision that nobody watches, want 0", n)
	}
	b := relay.Batch{Changes: make([]relay.Change, 1)}
	if n := testing.AllocsPerRun(1000, func() {
		if d.watchers.Want(control.WatchGrants) {
			d.watchChange(&b.Changes[0])
		}
	}); n != 0 {
		t.Errorf("%v allocations for a grant that nobody watches, want 0", n)
	}
}

func BenchmarkDecisionUnwatched(b *testing.B) {
	d, r := decisionPath()
	b.ReportAllocs()
	for b.Loop() {
		d.record(r)
	}
}

func BenchmarkDecisionWatched(b *testing.B) {
	d, r := decisionPath()
	b.ReportAllocs()
	for b.Loop() {
		d.watchDecision(r)
	}
}
