package push

import (
	"bufio"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
	"popgate/watcher"
)

const (
	goodKey   = "0123456789abcdef0123456789abcdef"
	goodLogin = `{"login":"alice","mech":"PLAIN","nologin":"no","protocol":"imap","host":"no","remote":"198.51.100.7","session_id":"GJuxzetgWtPGM2QH","success":true,"policy_reject":false,"tls":false}`
)

// pushStage is a Reports that runs.
type pushStage struct {
	*testing.T
	url     string
	addr    string
	key     string // path of the key file
	records chan watcher.Record
}

func startPush(t *testing.T, change func(*Reports)) *pushStage {
	t.Helper()
	dir := t.TempDir()
	s := &pushStage{T: t, key: filepath.Join(dir, "push.key"), records: make(chan watcher.Record, 10000)}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.addr = ln.Addr().String()
	ln.Close()
	s.url = "http://" + s.addr + "/?command=report"
	s.writeKey(goodKey)
	p := NewReports(Options{Network: "tcp", Address: s.addr, KeyFile: s.key})
	p.tick, p.within = 20*time.Millisecond, 500*time.Millisecond
	if change != nil {
		change(p)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for r := range p.Records(ctx, relay.Position{}, time.Time{}) {
			s.records <- r
		}
	}()
	t.Cleanup(func() { stop(); <-done })
	return s
}

func (s *pushStage) writeKey(text string) {
	s.Helper()
	if err := os.WriteFile(s.key+".new", []byte(text+"\n"), 0o400); err != nil {
		s.Fatal(err)
	}
	if err := os.Rename(s.key+".new", s.key); err != nil {
		s.Fatal(err)
	}
}

// next gives the next record of a kind, and fails over one of another.
func (s *pushStage) next(kind watcher.Kind) watcher.Record {
	s.Helper()
	select {
	case r := <-s.records:
		if r.Kind != kind {
			s.Fatalf("got record %+v, want one of kind %d", r, kind)
		}
		return r
	case <-time.After(10 * time.Second):
		s.Fatalf("no record of kind %d", kind)
	}
	panic("unreachable")
}

func (s *pushStage) up() {
	s.Helper()
	if !s.next(watcher.Gap).Lost {
		s.Error("what came before is not said to be lost")
	}
	s.next(watcher.CaughtUp)
}

// post sends a report and gives the status code.
func (s *pushStage) post(url, body string, keys ...string) int {
	s.Helper()
	req, err := http.NewRequestWithContext(s.Context(), http.MethodPost, url, strings.NewReader(body))
	if err != nil {
		s.Fatal(err)
	}
	for _, k := range keys {
		req.Header.Add("X-API-Key", k)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		s.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}

func TestAReportIsALogin(t *testing.T) {
	s := startPush(t, nil)
	s.up()
	before := time.Now()
	if code := s.post(s.url, goodLogin, goodKey); code != http.StatusOK {
		t.Fatalf("answer %d, want 200", code)
	}
	r := s.next(watcher.Told)
	ev := *r.Event
	if ev.Time.Before(before.Add(-time.Second)) || ev.Time.After(time.Now()) || !r.Live {
		t.Errorf("time %v, live %v; want now and live", ev.Time, r.Live)
	}
	ev.Time = time.Time{}
	want := relay.Event{Kind: relay.Login, Client: netip.MustParseAddr("198.51.100.7"), User: "alice", Service: relay.IMAP, Session: "GJuxzetgWtPGM2QH", Zoned: true}
	if ev != want {
		t.Errorf("got %+v, want %+v", ev, want)
	}
}

// A report that lay in a socket while popgate stood still is as old as it says.
func TestALateReportIsAnOldLogin(t *testing.T) {
	s := startPush(t, nil)
	s.up()
	now := time.Now()
	for _, tt := range []struct {
		name, date string
		want       time.Time
	}{
		{"an hour ago", now.Add(-time.Hour).UTC().Format(http.TimeFormat), now.Add(-time.Hour)},
		{"this second, which is cut off", now.Add(-time.Second).UTC().Format(http.TimeFormat), now},
		{"in an hour", now.Add(time.Hour).UTC().Format(http.TimeFormat), now},
		{"no time", "yesterday", now},
	} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url, strings.NewReader(goodLogin))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-API-Key", goodKey)
		req.Header.Set("Date", tt.date)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if got := s.next(watcher.Told).Event.Time; got.Sub(tt.want).Abs() > 2*time.Second {
			t.Errorf("%s: login at %v, want %v", tt.name, got, tt.want)
		}
	}
}

// Whoever may connect and doesn't know the secret is nobody.
func TestAttackAtTheDeskGrantsNothing(t *testing.T) {
	s := startPush(t, nil)
	s.up()
	for _, tt := range []struct {
		name string
		url  string
		body string
		keys []string
		want int
	}{
		{"no key", s.url, goodLogin, nil, 401},
		{"empty key", s.url, goodLogin, []string{""}, 401},
		{"wrong key", s.url, goodLogin, []string{strings.Repeat("0", len(goodKey))}, 401},
		{"prefix of the key", s.url, goodLogin, []string{goodKey[:len(goodKey)-1]}, 401},
		{"key with more behind it", s.url, goodLogin, []string{goodKey + "0"}, 401},
		{"key in another case", s.url, goodLogin, []string{strings.ToUpper(goodKey)}, 401},
		{"key twice", s.url, goodLogin, []string{goodKey, goodKey}, 401},
		{"wrong key before the right one", s.url, goodLogin, []string{"x", goodKey}, 401},
		{"hash of the key", s.url, goodLogin, []string{fmt.Sprintf("%x", sha256.Sum256([]byte(goodKey)))}, 401},
		{"two commands", s.url + "&command=report", goodLogin, []string{goodKey}, 400},
		{"no command", "http://" + s.addr + "/", goodLogin, []string{goodKey}, 400},
		{"other command", "http://" + s.addr + "/?command=reset", goodLogin, []string{goodKey}, 400},
		{"broken query", "http://" + s.addr + "/?command=report;a", goodLogin, []string{goodKey}, 400},
		{"a login in a question", "http://" + s.addr + "/?command=allow", goodLogin, []string{goodKey}, 200},
		{"huge body", s.url, strings.Replace(goodLogin, "PLAIN", strings.Repeat("P", maxReport), 1), []string{goodKey}, 413},
		{"no JSON", s.url, "login=alice&remote=198.51.100.7", []string{goodKey}, 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if code := s.post(tt.url, tt.body, tt.keys...); code != tt.want {
				t.Errorf("answer %d, want %d", code, tt.want)
			}
		})
	}
	if resp, err := http.Get(s.url); err != nil || resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("GET: %v, %v; want 405", resp, err)
	}
	s.post(s.url, goodLogin, goodKey)
	for {
		switch r := <-s.records; r.Kind {
		case watcher.Refused:
		case watcher.Told:
			if r.Event == nil {
				t.Errorf("a report without the secret was counted")
			}
			return
		default:
			t.Fatalf("record %+v, want none but Refused", r)
		}
	}
}

// The secrets are not kept, and what is compared is as long for each of them.
func TestSecretsAreComparedByTheirHashes(t *testing.T) {
	got, err := readSecrets([]byte("# both for now\n" + goodKey + "\n\n  " + goodKey[:20] + " \r\n"))
	want := []secret{sha256.Sum256([]byte(goodKey)), sha256.Sum256([]byte(goodKey[:20]))}
	if err != nil || len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("got %x, %v; want %x", got, err, want)
	}
}

// A question is answered with yes by whoever asks it, or Dovecot with
// auth_policy_reject_on_fail would let nobody in.
func TestAQuestionIsAlwaysAnsweredYes(t *testing.T) {
	s := startPush(t, nil)
	s.up()
	for _, body := range []string{"", "{", goodLogin} {
		resp, err := http.Post("http://"+s.addr+"/?command=allow", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || string(text) != `{"status":0}` {
			t.Errorf("%q: %d %s, want 200 {\"status\":0}", body, resp.StatusCode, text)
		}
	}
}

func TestASlowSenderCostsNobodyElse(t *testing.T) {
	s := startPush(t, nil)
	s.up()
	c, err := net.Dial("tcp", s.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /?command=report HTTP/1.1\r\nHost: x\r\nX-API-Key: %s\r\nContent-Length: %d\r\n\r\n%s", goodKey, len(goodLogin), goodLogin[:len(goodLogin)-1])
	s.post(s.url, strings.Replace(goodLogin, "alice", "bob", 1), goodKey)
	if r := s.next(watcher.Told); r.Event == nil || r.Event.User != "bob" {
		t.Errorf("got %+v, want bob's login", r)
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if line, err := bufio.NewReader(c).ReadString('\n'); err == nil && !strings.Contains(line, " 400 ") {
		t.Errorf("the slow one was answered %q, want to be cut off", line)
	}
	s.next(watcher.Refused)
}

func TestAFullQueueIsALoss(t *testing.T) {
	p := newPost()
	login := relay.Event{Kind: relay.Login}
	for range tellQueue {
		if !p.put(login, time.Time{}) {
			t.Fatal("no room for a login before the queue was full")
		}
	}
	if !p.put(relay.Event{}, time.Time{}) {
		t.Error("a failed login that nobody hears of counts as lost")
	}
	select {
	case <-p.lost:
		t.Error("something is lost before a login was turned away")
	default:
	}
	for range 2 {
		if p.put(login, time.Time{}) {
			t.Error("room for a login in a full queue")
		}
	}
	var told []watcher.Record
	h := handing{post: p, yield: func(r watcher.Record) bool { told = append(told, r); return true }}
	<-p.lost
	h.lost()
	if len(told) != 1 || told[0].Kind != watcher.Gap || !told[0].Lost {
		t.Errorf("told %+v, want one gap that lost something", told)
	}
	p.put(login, time.Time{})
	<-p.lost
	h.lost() // not twice a second
	if len(told) != 1 {
		t.Errorf("told %+v, want no second gap yet", told[1:])
	}
	h.tick()
	if len(told) != 2 || !told[1].Lost {
		t.Errorf("told %+v, want a second gap at the tick", told)
	}
}

func TestTooManyConnectionsAreALoss(t *testing.T) {
	s := startPush(t, func(p *Reports) { p.places = 1 })
	s.up()
	for range 2 {
		c, err := net.Dial("tcp", s.addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	if !s.next(watcher.Gap).Lost {
		t.Error("a connection was turned away and nobody knows")
	}
}

func TestOnlyThoseAllowedMayConnect(t *testing.T) {
	d := &desk{allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}, post: newPost()}
	for from, want := range map[string]bool{"127.0.0.1": true, "::1": true, "::ffff:127.0.0.1": true, "192.0.2.9": true, "::ffff:192.0.2.9": true,
		"192.0.3.9": false, "2001:db8::1": false} {
		c := connFrom{addr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(from), 4711))}
		if ok := d.admits(c); ok != want {
			t.Errorf("%s may connect: %v, want %v", from, ok, want)
		}
	}
}

type connFrom struct {
	net.Conn
	addr net.Addr
}

func (c connFrom) RemoteAddr() net.Addr { return c.addr }

func TestAPushHealsWhenItsPortIsFree(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := startPush(t, func(p *Reports) { p.Address = taken.Addr().String() })
	if err := s.next(watcher.Down).Err; !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("down because of %v, want the port taken", err)
	}
	taken.Close()
	for {
		r := <-s.records
		if r.Kind == watcher.Down {
			continue
		}
		if r.Kind != watcher.Gap || !r.Lost {
			t.Fatalf("record %+v, want a gap that lost something", r)
		}
		break
	}
	s.next(watcher.CaughtUp)
}

func TestAKeyFileIsReadAnewWhenItChanges(t *testing.T) {
	s := startPush(t, nil)
	s.up()
	const other = "another secret, no blank"
	newKey := strings.ReplaceAll(other, " ", "-")
	s.writeKey(newKey)
	if code := s.post(s.url, goodLogin, newKey); code != 200 {
		t.Errorf("the new key: %d, want 200", code)
	}
	s.next(watcher.Told)
	if code := s.post(s.url, goodLogin, goodKey); code != 401 {
		t.Errorf("the old key: %d, want 401", code)
	}
}

func TestWithoutItsKeyFileAPushIsDown(t *testing.T) {
	s := startPush(t, nil)
	s.up()
	for _, tt := range []struct {
		name  string
		spoil func() error
		want  string
	}{
		{"gone", func() error { return os.Remove(s.key) }, "no such file"},
		{"readable by everybody", func() error { return os.Chmod(s.key, 0o444) }, "others can read it"},
		{"readable by a group", func() error { return os.Chmod(s.key, 0o440) }, "others can read it"},
		{"short", func() error { s.writeKey("secret"); return nil }, "no secret"},
		{"empty", func() error { s.writeKey(""); return nil }, "no secret in it"},
		{"huge", func() error { s.writeKey(strings.Repeat(goodKey+"\n", 300)); return nil }, "longer than"},
		{"many", func() error { s.writeKey(strings.Repeat(goodKey+"\n", maxSecrets+1)); return nil }, "at most"},
		{"a directory", func() error { os.Remove(s.key); return os.Mkdir(s.key, 0o700) }, "directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := tt.spoil(); err != nil {
				t.Fatal(err)
			}
			if code := s.post(s.url, goodLogin, goodKey); code != 503 {
				t.Errorf("a report is answered %d, want 503", code)
			}
			for {
				r := <-s.records
				if r.Kind == watcher.Refused {
					continue // the report
				}
				if r.Kind != watcher.Down || !strings.Contains(r.Err.Error(), tt.want) {
					t.Fatalf("record %+v, want down with %q", r, tt.want)
				}
				break
			}
			if code := s.post("http://"+s.addr+"/?command=allow", goodLogin); code != 200 {
				t.Errorf("a question is answered %d, want 200", code)
			}
			os.Remove(s.key)
			s.writeKey(goodKey)
			for r := range s.records {
				if r.Kind == watcher.Gap && r.Lost {
					break
				}
			}
			s.next(watcher.CaughtUp)
			if code := s.post(s.url, goodLogin, goodKey); code != 200 {
				t.Errorf("healed, a report is answered %d, want 200", code)
			}
			s.next(watcher.Told)
		})
	}
}
