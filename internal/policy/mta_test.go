package policy

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"popgate/contrib"
	"popgate/internal/lab"
	"popgate/internal/relay"
)

// at makes the server listen where the MTA looks for it, for all users of the
// test's private host. What is returned stops it.
func at(t *testing.T, path string, s *Server) (stop func()) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	}
}

// rcpt gives the MTA's reply code to one recipient.
func rcpt(t *testing.T, h *lab.Host, client, to string) int {
	t.Helper()
	c := h.SMTP(t, client)
	defer c.Close()
	c.Must(250, "EHLO copier.test")
	c.Must(250, "MAIL FROM:<scan@sender.test>")
	return c.Cmd("RCPT TO:<" + to + ">").Code
}

// outcome is what becomes of a recipient.
type outcome string

const (
	taken    outcome = "taken"
	deferred outcome = "put off"
	refused  outcome = "refused"
	notTaken outcome = "not taken" // put off or refused
)

func (o outcome) is(code int) bool {
	switch o {
	case taken:
		return code == 250
	case deferred:
		return code >= 400 && code < 500
	case refused:
		return code >= 500
	default:
		return code >= 400
	}
}

// closed is what a closed door makes of recipients while popgate runs, and while
// it doesn't.
var closed = []struct {
	client, to string
	up, down   outcome
}{
	{bob, "x@remote.test", taken, deferred},
	{bob6, "x@remote.test", taken, deferred},
	{bob, "alice@local.test", taken, taken},
	{eve, "alice@local.test", taken, taken},
	{eve, "alice@virtual.test", taken, taken},
	{maybe, "alice@local.test", taken, taken},
	{maybe, "x@remote.test", deferred, deferred},
	{eve, "x@remote.test", notTaken, notTaken},
	{eve, "x%remote.test@local.test", notTaken, notTaken},
	{eve, `"x@remote.test"@local.test`, notTaken, notTaken},
	{eve, "@local.test:x@remote.test", notTaken, notTaken},
	{eve, "remote.test!x", notTaken, notTaken},
}

// hold tests a closed door with popgate up, down, and up again. unable is what the
// MTA makes of a client of which it can't tell.
func hold(t *testing.T, h *lab.Host, path string, unable outcome, serve func() *Server) {
	t.Helper()
	for _, up := range []bool{true, false, true} {
		stop := func() {}
		if up {
			stop = at(t, path, serve())
		}
		for _, e := range closed {
			want := e.up
			if !up {
				want = e.down
			}
			if want == deferred {
				want = unable
			}
			if got := rcpt(t, h, e.client, e.to); !want.is(got) {
				t.Errorf("popgate up %v: %s to %s: %d, want %s", up, e.client, e.to, got, want)
			}
		}
		stop()
	}
}

func TestPostfixHoldsTheDoorShut(t *testing.T) {
	for _, tt := range []struct {
		name, lines string
		door        func(Judge, Options) *Server
		socket      string
	}{
		{"policy service", contrib.PostfixPolicy, NewDelegation, "policy.sock"},
		{"socket map", contrib.PostfixSocketMap, NewSocketMap, "socketmap.sock"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab.Isolated(t, func(t *testing.T, h *lab.Host) {
				h.Postfix(t, lab.PostfixOptions{Main: []string{tt.lines}})
				hold(t, h, "/var/spool/postfix/popgate/"+tt.socket, deferred, func() *Server { return tt.door(&witness{}, Options{}) })
			})
		})
	}
}

func TestSendmailHoldsTheDoorShut(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options lab.SendmailOptions
		unable  outcome
	}{
		{"Local_check_rcpt", lab.SendmailOptions{Tail: []string{contrib.SendmailSocketMap}}, deferred},
		{"FEATURE(drac) can't put off", lab.SendmailOptions{M4: []string{contrib.SendmailDrac}}, notTaken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			lab.Isolated(t, func(t *testing.T, h *lab.Host) {
				h.Sendmail(t, tt.options)
				hold(t, h, sendmailSocket, tt.unable, func() *Server { return NewSocketMap(&witness{}, Options{}) })
			})
		})
	}
}

const sendmailSocket = "/run/popgate/socketmap.sock"

// What contrib and the package comment warn of is true: with -T every stranger
// relays while popgate is down or can't tell, and no answer of ours helps but
// "not found".
func TestDracWithTemporaryFailuresIsAnOpenRelay(t *testing.T) {
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		h.Sendmail(t, lab.SendmailOptions{M4: []string{strings.Replace(contrib.SendmailDrac, "socket ", "socket -T<TMPF> ", 1)}})
		if got := rcpt(t, h, eve, "x@remote.test"); got != 250 {
			t.Errorf("popgate down: a stranger got %d; the trap is gone, take the warnings out", got)
		}
		defer at(t, sendmailSocket, NewSocketMap(&witness{}, Options{}))()
		if got := rcpt(t, h, eve, "x@remote.test"); !notTaken.is(got) {
			t.Errorf("popgate up: a stranger got %d", got)
		}
		if got := rcpt(t, h, maybe, "x@remote.test"); got != 250 {
			t.Errorf("popgate can't tell: %d; the trap is gone, take the warnings out", got)
		}
	})
}

// A daemon that takes connections and answers nothing, as a stopped process does.
func TestPostfixPutsOffWhilePopgateIsFrozen(t *testing.T) {
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		h.Postfix(t, lab.PostfixOptions{Main: []string{strings.Replace(contrib.PostfixPolicy, "timeout=10s", "timeout=1s", 1)}})
		frozen := &witness{answer: func(ctx context.Context, _ *relay.Query) relay.Decision {
			<-ctx.Done()
			return relay.Decision{}
		}}
		defer at(t, "/var/spool/postfix/popgate/policy.sock", NewDelegation(frozen, Options{}))()
		for _, client := range []string{bob, eve} {
			if got := rcpt(t, h, client, "x@remote.test"); got != 451 {
				t.Errorf("%s to a remote recipient: %d, want 451", client, got)
			}
			if got := rcpt(t, h, client, "alice@local.test"); got != 250 {
				t.Errorf("%s to a local recipient: %d, want 250", client, got)
			}
		}
	})
}
