package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"popgate/internal/ledger"
	"popgate/internal/relay"
	"popgate/watcher"
	"popgate/watcher/format"
)

// logFile is one log while it is read.
type logFile struct {
	*logTest
	fileCount
	shown    string // its name, fit for a terminal
	front    []byte // of its objects
	parser   format.Parser
	message  format.Message
	calendar format.Calendar
	trial    *trial // nil: a login has been found, so nobody asks what else might be read
}

// read reads one log to its end.
func (t *logTest) read(ctx context.Context, in logInput) error {
	p, err := t.parser()
	if err != nil {
		return err
	}
	if !t.asJSON && !t.flags.logins {
		format.BareLogouts(p)
	}
	f := &logFile{logTest: t, shown: quoted(in.name), parser: p, trial: newTrial(t.formatName())}
	f.fileCount = fileCount{name: in.name, format: t.formatName()}
	f.front = append(appendJSONString([]byte(`{"file":`), in.name), `,"line":`...)
	err = f.lines(in.lines(ctx, &f.n, f.skip))
	t.bar.end()
	var warning string
	if err != nil {
		warning, err = readTrouble(in.name, f.n, err)
	}
	if warning != "" {
		fmt.Fprintf(t.e.stderr, "popgate: %s\n", warning)
	}
	f.failed = err != nil
	t.count.add(f)
	return err
}

// lines reads line by line, and gives the error that ended it.
func (f *logFile) lines(all iter.Seq2[[]byte, error]) error {
	for line, err := range all {
		switch {
		case err == nil:
		case errors.Is(err, watcher.ErrLongLine):
			f.n++
			f.long++
			f.parser.Gap()
			continue
		case errors.Is(err, errJournalGap):
			f.gaps++
			f.parser.Gap()
			continue
		case errors.Is(err, watcher.ErrFragment):
			f.fragments++
			continue
		default:
			return err
		}
		f.n++
		if f.flags.none && !f.trial.active() && !format.MayMatter(f.parser, line) {
			if f.custom == nil {
				f.print(line)
			}
			continue
		}
		f.line(line)
	}
	return nil
}

// skip passes over lines of which nobody wants more than their number.
func (f *logFile) skip(block []byte) (n, next int) {
	if f.flags.none || f.trial.active() {
		return 0, 0
	}
	n, lines, next := format.Skip(f.parser, block)
	f.n += lines
	return n, next
}

// line reads a line that may matter.
func (f *logFile) line(line []byte) {
	m := &f.message
	if !format.SplitFor(f.parser, line, m) {
		if format.MayMatter(f.parser, line) {
			f.foreign++
		}
		if f.flags.none && f.custom == nil {
			f.print(line)
		}
		return
	}
	ev, result := f.parser.Parse(m)
	if result == format.Login {
		f.trial = nil
	} else if f.trial.active() {
		f.trial.line(m)
	}
	switch result {
	case format.Login, format.Logout:
		f.event(&ev, m, result)
	case format.Restart:
		f.restarts++
	case format.Unparsed:
		f.unparsed++
		switch {
		case !f.flags.unparsed:
		case f.asJSON:
			f.printJSON(line, result)
		default:
			f.print(line)
		}
	case format.None:
		if f.flags.none && (f.custom == nil || string(m.Tag) == f.custom.Tag) {
			if f.asJSON {
				f.printJSON(line, result)
			} else {
				f.print(line)
			}
		}
	}
}

// event counts and prints a login or a logout.
func (f *logFile) event(ev *relay.Event, m *format.Message, result format.Result) {
	if ev.Format != "" { // auto tells what it found
		f.format = ev.Format
	}
	timed := false
	if result == format.Login || f.asJSON {
		ev.Time, timed = f.time(m)
	}
	if result == format.Logout {
		f.logouts++
	} else {
		f.logins++
		if !f.asJSON { // which has no summary
			f.count.services[ev.Service]++
			f.count.outcomes[ledger.Judge(f.rules, f.own.is, ev, f.now, f.now)]++
			f.last.add(sample{f.shown, f.n, *ev})
		}
	}
	switch {
	case f.asJSON:
		f.printEventJSON(ev, result, timed)
	case f.flags.logins:
		f.printEvent(ev, result)
	}
}

// time gives a message's own time, in the zone it was read in if it has none.
func (f *logFile) time(m *format.Message) (at time.Time, known bool) {
	at, zoned, known := f.calendar.Time(m.Stamp, f.now, f.zone)
	if known && !zoned {
		at = at.In(f.zone)
	}
	return at, known
}
