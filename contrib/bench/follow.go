package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// follower is a running program that writes what is appended to a file.
type follower struct {
	process *process
	log     *os.File
	out     *bufio.Reader
	lines   int
}

// startFollower starts a program whose last argument is the file.
func (b *bench) startFollower(file, program string, args ...string) (*follower, error) {
	name := b.dir + "/" + file
	log, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, program, append(args, name)...)
	read, write, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = write
	f := &follower{log: log, out: bufio.NewReader(read)}
	f.process, err = launch(cmd, "")
	return f, errors.Join(err, write.Close())
}

// follow writes a line and gives the time until the program has written it too.
func (f *follower) follow() (time.Duration, error) {
	f.lines++
	line := loginLine(nil, f.lines, time.Now())
	type answer struct {
		at   time.Time
		same bool
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		got := make([]byte, len(line))
		_, err := io.ReadFull(f.out, got)
		answered <- answer{time.Now(), slices.Equal(got, line), err}
	}()
	pause()
	began := time.Now()
	if _, err := f.log.Write(line); err != nil {
		return 0, err
	}
	a := <-answered
	if a.err == nil && !a.same {
		a.err = errors.New("a program that follows a file wrote another line than the file got")
	}
	return a.at.Sub(began), a.err
}

func (f *follower) stop() {
	_ = f.process.stop() // it ends by the signal
	f.log.Close()
}

const followWord = "follow" // as the first argument, of the process that does this:

// follow is the least that a Go program can do that answers one question when
// another source tells it something: one goroutine waits for the file to grow and
// reads it, another waits for that one and writes. It parses nothing.
func follow(args []string) error {
	if len(args) != 1 {
		return errors.New("needs a file")
	}
	file, err := os.Open(args[0])
	if err != nil {
		return err
	}
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return os.NewSyscallError("inotify_init1", err)
	}
	if _, err := unix.InotifyAddWatch(fd, args[0], unix.IN_MODIFY); err != nil {
		return os.NewSyscallError("inotify_add_watch", err)
	}
	events := os.NewFile(uintptr(fd), "inotify")
	type read struct {
		text []byte
		err  error
	}
	reads := make(chan read)
	go func() {
		event, text := make([]byte, 4096), make([]byte, 64<<10)
		for {
			n, err := file.Read(text)
			if n > 0 {
				reads <- read{slices.Clone(text[:n]), nil}
				continue
			}
			if err == nil || errors.Is(err, io.EOF) {
				_, err = events.Read(event)
			}
			if err != nil {
				reads <- read{nil, err}
				return
			}
		}
	}()
	for r := range reads {
		if r.err != nil {
			return r.err
		}
		if _, err := os.Stdout.Write(r.text); err != nil {
			return err
		}
	}
	return nil
}
