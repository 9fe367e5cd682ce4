package gate

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"popgate/internal/relay"
)

func asked(client netip.Addr, rcpt string) *relay.Query {
	return &relay.Query{Door: "policy", Client: client, Rcpt: rcpt}
}

func TestJudgeClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, r := setup()
		r.TrustedNetworks = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		f.grant(g, bob)
		ctx := t.Context()
		for _, tt := range []struct {
			name   string
			q      *relay.Query
			v      relay.Verdict
			reason relay.Reason
		}{
			{"granted, no recipient in the question", asked(bob, ""), relay.Pass, relay.ReasonGrant},
			{"granted, foreign recipient", asked(bob, "x@remote.test"), relay.Pass, relay.ReasonGrant},
			{"granted, recipient of ours that the MTA doesn't know", asked(bob, "x@local.test"), relay.Pass, relay.ReasonGrant},
			{"trusted, recipient of ours", asked(netip.MustParseAddr("198.51.100.1"), "x@local.test"), relay.Pass, relay.ReasonTrusted},
			{"stranger, no recipient in the question", asked(eve, ""), relay.Refuse, relay.ReasonNoGrant},
			{"stranger, foreign recipient", asked(eve, "x@remote.test"), relay.Refuse, relay.ReasonNoGrant},
			{"stranger, recipient of ours", asked(eve, "x@local.test"), relay.Pass, relay.ReasonLocal},
			{"stranger, percent hack at ours", asked(eve, "x%remote.test@local.test"), relay.Defer, relay.ReasonUnsure},
			{"no client, recipient of ours", asked(netip.Addr{}, "x@local.test"), relay.Pass, relay.ReasonLocal},
			{"no client", asked(netip.Addr{}, ""), relay.Defer, relay.ReasonNoClient},
		} {
			want(t, tt.name, g.JudgeClient(ctx, tt.q), tt.v, tt.reason)
		}
		f.err = errors.New("stale")
		want(t, "copy stale", g.JudgeClient(ctx, asked(eve, "")), relay.Defer, relay.ReasonStoreError)
		want(t, "copy stale, recipient of ours", g.JudgeClient(ctx, asked(eve, "x@local.test")), relay.Defer, relay.ReasonStoreError)
		if n := g.Counts()[relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonLocal}]; n != 2 {
			t.Errorf("%d counted as local, want 2", n)
		}
	})
}

func TestJudgeClientWaitsForALoginWhateverTheRecipient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, _ := setup()
		for rcpt, client := range map[string]netip.Addr{"": bob, "x@local.test": netip.MustParseAddr("192.0.2.8")} {
			go func() {
				time.Sleep(40 * time.Millisecond)
				f.grant(g, client)
			}()
			q := asked(client, rcpt)
			q.Waits = &relay.Waits{}
			want(t, "login 40 ms late, to "+rcpt, g.JudgeClient(t.Context(), q), relay.Pass, relay.ReasonGrant)
		}
	})
}

// counted is a table that counts its questions.
type counted struct {
	table
	asked int
	then  func() // called at each question
}

func (c *counted) Ask(ctx context.Context, domain string, w *relay.Waits) relay.Match {
	c.asked++
	if c.then != nil {
		c.then()
	}
	return c.table.Ask(ctx, domain, w)
}

func TestJudgeClientWithTablesThatCanOnlyBeAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, r := setup()
		r.TrustedNetworks = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
		f.grant(g, bob)
		tables := &counted{table: table{"ldap.test": relay.DomainFound, "slow.test": relay.DomainUnsure, "gone.test": relay.DomainVanished}}
		g.domains = tables
		trusted := netip.MustParseAddr("198.51.100.1")
		for _, tt := range []struct {
			name   string
			q      *relay.Query
			v      relay.Verdict
			reason relay.Reason
			asked  int
		}{
			{"granted: the client is enough", asked(bob, "x@ldap.test"), relay.Pass, relay.ReasonGrant, 0},
			{"granted, the table can't tell", asked(bob, "x@slow.test"), relay.Pass, relay.ReasonGrant, 0},
			{"trusted: the client is enough", asked(trusted, "x@ldap.test"), relay.Pass, relay.ReasonTrusted, 0},
			{"stranger, no recipient: nothing to ask about", asked(eve, ""), relay.Refuse, relay.ReasonNoGrant, 0},
			{"stranger, recipient of a list: nothing to ask about", asked(eve, "x@local.test"), relay.Pass, relay.ReasonLocal, 0},
			{"stranger, recipient of a table", asked(eve, "x@ldap.test"), relay.Pass, relay.ReasonLocal, 1},
			{"no client, recipient of a table", asked(netip.Addr{}, "x@ldap.test"), relay.Pass, relay.ReasonLocal, 1},
			{"stranger, in no table", asked(eve, "x@remote.test"), relay.Refuse, relay.ReasonNoGrant, 1},
			{"stranger, the table can't tell", asked(eve, "x@slow.test"), relay.Defer, relay.ReasonUnsure, 1},
			{"stranger, the domain left the table a moment ago", asked(eve, "x@gone.test"), relay.Defer, relay.ReasonUnsure, 1},
			{"stranger, percent hack at a table's", asked(eve, "x%remote.test@ldap.test"), relay.Defer, relay.ReasonUnsure, 1},
		} {
			tables.asked = 0
			want(t, tt.name, g.JudgeClient(t.Context(), tt.q), tt.v, tt.reason)
			if tables.asked != tt.asked {
				t.Errorf("%s: %d questions to the tables, want %d", tt.name, tables.asked, tt.asked)
			}
		}
		f.err = errors.New("stale")
		want(t, "copy stale: the recipient of a table may be a client's all the same",
			g.JudgeClient(t.Context(), asked(eve, "x@ldap.test")), relay.Defer, relay.ReasonStoreError)
	})
}

func TestJudgeClientLooksAgainWhenTheTablesHaveAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, rcpt := range []string{"x@ldap.test", "x@remote.test", "x@slow.test"} {
			g, f, _ := setup()
			g.domains = &counted{table: table{"ldap.test": relay.DomainFound, "slow.test": relay.DomainUnsure}, then: func() { f.grant(g, bob) }}
			want(t, "logged in meanwhile, "+rcpt, g.JudgeClient(t.Context(), asked(bob, rcpt)), relay.Pass, relay.ReasonGrant)
		}
	})
}

func TestJudgeClientWaitsForALoginThoughATableHasTheRecipient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, f, r := setup()
		g.domains = table{"ldap.test": relay.DomainFound}
		go func() {
			time.Sleep(40 * time.Millisecond)
			f.grant(g, bob)
		}()
		q := asked(bob, "x@ldap.test")
		q.Waits = &relay.Waits{}
		want(t, "login 40 ms late", g.JudgeClient(t.Context(), q), relay.Pass, relay.ReasonGrant)
		q = asked(eve, "x@ldap.test")
		q.Waits = &relay.Waits{}
		start := time.Now()
		want(t, "no login", g.JudgeClient(t.Context(), q), relay.Pass, relay.ReasonLocal)
		if waited := time.Since(start); waited != r.WaitForLogin {
			t.Errorf("waited %v, want %v", waited, r.WaitForLogin)
		}
	})
}
