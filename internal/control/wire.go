// Package control is popgate's control socket, both ends: HTTP with JSON over
// a unix socket. The kernel says who the peer is; root and the daemon's own
// user may do everything, members of control_group may read, nobody else gets
// an answer. What goes over it is what the commands print with --json, but that a
// list is put in order by who reads it.
package control

import (
	"context"
	"iter"
	"net/netip"
	"time"

	"popgate/internal/relay"
)

// Grant is a grant as list and show print it. What is unknown is left out.
type Grant struct {
	Client   netip.Addr `json:"client"`
	Prefix   int        `json:"prefix"`
	User     string     `json:"user,omitempty"`
	Service  string     `json:"service,omitempty"`
	Source   string     `json:"source,omitempty"`
	Format   string     `json:"format,omitempty"`
	Login    time.Time  `json:"login"`
	Expires  time.Time  `json:"expires"`
	Session  string     `json:"session,omitempty"`
	Open     bool       `json:"open,omitempty"`
	Note     string     `json:"note,omitempty"`
	Operator bool       `json:"operator,omitempty"`
}

// FromGrant gives the printed form of a grant.
func FromGrant(g relay.Grant) Grant {
	return Grant{
		Client: g.Client, Prefix: int(g.Prefix), User: g.User, Service: g.Service.String(), Source: g.Source,
		Format: g.Format, Login: g.Login.UTC(), Expires: g.Expires.UTC(), Session: g.Session, Open: g.Open, Note: g.Note,
		Operator: g.Operator,
	}
}

// AskRequest is one question as the MTA would put it. Mailer is empty when the
// question is to be decided as if the MTA had sent no macros.
type AskRequest struct {
	Client netip.Addr `json:"client"`
	Rcpt   string     `json:"rcpt"`
	Mailer string     `json:"mailer,omitempty"`
	Addr   string     `json:"addr,omitempty"`
	Host   string     `json:"host,omitempty"`
	MTA    string     `json:"mta,omitempty"`
	Auth   string     `json:"auth,omitempty"`
}

// AskAnswer is what the daemon would answer now, and why.
type AskAnswer struct {
	Verdict   string     `json:"verdict"`
	Reason    string     `json:"reason"`
	Client    netip.Addr `json:"client,omitzero"`
	Rcpt      string     `json:"rcpt"`
	Recipient string     `json:"recipient"`
	Reply     string     `json:"reply,omitempty"`
	Grant     *Grant     `json:"grant,omitempty"`
	Revoked   string     `json:"revoked,omitempty"` // the revocation or block that covers the client
}

// GrantRequest is an operator's grant.
type GrantRequest struct {
	Client netip.Addr    `json:"client"`
	TTL    time.Duration `json:"ttl,omitempty"` // nanoseconds; 0: the daemon's grant_ttl
	User   string        `json:"user,omitempty"`
	Note   string        `json:"note,omitempty"`
	Force  bool          `json:"force,omitempty"`
}

// RevokeRequest names what to revoke: exactly one of Network, User and All.
type RevokeRequest struct {
	Network netip.Prefix  `json:"network,omitzero"`
	User    string        `json:"user,omitempty"`
	All     bool          `json:"all,omitempty"`
	Block   time.Duration `json:"block,omitempty"` // nanoseconds
}

// RevokeAnswer lists what a revocation took away.
type RevokeAnswer struct {
	Revoked []Grant `json:"revoked"`
}

// Source is a source's health.
type Source struct {
	Name      string     `json:"name"`
	Type      string     `json:"type"`
	State     string     `json:"state"`
	Error     string     `json:"error,omitempty"`
	LastLine  *time.Time `json:"last_line,omitempty"`
	LastLogin *time.Time `json:"last_login,omitempty"`
	Lines     uint64     `json:"lines"`
	Logins    uint64     `json:"logins"`
	Unparsed  uint64     `json:"unparsed"`
	Gaps      uint64     `json:"gaps,omitempty"`
	Missed    uint64     `json:"missed,omitempty"`  // gaps at which lines were passed over unread
	Skipped   uint64     `json:"skipped,omitempty"` // bytes of them
	Lag       float64    `json:"lag"`               // seconds
	Doubts    []string   `json:"doubts,omitempty"`  // why it may never see a login, whom it turned away
}

// Listener is an open listener.
type Listener struct {
	Name    string `json:"name"` // milter, policy, socketmap, control
	Address string `json:"address"`
}

// Decisions counts one answer.
type Decisions struct {
	Verdict string `json:"verdict"`
	Reason  string `json:"reason"`
	Count   uint64 `json:"count"`
}

// Store is where the grants are kept.
type Store struct {
	Kind  string `json:"kind"`
	Dir   string `json:"dir,omitempty"`
	Error string `json:"error,omitempty"`
}

// Status is the daemon's health.
type Status struct {
	Health      string            `json:"health"` // ok, degraded
	Problems    []string          `json:"problems,omitempty"`
	PutOff      bool              `json:"put_off"`                 // strangers are put off instead of refused: a login may have been missed
	PutOffUntil *time.Time        `json:"put_off_until,omitempty"` // nil: until a source is up
	Version     string            `json:"version"`
	Started     time.Time         `json:"started"`
	Config      string            `json:"config,omitempty"`
	Listeners   []Listener        `json:"listeners"`
	Sources     []Source          `json:"sources"`
	Grants      int               `json:"grants"`
	Decisions   []Decisions       `json:"decisions"`
	Events      map[string]uint64 `json:"events,omitempty"` // logins and logouts by what became of them
	Store       Store             `json:"store"`
	Domains     int               `json:"local_domains"`
	Connections map[string]uint64 `json:"connections,omitempty"`
	Tables      map[string]int    `json:"tables,omitempty"`
	Watchers    int               `json:"watchers,omitempty"`    // how many watch
	LogDropped  uint64            `json:"log_dropped,omitempty"` // lines lost because the log's reader was too slow
}

// Daemon is what the control socket can do. Errors are told to the operator as
// they are.
type Daemon interface {
	Ask(context.Context, AskRequest) (AskAnswer, error)
	// Grants gives those in force, in no order. It ends early when ctx does.
	Grants(ctx context.Context) iter.Seq[relay.Grant]
	Show(netip.Addr) (relay.Grant, bool)
	Grant(context.Context, GrantRequest) (relay.Grant, error)
	Revoke(context.Context, RevokeRequest) ([]relay.Grant, error)
	Status() Status
	Reload(context.Context) ([]string, error) // what the operator should know about it
	Watchers() *Watchers                      // who is told what happens
}
