package wiring

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrNotRoot says that a door can't be tried as the MTA's user.
var ErrNotRoot = errors.New("only root can try it as the MTA's user")

// askTime bounds a question.
const askTime = 15 * time.Second

// Dial connects to a door as the MTA would: as its user, without further
// groups, and from inside its chroot.
func (d *Door) Dial(ctx context.Context) (net.Conn, error) {
	if d.Network != "unix" {
		return (&net.Dialer{Timeout: askTime}).DialContext(ctx, d.Network, d.Address)
	}
	who, err := user.Lookup(d.User)
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.Atoi(who.Uid)
	gid, err2 := strconv.Atoi(who.Gid)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	if os.Geteuid() != uid && os.Geteuid() != 0 {
		return nil, ErrNotRoot
	}
	if os.Geteuid() != 0 || uid == 0 && d.Root == "" {
		return (&net.Dialer{Timeout: askTime}).DialContext(ctx, "unix", d.Address)
	}
	path := d.Address
	if d.Root != "" {
		path = "/" + strings.TrimLeft(strings.TrimPrefix(path, d.Root), "/")
	}
	var conn net.Conn
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The thread becomes the MTA's, alone: whom it is and what it sees are
		// the thread's own. It is not given back, so that it ends with the
		// goroutine.
		runtime.LockOSThread()
		conn, err = become(uid, gid, d.Root, path)
	}()
	<-done
	return conn, err
}

// become turns the calling thread into another user's and connects.
func become(uid, gid int, root, path string) (net.Conn, error) {
	if err := syscall.Unshare(syscall.CLONE_FS); err != nil {
		return nil, fmt.Errorf("a thread of its own: %w", err)
	}
	if root != "" {
		if err := errors.Join(syscall.Chroot(root), syscall.Chdir("/")); err != nil {
			return nil, fmt.Errorf("chroot %s: %w", root, err)
		}
	}
	// The raw calls: those of package syscall are for all threads.
	for _, call := range []struct {
		name    string
		trap    uintptr
		a, b, c uintptr
	}{
		{"setgroups", syscall.SYS_SETGROUPS, 0, 0, 0},
		{"setresgid", syscall.SYS_SETRESGID, uintptr(gid), uintptr(gid), uintptr(gid)},
		{"setresuid", syscall.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)},
	} {
		if _, _, errno := syscall.RawSyscall(call.trap, call.a, call.b, call.c); errno != 0 {
			return nil, fmt.Errorf("%s: %w", call.name, errno)
		}
	}
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	limit := syscall.NsecToTimeval(askTime.Nanoseconds())
	if err := syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, syscall.SO_SNDTIMEO, &limit); err != nil {
		return nil, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		return nil, err
	}
	return net.FileConn(file)
}
