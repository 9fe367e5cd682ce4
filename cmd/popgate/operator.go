package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"time"

	"popgate/internal/control"
	"popgate/internal/ledger"
	"popgate/internal/relay"
)

// operator is the daemon as the control socket sees it.
type operator daemon

// keptWithin bounds the wait for the disk before an operator's command is
// answered.
const keptWithin = 10 * time.Second

func (o *operator) Ask(ctx context.Context, q control.AskRequest) (control.AskAnswer, error) {
	query := relay.Query{Door: "control", Client: q.Client, Rcpt: q.Rcpt, Mailer: q.Mailer, Host: q.Host, Addr: q.Addr}
	if q.Auth != "" {
		query.AuthUser, query.AuthType = q.Auth, "PLAIN"
	}
	switch q.MTA {
	case "":
	case "postfix":
		query.Version = "Postfix "
	case "sendmail":
		query.Version = "8.0.0"
	default:
		return control.AskAnswer{}, fmt.Errorf("%q is no MTA popgate knows; write postfix or sendmail", q.MTA)
	}
	e := o.gate.Explain(ctx, &query)
	a := control.AskAnswer{Verdict: e.Decision.Verdict.String(), Reason: e.Decision.Reason.String(), Client: e.Client,
		Rcpt: q.Rcpt, Recipient: e.Recipient.String()}
	if e.Decision.Verdict != relay.Pass {
		a.Reply = e.Reply.String()
	}
	if e.Decision.Verdict != relay.Pass {
		a.Revoked = o.revoked(e.Client)
	}
	if e.Grant.Covers(e.Client) {
		g := control.FromGrant(e.Grant)
		a.Grant = &g
	}
	return a, nil
}

// revoked tells of the revocation that covers a client, if there is one.
func (o *operator) revoked(client netip.Addr) string {
	if !client.IsValid() {
		return ""
	}
	last, block := o.ledger.Revoked(client)
	switch now := o.env.now().Wall; {
	case now.Before(block):
		return "a block covers this client until " + block.Local().Format(time.DateTime) + ": its logins grant nothing"
	case !last.IsZero():
		return "it was revoked at " + last.Local().Format(time.DateTime) + "; logins up to then don't count"
	}
	return ""
}

func (o *operator) Grants(ctx context.Context) iter.Seq[relay.Grant] {
	pace := leisurely(o.gate.Answered)
	return o.ledger.Live(func() bool {
		pace.rest()
		return ctx.Err() == nil
	})
}

func (o *operator) Show(client netip.Addr) (relay.Grant, bool) {
	client = relay.Canonical(client)
	g, ok := o.ledger.Find(relay.KeyOf(client, o.config.Load().IPv6Prefix))
	return g, ok && g.Covers(client)
}

func (o *operator) Grant(ctx context.Context, q control.GrantRequest) (relay.Grant, error) {
	ttl := cmp.Or(q.TTL, o.config.Load().GrantTTL)
	done := make(chan error, 1)
	g, err := o.ledger.Grant(q.Client, ttl, q.User, q.Note, q.Force, done)
	(*daemon)(o).answer()
	if err != nil {
		return relay.Grant{}, fmt.Errorf("%s: %w", q.Client, err)
	}
	o.log.Info("grant", "client", g.Client, "expires", g.Expires, "user", q.User, "note", q.Note, "forced", q.Force)
	return g, kept(ctx, done)
}

func (o *operator) Revoke(ctx context.Context, q control.RevokeRequest) ([]relay.Grant, error) {
	named := 0
	for _, given := range []bool{q.Network.IsValid(), q.User != "", q.All} {
		if given {
			named++
		}
	}
	if named != 1 {
		return nil, errors.New("name a client, a network, --user or --all, and only one of them")
	}
	if q.Block < 0 || q.Block > maxBlock {
		return nil, fmt.Errorf("--block %s: write a time of at most %s", q.Block, maxBlock)
	}
	done := make(chan error, 1)
	taken, err := o.ledger.Revoke(relay.Revocation{Network: unmapped(q.Network), User: q.User, All: q.All}, q.Block, done)
	if err != nil {
		return nil, err
	}
	attrs := []any{"revoked", len(taken)}
	switch {
	case q.All:
		attrs = append(attrs, "all", true)
	case q.User != "":
		attrs = append(attrs, "user", q.User)
	default:
		attrs = append(attrs, "network", q.Network)
	}
	if q.Block > 0 {
		attrs = append(attrs, "block", q.Block)
	}
	o.log.Info("revocation", attrs...)
	if err := kept(ctx, done); err != nil {
		return nil, fmt.Errorf("%d grants revoked, %w", len(taken), err)
	}
	return taken, nil
}

const maxBlock = 366 * 24 * time.Hour

// unmapped gives a network in the spelling of client addresses.
func unmapped(p netip.Prefix) netip.Prefix {
	if p.IsValid() && p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	if p.IsValid() {
		p = p.Masked()
	}
	return p
}

// kept waits until what the operator did is on disk.
func kept(ctx context.Context, done <-chan error) error {
	ctx, stop := context.WithTimeout(ctx, keptWithin)
	defer stop()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("in force, but not on disk, so a restart would forget it: %w", err)
		}
		return nil
	case <-ctx.Done():
		return errors.New("in force, but the disk has not confirmed it in time; a restart may forget it")
	}
}

func (o *operator) Reload(ctx context.Context) ([]string, error) { return (*daemon)(o).reload(ctx) }

func (o *operator) Status() control.Status {
	d := (*daemon)(o)
	cfg := d.config.Load()
	st := control.Status{
		Health: "ok", Version: version(), Started: d.started.UTC(), Config: d.path, Grants: 0,
		Events: d.sources.counts(), Domains: d.sites.current().Len(), Tables: d.ledger.Sizes(),
		Store: control.Store{Kind: cfg.Store, Dir: cfg.StateDir}, Decisions: []control.Decisions{},
	}
	pace := brisk()
	for range d.ledger.Live(func() bool { pace.rest(); return true }) {
		st.Grants++
	}
	for _, l := range d.listeners {
		st.Listeners = append(st.Listeners, control.Listener{Name: l.name, Address: l.text})
	}
	d.statusOfSources(&st)
	var until time.Time
	until, st.PutOff = d.gate.PutOff()
	st.PutOffUntil = known(until)
	for decision, n := range d.gate.Counts() {
		st.Decisions = append(st.Decisions, control.Decisions{Verdict: decision.Verdict.String(), Reason: decision.Reason.String(), Count: n})
	}
	slices.SortFunc(st.Decisions, func(a, b control.Decisions) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Verdict+a.Reason, b.Verdict+b.Reason))
	})
	st.Connections = d.connections()
	st.LogDropped = d.queue.Dropped()
	st.Watchers = d.watchers.Count()
	d.problems(&st)
	return st
}

// connections adds up what the doors count.
func (d *daemon) connections() map[string]uint64 {
	out := map[string]uint64{}
	for _, door := range d.doors() {
		out["open"] += uint64(door.Open)
		out["total"] += door.Total
		for cause, n := range door.Ended {
			out[cause] += n
		}
	}
	return out
}

// trouble gives a source's error behind its name, without the name once more.
func trouble(name, why string) string {
	return strings.TrimPrefix(strings.TrimPrefix(why, "source "), name+": ")
}

// longStart is how long a source may be starting before somebody should look.
const longStart = time.Minute

func (d *daemon) statusOfSources(st *control.Status) {
	st.Sources = []control.Source{}
	for _, s := range d.gate.SourceStates() {
		st.Sources = append(st.Sources, control.Source{
			Name: s.Name, Type: s.Type, State: s.Status.String(), Error: s.Error, LastLine: known(s.LastLine),
			LastLogin: known(s.LastLogin), Lines: s.Lines, Logins: s.Logins, Unparsed: s.Unparsed, Gaps: s.Gaps, Missed: s.Missed, Skipped: s.Skipped, Lag: s.Lag.Seconds(),
			Doubts: d.sources.doubts.about(s),
		})
		switch {
		case s.Status == relay.SourceDown:
			st.Problems = append(st.Problems, "source "+s.Name+" is down: "+trouble(s.Name, s.Error))
		case s.Status == relay.SourceStarting && !s.Since.IsZero() && d.env.now().Wall.Sub(s.Since) > longStart:
			why := "is still reading what was logged before; until it is done, strangers are put off instead of refused"
			if s.Type == "syslog" {
				why = "has had no message that counts since " + stampOf(s.Since) + "; does the syslog daemon send to it? popgate's log names who was turned away"
			}
			st.Problems = append(st.Problems, "source "+s.Name+" "+why)
		}
	}
	slices.SortFunc(st.Sources, func(a, b control.Source) int { return cmp.Compare(a.Name, b.Name) })
}

func known(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

// problems fills in what makes the daemon degraded.
func (d *daemon) problems(st *control.Status) {
	if d.state != nil {
		if err := d.state.Health(); err != nil {
			st.Store.Error = err.Error()
			st.Problems = append(st.Problems, "state: "+err.Error())
		}
	}
	if d.env.now().Mono < d.missingUntil {
		st.Problems = append(st.Problems, "state: "+d.missing)
	}
	st.Problems = append(st.Problems, d.sites.problems()...)
	if d.ledger.Full(d.env.now()) {
		st.Problems = append(st.Problems, "max_grants is reached: new logins are turned away")
	}
	if err := d.env.storeFault(); err != nil {
		st.Problems = append(st.Problems, "store: "+err.Error())
	}
	if why := d.notice.Load(); why != nil {
		st.Problems = append(st.Problems, "the last reload was refused: "+*why)
	}
	if d.gate.SawUnknownMTA() {
		st.Problems = append(st.Problems, "the MTA's name is none popgate knows (Postfix with a changed mail_name?): write mta: postfix or mta: sendmail; until then nothing is refused, only put off")
	}
	if len(st.Problems) > 0 {
		st.Health = "degraded"
	}
}

// counts gives what became of logins and logouts.
func (s *sources) counts() map[string]uint64 {
	out := map[string]uint64{}
	for o := range s.events {
		if n := s.events[o].Load(); n > 0 {
			out[ledger.Outcome(o).String()] = n
		}
	}
	return out
}
