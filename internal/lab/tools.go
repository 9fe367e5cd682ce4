package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Tools gives the folder in which packages are unpacked whose programs judge
// what popgate ships: they run on the machine itself, not on a private host.
// Where Debian's packages can't be had the test is skipped, and fails in CI.
func Tools(t *testing.T, name string, packages ...string) (root string) {
	t.Helper()
	root, err := tools(name, packages)
	if err != nil {
		missing(t, err)
	}
	return root
}

func tools(name string, packages []string) (string, error) {
	for _, tool := range []string{"apt-get", "dpkg-deb", "dpkg-query"} {
		if _, err := exec.LookPath(tool); err != nil {
			return "", fmt.Errorf("needs Debian: %w", err)
		}
	}
	if os.Geteuid() != 0 {
		return "", errors.New("needs root, to fetch packages")
	}
	cache, err := cached(func(cache string) error { return fill(cache, name, "unpacked-"+name, packages) })
	return filepath.Join(cache, name), err
}
