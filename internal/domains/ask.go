package domains

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/idna"

	"popgate/internal/relay"
)

const (
	answerLife  = time.Minute
	doubtLife   = 5 * time.Second // of an answer that could not be had
	askTime     = 5 * time.Second
	maxAnswers  = 4096
	maxOurs     = 4096
	maxAsking   = 4 // at a time
	maxParents  = 5
	canaryLabel = "popgate-asks-whether-this-is-local.invalid"
)

// table is one that can be asked but not listed.
type table struct {
	list     string // the parameter that names it
	spec     string
	domains  bool // subdomains can be meant
	parents  bool
	barred   barred
	doubtful bool // perhaps of an MTA that doesn't run
}

// answers are what tables said, for a minute. When there is no room the oldest
// goes.
type answers struct {
	mu     sync.Mutex
	tables []string
	of     map[string]*answer
	asking chan struct{}
	// ours holds the keys that tables have said yes to, as relay.NewDomains
	// knows them. It outlives the answers: a stranger can fill those with
	// names of his own, but not this.
	ours map[string]yes
}

// answer is for one domain; done is closed when it is there.
type answer struct {
	done  chan struct{}
	match relay.Match
	at    time.Time
}

// yes tells which table said so last, and when.
type yes struct {
	table string
	at    time.Time
}

// id tells a table from others.
func (t *table) id() string { return t.list + " " + t.spec }

// forTables forgets the answers when the tables are others.
func (a *answers) forTables(tables []table) {
	ids := make([]string, len(tables))
	for i := range tables {
		ids[i] = tables[i].id()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(ids, a.tables) {
		a.tables, a.of = ids, nil
	}
}

// remember notes that a table has said yes to a key.
func (a *answers) remember(t *table, key string, now time.Time) {
	names := []string{key}
	if t.parents && t.wide() {
		names = append(names, "."+key)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ours == nil {
		a.ours = map[string]yes{}
	}
	for _, name := range names {
		if _, known := a.ours[name]; !known && len(a.ours) >= maxOurs {
			delete(a.ours, oldest(a.ours, func(y yes) (time.Time, bool) { return y.at, true }))
		}
		a.ours[name] = yes{t.id(), now}
	}
}

// vanished says whether a table has said yes for the domain a short while ago.
// A table from which the domain is shut out has not said it for this one.
func (a *answers) vanished(tables []table, ascii string, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	for name := ascii; ; {
		if y, known := a.ours[name]; known && now.Sub(y.at) < vanish && !slices.ContainsFunc(tables, func(t table) bool {
			return t.id() == y.table && t.barred.bars(ascii)
		}) {
			return true
		}
		dot := strings.IndexByte(name[1:], '.')
		if dot < 0 {
			return false
		}
		name = name[1+dot:]
	}
}

// oldest gives the key of the oldest value among those that may go.
func oldest[V any](of map[string]V, at func(V) (time.Time, bool)) string {
	var key string
	var least time.Time
	for k, v := range of {
		if when, may := at(v); may && (key == "" || when.Before(least)) {
			key, least = k, when
		}
	}
	return key
}

// Ask tells about a domain that Current does not know: what the tables that
// can only be asked say, and DomainUnsure where nobody could say, be it that a
// table did not answer or that a list could not be read yet. It may take
// seconds; the context ends it early. Before it does, w is told, whose door may
// have others to answer meanwhile; nil: nobody is.
func (s *Set) Ask(ctx context.Context, domain string, w *relay.Waits) relay.Match {
	v := s.view.Load()
	m := v.domains.Match(domain)
	if m >= relay.DomainFound {
		return m
	}
	if !v.whole {
		m = max(m, relay.DomainUnsure)
	}
	ascii, ok := askable(domain)
	switch {
	case len(v.tables) > 0 && !ok:
		return max(m, relay.DomainUnsure)
	case len(v.tables) > 0:
		m = max(m, s.answer(ctx, v.tables, ascii, w))
	case ok && s.answers.vanished(nil, ascii, s.o.Now()): // with the table that knew it
		m = max(m, relay.DomainVanished)
	}
	return m
}

// askable gives the form in which a domain is asked for; nothing that a
// program could take for an option or a table for a pattern.
func askable(domain string) (string, bool) {
	ascii := asciiLower(domain)
	if !isASCII(ascii) {
		a, err := idna.Lookup.ToASCII(domain)
		if err != nil {
			return "", false
		}
		ascii = a
	}
	return ascii, badLabels(ascii) == ""
}

// answer gives the kept answer or fetches one. Many may wait for one fetch.
func (s *Set) answer(ctx context.Context, tables []table, ascii string, w *relay.Waits) relay.Match {
	a := &s.answers
	a.mu.Lock()
	if a.of == nil {
		a.of = map[string]*answer{}
	}
	if a.asking == nil {
		a.asking = make(chan struct{}, maxAsking)
	}
	was := a.of[ascii]
	if was == nil || was.stale(s.o.Now()) {
		now := &answer{done: make(chan struct{})}
		if was == nil {
			a.room()
		}
		a.of[ascii] = now
		// The fetch outlives a client that hangs up: the next one is served by
		// it. It ends by its own timeout.
		go s.fetch(now, tables, ascii, a.asking)
		was = now
	}
	a.mu.Unlock()
	select {
	case <-was.done:
		return was.match
	default:
		w.Block()
	}
	select {
	case <-was.done:
		return was.match
	case <-ctx.Done():
		return relay.DomainUnsure
	}
}

// stale says whether the answer must be fetched again. One that is being
// fetched is not.
func (a *answer) stale(now time.Time) bool {
	select {
	case <-a.done:
	default:
		return false
	}
	life := answerLife
	if a.match == relay.DomainUnsure {
		life = doubtLife
	}
	age := now.Sub(a.at)
	return age >= life || age < 0
}

// room makes place for one more answer. Those that said yes go last: the others
// can be made up.
func (a *answers) room() {
	if len(a.of) < maxAnswers {
		return
	}
	old := func(found bool) string {
		return oldest(a.of, func(one *answer) (time.Time, bool) {
			select {
			case <-one.done:
				return one.at, found == (one.match == relay.DomainFound)
			default: // somebody waits for it
				return time.Time{}, false
			}
		})
	}
	key := old(false)
	if key == "" {
		key = old(true)
	}
	delete(a.of, key)
}

// fetch asks all tables and enters the answer.
func (s *Set) fetch(a *answer, tables []table, ascii string, asking chan struct{}) {
	ctx, stop := context.WithTimeout(context.Background(), askTime)
	defer stop()
	m := relay.DomainUnsure
	select {
	case asking <- struct{}{}:
		m = s.askAll(ctx, tables, ascii)
		<-asking
	case <-ctx.Done():
	}
	now := s.o.Now()
	if m == relay.DomainOther && s.answers.vanished(tables, ascii, now) {
		m = relay.DomainVanished
	}
	s.answers.mu.Lock()
	a.match, a.at = m, now
	s.answers.mu.Unlock()
	close(a.done)
}

func (s *Set) askAll(ctx context.Context, tables []table, ascii string) relay.Match {
	m := relay.DomainOther
	for _, t := range tables {
		if t.barred.bars(ascii) {
			continue
		}
		switch one, err := s.ask(ctx, &t, ascii); {
		case err != nil:
			s.o.Log.Warn("a table of domains can't be asked", "list", t.list, "table", t.spec, "problem", err.Error())
			m = max(m, relay.DomainUnsure)
		case one == relay.DomainFound:
			return relay.DomainFound
		default:
			m = max(m, one)
		}
	}
	return m
}

// ask asks one table for a domain, and, where Postfix does so, for the domains
// above it. A table that knows even a name which can't exist knows nothing: a
// pattern that fits all would make every recipient local. Where not every
// domain above was asked for, a no is no answer.
func (s *Set) ask(ctx context.Context, t *table, ascii string) (relay.Match, error) {
	keys, all := t.keys(ascii)
	m := relay.DomainOther
	if !all {
		m = relay.DomainUnsure
	}
	for _, key := range keys {
		found, err := query(ctx, s.o.Run, t.spec, key)
		if err != nil {
			return relay.DomainUnsure, err
		}
		if !found {
			continue
		}
		if any, err := query(ctx, s.o.Run, t.spec, canaryLabel); err != nil || any {
			return relay.DomainUnsure, errors.Join(err, fmt.Errorf("it says yes to every domain"))
		}
		if bare := strings.TrimPrefix(key, "."); bare != ascii && tooWide(bare) {
			m = relay.DomainUnsure // as where it can be listed
			continue
		}
		if t.doubtful || t.barred.blind {
			return relay.DomainUnsure, nil
		}
		s.answers.remember(t, key, s.o.Now())
		return relay.DomainFound, nil
	}
	return m, nil
}

// patternTables match by pattern: Postfix asks them for the full name only.
var patternTables = []string{"pcre", "regexp", "static"}

// wide says whether the table is asked for the domains above one, too.
func (t *table) wide() bool {
	kind, _, _ := strings.Cut(t.spec, ":")
	return t.domains && !slices.Contains(patternTables, kind)
}

// keys gives what Postfix would ask the table for: the domain itself, then those
// above it from the top down, since the shorter a name is the likelier it is in
// the table. all says whether there are no more of them; a stranger may write
// as many as he likes.
func (t *table) keys(ascii string) (keys []string, all bool) {
	keys = []string{ascii}
	if !t.wide() {
		return keys, true
	}
	dots := 0
	for i := len(ascii) - 1; i >= 0; i-- {
		if ascii[i] != '.' {
			continue
		}
		if dots++; dots > maxParents {
			return keys, false
		}
		if t.parents {
			keys = append(keys, ascii[i+1:])
		} else {
			keys = append(keys, ascii[i:])
		}
	}
	return keys, true
}

var gaveUp = regexp.MustCompile(`: (fatal|error|panic): `)

// query asks a table for one key. Postfix's postmap ends with 1 both when there
// is no such key and when it can't tell; only then it says why, and it may warn
// of other things in main.cf at any time.
func query(ctx context.Context, run Runner, spec, key string) (bool, error) {
	_, err := run(ctx, "postmap", "-q", key, spec)
	var failed *Failed
	switch {
	case err == nil:
		return true, nil
	case errors.As(err, &failed) && failed.Code == 1 && !gaveUp.MatchString(failed.Stderr):
		return false, nil
	default:
		return false, err
	}
}
