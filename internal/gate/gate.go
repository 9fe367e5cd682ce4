// Package gate answers one question from end to end: may this client send to
// this recipient, now? It looks up the grant, knows whether a login may have
// been missed, lets a client wait a moment for its login line, counts, and
// hands every decision to whoever writes it down. What the answer means is
// relay.Decide's; no door has a rule of its own.
//
// Judge never blocks but to wait for a login, for at most wait_for_login, and to
// ask the tables of local domains that can't be listed, where a site has any; it
// says so before to the query's Waits, for doors that have others to answer.
package gate

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"

	"popgate/internal/relay"
)

// Store is where grants are looked up. Look-up is local and never blocks; an
// error means that this copy may be stale, and what it gives still counts.
type Store interface {
	Lookup(relay.Key) (relay.Grant, error)
}

// Ledger says what look-up can't: whether a grant is still allowed, and
// whether new ones had to be turned away.
type Ledger interface {
	Allows(*relay.Rules, relay.Grant, netip.Addr) bool
	Full(relay.Now) bool
}

// Domains asks tables that can be asked but not listed whether a domain is one
// of the site's own.
type Domains interface {
	Ask(ctx context.Context, domain string, w *relay.Waits) relay.Match
}

// Options are what a gate is made from.
type Options struct {
	Store   Store
	Ledger  Ledger
	Rules   *relay.Rules
	Domains Domains // nil: nothing to ask
	Now     func() relay.Now
	// Record is handed every decision made for a door; it must not block.
	Record func(Record)
	// ClockSet is told by how much the wall clock was found set ahead; it must
	// not block. nil: nobody asks.
	ClockSet func(ahead time.Duration)
}

// Record is one decision as it is logged and watched. Its strings are the
// query's own.
type Record struct {
	At       time.Time
	Took     time.Duration // with waiting
	Waited   bool
	Decision relay.Decision
	Whose    relay.Recipient
	Client   netip.Addr
	Rcpt     string
	Sender   string
	Queue    string
	Door     string
}

// Gate is safe for use by many goroutines.
type Gate struct {
	store   Store
	ledger  Ledger
	domains Domains
	now     func() relay.Now
	record  func(Record)
	rules   atomic.Pointer[generation]
	waiting waiting
	sources readiness
	counts  [3][relay.Reasons]atomic.Uint64
	took    took
	strange atomic.Bool  // an MTA asked whose kind is unknown
	missed  atomic.Int64 // until when logins may be missing, on the clock that only runs forward
	offset  atomic.Int64 // of the wall clock from the one that only runs forward; 0: not known yet
	set     func(time.Duration)
}

type generation struct {
	rules *relay.Rules
	n     uint64
}

// New makes a gate. Until Sources is called it knows of no source and so
// misses no login.
func New(o Options) *Gate {
	g := &Gate{store: o.Store, ledger: o.Ledger, domains: o.Domains, now: o.Now, record: o.Record, set: o.ClockSet}
	if g.record == nil {
		g.record = func(Record) {}
	}
	g.rules.Store(&generation{o.Rules, 1})
	g.waiting.init()
	g.compareClocks(g.now())
	return g
}

// SetRules swaps the rules under every question at once.
func (g *Gate) SetRules(r *relay.Rules) {
	g.rules.Store(&generation{r, g.rules.Load().n + 1})
}

// Missed tells that logins of the last ttl may never be read: for one ttl from
// now nobody is refused for want of a grant.
func (g *Gate) Missed() { g.missed.Store(int64(g.now().Mono + g.Rules().GrantTTL)) }

// setAhead is how far the wall clock must have been set ahead to matter.
const setAhead = time.Minute

// compareClocks notices that the wall clock was set ahead, or that the machine
// slept: grants have ended by it whose clients logged in a short while ago. They
// are not given back, but for one ttl nobody is refused for want of one.
func (g *Gate) compareClocks(now relay.Now) {
	offset, was := now.Wall.UnixNano()-int64(now.Mono), g.offset.Load()
	ahead := time.Duration(offset - was)
	switch {
	case was == 0:
		g.offset.CompareAndSwap(0, offset)
	case ahead > setAhead:
		g.Missed() // first: whoever asks meanwhile must know
		if g.offset.CompareAndSwap(was, offset) && g.set != nil {
			g.set(ahead)
		}
	case ahead < -setAhead:
		g.offset.CompareAndSwap(was, offset)
	}
}

// Rules gives the rules in force.
func (g *Gate) Rules() *relay.Rules { return g.rules.Load().rules }

// Generation changes with the rules, so that a door may keep what it made of
// them until then.
func (g *Gate) Generation() uint64 { return g.rules.Load().n }

// Reply gives what a client is told about a decision.
func (g *Gate) Reply(d relay.Decision, client netip.Addr) relay.Reply {
	return g.Rules().Reply(d, client)
}

// Judge decides one recipient. ctx ends when the door has no use for the
// answer any more; a wait then ends at once.
func (g *Gate) Judge(ctx context.Context, q *relay.Query) relay.Decision {
	return g.tell(q, g.explain(ctx, q, false))
}

// JudgeClient decides for a door before which the MTA has kept its own relay
// rule and asks only whether this client may break it. A recipient of our own
// is then no answer as long as the client may relay anywhere: it passes as
// local only when nothing else passes it. A query without a recipient is about
// a foreign one.
func (g *Gate) JudgeClient(ctx context.Context, q *relay.Query) relay.Decision {
	return g.tell(q, g.explain(ctx, q, true))
}

// tell counts and records a decision.
func (g *Gate) tell(q *relay.Query, e Explanation) relay.Decision {
	if q.Mailer != "" && g.Rules().Kind(q.Version) == relay.MTAUnknown && !g.strange.Load() {
		g.strange.Store(true)
	}
	g.counts[e.Decision.Verdict][e.Decision.Reason].Add(1)
	took := g.now().Mono - e.began
	g.took.add(took)
	g.record(Record{
		At: e.At, Took: took, Waited: e.waited, Decision: e.Decision, Whose: e.Recipient,
		Client: e.Client, Rcpt: q.Rcpt, Sender: q.Sender, Queue: q.Queue, Door: q.Door,
	})
	return e.Decision
}

// Explanation is a decision with what led to it.
type Explanation struct {
	Decision  relay.Decision
	Recipient relay.Recipient
	Client    netip.Addr
	Grant     relay.Grant // what the store had; Prefix 0: nothing
	Reply     relay.Reply
	At        time.Time
	began     time.Duration
	waited    bool
}

// Explain answers as Judge would at this moment, without waiting, counting,
// recording, or using up any limit.
func (g *Gate) Explain(ctx context.Context, q *relay.Query) Explanation {
	dry := *q
	dry.Waits = nil
	e := g.explain(ctx, &dry, false)
	e.Reply = g.Reply(e.Decision, e.Client)
	return e
}

// explain decides. With closed, the door asks about the client: see JudgeClient.
func (g *Gate) explain(ctx context.Context, q *relay.Query, closed bool) Explanation {
	r := g.Rules()
	now := g.now()
	g.compareClocks(now)
	f := relay.Facts{Client: q.ClientAddress(), Now: now}
	f.Authenticated = r.TrustAuthenticated && q.Authenticated()
	f.Trusted = r.Trusts(f.Client)
	whose := relay.Foreign
	if !closed || q.Rcpt != "" {
		whose = r.Whose(q.Rcpt, &relay.Resolution{MTA: r.Kind(q.Version), Mailer: q.Mailer, Host: q.Host, Addr: q.Addr})
	}
	f.Recipient = clientFirst(whose, closed)
	g.lookup(r, &f)
	// Tables are slow to ask, so they are asked only when it matters.
	if d := relay.Decide(&f); d.Verdict != relay.Pass && whose != relay.Local && q.Rcpt != "" && g.domains != nil {
		whose = g.askTables(ctx, q, whose)
		f.Recipient = clientFirst(whose, closed)
		f.Now = g.now()
		g.lookup(r, &f)
	}
	e := Explanation{Client: f.Client, At: now.Wall, began: now.Mono}
	if d := relay.Decide(&f); d.Verdict == relay.Refuse && q.Waits != nil && r.WaitForLogin > 0 {
		e.waited = g.wait(ctx, r, q, &f)
	}
	if d := relay.Decide(&f); whose == relay.Local && (d.Verdict == relay.Refuse || d.Reason == relay.ReasonNoClient) {
		f.Recipient = relay.Local
	}
	e.Decision, e.Grant, e.Recipient = relay.Decide(&f), f.Grant, whose
	return e
}

// clientFirst lets a closed door's question be about the client even where we
// take the recipient for local: the MTA, which asks, does not, and would refuse
// it for good. A login may have been missed for it as for any other.
func clientFirst(whose relay.Recipient, closed bool) relay.Recipient {
	if closed && whose == relay.Local {
		return relay.Foreign
	}
	return whose
}

// lookup brings what is known about the client's grant, and whether more may
// be missing than is known.
func (g *Gate) lookup(r *relay.Rules, f *relay.Facts) {
	if f.Recipient == relay.Local || f.Authenticated || f.Trusted || !f.Client.IsValid() {
		return // decided without
	}
	grant, err := g.store.Lookup(relay.KeyOf(f.Client, r.IPv6Prefix))
	f.Grant = grant
	f.Allowed = grant.Prefix != 0 && g.ledger.Allows(r, grant, f.Client)
	switch {
	case err != nil:
		f.Blind = relay.ReasonStoreError
	case g.sources.blind(f.Now, r.GrantTTL), int64(f.Now.Mono) < g.missed.Load():
		f.Blind = relay.ReasonNotReady
	case g.ledger.Full(f.Now):
		f.Blind = relay.ReasonFull
	default:
		f.Blind = relay.ReasonNone
	}
}

// askTables asks the tables that can only be asked about a recipient that the
// rules don't know to be ours: first for the domain the MTA sends it to, then
// for the one it was written with. An address that began as ours is never
// refused for good.
func (g *Gate) askTables(ctx context.Context, q *relay.Query, whose relay.Recipient) relay.Recipient {
	address := q.Addr
	if q.Mailer == "" {
		address = q.Rcpt
	}
	domain, strict := relay.Strict(address)
	if strict {
		switch g.domains.Ask(ctx, domain, q.Waits) {
		case relay.DomainFound, relay.DomainWritten:
			return relay.Local
		case relay.DomainUnsure, relay.DomainVanished:
			return relay.Unsure
		}
	}
	raw := relay.LastDomain(q.Rcpt)
	if whose == relay.Foreign && raw != "" && !(strict && raw == domain) && g.domains.Ask(ctx, raw, q.Waits) != relay.DomainOther {
		return relay.Unsure
	}
	return whose
}

// SawUnknownMTA says whether an MTA has asked whose kind is unknown, so that
// its mailers could not be read.
func (g *Gate) SawUnknownMTA() bool { return g.strange.Load() && g.Rules().MTA == relay.MTAUnknown }

// Counts gives how often each answer was given since the start, without ask.
func (g *Gate) Counts() map[relay.Decision]uint64 {
	out := map[relay.Decision]uint64{}
	for v := range g.counts {
		for r := range g.counts[v] {
			if n := g.counts[v][r].Load(); n > 0 {
				out[relay.Decision{Verdict: relay.Verdict(v), Reason: relay.Reason(r)}] = n
			}
		}
	}
	return out
}
