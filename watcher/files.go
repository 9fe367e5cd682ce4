package watcher

import (
	"encoding/binary"
	"syscall"
)

// files tells when open files change, by an inotify(7) of its own: what is
// logged reaches who reads it by one wake-up of one thread. Through the library,
// which watches directories here, it took two goroutines and, with what the
// runtime does to wake them, twice as long as all the rest of a login's way.
//
// Whoever waits does so in the kernel. others is what else he waits for.
type files struct {
	inotify, epoll int
	others         [2]int         // a pipe: what is written to the second end wakes who waits
	watches        map[int]uint32 // by open file; two of one file have the same
	dropped        func()         // told when the kernel had no room for events; nil: nobody asks
	buf            [4096]byte
}

// newFiles gives nil where the kernel has no instance left, or no descriptor.
func newFiles() *files {
	f := &files{watches: map[int]uint32{}}
	var err error
	if f.inotify, err = syscall.InotifyInit1(syscall.IN_CLOEXEC | syscall.IN_NONBLOCK); err != nil {
		return nil
	}
	if err = syscall.Pipe2(f.others[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		_ = syscall.Close(f.inotify)
		return nil
	}
	if f.epoll, err = syscall.EpollCreate1(syscall.EPOLL_CLOEXEC); err != nil {
		f.epoll = -1
	}
	for _, fd := range [...]int{f.inotify, f.others[0]} {
		if err == nil {
			err = syscall.EpollCtl(f.epoll, syscall.EPOLL_CTL_ADD, fd, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: int32(fd)})
		}
	}
	if err != nil {
		f.close()
		return nil
	}
	return f
}

func (f *files) close() {
	for _, fd := range [...]int{f.inotify, f.others[0], f.others[1], f.epoll} {
		if fd >= 0 {
			_ = syscall.Close(fd)
		}
	}
}

// watch watches an open file, wherever it has been moved to. It says whether it
// could.
func (f *files) watch(fd int) bool {
	wd, err := syscall.InotifyAddWatch(f.inotify, fdPath(fd), syscall.IN_MODIFY|syscall.IN_ATTRIB|syscall.IN_MOVE_SELF|syscall.IN_DELETE_SELF)
	if err != nil {
		return false
	}
	f.watches[fd] = uint32(wd)
	return true
}

// forget ends the watch of an open file, unless it is open a second time.
func (f *files) forget(fd int) {
	wd, known := f.watches[fd]
	if !known {
		return
	}
	delete(f.watches, fd)
	for _, other := range f.watches {
		if other == wd {
			return
		}
	}
	_, _ = syscall.InotifyRmWatch(f.inotify, wd) // of a deleted file it is gone already
}

// wait returns when a file has changed or somebody wrote to others. recheck says
// that more than a file's contents may have changed.
func (f *files) wait() (changed, recheck, other bool) {
	var ready [2]syscall.EpollEvent
	n, err := syscall.EpollWait(f.epoll, ready[:], -1)
	if err != nil && err != syscall.EINTR {
		return true, true, true // look at everything rather than nothing
	}
	for _, e := range ready[:max(n, 0)] {
		if int(e.Fd) != f.inotify {
			n, _ := syscall.Read(f.others[0], f.buf[:])
			other = other || n > 0
			continue
		}
		n, _ := syscall.Read(f.inotify, f.buf[:])
		changed = changed || n > 0
		recheck = f.more(f.buf[:max(n, 0)]) || recheck
	}
	return changed, recheck, other
}

// more says whether events tell of more than contents.
func (f *files) more(events []byte) (more bool) {
	const mask, length = 4, 12 // offsets in struct inotify_event
	for len(events) >= syscall.SizeofInotifyEvent {
		m := binary.NativeEndian.Uint32(events[mask:])
		if m&syscall.IN_Q_OVERFLOW != 0 && f.dropped != nil {
			f.dropped()
		}
		more = more || m&^syscall.IN_MODIFY != 0
		events = events[min(len(events), syscall.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(events[length:]))):]
	}
	return more
}

// wake ends a wait.
func (f *files) wake() { _, _ = syscall.Write(f.others[1], []byte{0}) }
