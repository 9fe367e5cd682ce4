package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"syscall"
	"time"
)

// ErrUnreachable is returned when no daemon answers on the socket.
var ErrUnreachable = errors.New("daemon not reachable")

// ErrNotFound is returned when what was asked for is not there.
var ErrNotFound = errors.New("not found")

// ErrForbidden is returned when this user may not do it.
var ErrForbidden = errors.New("forbidden")

// ErrRejected is returned when the daemon understood and would not do it; its
// text says why.
var ErrRejected = errors.New("rejected")

// Client talks to the daemon's control socket.
type Client struct {
	// Much is called when what has been asked for proves to be much work for
	// this process. Nil: nothing is.
	Much func()

	path      string
	http      http.Client
	transport *http.Transport
	patience  time.Duration // with a list of which nothing comes
}

const (
	// The daemon gives up an answer after writeTimeout.
	answerTimeout = writeTimeout + 10*time.Second
	// patience is more than a list among MTAs takes to fill the daemon's buffer,
	// though it pass over grants that have ended.
	patience = 2 * time.Minute
)

// NewClient makes a client of the control socket at the path.
func NewClient(path string) *Client {
	c := &Client{path: path, patience: patience}
	c.transport = &http.Transport{
		DisableKeepAlives:     true,
		ReadBufferSize:        64 << 10, // a list may be long
		ResponseHeaderTimeout: answerTimeout,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "unix", path)
			if err != nil {
				return nil, err
			}
			return newHasty(c), nil
		},
	}
	c.http.Transport = c.transport
	return c
}

// hasty is a connection whose other end may answer and hang up before it has
// read: the doorman does so to users who may not come in. What he said is heard
// when the question has been put, though that is written to nobody.
type hasty struct {
	net.Conn
	asked chan struct{}
	ask   func() // closes asked
}

func newHasty(c net.Conn) *hasty {
	asked := make(chan struct{})
	return &hasty{c, asked, sync.OnceFunc(func() { close(asked) })}
}

func (h *hasty) Read(p []byte) (int, error) {
	<-h.asked
	return h.Conn.Read(p)
}

func (h *hasty) Write(p []byte) (int, error) {
	defer h.ask()
	n, err := h.Conn.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		return len(p), nil
	}
	return n, err
}

func (h *hasty) Close() error {
	defer h.ask()
	return h.Conn.Close()
}

// heard tells whenever something has been read.
type heard struct {
	io.Reader
	something func()
}

func (h *heard) Read(p []byte) (int, error) {
	n, err := h.Reader.Read(p)
	if n > 0 {
		h.something()
	}
	return n, err
}

// Ask asks what the daemon would answer now.
func (c *Client) Ask(ctx context.Context, q AskRequest) (a AskAnswer, err error) {
	return a, c.call(ctx, "POST", "/ask", q, &a)
}

// Show gives the client's grant, or ErrNotFound.
func (c *Client) Show(ctx context.Context, client netip.Addr) (g Grant, err error) {
	return g, c.call(ctx, "GET", "/show?client="+url.QueryEscape(client.String()), nil, &g)
}

// Grant makes an operator's grant.
func (c *Client) Grant(ctx context.Context, q GrantRequest) (g Grant, err error) {
	return g, c.call(ctx, "POST", "/grant", q, &g)
}

// Revoke takes grants away.
func (c *Client) Revoke(ctx context.Context, q RevokeRequest) (a RevokeAnswer, err error) {
	return a, c.call(ctx, "POST", "/revoke", q, &a)
}

// Status asks for the daemon's health.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.call(ctx, "GET", "/status", nil, &s)
}

// Reload makes the daemon read its configuration anew and waits for the
// verdict.
func (c *Client) Reload(ctx context.Context) (a ReloadAnswer, err error) {
	return a, c.call(ctx, "POST", "/reload", nil, &a)
}

// List calls each for every grant, next to expire first, as ListJSON does.
func (c *Client) List(ctx context.Context, each func(Grant) error) error {
	return c.ListJSON(ctx, func(line []byte) error {
		var g Grant
		if err := json.Unmarshal(line, &g); err != nil {
			return fmt.Errorf("control socket %s: %w", c.path, err)
		}
		return each(g)
	})
}

// ListJSON calls each for every grant, next to expire first, with its line of JSON
// as the daemon has spelled it. All of them have been read by then, and take some
// 400 bytes each; a list that broke off, which is ErrUnreachable unless ctx ended,
// or holds what is no grant, is an error before the first.
func (c *Client) ListJSON(ctx context.Context, each func(line []byte) error) error {
	reading, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	resp, err := c.send(reading, "GET", "/list", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	silent := time.AfterFunc(c.patience, func() { cancel(fmt.Errorf("nothing came for %v", c.patience)) })
	defer silent.Stop()
	all, err := readList(&heard{resp.Body, func() { silent.Reset(c.patience) }}, c.Much)
	if err != nil && !errors.Is(err, errNoList) {
		if reading.Err() != nil {
			err = context.Cause(reading)
		}
		err = fmt.Errorf("the list broke off: %w", err)
		if ctx.Err() == nil {
			err = fmt.Errorf("%w any more: %w", ErrUnreachable, err)
		}
	}
	if err != nil {
		return fmt.Errorf("control socket %s: %w", c.path, err)
	}
	for i := range all {
		if err := each(all[i].line); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) call(ctx context.Context, method, path string, in, out any) error {
	resp, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(out); err != nil {
		return fmt.Errorf("control socket %s: answer not understood, is the daemon of another version? %w", c.path, err)
	}
	return nil
}

func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://popgate"+path, body)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, c.unanswered(ctx, err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var e errorAnswer
	if json.NewDecoder(io.LimitReader(resp.Body, maxBody)).Decode(&e) != nil || e.Error == "" {
		e.Error = resp.Status
	}
	kind := ErrRejected
	switch resp.StatusCode {
	case http.StatusNotFound:
		kind = ErrNotFound
	case http.StatusForbidden:
		kind = ErrForbidden
	}
	return nil, &told{kind, e.Error}
}

// unanswered says why no answer came, without the words of net/http, which knows
// of no daemon.
func (c *Client) unanswered(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("control socket %s: given up before the daemon answered, and what was asked may still be done: %w", c.path, context.Cause(ctx))
	}
	if asked, ok := errors.AsType[*url.Error](err); ok {
		err = asked.Err
	}
	if network, ok := errors.AsType[*net.OpError](err); ok {
		err = network.Err
	} else if wait, ok := errors.AsType[net.Error](err); ok && wait.Timeout() {
		return fmt.Errorf("control socket %s: %w: it took the connection and has not answered in %v; it hangs or is overloaded, and what was asked may still be done",
			c.path, ErrUnreachable, c.transport.ResponseHeaderTimeout)
	}
	return fmt.Errorf("control socket %s: %w: %w; is popgate serve running, and may this user connect?", c.path, ErrUnreachable, err)
}

// told is the daemon's own error text, with the kind for errors.Is.
type told struct {
	kind error
	text string
}

func (t *told) Error() string { return t.text }
func (t *told) Unwrap() error { return t.kind }
