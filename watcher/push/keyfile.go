package push

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"

	"popgate/watcher"
)

// Bounds of a key file and of its keys.
const (
	maxKeyFile = 8 << 10
	minKey     = 16
	maxKey     = 256
	maxSecrets = 16
)

// keyFile is the file with the secrets that reports may carry: one a line,
// blank lines and those that begin with # left out. With two in it a secret can
// be changed without a moment at which only one side knows it.
//
// Whoever can read or replace the file can forge logins, so both are looked at
// as for a log.
type keyFile struct {
	path string
	self uint32 // the user who reads it

	mu      sync.Mutex
	known   syscall.Stat_t // of the file the secrets were read from
	secrets []secret
}

// secret is kept by its hash, so that secrets of all lengths are compared in
// the same time and none lies in memory.
type secret [sha256.Size]byte

// UsableKey says whether the user self could use a key file now, and if not, why
// and what would be right. Root may ask for another user: the file that is right
// for the daemon would be wrong for root.
func UsableKey(path string, self uint32) error {
	k := keyFile{path: path, self: self}
	if err := k.read(); err != nil {
		return err
	}
	if self != 0 && k.known.Uid != self {
		return fmt.Errorf("key_file: %w", k.explain(fs.ErrPermission))
	}
	return nil
}

// holds says whether the secret is one of the file's, as it is now.
func (k *keyFile) holds(word string) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var st syscall.Stat_t
	if err := syscall.Stat(k.path, &st); err != nil || k.secrets == nil || changed(&st, &k.known) {
		if err := k.readLocked(); err != nil {
			return false, err
		}
	}
	given := secret(sha256.Sum256([]byte(word)))
	found := 0
	for i := range k.secrets {
		found |= subtle.ConstantTimeCompare(given[:], k.secrets[i][:])
	}
	return found == 1, nil
}

func changed(a, b *syscall.Stat_t) bool {
	return a.Dev != b.Dev || a.Ino != b.Ino || a.Size != b.Size || a.Mtim != b.Mtim || a.Ctim != b.Ctim
}

// read reads the file anew.
func (k *keyFile) read() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.readLocked()
}

func (k *keyFile) readLocked() error {
	k.secrets = nil
	text, st, err := k.text()
	if err == nil {
		k.secrets, err = readSecrets(text)
	}
	if err != nil {
		return fmt.Errorf("key_file: %w", k.explain(err))
	}
	k.known = st
	return nil
}

func (k *keyFile) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: no such file; make it with `umask 077; openssl rand -hex 32 > %s; chown popgate %s`", k.path, k.path, k.path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: permission denied; it must belong to popgate's user, mode 0400", k.path)
	}
	if d, ok := errors.AsType[*watcher.Distrust](err); ok {
		return d
	}
	return fmt.Errorf("%s: %w", k.path, err)
}

// text gives the file's bytes when nobody else can read or replace them.
func (k *keyFile) text() ([]byte, syscall.Stat_t, error) {
	var st syscall.Stat_t
	f, err := watcher.Open(k.path, k.self)
	if err != nil {
		return nil, st, err
	}
	defer f.Close()
	if err = syscall.Fstat(int(f.Fd()), &st); err == nil {
		err = private(k.path, &st)
	}
	if err != nil {
		return nil, st, err
	}
	buf := make([]byte, maxKeyFile+1)
	n, err := f.ReadAt(buf, 0)
	if n > maxKeyFile {
		return nil, st, fmt.Errorf("longer than %d bytes; it holds one secret a line", maxKeyFile)
	}
	if n < len(buf) && err != nil && int64(n) != st.Size {
		return nil, st, err
	}
	return buf[:n], st, nil
}

// private refuses a secret that others than its owner can read. With an access
// list the group bits are the widest of all its entries.
func private(path string, st *syscall.Stat_t) error {
	if st.Mode&(syscall.S_IRGRP|syscall.S_IROTH) == 0 {
		return nil
	}
	return &watcher.Distrust{Path: path, Why: fmt.Sprintf("has mode %04o, so that others can read it and forge logins", st.Mode&0o7777),
		Remedy: "chown popgate " + path + " and chmod 0400 " + path + ", then write a new secret into it"}
}

// readSecrets reads the lines of a key file.
func readSecrets(text []byte) ([]secret, error) {
	var out []secret
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		if len(line) < minKey || len(line) > maxKey || bytes.ContainsFunc(line, func(r rune) bool { return r <= ' ' || r > '~' }) {
			return nil, fmt.Errorf("a line is no secret; write %d to %d letters, digits or signs without a blank, one secret a line, such as `openssl rand -hex 32` prints", minKey, maxKey)
		}
		out = append(out, sha256.Sum256(line))
	}
	switch {
	case len(out) == 0:
		return nil, errors.New("no secret in it; write one of at least 16 letters and digits, such as `openssl rand -hex 32` prints")
	case len(out) > maxSecrets:
		return nil, fmt.Errorf("%d secrets; at most %d", len(out), maxSecrets)
	}
	return out, nil
}
