package policy

import (
	"context"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/gate"
	"popgate/internal/relay"
)

// grants is the store and the ledger of a real gate.
type grants struct {
	mu   sync.Mutex
	held map[relay.Key]relay.Grant
}

func (g *grants) Lookup(k relay.Key) (relay.Grant, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.held[k], nil
}

func (g *grants) Allows(*relay.Rules, relay.Grant, netip.Addr) bool { return true }
func (g *grants) Full(relay.Now) bool                               { return false }

// realGate gives a gate, and how a client logs in.
func realGate() (j *gate.Gate, login func(client string)) {
	held, begin := &grants{held: map[relay.Key]relay.Grant{}}, time.Now()
	now := func() relay.Now { return relay.Now{Wall: time.Now(), Mono: time.Since(begin)} }
	j = gate.New(gate.Options{Store: held, Ledger: held, Now: now, Rules: &relay.Rules{
		Domains: relay.NewDomains(map[string]relay.Match{"local.test": relay.DomainWritten}), GrantTTL: time.Hour, IPv6Prefix: 128,
		TrustAuthenticated: true, WaitForLogin: 500 * time.Millisecond, MaxWaiting: 10, Reject: relay.DefaultReject,
	}})
	return j, func(client string) {
		g := relay.Grant{Client: netip.MustParseAddr(client), Login: now().Wall, Expires: now().Wall.Add(time.Hour), Deadline: now().Mono + time.Hour}
		g.Prefix = uint8(g.Client.BitLen())
		held.mu.Lock()
		held.held[g.Key()] = g
		held.mu.Unlock()
		j.Follow(relay.Batch{Changes: []relay.Change{{Kind: relay.ChangeGrant, Grant: g}}})
	}
}

func TestWithTheGateALoginThatIsLateIsWaitedFor(t *testing.T) {
	eachDoor(t, func(t *testing.T, d int) {
		synctest.Test(t, func(t *testing.T) {
			door := &doors[d]
			j, login := realGate()
			s, p, ended := door.make(j, Options{DrainTimeout: 400 * time.Millisecond}), &pipes{conns: make(chan net.Conn), done: make(chan struct{})}, make(chan error, 1)
			ctx, stop := context.WithCancel(context.Background())
			go func() { ended <- s.Serve(ctx, p) }()
			late, stranger, stopped := p.dial(), p.dial(), p.dial()
			begin := time.Now()
			_, _ = io.WriteString(late, door.ask)
			_, _ = io.WriteString(stranger, questionAbout(d, eve))
			time.Sleep(40 * time.Millisecond)
			login(bob)
			if got := reads(t, late, len(door.yes)); got != door.yes || time.Since(begin) != 40*time.Millisecond {
				t.Errorf("login 40 ms late: %q after %v", got, time.Since(begin))
			}
			if got := reads(t, stranger, len(door.no)); got != door.no || time.Since(begin) != 500*time.Millisecond {
				t.Errorf("no login: %q after %v", got, time.Since(begin))
			}
			if got := talk(t, stranger, door.ask, len(door.yes)); got != door.yes {
				t.Errorf("behind a stranger's: %q", got)
			}
			// A stop in the middle of a wait that would have ended with a no.
			_, _ = io.WriteString(stopped, questionAbout(d, maybe))
			synctest.Wait()
			stop()
			if got := reads(t, stopped, len(door.later)); got != door.later {
				t.Errorf("stopped while it waits: %q", got)
			}
			if err := <-ended; err != nil {
				t.Error(err)
			}
		})
	})
}
