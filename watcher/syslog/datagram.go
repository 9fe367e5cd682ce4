package syslog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"syscall"

	"popgate/watcher"
)

// batch is what was received at once from a datagram socket.
type batch struct {
	memory  []byte
	frames  []frame
	lost    bool   // the kernel had no room for some
	refused uint64 // from those who may not send, the last of them:
	why     error
}

const (
	// batchRoom holds what one call to the reader carries, and at least one
	// datagram, which has at most 64 KiB.
	batchRoom = 4 * mostBuffer
	batchMost = 256
)

// datagrams receives until the socket is closed.
func (h *hall) datagrams() {
	raw, err := h.socket.(syscall.Conn).SyscallConn()
	if err != nil {
		h.fail(fmt.Errorf("%s: %w", h.text, err))
		return
	}
	var (
		b       = batch{memory: make([]byte, batchRoom)}
		control = make([]byte, 128)
		done    = make(chan struct{}, 1)
		dropped uint32
		failed  error
	)
	for {
		err := raw.Read(func(fd uintptr) bool {
			failed = h.receive(int(fd), &b, control, &dropped)
			return failed != syscall.EAGAIN
		})
		if err != nil || failed != nil {
			if !errors.Is(err, net.ErrClosed) {
				h.fail(fmt.Errorf("%s: receiving failed: %w; it is opened anew", h.text, errors.Join(err, failed)))
			}
			return
		}
		if b.lost && !h.hand(parcel{what: overflow}) ||
			b.refused > 0 && !h.hand(parcel{what: turnedOff, err: b.why, times: b.refused}) ||
			len(b.frames) > 0 && !h.handOver(parcel{frames: b.frames}, done) {
			return
		}
	}
}

// receive takes the datagrams that are there, and gives EAGAIN if none is.
func (h *hall) receive(fd int, b *batch, control []byte, dropped *uint32) error {
	b.frames, b.lost, b.refused = b.frames[:0], false, 0
	room := b.memory
	for n := 0; n < batchMost && len(room) >= mostBuffer; n++ {
		size, extra, flags, from, err := syscall.Recvmsg(fd, room, control, syscall.MSG_DONTWAIT)
		switch err {
		case nil:
		case syscall.EINTR:
			continue
		case syscall.EAGAIN:
			if n > 0 {
				return nil
			}
			return err
		default:
			return err
		}
		cred, drops := ancillary(control[:extra])
		if drops != nil && *drops != *dropped {
			*dropped, b.lost = *drops, true
		}
		if why := h.stranger(from, cred); why != nil {
			b.refused, b.why = b.refused+1, why
			continue
		}
		text := trimEnd(room[:size])
		if flags&syscall.MSG_TRUNC != 0 || len(text) > watcher.MaxLine {
			b.frames = append(b.frames, frame{})
			continue
		}
		if len(text) > 0 {
			b.frames = append(b.frames, frame{text})
			room = room[size:]
		}
	}
	return nil
}

// stranger says why a datagram's sender may not send.
func (h *hall) stranger(from syscall.Sockaddr, cred *syscall.Ucred) error {
	if h.Network == "udp" {
		if a := addrOf(from); !h.allowed(a) {
			return fmt.Errorf("%s is not in allow", a)
		}
		return nil
	}
	switch {
	case cred == nil:
		return errors.New("a message without the kernel's word on who sent it")
	case !h.vouched(cred.Uid):
		return fmt.Errorf("%s is neither root nor in peer_uids", userName(cred.Uid))
	}
	return nil
}

// ancillary reads what the kernel says beside a datagram: who sent it, and how
// many it has dropped so far.
func ancillary(control []byte) (cred *syscall.Ucred, drops *uint32) {
	if len(control) == 0 {
		return nil, nil
	}
	all, err := syscall.ParseSocketControlMessage(control)
	if err != nil {
		return nil, nil
	}
	for i := range all {
		switch m := &all[i]; {
		case m.Header.Level != syscall.SOL_SOCKET:
		case m.Header.Type == syscall.SCM_CREDENTIALS:
			cred, _ = syscall.ParseUnixCredentials(m)
		case m.Header.Type == syscall.SO_RXQ_OVFL && len(m.Data) >= 4:
			n := binary.NativeEndian.Uint32(m.Data)
			drops = &n
		}
	}
	return cred, drops
}
