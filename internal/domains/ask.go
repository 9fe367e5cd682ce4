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
}

// answer is for one domain; done is closed when it is there.
type answer struct {
	done  chan struct{}
	match relay.Match
	at    time.Time
	found time.Time // when a table last said yes
}

// forTables forgets everything when the tables are others.
func (a *answers) forTables(tables []table) {
	specs := make([]string, len(tables))
	for i, t := range tables {
		specs[i] = t.list + " " + t.spec
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Equal(specs, a.tables) {
		a.tables, a.of = specs, nil
	}
}

// Ask tells about a domain that Current does not know: what the tables that
// can only be asked say, and DomainUnsure where nobody could say, be it that a
// table did not answer or that a list could not be read yet. It may take
// seconds; the context ends it early.
func (s *Set) Ask(ctx context.Context, domain string) relay.Match {
	v := s.view.Load()
	m := v.domains.Match(domain)
	if m >= relay.DomainFound {
		return m
	}
	if !v.whole {
		m = max(m, relay.DomainUnsure)
	}
	if len(v.tables) == 0 {
		return m
	}
	ascii, ok := askable(domain)
	if !ok {
		return max(m, relay.DomainUnsure)
	}
	return max(m, s.answer(ctx, v.tables, ascii))
}

// Match tells about a domain without a context: at start and in commands, where
// nothing but time is lost.
func (s *Set) Match(domain string) relay.Match { return s.Ask(context.Background(), domain) }

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
func (s *Set) answer(ctx context.Context, tables []table, ascii string) relay.Match {
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
		if was != nil {
			now.found = was.found
		} else {
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

// room makes place for one more answer.
func (a *answers) room() {
	if len(a.of) < maxAnswers {
		return
	}
	var oldest string
	var at time.Time
	for name, one := range a.of {
		select {
		case <-one.done:
			if oldest == "" || one.at.Before(at) {
				oldest, at = name, one.at
			}
		default: // somebody waits for it
		}
	}
	delete(a.of, oldest)
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
	s.answers.mu.Lock()
	switch {
	case m == relay.DomainFound:
		a.found = now
	case m == relay.DomainOther && !a.found.IsZero() && now.Sub(a.found) < vanish:
		m = relay.DomainVanished
	}
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
		case one == relay.DomainFound && (t.doubtful || t.barred.blind):
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
		return relay.DomainFound, nil
	}
	return m, nil
}

// patternTables match by pattern: Postfix asks them for the full name only.
var patternTables = []string{"pcre", "regexp", "static"}

// keys gives what Postfix would ask the table for: the domain itself, then those
// above it from the top down, since the shorter a name is the likelier it is in
// the table. all says whether there are no more of them; a stranger may write
// as many as he likes.
func (t *table) keys(ascii string) (keys []string, all bool) {
	keys = []string{ascii}
	kind, _, _ := strings.Cut(t.spec, ":")
	if !t.domains || slices.Contains(patternTables, kind) {
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
