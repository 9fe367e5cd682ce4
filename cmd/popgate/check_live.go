package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/user"
	"slices"
	"strings"

	"popgate/internal/config"
	"popgate/internal/control"
	"popgate/internal/relay"
	"popgate/internal/wiring"
)

// groupOf names a user's first group.
func groupOf(name string) string {
	u, err := user.Lookup(name)
	if err != nil {
		return name
	}
	g, err := user.LookupGroupId(u.Gid)
	if err != nil {
		return name
	}
	return g.Name
}

// live asks the running daemon, and puts questions through its doors as the
// MTA would.
func (k *checker) live(ctx context.Context, cfg *config.Config, g *global, w *wired, site *sites) {
	client, err := g.client()
	if err != nil {
		k.fail("daemon", err.Error())
		return
	}
	st, err := client.Status(ctx)
	switch {
	case errors.Is(err, control.ErrUnreachable):
		k.fail("daemon", err.Error())
		return
	case err != nil:
		k.warn("daemon", "could not be asked: "+err.Error()+"; run check as root, or as a member of control_group")
		return
	}
	k.status(&st)
	for _, d := range w.doors() {
		k.heard(&d, &st)
		k.question(ctx, cfg, client, &d, w, site)
	}
}

// status looks at what the daemon tells of itself.
func (k *checker) status(st *control.Status) {
	if st.Version != version() {
		k.warn("daemon", fmt.Sprintf("it is version %s, and this is %s; restart it", st.Version, version()))
	} else {
		k.ok("daemon", "version "+st.Version+", up since "+stampOf(st.Started))
	}
	for _, p := range st.Problems {
		k.warn("daemon", p)
	}
	for _, s := range st.Sources {
		what := "source " + s.Name
		switch {
		case s.State == "down":
			k.fail(what, "down: "+s.Error)
			continue
		case s.State != "up":
			k.warn(what, "not read to its end yet: "+s.State)
			continue
		}
		k.ok(what, fmt.Sprintf("up, %d lines, %d logins", s.Lines, s.Logins))
		if s.LastLine != nil {
			k.silent(what, *s.LastLine)
		} else {
			k.silent(what, st.Started)
		}
		if s.Unparsed > 0 {
			k.warn(what, fmt.Sprintf("%d lines look like a login and match nothing; `popgate test-log --unparsed` shows such lines", s.Unparsed))
		}
	}
}

// heard says whether the daemon listens where the MTA asks.
func (k *checker) heard(d *wiring.Door, st *control.Status) {
	what := fmt.Sprintf("listener of %s's %s", d.MTA, d.Kind)
	var there []string
	for _, l := range st.Listeners {
		if l.Name != d.Kind {
			continue
		}
		network, address := listenerAddress(l.Address)
		if sameAddress(d.Network, d.Address, network, address) {
			k.ok(what, l.Address)
			return
		}
		there = append(there, l.Address)
	}
	k.fail(what, fmt.Sprintf("the MTA asks at %s, and the daemon has listen.%s: [%s]; make them the same and restart popgate", d.Address, d.Kind, strings.Join(there, ", ")))
}

// listenerAddress reads an address as status shows it: as the configuration
// has it, or as systemd handed it over.
func listenerAddress(text string) (network, address string) {
	for _, scheme := range []string{"unix:", "local:"} {
		if path, ok := strings.CutPrefix(text, scheme); ok {
			return "unix", path
		}
	}
	if strings.HasPrefix(text, "/") {
		return "unix", text
	}
	rest := strings.TrimPrefix(strings.TrimPrefix(text, "inet6:"), "inet:")
	if port, host, found := strings.Cut(rest, "@"); found {
		rest = host + ":" + port
	}
	return "tcp", rest
}

// strangers are addresses for documents, which are nobody's.
var strangers = []string{"203.0.113.251", "198.51.100.251", "192.0.2.251", "2001:db8::251"}

// question puts a stranger's recipients through a door, one at another site
// and one of our own.
func (k *checker) question(ctx context.Context, cfg *config.Config, client *control.Client, d *wiring.Door, w *wired, site *sites) {
	what := fmt.Sprintf("test question of %s's %s", d.MTA, d.Kind)
	stranger := netip.Addr{}
	for _, text := range strangers {
		a := netip.MustParseAddr(text)
		trusted := slices.ContainsFunc(cfg.TrustedNetworks, func(p netip.Prefix) bool { return p.Contains(a) })
		if _, err := client.Show(ctx, a); err != nil && !trusted {
			stranger = a
			break
		}
	}
	if !stranger.IsValid() {
		k.warn(what, "not put: each of the addresses for documents is trusted or has a grant")
		return
	}
	remote := "smtp"
	if d.MTA == "sendmail" {
		remote = "esmtp"
	}
	a, err := d.Ask(ctx, wiring.Question{Client: stranger, Rcpt: "popgate-check@example.com", Mailer: remote})
	switch {
	case errors.Is(err, wiring.ErrNotRoot):
		k.warn(what, "not put: "+err.Error())
		return
	case err != nil:
		k.fail(what, fmt.Sprintf("no answer: %v", err))
		return
	case a.Pass:
		k.fail(what, fmt.Sprintf("OPEN RELAY: the stranger %s may send to example.com (%s); `popgate ask %s popgate-check@example.com` says why", stranger, a.Text, stranger))
		return
	}
	k.ok(what, fmt.Sprintf("the stranger %s may not send to example.com: %s", stranger, a.Text))
	if d.Kind == wiring.SocketMap {
		return // it knows no recipients
	}
	domain, mailer := w.ownDomain(ctx, d.MTA, site)
	if domain == "" {
		k.warn(what, "no domain of the site's own is known, so that nothing was asked about its mail")
		return
	}
	rcpt := "postmaster@" + domain
	a, err = d.Ask(ctx, wiring.Question{Client: stranger, Rcpt: rcpt, Mailer: mailer})
	switch {
	case err != nil:
		k.fail(what, fmt.Sprintf("no answer about %s: %v", rcpt, err))
	case a.Code >= 500:
		k.fail(what, fmt.Sprintf("the site's own %s is refused: %s; `popgate ask %s %s` says why", rcpt, a.Text, stranger, rcpt))
	case a.Code >= 400:
		k.warn(what, fmt.Sprintf("the site's own %s is put off: %s; `popgate ask %s %s` says why", rcpt, a.Text, stranger, rcpt))
	default:
		k.ok(what, fmt.Sprintf("the site's own %s passes", rcpt))
	}
}

// ownDomain gives one of the MTA's own domains, if possible one that popgate
// doesn't know, and the mailer that the MTA would name for it.
func (w *wired) ownDomain(ctx context.Context, mta string, site *sites) (domain, mailer string) {
	o := w.own[mta]
	if o == nil || len(o.names) == 0 {
		return "", ""
	}
	domain = below(o.names[0])
	for _, name := range o.names {
		if d := below(name); site.current().Match(d) < relay.DomainFound {
			domain = d
			break
		}
	}
	return domain, o.mailer(ctx, domain)
}
