package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"sync"
	"syscall"
)

// Unix is a listener on a unix socket whose file goes with it: when Close is
// called, even if what the runtime keeps of the listener was closed before. It
// goes once: what has the name at a second Close is somebody else's.
type Unix struct {
	*net.UnixListener
	remove func() error
}

// ListenUnix makes a unix socket and listens on it.
func ListenUnix(path string) (Unix, error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return Unix{}, err
	}
	l.SetUnlinkOnClose(false)
	return Unix{l, sync.OnceValue(func() error { return os.Remove(path) })}, nil
}

// Close ends the listening and removes the socket's file.
func (u Unix) Close() error {
	err := u.remove()
	return errors.Join(u.UnixListener.Close(), err)
}

// ClearSocket takes away a unix socket that was left behind. One at which
// anybody may still listen stays, and is an error that says what to do; so is
// whatever else has its place.
func ClearSocket(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("exists and is no socket; remove it or choose another path")
	}
	for _, network := range []string{"unixgram", "unix"} {
		c, err := net.Dial(network, path)
		if err == nil {
			c.Close()
		}
		// One of the two is of the wrong type.
		if err == nil || !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, syscall.EPROTOTYPE) {
			return errors.New("another program listens here; is popgate running already? If not, stop it or choose another path")
		}
	}
	return os.Remove(path)
}
