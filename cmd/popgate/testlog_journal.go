package main

import (
	"context"
	"errors"
	"iter"
	"slices"

	"popgate/internal/config"
	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/journal"
)

// errJournalGap stands for entries that journald says are missing.
var errJournalGap = errors.New("entries are missing here")

// journalLines reads what the units logged to this host's journal, with the
// daemon's own reader: what it would not believe is not there. It ends at the
// present. Nothing is skipped: in the journal's spelling any line may matter.
func (t *logTest) journalLines(ctx context.Context, count *int, _ func([]byte) (n, next int)) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		j, err := journal.New(t.units, t.formatName(), t.journalTrust())
		if err != nil {
			yield(nil, err)
			return
		}
		t.bar.begin(nil, j.Name(), 0, count)
		for r := range j.Records(ctx, relay.Position{}, t.since) {
			switch r.Kind {
			case watcher.Line:
				t.bar.add(len(r.Text))
				if !yield(r.Text, nil) {
					return
				}
			case watcher.Gap:
				if !yield(nil, errJournalGap) {
					return
				}
			case watcher.Down:
				yield(nil, r.Err)
				return
			case watcher.CaughtUp:
				return
			}
		}
		if err := ctx.Err(); err != nil {
			yield(nil, err)
		}
	}
}

// journalDoubts say why the units may never show a login.
func (t *logTest) journalDoubts() []string {
	if len(t.units) == 0 {
		return nil
	}
	j, err := journal.New(t.units, t.formatName(), t.journalTrust())
	if err != nil {
		return nil
	}
	doubts, _ := j.Usable(context.Background()) // an error was told when it was read
	return doubts
}

// journalTrust says whose entries count: as flags or the configuration's source
// of these units have it, else as the format has it.
func (t *logTest) journalTrust() journal.Trust {
	if len(t.trust.Programs)+len(t.trust.Users) > 0 {
		return t.trust
	}
	for _, s := range t.cfg.Sources {
		if s.Kind == config.KindJournal && slices.Equal(s.Units, t.units) {
			return journal.Trust{Programs: s.Programs, Users: s.Users}
		}
	}
	return journal.Trust{}
}
