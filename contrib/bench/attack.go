package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// attack is one that somebody makes while clients with a grant are served.
type attack struct {
	what   string
	during time.Duration
	// refused is what strangers must reach for their attack to be one.
	refused limit
	// make begins the attack and gives back what ends it.
	make func(*bench, *daemon, string) (func() error, error)
}

var attacks = []attack{
	{"nobody attacks", 4 * time.Second, limit{}, func(*bench, *daemon, string) (func() error, error) { return func() error { return nil }, nil }},
	{"5,000 peers that connect and say nothing", 4 * time.Second, limit{}, silentPeers},
	{"10,000 connections whose clients are known and ask nothing", 4 * time.Second, limit{}, silentClients},
	{"128 connections of strangers that ask without a pause", 4 * time.Second, limit{}, refusedFlood},
	{"200 connections of strangers with 1,000 recipients in each message", 10 * time.Second, atLeast(50_000, 0), manyRecipients},
	{"16 readers that ask for every grant and read none", 4 * time.Second, limit{}, silentReaders},
	{"the reader of the daemon's log has stopped, while strangers ask without a pause", 4 * time.Second, limit{}, stoppedReader},
	{"a log line of 1 GB", 4 * time.Second, limit{}, longLine},
	{"a million logins of one user, each from another /64", 10 * time.Second, limit{}, func(_ *bench, _ *daemon, dir string) (func() error, error) {
		return manyLogins(dir, func(int) string { return "mallory" })
	}},
	{"a million logins of as many users, each from another /64", 15 * time.Second, limit{}, func(_ *bench, _ *daemon, dir string) (func() error, error) {
		return manyLogins(dir, func(n int) string { return fmt.Sprintf("mallory%07d", n) })
	}},
}

// attack measures what clients with a grant notice of attacks, and what memory
// these take. The bound that the configuration names is that of max_grants.
func (b *bench) attack() (err error) {
	d, dir, err := b.serveGrants(500 * time.Millisecond)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.stop()) }()
	bound := float64(256<<20+(b.grants+1<<20)<<10) / 1e6
	for _, a := range attacks {
		b.refused.Store(0)
		before, err := usage(d)
		if err != nil {
			return err
		}
		end, err := a.make(b, d, dir)
		if err != nil {
			return fmt.Errorf("%s: %w", a.what, err)
		}
		each, peak, err := b.served(d, a.during)
		after, usageErr := usage(d)
		refused := float64(b.refused.Load()) / after.at.Sub(before.at).Seconds()
		if err = errors.Join(err, usageErr, end()); err != nil {
			return fmt.Errorf("%s: %w", a.what, err)
		}
		b.report.add("RCPT p99 of clients with a grant: "+a.what, atMost(50, 0), "%.1f ms", percentile(each, 99)/1e3,
			"%d recipients on %d connections, p50 %.2f ms, longest %.0f ms; resident %.0f MB at most, bound %.0f MB",
			len(each), askers, percentile(each, 50)/1e3, percentile(each, 100)/1e3, peak/1e6, bound)
		if refused > 0 {
			during := after.at.Sub(before.at).Seconds()
			b.report.add("recipients of strangers refused meanwhile", a.refused, "%.0f/s", refused,
				"%.2f processors for the daemon, %.2f for those who ask; %d log lines dropped so far",
				(after.daemon-before.daemon).Seconds()/during, (after.own-before.own).Seconds()/during, d.log.dropped.Load())
		}
		if peak/1e6 > bound {
			return fmt.Errorf("%s: %.0f MB resident, bound %.0f MB", a.what, peak/1e6, bound)
		}
	}
	return nil
}

// used is processor time by a moment.
type used struct {
	at          time.Time
	daemon, own time.Duration
}

func usage(d *daemon) (u used, err error) {
	var t syscall.Rusage
	err = syscall.Getrusage(syscall.RUSAGE_SELF, &t)
	u.at, u.own = time.Now(), time.Duration(t.Utime.Nano()+t.Stime.Nano())
	daemon, daemonErr := d.processor()
	u.daemon = daemon
	return u, errors.Join(err, daemonErr)
}

// silentPeers connect and say nothing.
func silentPeers(b *bench, d *daemon, _ string) (func() error, error) {
	var conns []net.Conn
	end := func() (err error) {
		for _, c := range conns {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	for range b.idle {
		c, err := net.Dial("unix", d.socket)
		if err != nil {
			return nil, errors.Join(err, end())
		}
		conns = append(conns, c)
	}
	return end, nil
}

// silentClients are as far as a session comes before its first message.
func silentClients(_ *bench, d *daemon, _ string) (func() error, error) {
	var all []*mta
	end := func() (err error) {
		for _, m := range all {
			err = errors.Join(err, m.close())
		}
		return err
	}
	for n := range 10_000 {
		m, err := dial(d.socket)
		if err == nil {
			all = append(all, m)
			err = m.begin(plus(strangerNet, n))
		}
		if err != nil {
			return nil, errors.Join(err, end())
		}
	}
	return end, nil
}

// refusedFlood has strangers ask for foreign recipients, each a new client, so
// that as many as may wait for a login wait.
func refusedFlood(b *bench, d *daemon, _ string) (func() error, error) {
	return b.strangers(d, 128, session{1, recipients})
}

// manyRecipients has them do so with as many recipients as an MTA takes in one
// message: only the first of each may wait, and only in the first messages of
// a connection.
func manyRecipients(b *bench, d *daemon, _ string) (func() error, error) {
	return b.strangers(d, 200, session{10, 1000})
}

// strangers ask without a pause on so many connections at once.
func (b *bench) strangers(d *daemon, connections int, each session) (func() error, error) {
	var group sync.WaitGroup
	var stop atomic.Bool
	errs := make([]error, connections)
	for i := range errs {
		group.Go(func() {
			for n := i; errs[i] == nil && !stop.Load(); n += len(errs) {
				errs[i] = b.stranger(d, plus(strangerNet, n%strangers), each, &stop)
			}
		})
	}
	return func() error { stop.Store(true); group.Wait(); return errors.Join(errs...) }, nil
}

// atOnce is how many recipients a stranger asks for before he listens. No MTA
// does so; it leaves more of the processors to the daemon.
const atOnce = 5

// stranger has one session, until its end or until he is to stop.
func (b *bench) stranger(d *daemon, client netip.Addr, s session, stop *atomic.Bool) error {
	m, err := dial(d.socket)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	if err := m.begin(client); err != nil {
		return err
	}
	for range s.messages {
		if err := m.mail(); err != nil {
			return err
		}
		for asked := 0; asked < s.recipients; asked += atOnce {
			if stop.Load() {
				return m.close()
			}
			for range atOnce {
				m.recipient("customer", "remote.test", "smtp")
			}
			if err := m.send(); err != nil {
				return err
			}
			for range atOnce {
				switch code, err := m.hear(); {
				case err != nil:
					return err
				case code != 'y':
					return fmt.Errorf("%v is a stranger and was answered with %c %q", client, code, m.answer)
				}
			}
			b.refused.Add(atOnce)
		}
		if err := m.abort(); err != nil {
			return err
		}
	}
	return m.close()
}

// silentReaders ask on the control socket for everything and read nothing.
func silentReaders(_ *bench, d *daemon, _ string) (func() error, error) {
	var conns []net.Conn
	end := func() (err error) {
		for _, c := range conns {
			err = errors.Join(err, c.Close())
		}
		return err
	}
	for range 16 {
		c, err := net.Dial("unix", strings.TrimPrefix(d.control, "unix:"))
		if err == nil {
			conns = append(conns, c)
			_, err = io.WriteString(c, "GET /list HTTP/1.0\r\n\r\n")
		}
		if err != nil {
			return nil, errors.Join(err, end())
		}
	}
	return end, nil
}

// stoppedReader leaves the daemon's log unread, and has it much to tell.
func stoppedReader(b *bench, d *daemon, dir string) (func() error, error) {
	end, err := refusedFlood(b, d, dir)
	if err != nil {
		return nil, err
	}
	d.log.reading.Lock()
	return func() error { d.log.reading.Unlock(); return end() }, nil
}

// appending runs write on the end of the daemon's log.
func appending(dir string, write func(*bufio.Writer)) (func() error, error) {
	f, err := os.OpenFile(dir+"/mail.log", os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() {
		w := bufio.NewWriterSize(f, 1<<18)
		write(w) // Flush tells
		done <- errors.Join(w.Flush(), f.Close())
	}()
	return func() error { return <-done }, nil
}

// longLine is written with no end until it has 1 GB.
func longLine(_ *bench, _ *daemon, dir string) (func() error, error) {
	return appending(dir, func(w *bufio.Writer) {
		some := strings.Repeat("imap-login: Login: user=<mallory>, ", 1<<15)
		for written := 0; written < 1<<30; written += len(some) {
			_, _ = w.WriteString(some)
		}
		_ = w.WriteByte('\n')
	})
}

// manyLogins are a million, each from another /64. user tells whose from a number.
func manyLogins(dir string, user func(int) string) (func() error, error) {
	return appending(dir, func(w *bufio.Writer) {
		at := time.Now().Format("2006-01-02T15:04:05.000000Z07:00")
		for n := range 1_000_000 {
			fmt.Fprintf(w, "%s mx dovecot: imap-login: Login: user=<%s>, method=PLAIN, rip=2001:db8:%x:%x::1, lip=192.0.2.25, "+
				"mpid=%d, TLS, session=<m%015d>\n", at, user(n), n>>16, n&0xffff, 1000+n%60_000, n)
		}
	})
}
