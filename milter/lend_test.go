package milter

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"popgate/internal/relay"
)

// Connections lend each other their buffers while they wait. Each of many, over
// real sockets, has parts of its packets come at any time between those of the
// others, and a judge who takes his time, and often so much that the others go on
// meanwhile: what is judged is one client's alone.
func TestNoClientIsJudgedByWhatAnotherConnectionSent(t *testing.T) {
	for _, loops := range []int{1, 4} {
		for _, network := range []string{"unix", "tcp"} {
			t.Run(fmt.Sprintf("%s, loops %d", network, loops), func(t *testing.T) { oneClientsAlone(t, network, loops) })
		}
	}
}

func oneClientsAlone(t *testing.T, network string, loops int) {
	var mixed sync.Map
	w := &witness{decide: func(_ context.Context, q *relay.Query) relay.Decision {
		look := func() bool {
			who := q.Client.String()
			return q.ClientAddr == who && q.Rcpt == who+"@remote.test" && q.Addr == who+"@macro.test" && q.Host == who+".test" && q.Mailer == "esmtp"
		}
		before := look()
		if rand.IntN(4) == 0 {
			q.Waits.Block()
		}
		for range 20 {
			runtime.Gosched()
		}
		if !before || !look() {
			mixed.Store(fmt.Sprintf("%+v", *q), true)
		}
		return refused
	}}
	d := serve(t, network, w, Options{Loops: loops})
	var all sync.WaitGroup
	for i := range 24 {
		client := netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + i)})
		who := client.String()
		m := begun(t, d, client)
		all.Go(func() {
			for n := range 100 {
				ms := macros('R', "{rcpt_mailer}", "esmtp", "{rcpt_host}", who+".test", "{rcpt_addr}", who+"@macro.test", "{client_addr}", who)
				r := rcpt("<" + who + "@remote.test>")
				// Macros and command apart, or cut anywhere.
				parts := [][]byte{ms, r}
				if cut := (n * 7) % len(ms); n%3 > 0 && cut > 0 {
					parts = [][]byte{ms[:cut], ms[cut:], r[:n%len(r)], r[n%len(r):]}
				}
				for _, p := range append([][]byte{mail("<a@b>")}, parts...) {
					if _, err := m.conn.Write(p); err != nil {
						t.Error(err)
						return
					}
					runtime.Gosched()
				}
				for _, want := range []byte{'c', 'y'} {
					if got := m.reply(); got == "" || got[0] != want {
						t.Errorf("%s: %q, want %q", who, got, want)
						return
					}
				}
			}
		})
	}
	all.Wait()
	mixed.Range(func(q, _ any) bool { t.Errorf("mixed up: %s", q); return true })
}
