package push

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"strings"
	"sync"
	"time"

	"popgate/internal/listen"
	"popgate/internal/relay"
	"popgate/watcher"
)

// Script takes logins that scripts tell with `popgate login`, on a unix socket
// of its own. A connection carries one login, a JSON object in one line, and is
// answered in one line before the ledger looks at it: whoever may write here can
// have any address granted, and learns nothing.
//
// Who may write is for the kernel to say, by the socket's mode and group. What
// is told while nobody listens is lost, so there is a Gap that says Lost
// whenever it begins to listen.
type Script struct{ ln net.Listener }

// NewScript makes a source of a listener, which is closed when the source's
// Records end.
func NewScript(ln net.Listener) *Script { return &Script{ln} }

// Name is the source's name unless the configuration gives it another.
func (s *Script) Name() string { return "push:" + s.ln.Addr().String() }

// Type is "push".
func (s *Script) Type() string { return "push" }

const (
	maxTold      = 4 << 10
	maxScripts   = 64 // at once
	toldIn       = 2 * time.Second
	answerTaken  = "taken"
	answerNo     = "no: "
	answerLength = 1 << 10
)

// Records listens until ctx ends. Neither a position nor a time to begin with
// means anything here.
func (s *Script) Records(ctx context.Context, _ relay.Position, _ time.Time) iter.Seq[watcher.Record] {
	return func(yield func(watcher.Record) bool) {
		post := newPost()
		failed := make(chan error)
		ctx, stop := context.WithCancel(ctx)
		var room sync.WaitGroup
		defer room.Wait()
		defer s.ln.Close()
		defer stop()
		context.AfterFunc(ctx, func() { s.ln.Close() })
		room.Go(func() { s.accept(ctx, post, failed) })
		h := handing{post: post, yield: yield}
		h.state(nil)
		tick := time.NewTicker(tellTick)
		defer tick.Stop()
		for !h.stopped {
			select {
			case <-ctx.Done():
				return
			case err := <-failed:
				h.state(err)
			case r := <-post.queue:
				h.tell(r)
			case <-post.lost:
				h.lost()
			case <-tick.C:
				h.tick()
			}
		}
	}
}

// accept takes connections until ctx ends. A listener in trouble, for want of
// descriptors say, is asked again.
func (s *Script) accept(ctx context.Context, post *post, failed chan<- error) {
	var visits sync.WaitGroup
	defer visits.Wait()
	door := listen.NewDoorman(s.ln, maxScripts, func(net.Conn) bool { return true }, post.miss)
	var trouble error
	for {
		c, err := door.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if c != nil {
				c.Close()
			}
			return
		}
		if (err == nil) != (trouble == nil) {
			select {
			case failed <- err:
				trouble = err
			case <-ctx.Done():
			}
		}
		if err != nil {
			select {
			case <-ctx.Done():
			case <-time.After(tellTick):
			}
			continue
		}
		visits.Go(func() { serveScript(c, post) })
	}
}

// serveScript takes one login from one connection.
func serveScript(c net.Conn, post *post) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(toldIn))
	line, err := bufio.NewReaderSize(c, maxTold).ReadSlice('\n')
	if len(line) == 0 {
		return // somebody looked whether anybody is there
	}
	if err != nil {
		err = fmt.Errorf("no line of at most %d bytes", maxTold)
	}
	var ev relay.Event
	var sent time.Time
	if err == nil {
		ev, sent, err = readTold(line)
	}
	if err != nil {
		post.refuse(fmt.Errorf("popgate login: %w", err))
		fmt.Fprintln(c, answerNo+err.Error())
		return
	}
	if !post.put(ev, sent) {
		fmt.Fprintln(c, answerNo+"too many logins at once")
		return
	}
	fmt.Fprintln(c, answerTaken)
}

// readTold reads one login, and when it was told.
func readTold(line []byte) (ev relay.Event, sent time.Time, err error) {
	o, err := readObject(line)
	if err != nil {
		return relay.Event{}, time.Time{}, err
	}
	t := told{client: o.word("client"), user: o.word("user"), service: o.word("service")}
	at := o.word("time")
	known := 4
	if _, ok := o.values["session"]; ok {
		t.session = o.word("session")
		known++
	}
	switch {
	case o.err != nil:
		return relay.Event{}, time.Time{}, o.err
	case len(o.values) != known:
		return relay.Event{}, time.Time{}, errors.New("it holds more than client, user, service, session and time")
	}
	if sent, err = time.Parse(time.RFC3339, at); err != nil {
		return relay.Event{}, time.Time{}, errors.New("time is none of RFC 3339")
	}
	ev, err = t.event()
	return ev, sent, err
}

// Login is a login for Tell.
type Login struct {
	Client  string `json:"client"`
	User    string `json:"user"`
	Service string `json:"service"`
	Session string `json:"session,omitempty"`
}

// Check says what is wrong with a login, if anything.
func (l *Login) Check() error {
	t := told{client: l.Client, user: l.User, service: l.Service, session: l.Session}
	_, err := t.event()
	return err
}

// ErrNobodyListens is returned by Tell when no daemon takes the login there.
var ErrNobodyListens = errors.New("daemon not reachable")

// Tell tells the daemon that listens on the socket at path of a login. It takes
// at most 2 seconds.
func (l *Login) Tell(ctx context.Context, path string) error {
	ctx, stop := context.WithTimeout(ctx, toldIn)
	defer stop()
	c, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return unheard(path, err)
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	c.SetDeadline(end)
	line, err := json.Marshal(struct {
		*Login
		Time time.Time `json:"time"`
	}{l, time.Now()})
	if err != nil {
		return err
	}
	// A daemon that is too busy hangs up at once, but may have said why.
	_, writing := c.Write(append(line, '\n'))
	text, err := io.ReadAll(io.LimitReader(c, answerLength))
	answer := strings.TrimSuffix(string(text), "\n")
	no, refused := strings.CutPrefix(answer, answerNo)
	switch {
	case answer == answerTaken:
		return nil
	case refused:
		return errors.New(no)
	case err != nil || writing != nil:
		return unheard(path, cmp.Or(err, writing))
	}
	return unheard(path, errors.New("it hung up; is it too busy?"))
}

// unheard says why a login was told to nobody.
func unheard(path string, err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	return fmt.Errorf("push socket %s: %w: %w", path, ErrNobodyListens, err)
}
