package policy

import (
	"testing"

	"popgate/contrib"
	"popgate/internal/lab"
)

func TestEximHoldsTheDoorShut(t *testing.T) {
	lab.Isolated(t, func(t *testing.T, h *lab.Host) {
		h.Exim(t, lab.EximOptions{ACL: contrib.EximSocketMap})
		for _, up := range []bool{true, false, true} {
			stop := func() {}
			if up {
				stop = at(t, lab.EximSocketMapSocket, NewSocketMap(&witness{}, Options{}))
			}
			for _, tt := range []struct {
				client, to string
				up, down   outcome
			}{
				{bob, "x@remote.test", taken, deferred},
				{bob6, "x@remote.test", taken, deferred},
				{eve, "x@remote.test", refused, deferred},
				{maybe, "x@remote.test", deferred, deferred},
				{eve, "alice@local.test", taken, taken},
				{maybe, "alice@local.test", taken, taken},
			} {
				want := tt.up
				if !up {
					want = tt.down
				}
				if got := rcpt(t, h, tt.client, tt.to); !want.is(got) {
					t.Errorf("popgate up %v: %s to %s: %d, want %s", up, tt.client, tt.to, got, want)
				}
			}
			stop()
		}
	})
}
