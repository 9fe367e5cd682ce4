package main

import (
	"context"

	"popgate/internal/config"
	"popgate/watcher/journal"
)

// planJournal makes the reader of a journal source.
func planJournal(s *config.Source) (*journal.Source, error) {
	return journal.New(s.Units, s.Format, journal.Trust{Programs: s.Programs, Users: s.Users})
}

// journal says whether a journal source can be read, and whether its units log.
func (k *checker) journal(ctx context.Context, what string, s *config.Source) {
	j, err := planJournal(s)
	if err != nil {
		k.fail(what, err.Error())
		return
	}
	doubts, err := j.Usable(ctx)
	if err != nil {
		k.fail(what, err.Error())
		return
	}
	k.ok(what, "")
	for _, d := range doubts {
		k.warn(what, d)
	}
}
