package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// testlog measures what it costs to read a long log, beside a grep for the
// words of a login.
func (b *bench) testlog() error {
	size := 1 << 30
	if b.quick {
		size = 256 << 20
	}
	log := filepath.Join(b.dir, "long.log")
	logins, err := writeMailLog(log, size)
	if err != nil {
		return err
	}
	defer os.Remove(log)
	_, _, nothing, err := b.spent(exec.CommandContext(b.ctx, b.popgate, "version"))
	if err != nil {
		return err
	}
	var ratios, reading, grepping, memory []float64
	for round := range b.rounds + 1 {
		grep := exec.CommandContext(b.ctx, "grep", "-c", "Login: user=", log)
		grep.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
		found, grepTook, _, err := b.spent(grep)
		if err != nil {
			return err
		}
		told, took, resident, err := b.spent(exec.CommandContext(b.ctx, b.popgate, "test-log", "--format", "dovecot", log))
		if err != nil {
			return err
		}
		want := strconv.Itoa(logins)
		if string(bytes.TrimSpace(found)) != want || !strings.Contains(strings.Join(strings.Fields(string(told)), " "), " logins "+want+" ") {
			return fmt.Errorf("%s logins written, grep found %s, popgate says\n%s", want, found, told)
		}
		if round == 0 {
			continue // the log was not in memory, perhaps
		}
		ratios = append(ratios, took.Seconds()/grepTook.Seconds())
		reading, grepping = append(reading, took.Seconds()), append(grepping, grepTook.Seconds())
		memory = append(memory, (resident-nothing)/1e6)
	}
	b.report.add("test-log --format dovecot against grep, processor time", atMost(1.3, 0.9), "%.2f", median(ratios),
		"%.2f : %.2f s on %d MiB, %d logins", median(reading), median(grepping), size>>20, logins)
	b.report.add("memory of reading it, beyond a process that does nothing", atMost(20, 0), "%.1f MB", median(memory), "%.1f MB that", nothing/1e6)
	return nil
}

// spent runs a program to its end and gives what it printed, the processor time
// it took and the most memory it had.
func (b *bench) spent(cmd *exec.Cmd) (out []byte, took time.Duration, resident float64, err error) {
	if out, err = cmd.Output(); err != nil {
		return out, 0, 0, fmt.Errorf("%s: %w", cmd, err)
	}
	usage, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage)
	if !ok {
		return out, 0, 0, errors.New("no account of what a process has used")
	}
	return out, cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime(), float64(usage.Maxrss) * 1024, nil
}

// writeMailLog writes what a busy host with Postfix and Dovecot logs: one line
// in twenty is a login, one in seven each the end of a session and a failure.
func writeMailLog(name string, size int) (logins int, err error) {
	f, err := os.Create(name)
	if err != nil {
		return 0, err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	random := rand.New(rand.NewPCG(1, 1))
	at := time.Date(2026, time.March, 1, 0, 0, 0, 0, time.UTC)
	var line []byte
	for n := 0; n < size; n += len(line) {
		user, client, pid, id := random.IntN(50_000), random.Uint32(), random.IntN(30_000), random.Uint64()
		address := fmt.Sprintf("%d.%d.%d.%d", 1+client>>24%222, client>>16&255, client>>8&255, client&255)
		if random.IntN(50) == 0 {
			at = at.Add(time.Second)
		}
		line = append(at.AppendFormat(line[:0], time.Stamp), " mx1 "...)
		service := [...]string{"imap", "pop3"}[random.IntN(2)]
		switch kind := random.IntN(100); {
		case kind < 5:
			logins++
			line = fmt.Appendf(line, "dovecot: %s-login: Login: user=<user%d@example.net>, method=PLAIN, rip=%s, lip=198.51.100.25, mpid=%d, TLS, session=<%016x>\n", service, user, address, pid, id)
		case kind < 19:
			line = fmt.Appendf(line, "dovecot: imap(user%d@example.net)<%d><%016x>: Disconnected: Logged out in=%d out=%d deleted=0 expunged=0 trashed=0 hdr_count=3 hdr_bytes=1200 body_count=1 body_bytes=8169\n", user, pid, id, user, pid)
		case kind < 33:
			line = fmt.Appendf(line, "dovecot: %s-login: Disconnected: Connection closed (auth failed, 3 attempts in 23 secs): user=<user%d@example.net>, method=PLAIN, rip=%s, lip=198.51.100.25, TLS, session=<%016x>\n", service, user, address, id)
		case kind < 50:
			line = fmt.Appendf(line, "postfix/smtpd[%d]: connect from unknown[%s]\n", pid, address)
		case kind < 65:
			line = fmt.Appendf(line, "postfix/qmgr[%d]: %010X: from=<user%d@example.net>, size=%d, nrcpt=1 (queue active)\n", pid, id>>24, user, client>>10)
		case kind < 80:
			line = fmt.Appendf(line, "postfix/smtp[%d]: %010X: to=<user%d@example.org>, relay=mx.example.org[%s]:25, delay=7.41, delays=0.1/0.01/0.5/0.9, dsn=2.0.0, status=sent (250 2.0.0 Ok: queued as %010X)\n", pid, id>>24, user, address, id>>20&0xffffffffff)
		case kind < 90:
			line = fmt.Appendf(line, "postfix/cleanup[%d]: %010X: message-id=<%016x@mail.example.org>\n", pid, id>>24, id)
		default:
			line = fmt.Appendf(line, "postfix/smtpd[%d]: disconnect from unknown[%s] ehlo=1 auth=0/1 mail=1 rcpt=0/1 commands=2/4\n", pid, address)
		}
		_, _ = w.Write(line) // Flush tells
	}
	return logins, errors.Join(w.Flush(), f.Close())
}
