package listen

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestOnlyASocketThatWasLeftBehindIsTakenAway(t *testing.T) {
	closing := func(t *testing.T, c interface{ Close() error }, err error) {
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	for name, tt := range map[string]struct {
		put  func(t *testing.T, path string)
		want string // of the error; empty: it is taken away
	}{
		"nothing": {func(*testing.T, string) {}, ""},
		"left behind": {func(t *testing.T, path string) {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			closing(t, ln, err)
			ln.SetUnlinkOnClose(false)
			ln.Close()
		}, ""},
		"of datagrams, left behind": {func(t *testing.T, path string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
			closing(t, c, err)
			c.Close()
		}, ""},
		"a program listens": {func(t *testing.T, path string) {
			ln, err := net.Listen("unix", path)
			closing(t, ln, err)
		}, "another program listens here"},
		"a program listens for datagrams": {func(t *testing.T, path string) {
			c, err := net.ListenPacket("unixgram", path)
			closing(t, c, err)
		}, "another program listens here"},
		"a program is too busy to accept": {func(t *testing.T, path string) {
			fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { syscall.Close(fd) })
			if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Listen(fd, 0); err != nil {
				t.Fatal(err)
			}
			for { // until nobody more may wait
				c, err := net.Dial("unix", path)
				if err != nil {
					return
				}
				t.Cleanup(func() { c.Close() })
			}
		}, "another program listens here"},
		"a file": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "exists and is no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			tt.put(t, path)
			_, before := os.Lstat(path)
			err := ClearSocket(path)
			_, after := os.Lstat(path)
			switch {
			case tt.want == "" && (err != nil || after == nil):
				t.Errorf("%v, there afterwards: %v", err, after == nil)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want) || (before == nil) != (after == nil)):
				t.Errorf("%v, there afterwards: %v; want %q and all as before", err, after == nil, tt.want)
			}
		})
	}
}

// Whoever comes after us may have put his socket in the place of ours between two
// calls of Close.
func TestASecondCloseTakesNobodysFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	ours, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := ours.Close(); err != nil {
		t.Fatal(err)
	}
	theirs, err := ListenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ours.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("another's socket has lost its file: %v", err)
	}
}
