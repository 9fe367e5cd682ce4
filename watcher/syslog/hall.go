package syslog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"popgate/internal/listen"
)

// hall is where senders come in: the listener and its workers.
type hall struct {
	*Source
	ctx     context.Context
	fail    context.CancelCauseFunc // ends the hall, which is opened again
	post    chan parcel
	workers sync.WaitGroup

	listener net.Listener   // these two: one is nil
	socket   net.PacketConn //
	file     os.FileInfo    // unix: the socket as it was made
	tls      *certificates

	mu    sync.Mutex
	conns map[*conn]bool
	of    map[string]int // how many of one sender
	ids   uint64
}

// hand gives a parcel to the reader. It says whether there still is one.
func (h *hall) hand(p parcel) bool {
	select {
	case h.post <- p:
		return true
	case <-h.ctx.Done():
		return false
	}
}

// handOver is hand for a parcel whose memory is used again afterwards; done has
// room for one.
func (h *hall) handOver(p parcel, done chan struct{}) bool {
	p.done = done
	if !h.hand(p) {
		return false
	}
	select {
	case <-done:
		return true
	case <-h.ctx.Done():
		// The reader may be at it still; nobody else uses the memory.
		return false
	}
}

// receiveRoom is how much the kernel is asked to keep for a datagram socket.
const receiveRoom = 4 << 20

// open opens the listener. Its error says what to do.
func (h *hall) open() error {
	lc := net.ListenConfig{
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3},
		Control:         h.control,
	}
	var err error
	switch h.Network {
	case "unix", "unix-stream":
		return h.openUnix(&lc)
	case "udp":
		h.socket, err = lc.ListenPacket(h.ctx, "udp", h.Address)
	case "tls":
		if h.tls, err = newCertificates(h.TLS); err != nil {
			return fmt.Errorf("%s: %w", h.text, err)
		}
		fallthrough
	default:
		h.listener, err = lc.Listen(h.ctx, "tcp", h.Address)
	}
	if err != nil {
		return h.explain(err)
	}
	h.work()
	return nil
}

// control sets what must be set before the first message comes.
func (h *hall) control(_, _ string, c syscall.RawConn) error {
	var err error
	option := 0
	switch h.Network {
	case "unix":
		option = syscall.SO_PASSCRED
	case "udp":
		option = syscall.SO_RXQ_OVFL
	default:
		return nil
	}
	if e := c.Control(func(fd uintptr) {
		syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_RCVBUF, receiveRoom) // as much as there is
		err = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, option, 1)
	}); e != nil {
		return e
	}
	return err
}

func (h *hall) openUnix(lc *net.ListenConfig) error {
	if err := h.clear(); err != nil {
		return fmt.Errorf("%s: %w", h.text, err)
	}
	var err error
	if h.Network == "unix" {
		h.socket, err = lc.ListenPacket(h.ctx, "unixgram", h.Address)
	} else {
		if h.listener, err = lc.Listen(h.ctx, "unix", h.Address); err == nil {
			h.listener.(*net.UnixListener).SetUnlinkOnClose(false) // close looks first whose it is
		}
	}
	if err == nil {
		// Who sends is judged by what the kernel says about him. Those who are
		// not root need the mode to come that far.
		mode := fs.FileMode(0o600)
		if len(h.PeerUIDs) > 0 {
			mode = 0o666
		}
		err = os.Chmod(h.Address, mode)
	}
	if err == nil {
		h.file, err = os.Lstat(h.Address)
	}
	if err != nil {
		return h.explain(err)
	}
	h.work()
	return nil
}

// clear makes room for the socket.
func (h *hall) clear() error {
	if dir := filepath.Dir(h.Address); !exists(dir) {
		return fmt.Errorf("the directory %s does not exist; make it, or correct the path", dir)
	}
	return listen.ClearSocket(h.Address)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func (h *hall) explain(err error) error {
	remedy := ""
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		remedy = "; another program listens here: stop it, or choose another port"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		remedy = "; this host does not have the address"
	case errors.Is(err, fs.ErrPermission) && h.Network[0] == 'u' && h.Network != "udp":
		remedy = "; popgate's user must be able to write to the directory"
	case errors.Is(err, fs.ErrPermission):
		remedy = "; ports below 1024 need CAP_NET_BIND_SERVICE: choose a higher one"
	}
	if inner := errors.Unwrap(err); inner != nil {
		err = inner // it would name the address once more
	}
	return fmt.Errorf("%s: %w%s", h.text, err, remedy)
}

// inPlace says whether the socket is still where senders look for it.
func (h *hall) inPlace() error {
	if h.file == nil {
		return nil
	}
	if now, err := os.Lstat(h.Address); err != nil || !os.SameFile(now, h.file) {
		return fmt.Errorf("%s: the socket has been removed or replaced; it is made anew", h.text)
	}
	return nil
}

// close closes everything, so that the workers end.
func (h *hall) close() {
	if h.listener != nil {
		h.listener.Close()
	}
	if h.socket != nil {
		h.socket.Close()
	}
	if h.file != nil && h.inPlace() == nil {
		os.Remove(h.Address)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for c := range h.conns {
		c.Close()
	}
}

func (h *hall) work() {
	if h.socket != nil {
		h.workers.Go(h.datagrams)
		return
	}
	h.workers.Go(h.accept)
}

// allowed says whether an address may send.
func (h *hall) allowed(a netip.Addr) bool {
	return len(h.Allow) == 0 || slices.ContainsFunc(h.Allow, func(p netip.Prefix) bool { return p.Contains(a) })
}

// vouched says whether a user of this host may send.
func (h *hall) vouched(uid uint32) bool { return uid == 0 || slices.Contains(h.PeerUIDs, uid) }

func userName(uid uint32) string { return fmt.Sprintf("user id %d", uid) }
