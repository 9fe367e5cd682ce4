package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/internal/relay"
	"popgate/watcher/format"
	"popgate/watcher/journal"
)

// logFlags are what test-log was told to do.
type logFlags struct {
	format                        string
	pattern, tag, logout, service string // a custom format under test
	timeZone                      string
	journal, programs, users      []string
	since                         string
	logins, unparsed, none        bool // print these, one a line
}

// printsLines says whether stdout is for single lines before it is for counts.
func (f *logFlags) printsLines() bool { return f.logins || f.unparsed || f.none }

const testLogHelp = `test-log reads logs as the daemon would and counts the logins it finds, by service and by what
the daemon would make of them under the rules of the configuration (-c), or popgate's defaults.
It reads files, gzipped or not, any number of them; standard input (-); and with --journal this
host's journal. The transport is found line by line. It changes nothing, needs no daemon, and
exits with 1 if it finds no login or could not read all it was given.`

const testLogExamples = `  popgate test-log /var/log/mail.log.1 /var/log/mail.log
  popgate test-log --format dovecot --logins /var/log/mail.log.2.gz
  popgate test-log --journal dovecot.service --since 2h
  popgate test-log --unparsed /var/log/mail.log
  popgate test-log --json - < mail.log | jq -r 'select(.event == "login") | .client'

A format of your own, before it goes into the configuration; --none shows what it leaves:
  popgate test-log --tag in.popd --service pop3 --none \
    --pattern 'login by (?P<user>[^ ]+) from (?P<client>[0-9a-f.:]+)' /var/log/mail.log`

func newTestLog(e *env, g *global) *cobra.Command {
	var f logFlags
	cmd := &cobra.Command{
		Use:     "test-log [FILE|-]...",
		Short:   "Show what popgate reads out of a log",
		Long:    testLogHelp,
		Example: testLogExamples,
		RunE: func(c *cobra.Command, args []string) error {
			t, err := newLogTest(e, g, &f, c.Flags().Changed)
			if err != nil {
				return err
			}
			return t.run(c.Context(), args)
		},
	}
	s := cmd.Flags()
	s.StringVar(&f.format, "format", "auto", "log format: "+strings.Join(format.Names(), ", ")+" or one of the configuration's")
	s.StringVar(&f.pattern, "pattern", "", "try a format of your own: RE2 of a whole login message")
	s.StringVar(&f.tag, "tag", "", "with --pattern: the program's name, exactly")
	s.StringVar(&f.logout, "logout", "", "with --pattern: RE2 of a whole logout message")
	s.StringVar(&f.service, "service", "", "with --pattern: the service, where the pattern has no group for it")
	s.StringVar(&f.timeZone, "time-zone", "", "of stamps without one (default: this host's)")
	s.StringArrayVar(&f.journal, "journal", nil, "read what this unit logged to the journal; may be repeated")
	s.StringSliceVar(&f.programs, "programs", nil, "with --journal: the programs whose entries count (default: the format's)")
	s.StringSliceVar(&f.users, "users", nil, "with --journal: who runs them (default: as the format has it)")
	s.StringVar(&f.since, "since", "24h", "with --journal: how far back, as 2h, or from when, as \"2026-11-22 02:00\"")
	s.BoolVar(&f.logins, "logins", false, "print each login and logout")
	s.BoolVar(&f.unparsed, "unparsed", false, "print the lines that look like a login and match nothing")
	s.BoolVar(&f.none, "none", false, "print the lines that nothing is read from")
	return cmd
}

// logTest is one run of test-log.
type logTest struct {
	e      *env
	asJSON bool
	flags  *logFlags
	custom *config.Format // under test
	zone   *time.Location
	units  []string
	trust  journal.Trust
	since  time.Time

	cfg   *config.Config
	by    string // whose rules they are
	named bool   // a configuration was read
	rules *relay.Rules
	own   ownAddresses
	now   time.Time

	out   *bufio.Writer
	text  []byte // of the line that is printed
	count logCount
	bar   *progress // nil: nobody is looking
}

func newLogTest(e *env, g *global, f *logFlags, given func(string) bool) (*logTest, error) {
	t := &logTest{e: e, asJSON: g.json, flags: f, now: e.now().Wall.Round(0), out: bufio.NewWriterSize(e.stdout, 64<<10)}
	for _, with := range []struct {
		flag  string
		needs string
	}{{"tag", "pattern"}, {"logout", "pattern"}, {"service", "pattern"}, {"since", "journal"}, {"programs", "journal"}, {"users", "journal"}} {
		if given(with.flag) && !given(with.needs) {
			return nil, failWith(exitUsage, fmt.Errorf("--%s goes with --%s", with.flag, with.needs))
		}
	}
	if given("pattern") && given("format") {
		return nil, failWith(exitUsage, errors.New("--pattern is a format of its own; leave out --format"))
	}
	if err := t.readFlags(given); err != nil {
		return nil, failWith(exitUsage, err)
	}
	if err := t.readConfig(g, given("config")); err != nil {
		return nil, err
	}
	t.own.read()
	_, err := t.parser()
	return t, err
}

// readConfig takes the rules from the configuration if there is one. A run that
// did not name one is not held up by what is wrong with it.
func (t *logTest) readConfig(g *global, named bool) error {
	cfg, _, err := config.Load(g.config)
	switch {
	case err == nil:
		t.cfg, t.by, t.named = cfg, g.config, true
	case named:
		return failWith(exitConfig, err)
	default:
		t.cfg, t.by = config.Default(), "popgate's defaults"
		if !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintf(t.e.stderr, "popgate: the configuration can't be read, so its rules and formats are left out: %v\n", err)
		}
	}
	t.rules = t.cfg.Rules(nil)
	return nil
}

// formatName is what the configuration calls the format.
func (t *logTest) formatName() string {
	if t.custom != nil {
		return t.custom.Name
	}
	return t.flags.format
}

// parser makes a parser of the format. Each log has one of its own, as each
// source has.
func (t *logTest) parser() (format.Parser, error) {
	if t.custom != nil {
		p, err := customParser(t.custom)
		if err != nil {
			err = failWith(exitUsage, err)
		}
		return p, err
	}
	i := slices.IndexFunc(t.cfg.Formats, func(f config.Format) bool { return f.Name == t.flags.format })
	if i < 0 {
		p, err := format.New(t.flags.format)
		if err != nil {
			err = failWith(exitUsage, err)
		}
		return p, err
	}
	p, err := customParser(&t.cfg.Formats[i])
	if err != nil {
		err = failWith(exitConfig, config.Error{File: t.by, Line: t.cfg.Formats[i].Line, Key: "formats." + t.flags.format, Text: err.Error()})
	}
	return p, err
}

func (t *logTest) run(ctx context.Context, args []string) error {
	defer t.out.Flush()
	if isTerminal(t.e.stderr) && !(isTerminal(t.e.stdout) && (t.flags.printsLines() || t.asJSON)) {
		t.bar = newProgress(t.e.stderr, time.Now)
	}
	var failed error
	for _, in := range t.inputs(args) {
		if err := t.read(ctx, in); err != nil {
			failed = cmp.Or(failed, err)
			t.out.Flush() // first what was read before
			fmt.Fprintf(t.e.stderr, "popgate: %v\n", err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if !t.asJSON {
		t.summary()
	}
	if err := t.out.Flush(); err != nil {
		return failWith(exitNo, err)
	}
	if failed != nil || t.count.logins == 0 {
		return answerNo(exitNo)
	}
	return nil
}
