package watcher

import "syscall"

// Usable says whether a log file could be read as a source now, and if not,
// why and what would be right.
func Usable(path string) error {
	c := newCustody()
	w, err := c.follow(path)
	if err != nil {
		return explain(path, err)
	}
	fd, _, err := c.openChecked(w)
	if err != nil {
		return explain(path, err)
	}
	return syscall.Close(fd)
}
