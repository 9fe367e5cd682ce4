package ledger

import (
	"iter"

	"popgate/internal/relay"
)

// Live gives every grant that is in force, in no order: some at a time, as the
// store unpacks many sooner than one after the other. Rest is called after each
// small piece of the work, which is much with many grants; whoever is answered
// meanwhile should not notice. One that is renewed or shortened meanwhile may
// come as it was; one that has been revoked doesn't come.
func (l *Ledger) Live(rest func()) iter.Seq[relay.Grant] {
	const atOnce = 16
	return func(yield func(relay.Grant) bool) {
		packed, grants := make([]string, 0, atOnce), make([]relay.Grant, 0, atOnce)
		some := func() bool {
			now := l.now()
			grants = l.store.Unpack(grants[:0], packed)
			for i := range grants {
				if g := &grants[i]; g.Live(now) && !l.revocations.covers(g) && !yield(*g) {
					return false
				}
			}
			packed = packed[:0]
			rest()
			return true
		}
		for p := range l.store.Packed() {
			if packed = append(packed, p); len(packed) == atOnce && !some() {
				return
			}
		}
		some()
	}
}
