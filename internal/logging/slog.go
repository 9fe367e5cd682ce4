package logging

import (
	"context"
	"log/slog"
	"sync"
)

// Handler gives a slog handler that writes through the queue, in its form.
func (q *Queue) Handler(level slog.Leveler) slog.Handler {
	h := &handler{queue: q, lock: &sync.Mutex{}, shared: &capture{}}
	o := &slog.HandlerOptions{Level: level}
	switch q.form {
	case JSON:
		h.inner = slog.NewJSONHandler(h.shared, o)
	case Journal:
		o.ReplaceAttr = bare
		h.inner = slog.NewTextHandler(h.shared, o)
		return &entries{queue: q, level: level, text: h}
	default:
		h.inner = slog.NewTextHandler(h.shared, o)
	}
	return h
}

// handler lets slog format a line into a buffer and queues the buffer.
type handler struct {
	queue  *Queue
	inner  slog.Handler
	lock   *sync.Mutex // of shared: handlers derived from one another write into the same
	shared *capture
}

// capture keeps the one line that a handler's call writes.
type capture struct{ line []byte }

func (c *capture) Write(p []byte) (int, error) {
	c.line = append([]byte(nil), p...)
	return len(p), nil
}

func (h *handler) Enabled(ctx context.Context, l slog.Level) bool { return h.inner.Enabled(ctx, l) }

func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	text, err := h.format(ctx, r)
	if err != nil || text == nil {
		return err
	}
	h.queue.text(text)
	return nil
}

// format gives a record's line.
func (h *handler) format(ctx context.Context, r slog.Record) ([]byte, error) {
	h.lock.Lock()
	defer h.lock.Unlock()
	err := h.inner.Handle(ctx, r)
	text := h.shared.line
	h.shared.line = nil
	return text, err
}

func (h *handler) WithAttrs(a []slog.Attr) slog.Handler {
	return &handler{queue: h.queue, inner: h.inner.WithAttrs(a), lock: h.lock, shared: h.shared}
}

func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{queue: h.queue, inner: h.inner.WithGroup(name), lock: h.lock, shared: h.shared}
}
