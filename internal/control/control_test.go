package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"popgate/internal/relay"
)

var bob = relay.Grant{Client: netip.MustParseAddr("198.51.100.7"), Prefix: 32, User: "bob", Service: relay.IMAP, Source: "file:/var/log/mail.log",
	Format: "dovecot", Session: "abc", Login: time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC), Expires: time.Date(2026, 11, 22, 12, 30, 0, 0, time.UTC)}

// calm is a daemon that says yes and remembers what it was asked.
type calm struct {
	grants   []relay.Grant
	granted  GrantRequest
	revoked  RevokeRequest
	asked    AskRequest
	fail     error
	watchers Watchers
}

func (c *calm) Ask(_ context.Context, q AskRequest) (AskAnswer, error) {
	c.asked = q
	return AskAnswer{Verdict: "pass", Reason: "grant", Client: q.Client, Rcpt: q.Rcpt, Recipient: "foreign"}, c.fail
}
func (c *calm) Grants(context.Context) iter.Seq[relay.Grant] { return slices.Values(c.grants) }
func (c *calm) Show(a netip.Addr) (relay.Grant, bool) {
	for _, g := range c.grants {
		if g.Client == a {
			return g, true
		}
	}
	return relay.Grant{}, false
}
func (c *calm) Grant(_ context.Context, q GrantRequest) (relay.Grant, error) {
	c.granted = q
	return bob, c.fail
}
func (c *calm) Revoke(_ context.Context, q RevokeRequest) ([]relay.Grant, error) {
	c.revoked = q
	return c.grants, c.fail
}
func (c *calm) Watchers() *Watchers { return &c.watchers }
func (c *calm) Status() Status      { return Status{Health: "ok", Version: "x", Grants: len(c.grants)} }
func (c *calm) Reload(context.Context) ([]string, error) {
	return []string{"a note"}, c.fail
}

func readers(group int) Access { return Access{ReadGroup: func() int { return group }} }

func serve(t *testing.T, d Daemon, a Access) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o755)
	path := filepath.Join(dir, "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(path, 0o666)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, d, a) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestEveryCallArrivesAndIsAnswered(t *testing.T) {
	d := &calm{grants: []relay.Grant{bob}}
	c := NewClient(serve(t, d, readers(-1)))
	ctx := t.Context()
	var listed []Grant
	if err := c.List(ctx, func(g Grant) error { listed = append(listed, g); return nil }); err != nil || len(listed) != 1 || listed[0] != FromGrant(bob) {
		t.Errorf("list: %+v, %v", listed, err)
	}
	if g, err := c.Show(ctx, bob.Client); err != nil || g != FromGrant(bob) {
		t.Errorf("show: %+v, %v", g, err)
	}
	if _, err := c.Show(ctx, netip.MustParseAddr("192.0.2.1")); !errors.Is(err, ErrNotFound) {
		t.Errorf("show of a client without a grant: %v, want ErrNotFound", err)
	}
	q := AskRequest{Client: bob.Client, Rcpt: "x@remote.test", Mailer: "smtp", Addr: "x@remote.test", MTA: "postfix", Auth: "bob"}
	if a, err := c.Ask(ctx, q); err != nil || a.Verdict != "pass" || d.asked != q {
		t.Errorf("ask: %+v, %v; the daemon was asked %+v", a, err, d.asked)
	}
	gr := GrantRequest{Client: bob.Client, TTL: time.Hour, User: "u", Note: "n", Force: true}
	if _, err := c.Grant(ctx, gr); err != nil || d.granted != gr {
		t.Errorf("grant: %v; the daemon got %+v", err, d.granted)
	}
	rv := RevokeRequest{Network: netip.MustParsePrefix("198.51.100.0/24"), Block: time.Hour}
	if a, err := c.Revoke(ctx, rv); err != nil || d.revoked != rv || len(a.Revoked) != 1 {
		t.Errorf("revoke: %+v, %v; the daemon got %+v", a, err, d.revoked)
	}
	if s, err := c.Status(ctx); err != nil || s.Health != "ok" || s.Grants != 1 {
		t.Errorf("status: %+v, %v", s, err)
	}
	if a, err := c.Reload(ctx); err != nil || len(a.Notes) != 1 {
		t.Errorf("reload: %+v, %v", a, err)
	}
	d.fail = errors.New("max_grants is reached")
	if _, err := c.Grant(ctx, gr); !errors.Is(err, ErrRejected) || err.Error() != "max_grants is reached" {
		t.Errorf("a rejected grant: %v", err)
	}
}

// listening is a socket on which nobody answers yet.
func listening(t *testing.T) (path string, ln net.Listener) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	return path, ln
}

func TestAClientThatIsTurnedAwayBeforeItAsksHearsWhy(t *testing.T) {
	path, ln := listening(t)
	defer ln.Close()
	away := make(chan struct{})
	go func() {
		c, err := ln.Accept()
		if err == nil {
			io.WriteString(c, goAway)
			c.Close()
		}
		close(away)
	}()
	c := NewClient(path)
	transport := c.http.Transport.(*http.Transport)
	dial := transport.DialContext
	transport.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := dial(ctx, network, address)
		<-away
		return conn, err
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, ErrForbidden) {
		t.Errorf("%v, want ErrForbidden", err)
	}
}

func TestNoDaemonIsUnreachable(t *testing.T) {
	_, err := NewClient(filepath.Join(t.TempDir(), "none")).Status(t.Context())
	if !errors.Is(err, ErrUnreachable) {
		t.Errorf("%v, want ErrUnreachable", err)
	}
}

func TestWhatTheDaemonDoesNotKnowIsRefused(t *testing.T) {
	path := serve(t, &calm{}, readers(-1))
	for _, body := range []string{`{"client":"198.51.100.7","forse":true}`, `{"client":"nobody"}`, `[]`, ``, `{"client":"198.51.100.7"`} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "POST /grant HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		var answer strings.Builder
		buf := make([]byte, 4096)
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		for {
			n, err := conn.Read(buf)
			answer.Write(buf[:n])
			if err != nil {
				break
			}
		}
		conn.Close()
		if !strings.HasPrefix(answer.String(), "HTTP/1.0 400") {
			t.Errorf("%q: %s", body, answer.String())
		}
	}
}

// TestMain lets the test binary be the client of another user.
func TestMain(m *testing.M) {
	if path := os.Getenv("CONTROL_AS_OTHER"); path != "" {
		c := NewClient(path)
		_, read := c.Status(context.Background())
		_, write := c.Grant(context.Background(), GrantRequest{Client: bob.Client})
		watch := false
		ctx, stop := context.WithCancel(context.Background())
		c.Watch(ctx, WatchLogins, func() { watch = true; stop() }, func(*Seen) error { return nil })
		json.NewEncoder(os.Stdout).Encode(map[string]bool{"read": read == nil, "watch": watch, "write": write == nil})
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestOtherUsersMayNothingAndTheGroupMayRead(t *testing.T) {
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("needs root")
		}
		t.Skip("needs root to be another user")
	}
	const nobody, group = 65534, 65500
	for _, tt := range []struct {
		name        string
		gid         uint32
		groups      []uint32
		access      Access
		read, write bool
	}{
		{"another user, no control_group", nobody, nil, readers(-1), false, false},
		{"another user, not in control_group", nobody, nil, readers(group), false, false},
		{"a member of control_group", group, nil, readers(group), true, false},
		{"group root is not user root", 0, nil, readers(-1), false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &calm{}
			path := serve(t, d, tt.access)
			self := filepath.Join(filepath.Dir(path), "client")
			binary, err := os.ReadFile("/proc/self/exe")
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(self, binary, 0o755); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(self)
			cmd.Env = []string{"CONTROL_AS_OTHER=" + path}
			cmd.Dir = "/"
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: tt.gid, Groups: tt.groups}}
			out, err := cmd.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			var may map[string]bool
			if err := json.Unmarshal(out, &may); err != nil {
				t.Fatal(err)
			}
			if may["read"] != tt.read || may["watch"] != tt.read || may["write"] != tt.write {
				t.Errorf("read %v, watch %v, want %v; write %v, want %v", may["read"], may["watch"], tt.read, may["write"], tt.write)
			}
			if d.granted.Client.IsValid() {
				t.Error("the daemon was reached")
			}
		})
	}
}

// A client that asks for everything and never reads is cut off; it costs the
// others nothing meanwhile.
func TestClientThatNeverReadsHoldsUpNobody(t *testing.T) {
	many := make([]relay.Grant, 20000)
	for i := range many {
		many[i] = bob
	}
	path := serve(t, &calm{grants: many}, readers(-1))
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /list HTTP/1.0\r\n\r\n")
	n, much := 0, 0
	client := NewClient(path)
	client.Much = func() { much++ }
	if err := client.List(t.Context(), func(Grant) error { n++; return nil }); err != nil || n != len(many) {
		t.Errorf("another client read %d grants, %v", n, err)
	}
	if much != 1 {
		t.Errorf("he was told %d times that it is much", much)
	}
}

// More lists than that are not begun, and the one who asks hears why.
func TestListsAtOnceAreBounded(t *testing.T) {
	path := serve(t, &calm{grants: slices.Repeat([]relay.Grant{bob}, 20000)}, readers(-1))
	for range maxLists {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		fmt.Fprint(conn, "GET /list HTTP/1.0\r\n\r\n")
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil { // it has begun, and ends when its 7 MB are read
			t.Fatal(err)
		}
	}
	err := NewClient(path).List(t.Context(), func(Grant) error { return nil })
	if err == nil || !strings.Contains(err.Error(), errLists.Error()) {
		t.Errorf("one list more: %v, want %q", err, errLists)
	}
}

// The daemon gives grants as they come; whoever asked reads them in order.
func TestAListIsInOrderOfExpiryThenOfAddress(t *testing.T) {
	of := func(client string, after time.Duration) relay.Grant {
		return relay.Grant{Client: netip.MustParseAddr(client), Prefix: 32, Login: bob.Login, Expires: bob.Expires.Add(after),
			User: `"expires":"2000-01-01T00:00:00Z" \`, Note: `","client":"192.0.2.99`}
	}
	want := []relay.Grant{
		of("192.0.2.200", -time.Nanosecond), of("9.0.0.1", 0), of("10.0.0.1", 0), of("192.0.2.1", 0), of("2001:db8::1", 0),
		of("192.0.2.7", time.Nanosecond), of("192.0.2.6", 100*time.Millisecond), of("192.0.2.5", time.Second),
	}
	for range 20 {
		mixed := slices.Clone(want)
		rand.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		i := 0
		err := NewClient(serve(t, &calm{grants: mixed}, readers(-1))).List(t.Context(), func(g Grant) error {
			if i >= len(want) || g != FromGrant(want[i]) {
				t.Errorf("grant %d is %+v", i, g)
			}
			i++
			return nil
		})
		if err != nil || i != len(want) {
			t.Errorf("%d grants, %v", i, err)
		}
	}
}

// endless is a daemon with more grants than can be listed. Its lines fill the
// buffer without a rest, so that what has been written ends with a line.
type endless struct{ calm }

func (*endless) Grants(ctx context.Context) iter.Seq[relay.Grant] {
	return func(yield func(relay.Grant) bool) {
		g := bob
		g.Note = "x"
		g.Note += strings.Repeat("x", 511-len(new(speller).appendGrant(nil, &g)))
		for ctx.Err() == nil && yield(g) {
		}
	}
}

// A list that a stop cuts short must not pass for the whole of it: who is not in
// it would seem to have no grant.
func TestAListThatAStopCutsShortIsAnError(t *testing.T) {
	path, ln := listening(t)
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() {
		served <- Serve(ctx, ln, &endless{}, Access{ReadGroup: func() int { return -1 }, Log: log.New(io.Discard, "", 0)})
	}()
	client := NewClient(path)
	client.Much = stop // thousands of lines have come
	n := 0
	if err := client.List(t.Context(), func(Grant) error { n++; return nil }); !errors.Is(err, ErrUnreachable) || n != 0 {
		t.Errorf("%d grants, error %v; want none and that it is not reachable any more", n, err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// It is not the daemon that has gone.
func TestAListThatItsReaderGivesUpDoesNotSayThatTheDaemonIsUnreachable(t *testing.T) {
	client := NewClient(serve(t, &endless{}, Access{ReadGroup: func() int { return -1 }, Log: log.New(io.Discard, "", 0)}))
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	client.Much = stop
	err := client.List(ctx, func(Grant) error { t.Error("a grant of half a list"); return nil })
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "the list broke off") {
		t.Error(err)
	}
}

// barren is a daemon all of whose grants have ended: there is nothing to list for
// as long as somebody wants it.
type barren struct {
	calm
	begun, ended chan struct{}
}

func (b *barren) Grants(ctx context.Context) iter.Seq[relay.Grant] {
	return func(func(relay.Grant) bool) {
		b.begun <- struct{}{}
		<-ctx.Done()
		b.ended <- struct{}{}
	}
}

func newBarren() *barren { return &barren{begun: make(chan struct{}), ended: make(chan struct{})} }

// A list of which nothing comes ends with who asked for it, with the daemon, and
// with the client's patience; and never looks like the whole of it.
func TestAListOfNothingEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		patience    time.Duration
		end         func(gone, stop func())
		want        string
		unreachable bool
	}{
		"the client goes":      {time.Hour, func(gone, _ func()) { gone() }, "canceled", false},
		"the daemon stops":     {time.Hour, func(_, stop func()) { stop() }, "any more: the list broke off: ", true},
		"the client is fed up": {20 * time.Millisecond, func(_, _ func()) {}, "any more: the list broke off: nothing came for 20ms", true},
	} {
		path, ln := listening(t)
		d := newBarren()
		ctx, stop := context.WithCancel(t.Context())
		served, listed := make(chan error, 1), make(chan error, 1)
		go func() {
			served <- Serve(ctx, ln, d, Access{ReadGroup: func() int { return -1 }, Log: log.New(io.Discard, "", 0)})
		}()
		asking, gone := context.WithCancel(t.Context())
		client := NewClient(path)
		client.patience = tt.patience
		client.transport.ResponseHeaderTimeout = 10 * time.Second
		go func() { listed <- client.List(asking, func(Grant) error { return nil }) }()
		<-d.begun
		tt.end(gone, stop)
		began := time.Now()
		<-d.ended
		if took := time.Since(began); took > drainTime*9/10 { // all connections end after drainTime
			t.Errorf("%s: the daemon listed on for %v", name, took)
		}
		if err := <-listed; err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrUnreachable) != tt.unreachable {
			t.Errorf("%s: %v, want %q; unreachable: %v", name, err, tt.want, tt.unreachable)
		}
		stop()
		gone()
		if err := <-served; err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The daemon has begun to list, and then nothing more comes.
func TestAListThatFallsSilentIsAnError(t *testing.T) {
	path := serve(t, &falters{}, readers(-1))
	client := NewClient(path)
	client.patience = 30 * time.Millisecond
	err := client.List(t.Context(), func(Grant) error { t.Error("a grant of half a list"); return nil })
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "the list broke off: nothing came for 30ms") {
		t.Error(err)
	}
}

// falters is a daemon that lists much and then nothing more.
type falters struct{ calm }

func (*falters) Grants(ctx context.Context) iter.Seq[relay.Grant] {
	return func(yield func(relay.Grant) bool) {
		for range 1000 {
			yield(bob)
		}
		<-ctx.Done()
	}
}

func TestADaemonThatDoesNotAnswerIsUnreachable(t *testing.T) {
	d := &busy{begun: make(chan struct{}), finish: make(chan struct{})}
	defer close(d.finish)
	client := NewClient(serve(t, d, readers(-1)))
	client.transport.ResponseHeaderTimeout = 30 * time.Millisecond
	_, err := client.Revoke(t.Context(), RevokeRequest{All: true})
	if want := "control socket " + client.path + ": daemon not reachable: it took the connection and has not answered in 30ms; it hangs or is overloaded, " +
		"and what was asked may still be done"; !errors.Is(err, ErrUnreachable) || err.Error() != want {
		t.Errorf("%v, want %q", err, want)
	}
}

func TestWhoGivesUpIsNotToldThatTheDaemonIsUnreachable(t *testing.T) {
	d := &busy{begun: make(chan struct{}), finish: make(chan struct{})}
	defer close(d.finish)
	client := NewClient(serve(t, d, readers(-1)))
	ctx, stop := context.WithCancel(t.Context())
	context.AfterFunc(t.Context(), stop)
	go func() {
		<-d.begun
		stop()
	}()
	_, err := client.Revoke(ctx, RevokeRequest{All: true})
	if !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "given up before the daemon answered") {
		t.Error(err)
	}
}

// net/http's words for what it was about are of no use to an admin.
func TestErrorsNameNoRequestOfHTTP(t *testing.T) {
	path, ln := listening(t)
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1024))
			c.Close()
		}
	}()
	for _, path := range []string{path, path + "none"} {
		_, err := NewClient(path).Status(t.Context())
		if !errors.Is(err, ErrUnreachable) || strings.Contains(err.Error(), "http") || strings.Contains(err.Error(), "Get") {
			t.Error(err)
		}
	}
}

// Members of control_group can't keep root from seeing a list.
func TestAttackReadersListsLeaveOnePlaceToRoot(t *testing.T) {
	s := newServer(t.Context(), &calm{}, readers(readGroup), usual)
	for range 2 {
		var ends []func()
		for range maxLists - 1 {
			end, ok := s.lists.take(!s.mayWrite(reader))
			if !ok {
				t.Fatal("no place for a reader")
			}
			ends = append(ends, end)
		}
		if _, ok := s.lists.take(!s.mayWrite(reader)); ok {
			t.Error("the last place for a reader")
		}
		end, ok := s.lists.take(!s.mayWrite(root))
		if !ok {
			t.Fatal("no place for root")
		}
		if _, ok := s.lists.take(!s.mayWrite(root)); ok {
			t.Error("more lists than may be")
		}
		for _, end := range append(ends, end) {
			end()
		}
	}
	if s.lists.all+s.lists.readers != 0 {
		t.Errorf("%d and %d places are still taken", s.lists.all, s.lists.readers)
	}
}

// Nor by asking again and again: one who is turned away, or whose list ends, holds
// root's place not for a moment.
func TestAttackReadersListsThatBeginAndEndNeverTakeRootsPlace(t *testing.T) {
	s := newServer(t.Context(), &calm{}, readers(readGroup), usual)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	defer asking.Wait()
	defer close(stop)
	for range maxLists + 1 {
		asking.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if end, ok := s.lists.take(!s.mayWrite(reader)); ok {
					runtime.Gosched()
					end()
				}
				runtime.Gosched()
			}
		})
	}
	refused := 0
	for range 50_000 {
		if end, ok := s.lists.take(!s.mayWrite(root)); ok {
			end()
		} else {
			refused++
		}
	}
	if refused > 0 {
		t.Errorf("root was refused %d times", refused)
	}
}

// Who may only read, and who may do all, for a server of readers(readGroup).
const readGroup = 65500

var reader, root = peer{uid: uint32(os.Geteuid()) + 1, gid: readGroup, ok: true}, peer{ok: true}

// serveBoth is serve for root and for a reader, who connects by asReader: all
// tests run as one user, so a reader is known by the address he connects from.
func serveBoth(t *testing.T, d Daemon) (path string, asReader, asRoot func() net.Conn) {
	t.Helper()
	path, ln := listening(t)
	ctx, stop := context.WithCancel(t.Context())
	access := readers(readGroup)
	access.Log = log.New(io.Discard, "", 0)
	s := newServer(ctx, d, access, usual)
	mark := "@reader" + path
	s.peerOf = func(c net.Conn) peer {
		if strings.HasPrefix(c.RemoteAddr().String(), mark) {
			return reader
		}
		return root
	}
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, ln) }()
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	dial := func(from net.Addr) net.Conn {
		t.Helper()
		c, err := (&net.Dialer{LocalAddr: from}).Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	n := 0
	asReader = func() net.Conn {
		n++
		return dial(&net.UnixAddr{Name: fmt.Sprint(mark, n), Net: "unix"})
	}
	return path, asReader, func() net.Conn { return dial(nil) }
}

// answerTo asks for a path on a connection, which stays open, and gives the first
// line of the answer.
func answerTo(t *testing.T, c net.Conn, path string) string {
	t.Helper()
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path) // where it was hung up on, he has still been told
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(line)
}

// Members of control_group can't keep root from revoking, by connections that
// they keep open or by any number of them that say nothing.
func TestAttackReadersConnectionsDoNotKeepRootOut(t *testing.T) {
	path, asReader, _ := serveBoth(t, &calm{})
	var open []net.Conn
	for range maxReadersConns {
		c := asReader()
		if got := answerTo(t, c, "/nothing"); got != "HTTP/1.1 404 Not Found" {
			t.Fatalf("a reader heard %q", got)
		}
		open = append(open, c)
	}
	for range 2 * maxConns {
		asReader()
	}
	ctx, stop := context.WithTimeout(t.Context(), 4*time.Second) // silent ones are hung up on after 5
	defer stop()
	if _, err := NewClient(path).Revoke(ctx, RevokeRequest{All: true}); err != nil {
		t.Errorf("root could not revoke: %v", err)
	}
	if got := answerTo(t, asReader(), "/nothing"); got != "HTTP/1.1 503 Service Unavailable" {
		t.Errorf("one reader more heard %q", got)
	}
	open[0].Close()
	until(t, "the place of one who has gone is another's", func() bool { return answerTo(t, asReader(), "/nothing") == "HTTP/1.1 404 Not Found" })
}

func TestAttackReadersWhoseListsNeverEndLeaveOnePlaceToRoot(t *testing.T) {
	_, asReader, asRoot := serveBoth(t, &barren{begun: make(chan struct{}, maxLists), ended: make(chan struct{}, maxLists)})
	for range maxLists - 1 {
		if got := answerTo(t, asReader(), "/list"); got != "HTTP/1.1 200 OK" {
			t.Fatalf("a reader heard %q", got)
		}
	}
	if got := answerTo(t, asReader(), "/list"); got != "HTTP/1.1 503 Service Unavailable" {
		t.Errorf("one reader more heard %q", got)
	}
	if got := answerTo(t, asRoot(), "/list"); got != "HTTP/1.1 200 OK" {
		t.Errorf("root heard %q", got)
	}
}

func TestAttackReadersWatchersLeavePlacesToRoot(t *testing.T) {
	if maxReadersWatchers >= MaxWatchers {
		t.Fatal("no place is kept for root")
	}
	path, asReader, _ := serveBoth(t, &calm{})
	for range maxReadersWatchers {
		if got := answerTo(t, asReader(), "/watch"); got != "HTTP/1.1 200 OK" {
			t.Fatalf("a reader heard %q", got)
		}
	}
	if got := answerTo(t, asReader(), "/watch"); got != "HTTP/1.1 503 Service Unavailable" {
		t.Errorf("one reader more heard %q", got)
	}
	for range MaxWatchers - maxReadersWatchers {
		watching(t, t.Context(), path, 0)
	}
}

// What a reader is told who was not let in.
func TestAReaderTooManyHearsWhy(t *testing.T) {
	s := newServer(t.Context(), &calm{}, readers(readGroup), usual)
	for range maxReadersConns {
		if leave, _ := s.enter(reader); leave == nil {
			t.Fatal("no place for a reader")
		}
	}
	leave, refusal := s.enter(reader)
	if leave != nil {
		t.Fatal("a reader too many was let in")
	}
	path, ln := listening(t)
	defer ln.Close()
	go func() {
		if c, err := ln.Accept(); err == nil {
			io.WriteString(c, refusal)
			c.Close()
		}
	}()
	if _, err := NewClient(path).Status(t.Context()); !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), "members of control_group have all the connections") {
		t.Error(err)
	}
}

// busy is a daemon whose revocations take a while.
type busy struct {
	calm
	begun, finish chan struct{}
}

func (b *busy) Revoke(ctx context.Context, _ RevokeRequest) ([]relay.Grant, error) {
	close(b.begun)
	<-b.finish
	return nil, ctx.Err()
}

func TestCommandThatHasBegunIsAnsweredWhenTheDaemonStops(t *testing.T) {
	dir, err := os.MkdirTemp("", "control")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	d := &busy{begun: make(chan struct{}), finish: make(chan struct{})}
	ctx, stop := context.WithCancel(t.Context())
	served, answered := make(chan error, 1), make(chan error, 1)
	go func() { served <- Serve(ctx, ln, d, readers(-1)) }()
	go func() {
		_, err := NewClient(filepath.Join(dir, "s")).Revoke(t.Context(), RevokeRequest{All: true})
		answered <- err
	}()
	<-d.begun
	stop()
	select {
	case err := <-served:
		t.Errorf("Serve returned with a command running: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(d.finish)
	if err := <-answered; err != nil {
		t.Errorf("the command was answered %v", err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func TestUnknownIsLeftOutOfJSON(t *testing.T) {
	b, err := json.Marshal(FromGrant(relay.Grant{Client: bob.Client, Prefix: 32, Login: bob.Login, Expires: bob.Expires}))
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"client":"198.51.100.7","prefix":32,"login":"2026-11-22T12:00:00Z","expires":"2026-11-22T12:30:00Z"}`; string(b) != want {
		t.Errorf("%s, want %s", b, want)
	}
}

func TestAListThatWouldSpeakToATerminalIsRefused(t *testing.T) {
	const good = `{"client":"192.0.2.1","prefix":32,"login":"2026-11-22T12:00:00Z","expires":"2026-11-22T12:30:00Z"}` + "\n"
	for name, body := range map[string]string{
		"an escape":                       good + strings.Replace(good, `"prefix"`, "\"user\":\"\x1b]0;owned\x07\",\"prefix\"", 1),
		"a carriage return":               good + strings.Replace(good, `"prefix"`, "\"user\":\"a\r\",\"prefix\"", 1),
		"an escape, a long line":          good + strings.Replace(good, `"prefix"`, "\"user\":\""+strings.Repeat("a", 100<<10)+"\x1b[2J\",\"prefix\"", 1),
		"a line without an end":           good + strings.Repeat("a", 2<<20),
		"no client":                       good + strings.Replace(good, "192.0.2.1", "mallory", 1),
		"no end":                          good + strings.Replace(good, "2026-11-22T12:30:00Z", "never", 1),
		"an escape spelled out as a zone": good + strings.Replace(good, "192.0.2.1", `fe80::1%\u001b]0;owned\u0007`, 1),
		"half a line":                     good + good[:40],
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			ln, err := net.Listen("unix", path)
			if err != nil {
				t.Fatal(err)
			}
			impostor := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) })}
			go impostor.Serve(ln)
			defer impostor.Close()
			n := 0
			err = NewClient(path).ListJSON(t.Context(), func([]byte) error { n++; return nil })
			if n != 0 || err == nil || errors.Is(err, ErrUnreachable) != (name == "half a line") {
				t.Errorf("%d lines, error %v; want none and an error", n, err)
			}
		})
	}
}
