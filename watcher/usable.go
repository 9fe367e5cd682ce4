package watcher

import "os"

// Usable says whether a log file could be read as a source now, and if not,
// why and what would be right.
func Usable(path string) error {
	f, err := Open(path, uint32(os.Geteuid()))
	if err != nil {
		return explain(path, err)
	}
	return f.Close()
}
