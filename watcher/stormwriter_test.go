package watcher

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
)

// stormWriterPath tells a child process which log to write to.
const stormWriterPath = "POPGATE_STORM_LOG"

// TestStormWriter is no test but a program that logs, in a process of its own:
// it appends what it is given with one write, as syslogd and Dovecot do, and
// opens the log anew when it is told.
func TestStormWriter(t *testing.T) {
	path := os.Getenv(stormWriterPath)
	if path == "" {
		t.Skip("only in a child of the storm")
	}
	in, done := bufio.NewReaderSize(os.NewFile(3, "in"), 1<<16), os.NewFile(4, "done")
	var log *os.File
	open := func() (err error) {
		if log != nil {
			log.Close()
		}
		log, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
		return err
	}
	err := open()
	if err == nil {
		_, err = done.Write([]byte{0})
	}
	for err == nil {
		var size uint32
		if err = binary.Read(in, binary.LittleEndian, &size); err != nil {
			break
		}
		text := make([]byte, size)
		if _, err = io.ReadFull(in, text); err != nil {
			break
		}
		if size == 0 {
			err = open()
		} else {
			_, err = log.Write(text)
		}
		if err == nil {
			_, err = done.Write([]byte{0})
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

// process is such a writer.
type process struct {
	mu       sync.Mutex
	in, done *os.File
	cmd      *exec.Cmd
}

func newProcess(path string) (*process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	inside, in, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	done, outside, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	p := &process{in: in, done: done, cmd: exec.Command(self, "-test.run=^TestStormWriter$")}
	p.cmd.Env = append(os.Environ(), stormWriterPath+"="+path)
	p.cmd.ExtraFiles = []*os.File{inside, outside}
	err = p.cmd.Start()
	inside.Close()
	outside.Close()
	if err == nil {
		err = p.answer() // its log is open
	}
	return p, err
}

func (p *process) answer() error {
	var b [1]byte
	if _, err := io.ReadFull(p.done, b[:]); err != nil {
		return fmt.Errorf("the writing process: %w", err)
	}
	return nil
}

// write has the process write a text, or open the log anew where there is none.
func (p *process) write(text string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := p.in.Write(append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)); err != nil {
		return err
	}
	return p.answer()
}

func (p *process) close() {
	p.in.Close()
	p.cmd.Wait() // it has nothing more to say
	p.done.Close()
}
