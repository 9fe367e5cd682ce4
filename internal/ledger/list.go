package ledger

import (
	"iter"

	"popgate/internal/relay"
)

// Live gives every grant that is in force, in no order. Rest is called after each
// small piece of the work, which is much with many grants: whoever is answered
// meanwhile should not notice. It answers false when no more is wanted. A grant that is renewed or shortened meanwhile may
// come as it was; one that has been revoked doesn't come.
func (l *Ledger) Live(rest func() (goOn bool)) iter.Seq[relay.Grant] {
	const piece = 16
	return func(yield func(relay.Grant) bool) {
		for grants := range l.store.Some(piece) {
			now := l.now()
			for i := range grants {
				if g := &grants[i]; g.Live(now) && !l.revocations.covers(g) && !yield(*g) {
					return
				}
			}
			if !rest() {
				return
			}
		}
	}
}
