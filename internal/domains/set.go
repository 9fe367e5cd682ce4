package domains

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"popgate/internal/relay"
)

// vanish is how long a domain that was taken away stays "cannot tell": time
// enough for an admin to see what he did, and for mail to be tried again.
const vanish = 10 * time.Minute

// Options say where the site's domains are written.
type Options struct {
	Written []Name // local_domains
	Files   []File // local_domain_files
	From    From   // local_domains_from
	// MTA is what mta: says. Where auto finds both MTAs' configurations on this
	// host, it tells which of them counts.
	MTA relay.MTA
	// LocalMailers are Postfix's transports that prove a recipient local.
	// Postfix's configuration is watched for what makes an open relay of it
	// by one of them; see Findings.
	LocalMailers []string
	// Before is the Set that this one takes over from at a reload: what it
	// read stays good, and what it knew and this one does not has vanished.
	Before *Set

	Log      *slog.Logger           // nil: nothing is logged
	Run      Runner                 // nil: Exec
	Now      func() time.Time       // nil: time.Now
	OnChange func(*relay.Domains)   // told each new snapshot after Load, and called again when Tainted has changed, by the goroutine in Run
	MainCF   string                 // empty: /etc/postfix/main.cf
	Sendmail string                 // empty: /etc/mail/sendmail.cf
	Hostname func() (string, error) // nil: os.Hostname
}

// Set is the site's domains as they are known now. Load and Run belong to one
// goroutine; all else may be called by anyone at any time.
type Set struct {
	o       Options
	mu      sync.Mutex // of what a pass works on
	leaves  map[string]*leaf
	found   map[string]bool      // names that have been ours, as relay.NewDomains knows them
	gone    map[string]time.Time // vanished names, and when they are forgotten
	names   map[string]relay.Match
	view    atomic.Pointer[view]
	answers answers
	watch   watch
}

// view is what is handed out, swapped as a whole.
type view struct {
	domains  *relay.Domains
	problems []string
	tables   []table
	whole    bool // every list has been read once
	findings []Finding
}

// New makes a Set that knows what local_domains says, and what the Set before
// it knew. Load comes next.
func New(o Options) *Set {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Run == nil {
		o.Run = Exec
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Hostname == nil {
		o.Hostname = os.Hostname
	}
	o.MainCF = cmp.Or(o.MainCF, "/etc/postfix/main.cf")
	o.Sendmail = cmp.Or(o.Sendmail, "/etc/mail/sendmail.cf")
	s := &Set{
		o:      o,
		leaves: map[string]*leaf{},
		found:  map[string]bool{},
		gone:   map[string]time.Time{},
	}
	if b := o.Before; b != nil {
		s.inherit(b)
		s.o.Before = nil // a chain of reloads must not keep every Set alive
	}
	names := map[string]relay.Match{}
	for _, n := range o.Written {
		n.put(names, relay.DomainWritten)
	}
	s.view.Store(&view{domains: relay.NewDomains(names)})
	return s
}

// inherit takes over what another Set has learned. Its goroutine has ended, or
// its last pass is lost on us, which costs nothing but one reading.
func (s *Set) inherit(b *Set) {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.Copy(s.found, b.found)
	maps.Copy(s.gone, b.gone)
	b.answers.mu.Lock()
	s.answers.ours = maps.Clone(b.answers.ours)
	b.answers.mu.Unlock()
	if s.besidePostfix() {
		for _, f := range b.watch.found {
			if f.Certain && slices.Contains(s.o.LocalMailers, f.Mailer) {
				s.watch.found = append(s.watch.found, f)
			}
		}
	}
	for name, l := range b.leaves {
		if l.known {
			s.leaves[name] = &leaf{name: l.name, text: l.text, known: true}
		}
	}
}

// Current gives the domains as they are known now.
func (s *Set) Current() *relay.Domains { return s.view.Load().domains }

// Problems tells what could not be read or understood, and what is dangerous
// for certain, for the status; none means well.
func (s *Set) Problems() []string {
	v := s.view.Load()
	all := slices.Clone(v.problems)
	for _, f := range v.findings {
		if f.Certain {
			all = append(all, f.Text)
		}
	}
	return all
}

// Findings tells what in Postfix's configuration takes the ground from under a
// mailer.
func (s *Set) Findings() []Finding { return s.view.Load().findings }

// Tainted names the mailers that prove nothing while a certain finding stands.
func (s *Set) Tainted() []string { return tainted(s.Findings()) }

// Asks says whether Current is not the whole truth: there are tables that can
// only be asked, or lists that have not been read yet.
func (s *Set) Asks() bool {
	v := s.view.Load()
	return len(v.tables) > 0 || !v.whole
}

// Load reads everything once. It waits for files that were written within the
// last second to settle, and ends early only with the context: what can't be
// read is a problem, no error.
func (s *Set) Load(ctx context.Context) error {
	for range 5 {
		if open := s.pass(ctx, func() {}); !open {
			return ctx.Err()
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(settle):
		}
	}
	return nil
}

// Run keeps the domains up to date until the context ends. Looking at the
// files each second is simpler than watching them, and can't miss a change in
// how they were replaced.
func (s *Set) Run(ctx context.Context) error {
	tick := time.NewTicker(settle)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			s.pass(ctx, func() {
				if s.o.OnChange != nil {
					s.o.OnChange(s.Current())
				}
			})
		}
	}
}

// gathering is one pass over everything that names domains.
type gathering struct {
	ctx      context.Context
	now      time.Time
	names    map[string]relay.Match
	tables   []table
	problems []string
	whole    bool
	open     bool // a leaf that was never known is settling
}

// pass reads what there is reason to read, publishes what follows from it, and
// then looks for danger, which takes longer. tell is called without a lock when
// the domains have changed, before anyone looks for danger: whoever decides by
// the last domains meanwhile would know less than Ask. It is called again when a
// mailer's danger has changed. pass answers whether a first reading has still to
// be confirmed, or danger to be looked for again.
func (s *Set) pass(ctx context.Context, tell func()) (open bool) {
	g, changed, news := s.gather(ctx)
	if ctx.Err() != nil {
		return false
	}
	if changed {
		tell()
	}
	changed, putOff := s.look(ctx, g.now, news)
	if changed {
		tell()
	}
	return g.open || putOff
}

// gather reads and publishes. It answers whether the domains have changed, and
// whether they or what is known of them have.
func (s *Set) gather(ctx context.Context) (g *gathering, changed, news bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g = &gathering{ctx: ctx, now: s.o.Now(), names: map[string]relay.Match{}, whole: true}
	for _, l := range s.leaves {
		l.used = false
	}
	for _, n := range s.o.Written {
		n.put(g.names, relay.DomainWritten)
	}
	for _, f := range s.o.Files {
		s.gatherFile(g, f)
	}
	s.gatherMTA(g)
	if ctx.Err() != nil {
		return g, false, false // what was cut short is no reading
	}
	maps.DeleteFunc(s.leaves, func(_ string, l *leaf) bool { return !l.used })
	before := s.view.Load()
	changed = s.publish(g, before)
	return g, changed, changed || g.whole != before.whole
}

// look looks for danger and says whether a mailer's has changed, or the search
// has been put off; the next pass then searches whatever else happens.
func (s *Set) look(ctx context.Context, now time.Time, news bool) (changed, putOff bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := &s.watch
	changed, putOff = s.guard(ctx, now, news || w.putOff > 0)
	if putOff {
		w.putOff++
	} else {
		w.putOff = 0
	}
	v := *s.view.Load()
	v.findings = w.found
	s.view.Store(&v)
	return changed, putOff
}

// settling says whether a list that is known may be about to have another text:
// it is being read for the second time, can't be made sense of, as when it is
// half written, or has been written since it was read.
func (s *Set) settling() bool {
	for _, l := range s.leaves {
		if l.known && (!l.since.IsZero() || l.problem != "" || stamp(l.files) != l.mark) {
			return true
		}
	}
	return false
}

// step brings a leaf up to date and gives its text. Where none is known, the
// pass is not whole.
func (s *Set) step(g *gathering, key string, make func() *leaf) (text []byte, changed bool) {
	l := s.leaves[key]
	if l == nil || l.read == nil {
		fresh := make()
		if l != nil { // inherited: only the text is
			fresh.text, fresh.known = l.text, l.known
		}
		l = fresh
		s.leaves[key] = l
	}
	if !l.used {
		l.used = true
		before := l.text
		l.step(g.ctx, g.now)
		if changed = l.known && string(before) != string(l.text); changed {
			s.o.Log.Info("list of domains read", "list", l.name, "bytes", len(l.text))
		}
		if l.problem != "" {
			g.problems = append(g.problems, l.problem)
		}
	}
	if !l.known {
		g.whole = false
		g.open = g.open || !l.since.IsZero()
	}
	return l.text, changed
}

func (s *Set) gatherFile(g *gathering, f File) {
	text, changed := s.step(g, "list "+f.Path, func() *leaf {
		return &leaf{
			name:  f.Path,
			read:  func(context.Context) ([]byte, error) { return readFile(f.Path) },
			files: []string{f.Path},
			must:  true,
			inspect: func(text []byte) (int, error) {
				names, _, err := readList(text, f.Subdomains)
				return len(names), err
			},
		}
	})
	names, skipped, _ := readList(text, f.Subdomains)
	if changed && len(skipped) > 0 {
		s.o.Log.Warn("addresses in a list of domains are skipped; trusted_networks is the place for them",
			"list", f.Path, "count", len(skipped), "first", skipped[0])
	}
	for _, n := range names {
		n.put(g.names, relay.DomainFound)
	}
}

// gatherMTA asks the MTA that local_domains_from names. Where both have a
// configuration on this host and auto can't tell which one runs, a domain that
// only one of them names is neither ours nor foreign.
func (s *Set) gatherMTA(g *gathering) {
	postfix, sendmail := s.o.From == FromPostfix, s.o.From == FromSendmail
	if s.o.From == Auto {
		postfix, sendmail = exists(s.o.MainCF), exists(s.o.Sendmail)
		if postfix && sendmail && s.o.MTA != relay.MTAUnknown {
			postfix, sendmail = s.o.MTA == relay.Postfix, s.o.MTA == relay.Sendmail
		}
	}
	switch {
	case postfix && sendmail:
		both := [2]map[string]relay.Match{{}, {}}
		ours := g.names
		g.names = both[0]
		s.gatherPostfix(g)
		g.names = both[1]
		s.gatherSendmail(g)
		g.names = ours
		for i, names := range both {
			for name, m := range names {
				if m == relay.DomainFound && both[1-i][name] != relay.DomainFound {
					m = relay.DomainUnsure
				}
				g.put(name, m)
			}
		}
		for i := range g.tables {
			g.tables[i].doubtful = true
		}
		g.problems = append(g.problems, "local_domains_from: both Postfix and sendmail have a configuration on this host; write postfix or sendmail instead of auto")
	case postfix:
		s.gatherPostfix(g)
	case sendmail:
		s.gatherSendmail(g)
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// put enters a name unless a stronger match stands there.
func (g *gathering) put(name string, m relay.Match) {
	if g.names[name] < m {
		g.names[name] = m
	}
}

// publish swaps in what a pass has gathered and says whether the domains
// differ from those before.
func (s *Set) publish(g *gathering, before *view) bool {
	for name := range s.found {
		if g.names[name] < relay.DomainFound {
			delete(s.found, name)
			s.gone[name] = g.now.Add(vanish)
		}
	}
	for name, m := range g.names {
		if m >= relay.DomainFound {
			s.found[name] = true
			delete(s.gone, name)
		}
	}
	for name, until := range s.gone {
		if !g.now.Before(until) {
			delete(s.gone, name)
			continue
		}
		g.put(name, relay.DomainVanished)
	}
	slices.Sort(g.problems)
	v := &view{before.domains, slices.Compact(g.problems), g.tables, g.whole, before.findings}
	changed := !maps.Equal(s.names, g.names)
	if changed || s.names == nil {
		v.domains = relay.NewDomains(g.names)
	}
	s.names = g.names
	s.view.Store(v)
	s.answers.forTables(v.tables)
	s.tell(before.problems, v.problems)
	return changed
}

// tell logs each problem when it comes and when it goes.
func (s *Set) tell(before, after []string) {
	for _, p := range after {
		if !slices.Contains(before, p) {
			s.o.Log.Warn("the site's domains are not all known", "problem", p)
		}
	}
	for _, p := range before {
		if !slices.Contains(after, p) {
			s.o.Log.Info("a problem with the site's domains is over", "problem", p)
		}
	}
}
