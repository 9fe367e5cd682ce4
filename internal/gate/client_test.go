package gate

import (
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
