package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"popgate/internal/config"
	"popgate/internal/domains"
	"popgate/internal/relay"
	"popgate/internal/wiring"
)

// mtaFiles are the files by which this host's MTAs are known.
type mtaFiles struct{ postfix, sendmail string }

// wired is how this host's MTAs are tied to popgate.
type wired struct {
	k        *checker
	postfix  *wiring.Postfix
	sendmail *wiring.Sendmail
	files    mtaFiles
	own      map[string]*own // by MTA
}

// reports gives what there is to tell about each MTA.
func (w *wired) reports() (all []*wiring.Report) {
	if w.postfix != nil {
		all = append(all, &w.postfix.Report)
	}
	if w.sendmail != nil {
		all = append(all, &w.sendmail.Report)
	}
	return all
}

func (w *wired) doors() (all []wiring.Door) {
	for _, r := range w.reports() {
		all = append(all, r.Doors...)
	}
	return all
}

// ours knows popgate's doors by its own configuration, and by their names:
// sockets that systemd hands over are in no configuration.
func ours(cfg *config.Config) wiring.Ours {
	return func(kind, network, address string) bool {
		listens := map[string][]config.Address{wiring.Milter: cfg.Listen.Milter, wiring.Policy: cfg.Listen.Policy, wiring.SocketMap: cfg.Listen.Socketmap}
		for _, a := range listens[kind] {
			if sameAddress(network, address, a.Network, a.Address) {
				return true
			}
		}
		return strings.Contains(address, "popgate")
	}
}

// sameAddress compares two addresses that one host connects to and listens on.
func sameAddress(network, address, network2, address2 string) bool {
	if network == "unix" || network2 == "unix" {
		return network == network2 && address == address2
	}
	host, port, err := net.SplitHostPort(address)
	host2, port2, err2 := net.SplitHostPort(address2)
	name := func(h string) string {
		if h == "localhost" {
			return "127.0.0.1"
		}
		return h
	}
	return err == nil && err2 == nil && port == port2 && name(host) == name(host2)
}

// wiring looks at how the MTAs of this host ask popgate.
func (k *checker) wiring(ctx context.Context, cfg *config.Config, files mtaFiles, run wiring.Runner) *wired {
	w := &wired{k: k, files: files, own: map[string]*own{}}
	if exists(files.postfix) && cfg.MTA != relay.Sendmail {
		p, err := wiring.ReadPostfix(ctx, run, ours(cfg))
		if err != nil {
			k.warn("Postfix", "could not be looked at: "+err.Error())
		} else {
			w.postfix = p
		}
	}
	if exists(files.sendmail) && cfg.MTA != relay.Postfix {
		s, err := wiring.ReadSendmail(ctx, run, files.sendmail, ours(cfg))
		if err != nil {
			k.warn("sendmail", "could not be looked at: "+err.Error())
		} else {
			w.sendmail = s
		}
	}
	reports := w.reports()
	if len(reports) == 0 {
		k.warn("MTA", fmt.Sprintf("neither %s nor %s is there to be looked at: how the MTA asks popgate is not checked; `popgate probe` tests one from outside", files.postfix, files.sendmail))
		return w
	}
	for _, r := range reports {
		for _, f := range r.Findings {
			k.findings = append(k.findings, finding{[...]string{"ok", "WARN", "FAIL"}[f.Result], f.What, f.Text})
		}
	}
	if len(w.doors()) == 0 {
		names := []string{}
		for _, r := range reports {
			names = append(names, r.MTA)
		}
		k.fail(strings.Join(names, ", "), fmt.Sprintf("does not ask popgate at all, neither at a closed door nor by milter, so that a login opens nothing; `popgate setup %s` prints the lines to add", strings.ToLower(names[0])))
	}
	w.networks(ctx, cfg)
	return w
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// networks warns of clients that the MTA trusts and popgate would refuse. It
// matters to a milter, whose rule takes the place of the MTA's.
func (w *wired) networks(ctx context.Context, cfg *config.Config) {
	if p := w.postfix; p != nil && p.Milter() {
		w.trust("Postfix mynetworks", p.Networks(), cfg)
	}
	if s := w.sendmail; s != nil && s.Milter() {
		nets, err := s.Networks(ctx)
		if err != nil {
			w.k.warn("sendmail class R", "could not be looked at: "+err.Error())
			return
		}
		w.trust("sendmail class R (RELAY_DOMAIN)", nets, cfg)
	}
}

func (w *wired) trust(what string, nets []string, cfg *config.Config) {
	var unlike, unread []string
	for _, text := range nets {
		p, ok := network(text)
		switch {
		case !ok:
			unread = append(unread, text)
		case !slices.ContainsFunc(cfg.TrustedNetworks, func(t netip.Prefix) bool { return t.Bits() <= p.Bits() && t.Contains(p.Addr()) }):
			unlike = append(unlike, p.String())
		}
	}
	if len(unlike) > 0 {
		w.k.warn(what, fmt.Sprintf("the MTA trusts %s and popgate does not: by the milter such clients are refused; write them into trusted_networks", strings.Join(unlike, ", ")))
	}
	if len(unread) > 0 {
		w.k.warn(what, fmt.Sprintf("%s can't be compared with trusted_networks from here; see to it that both trust the same clients", strings.Join(unread, ", ")))
	}
	if len(unlike)+len(unread) == 0 {
		w.k.ok(what, "all of it is in trusted_networks")
	}
}

// network reads a network as Postfix writes it ("[::1]/128") or as sendmail
// does ("192.0.2", the first octets).
func network(text string) (netip.Prefix, bool) {
	bare := strings.NewReplacer("[", "", "]", "").Replace(text)
	if p, err := netip.ParsePrefix(bare); err == nil {
		return p.Masked(), true
	}
	if a, err := netip.ParseAddr(bare); err == nil {
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	octets := strings.Split(strings.TrimSuffix(bare, "."), ".")
	if len(octets) > 3 || strings.Trim(bare, "0123456789.") != "" {
		return netip.Prefix{}, false
	}
	bits := 8 * len(octets)
	a, err := netip.ParseAddr(strings.Join(append(octets, "0", "0", "0")[:4], "."))
	return netip.PrefixFrom(a, bits), err == nil
}

// own is one MTA's own domains, beside what popgate makes of them.
type own struct {
	from   domains.From
	names  []string
	lists  relay.Mailers
	mailer func(ctx context.Context, domain string) string
}

// load reads an MTA's own domains.
func (w *wired) load(ctx context.Context, cfg *config.Config, r *wiring.Report) (*own, error) {
	o := &own{from: domains.FromPostfix, lists: cfg.PostfixMailers}
	if w.postfix != nil && r == &w.postfix.Report {
		o.mailer = w.postfix.Mailer
	} else {
		o.from, o.lists, o.mailer = domains.FromSendmail, cfg.SendmailMailers, w.sendmail.Mailer
	}
	set := domains.New(domains.Options{From: o.from, MainCF: w.files.postfix, Sendmail: w.files.sendmail})
	if err := set.Load(ctx); err != nil {
		return nil, err
	}
	for _, p := range set.Problems() {
		w.k.warn(r.MTA+"'s own domains", p)
	}
	for _, name := range set.Names() {
		// One that stands for the domain and all below it is known by both.
		o.names = append(o.names, strings.TrimPrefix(name, "+"))
	}
	slices.Sort(o.names)
	o.names = slices.Compact(o.names)
	return o, nil
}

// below gives a domain that a name stands for.
func below(name string) string {
	if strings.HasPrefix(name, ".") {
		return "any" + name
	}
	return name
}

// domains looks for domains of the MTA's own that popgate would refuse. At a
// closed door it is never asked about them.
func (w *wired) domains(ctx context.Context, cfg *config.Config, site *sites) {
	for _, r := range w.reports() {
		if !r.Wired() || site == nil {
			continue
		}
		o, err := w.load(ctx, cfg, r)
		if err != nil {
			w.k.warn(r.MTA+"'s own domains", "could not be looked at: "+err.Error())
			continue
		}
		if w.own[r.MTA] = o; r.Milter() {
			w.compare(ctx, r.MTA+"'s own domains", o, site)
		}
	}
}

// mostAsked bounds how many domains the MTA is asked about: each is a program
// to run.
const mostAsked = 200

// compare sorts the MTA's domains by what popgate makes of them.
func (w *wired) compare(ctx context.Context, what string, o *own, site *sites) {
	var refused, deferred, through []string
	asked := 0
	for _, name := range o.names {
		domain, by := below(name), ""
		m := max(site.current().Match(domain), site.Ask(ctx, domain, nil))
		if asked < mostAsked {
			asked++
			by = o.mailer(ctx, domain)
		}
		known, local, remote := m >= relay.DomainFound, slices.Contains(o.lists.Local, by), slices.Contains(o.lists.Remote, by)
		switch {
		case local, by == "error" && o.from == domains.FromPostfix: // as Postfix calls the mailer of an alias domain
		case known && (by == "" || by == "error" || remote || by == "relay"):
		case known:
			through = append(through, name+" ("+by+")")
		case m == relay.DomainOther && (by == "" || by == "error" || remote):
			refused = append(refused, name)
		default:
			deferred = append(deferred, name+" ("+by+")")
		}
	}
	if len(refused) > 0 {
		w.k.fail(what, fmt.Sprintf("popgate doesn't know %s: by the milter, their mail is refused or put off; write them into local_domains, or have local_domains_from read them", some(refused)))
	}
	if len(deferred) > 0 {
		w.k.fail(what, fmt.Sprintf("popgate doesn't know %s, nor whether that mailer delivers on this site: their mail is put off; write the domains into local_domains, or the mailer into local_mailers if nothing else goes through it", some(deferred)))
	}
	if len(through) > 0 {
		w.k.warn(what, fmt.Sprintf("%s: a mailer that is neither in local_mailers nor in remote_mailers: only plain addresses in these domains pass; write the mailer into local_mailers if nothing else goes through it", some(through)))
	}
	if len(refused)+len(deferred)+len(through) == 0 {
		w.k.ok(what, fmt.Sprintf("popgate knows all %d", len(o.names)))
	}
}

// some gives the first of a list of names, and how many more there are.
func some(names []string) string {
	if n := len(names) - 10; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:10], ", "), n)
	}
	return strings.Join(names, ", ")
}

// reach connects to each door as the MTA's user would.
func (w *wired) reach(ctx context.Context) {
	for _, d := range w.doors() {
		what := fmt.Sprintf("%s's socket %s", d.MTA, d.Address)
		from := "user " + d.User
		if d.Root != "" {
			from += ", from inside the chroot " + d.Root
		}
		conn, err := d.Dial(ctx)
		switch {
		case err == nil:
			conn.Close()
			w.k.ok(what, "takes connections of "+from)
		case errors.Is(err, wiring.ErrNotRoot):
			w.k.warn(what, fmt.Sprintf("not looked at: %v (%s); run check as root", err, from))
		case errors.Is(err, os.ErrNotExist):
			w.k.fail(what, fmt.Sprintf("does not exist, as %s sees it; is popgate running? listen.%s must name it: unix:%s", from, d.Kind, d.Address))
		case errors.Is(err, os.ErrPermission):
			w.k.fail(what, fmt.Sprintf("%s may not connect; socket_group: %s lets it in, and every directory on the way needs x for it", from, groupOf(d.User)))
		default:
			w.k.fail(what, fmt.Sprintf("%s can't connect: %v; is popgate running?", from, err))
		}
	}
}
