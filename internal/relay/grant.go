package relay

import (
	"net/netip"
	"strings"
	"time"
)

// Grant is a client address's permission to relay until a time, with the proof
// of why. Times are wall-clock readings without a monotonic part.
type Grant struct {
	Client   netip.Addr    // the full address that logged in
	Prefix   uint8         // how many leading bits of it the grant covers; 0 covers nothing
	Service  Service       //
	Operator bool          // made by `popgate grant`, not by a login
	Forced   bool          // the operator overrode the never-grant rules
	Open     bool          // a session that is still open holds it beyond its ttl
	User     string        // as logged; may be empty for an operator's grant
	Source   string        // where the login was read
	Format   string        // how it was read
	Session  string        // the login's session id, if the line had one
	Note     string        // the operator's
	Login    time.Time     // the login's own time
	Expires  time.Time     // the first moment at which it no longer counts
	Deadline time.Duration // the same moment on the clock that only runs forward; not kept on disk
}

// Covers says whether the grant is for this client. The zero Grant covers
// nobody.
func (g *Grant) Covers(client netip.Addr) bool {
	if g.Prefix == 0 || !g.Client.IsValid() || !client.IsValid() {
		return false
	}
	client = Canonical(client)
	if g.Client == client {
		return true
	}
	// Not only the prefix: two addresses may share one and still be strangers.
	return g.Client.Is6() && client.Is6() && g.Prefix < 128 && KeyOf(client, int(g.Prefix)) == g.Key()
}

// Live says whether the grant still counts: it ends at the earlier of the wall
// clock and the clock that only runs forward, so that stepping the wall clock
// back can't prolong it.
func (g *Grant) Live(now Now) bool {
	return now.Wall.Before(g.Expires) && now.Mono < g.Deadline
}

// Key is where the grant lies in the store.
func (g *Grant) Key() Key { return KeyOf(g.Client, int(g.Prefix)) }

// Newer orders the grants of one key: the later login wins, and between equal
// times the order is fixed but arbitrary, so that every copy ends with the same.
func (g *Grant) Newer(h *Grant) bool {
	if !g.Login.Equal(h.Login) {
		return g.Login.After(h.Login)
	}
	if !g.Expires.Equal(h.Expires) {
		return g.Expires.After(h.Expires)
	}
	if c := g.Client.Compare(h.Client); c != 0 {
		return c > 0
	}
	for _, d := range [...]int{strings.Compare(g.User, h.User), strings.Compare(g.Source, h.Source),
		strings.Compare(g.Session, h.Session), strings.Compare(g.Format, h.Format), strings.Compare(g.Note, h.Note),
		int(g.Service) - int(h.Service), int(g.Prefix) - int(h.Prefix)} {
		if d != 0 {
			return d > 0
		}
	}
	return g.Operator && !h.Operator || g.Operator == h.Operator && g.Forced && !h.Forced
}

// ChangeKind says what a Change does.
type ChangeKind uint8

const (
	ChangeGrant  ChangeKind = 1 + iota // a login, or the operator, granted
	ChangeClose                        // a session ended
	ChangeRevoke                       // a revocation or block was set
)

// Change is one fact that alters the ledger's state. Changes are idempotent and
// commute: any order and any repetition of the same changes end in the same
// state.
type Change struct {
	Kind ChangeKind

	// ChangeGrant. Grant.Expires is where the grant ends without a session
	// that holds it (login + ttl, or the operator's time).
	Grant   Grant
	Ceiling time.Time // until when the grant's session may hold it; zero: it does not hold

	// ChangeClose: session Session of source Source ended at At.
	Source, Session string
	At              time.Time
	Until           time.Time // when the fact may be forgotten

	Revocation Revocation // ChangeRevoke
}

// Revocation takes grants away: logins up to its time that it covers never
// grant again, and while its block runs no login that it covers grants at all.
// One of Network, User and All is set.
type Revocation struct {
	Network netip.Prefix // clients inside it, and grants whose covered range touches it
	User    string       // folded by FoldUser; a bare name matches it in every domain
	All     bool
	Time    time.Time // logins up to here don't grant
	Block   time.Time // until here no login grants; zero: no block
	Until   time.Time // when the record may be forgotten
}

// FoldUser gives the spelling in which user names are compared.
func FoldUser(u string) string { return strings.ToLower(u) }

// CoversUser says whether the revocation is for this user: names compare
// case-folded, and a bare name matches it in every domain.
func (r *Revocation) CoversUser(user string) bool {
	if r.User == "" || user == "" {
		return false
	}
	user = FoldUser(user)
	if user == r.User {
		return true
	}
	if strings.IndexByte(r.User, '@') < 0 {
		if i := strings.IndexByte(user, '@'); i >= 0 && user[:i] == r.User {
			return true
		}
	}
	return false
}

// CoversNetwork says whether any address of p lies in the revoked network.
func (r *Revocation) CoversNetwork(p netip.Prefix) bool {
	return r.Network.IsValid() && p.IsValid() && r.Network.Overlaps(p)
}

// Covers says whether the revocation takes the grant away or, for a login not
// yet granted, forbids it: the login is no later than the revocation or the
// end of its block. It reads no clock, so that a login made during a block
// does not come back when the block ends. A forced operator's grant stands
// above a block, never above a later revocation.
func (r *Revocation) Covers(g *Grant) bool {
	if g.Login.After(r.Time) && (g.Forced || g.Login.After(r.Block)) {
		return false
	}
	if r.All || r.CoversUser(g.User) {
		return true
	}
	if !r.Network.IsValid() || g.Prefix == 0 {
		return false
	}
	p, err := g.Client.Prefix(int(g.Prefix))
	return err == nil && r.CoversNetwork(p)
}
