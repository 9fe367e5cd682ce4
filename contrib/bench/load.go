package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

// Clients with a grant are in 11.0.0.0/8, those without one in 198.18.0.0/15.
// The yardstick knows them by these networks, the daemon by its grants. Nothing
// is sent to any of them. Private networks will not do: the daemon never grants
// to an address of this machine.
var (
	grantedNet  = netip.MustParseAddr("11.0.0.0")
	strangerNet = netip.MustParseAddr("198.18.0.0")
)

const (
	maxGrants = 1<<24 - 1<<20 // of the 2^24 addresses; the rest log in while it is measured
	strangers = 1 << 17
)

// granted is the client that holds the n-th grant.
func granted(n int) netip.Addr { return plus(grantedNet, n) }

func plus(a netip.Addr, n int) netip.Addr {
	b := a.As4()
	v := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	v += uint32(n)
	return netip.AddrFrom4([4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)})
}

// load is what the MTA asks in one turn: half of the clients with a grant, a
// fifth of the recipients local.
type load struct {
	connections int
	rcpts       int // in all
	grants      int // clients to choose from
	seed        uint64
	session     session
}

// session is one connection's.
type session struct{ messages, recipients int }

var (
	longSessions  = session{20, 10}
	shortSessions = session{1, 1}
)

// answers is what came of it.
type answers struct {
	took   time.Duration
	each   []time.Duration // sorted
	wrong  int
	sample string // one wrong answer
}

// run puts the load on a server and looks at each answer.
func (l load) run(socket string) (answers, error) {
	var (
		group sync.WaitGroup
		each  = make([]answers, l.connections)
		errs  = make([]error, l.connections)
		began = time.Now()
	)
	for i := range each {
		each[i].each = make([]time.Duration, 0, l.rcpts/l.connections+1)
		group.Go(func() {
			rng := rand.New(rand.NewPCG(l.seed, uint64(i)))
			for errs[i] == nil && len(each[i].each) < l.rcpts/l.connections {
				errs[i] = l.hold(socket, rng, &each[i])
			}
		})
	}
	group.Wait()
	all := answers{took: time.Since(began)}
	for i := range each {
		if errs[i] != nil {
			return all, fmt.Errorf("connection %d of %d: %w", i+1, l.connections, errs[i])
		}
		all.each = append(all.each, each[i].each...)
		if all.wrong += each[i].wrong; each[i].sample != "" {
			all.sample = each[i].sample
		}
	}
	slices.Sort(all.each)
	return all, nil
}

// hold has one session, of one client.
func (l load) hold(socket string, rng *rand.Rand, a *answers) error {
	m, err := dial(socket)
	if err != nil {
		return err
	}
	defer m.conn.Close()
	client, holds := plus(strangerNet, rng.IntN(strangers)), rng.IntN(2) == 0
	if holds {
		client = granted(rng.IntN(l.grants))
	}
	if err := m.begin(client); err != nil {
		return err
	}
	for range l.session.messages {
		if err := m.mail(); err != nil {
			return err
		}
		for range l.session.recipients {
			if len(a.each) == cap(a.each) {
				return m.close()
			}
			user, domain, mailer := "user"+strconv.Itoa(rng.IntN(10_000)), "remote.test", "smtp"
			local := rng.IntN(5) == 0
			if local {
				domain, mailer = "local.test", "local"
			}
			began := time.Now()
			passed, refused, err := m.rcpt(user, domain, mailer)
			a.each = append(a.each, time.Since(began))
			if err != nil {
				return err
			}
			if want := local || holds; passed != want || refused == want {
				a.wrong++
				a.sample = fmt.Sprintf("%s@%s from %v (grant: %v) answered with %q", user, domain, client, holds, m.answer)
			}
		}
		if err := m.abort(); err != nil {
			return err
		}
	}
	return m.close()
}
