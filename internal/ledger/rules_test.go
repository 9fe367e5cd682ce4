package ledger_test

import (
	"net/netip"
	"sync"
	"testing"
	"time"

	"popgate/cache"
	"popgate/internal/ledger"
	"popgate/internal/relay"
)

// New rules hold for every grant when SetRules returns, whoever logs in while it
// looks through them: an address that may hold none any more has none, whether
// its grant was there before or came meanwhile.
func TestAttackNoGrantSlipsPastNewRules(t *testing.T) {
	began := time.Now()
	barred := netip.MustParsePrefix("198.51.0.0/17")
	old := relay.Rules{GrantTTL: time.Hour, IPv6Prefix: 128, MaxGrants: million, MaxGrantsPerUser: million,
		Services: []relay.Service{relay.POP3, relay.IMAP}}
	store := cache.New(cache.Options{})
	l := ledger.New(ledger.Options{Store: store, Rules: &old, Now: func() relay.Now {
		return relay.Now{Wall: time.Now(), Mono: time.Hour + time.Since(began)}
	}})
	login := func(i int) {
		l.Event(relay.Event{Kind: relay.Login, Client: netip.AddrFrom4([4]byte{198, 51, byte(i >> 8), byte(i)}), User: "bob", Service: relay.IMAP,
			Source: "file:/var/log/mail.log", Format: "dovecot", Time: time.Now(), Live: true})
	}
	const all = 1 << 16
	for i := range all / 2 {
		login(i * 2)
	}
	fresh := old
	fresh.NeverGrant, fresh.GrantTTL = []netip.Prefix{barred}, time.Minute
	var others sync.WaitGroup
	done := make(chan struct{})
	defer others.Wait()
	defer close(done)
	for part := range 2 {
		others.Go(func() {
			for i := part; ; i += 2 {
				select {
				case <-done:
					return
				default:
					login(i % all)
				}
			}
		})
	}
	l.SetRules(&fresh)
	for _, g := range store.All() {
		if barred.Contains(g.Client) {
			t.Fatalf("%v still has a grant", g.Client)
		}
		if g.Expires.Sub(g.Login) > fresh.GrantTTL {
			t.Fatalf("%v has a grant for %v", g.Client, g.Expires.Sub(g.Login))
		}
	}
	if n := store.Len(); n < all/4 {
		t.Errorf("%d grants are left", n)
	}
}
