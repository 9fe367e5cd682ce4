package listen

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"syscall"
)

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
