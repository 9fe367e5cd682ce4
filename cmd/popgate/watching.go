package main

import (
	"time"

	"popgate/internal/control"
	"popgate/internal/gate"
	"popgate/internal/ledger"
	"popgate/internal/relay"
)

// What happens, told to those who watch. Whoever tells asks Want first, so that
// nothing below runs while nobody watches.

func (o *operator) Watchers() *control.Watchers { return &o.watchers }

// watchEvent tells of a login, a logout or a restart of the server.
func (d *daemon) watchEvent(ev relay.Event, outcome ledger.Outcome, g relay.Grant) {
	word := "login"
	switch ev.Kind {
	case relay.Logout:
		word = "logout"
	case relay.Restart:
		word = "restart"
	}
	s := &control.Seen{
		Event: word, Time: d.env.now().Wall.UTC(), Client: ev.Client, User: ev.User, Service: ev.Service.String(),
		Source: ev.Source, Format: ev.Format, Session: ev.Session, Login: ev.Time.UTC(), Outcome: outcome.String(),
	}
	if g.Prefix != 0 {
		s.Expires = g.Expires.UTC()
	}
	d.watchers.Tell(control.WatchLogins, s)
}

// watchDecision tells of a decision.
func (d *daemon) watchDecision(r gate.Record) {
	s := &control.Seen{
		Event: "decision", Time: r.At.UTC(), Verdict: r.Decision.Verdict.String(), Reason: r.Decision.Reason.String(),
		Client: r.Client, Rcpt: r.Rcpt, Recipient: r.Whose.String(), Sender: r.Sender, Queue: r.Queue, Door: r.Door,
	}
	if r.Waited {
		s.Waited = r.Took.Round(time.Microsecond).String()
	}
	d.watchers.Tell(control.WatchDecisions, s)
}

// watchChange tells of what the ledger did. It runs under the ledger's lock.
func (d *daemon) watchChange(c *relay.Change) {
	s := &control.Seen{Time: d.env.now().Wall.UTC()}
	switch c.Kind {
	case relay.ChangeGrant:
		g := &c.Grant
		s.Event, s.Client, s.Prefix, s.User, s.Service = "grant", g.Client, int(g.Prefix), g.User, g.Service.String()
		s.Source, s.Format, s.Session, s.Note, s.Operator = g.Source, g.Format, g.Session, g.Note, g.Operator
		s.Login, s.Expires = g.Login.UTC(), g.Expires.UTC()
		if !g.Operator && c.Ceiling.After(g.Expires) {
			s.Open, s.Expires = true, c.Ceiling.UTC()
		}
	case relay.ChangeClose:
		s.Event, s.Source, s.Session, s.Login = "close", c.Source, c.Session, c.At.UTC()
	case relay.ChangeRevoke:
		r := &c.Revocation
		s.Event, s.Network, s.User, s.All = "revocation", r.Network, r.User, r.All
		if !r.Block.IsZero() {
			s.Block = r.Block.UTC()
		}
	default:
		return
	}
	d.watchers.Tell(control.WatchGrants, s)
}
