package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"popgate/contrib"
	"popgate/internal/config"
)

var dovecotVersion = regexp.MustCompile(`\b(2)\.(\d+)\.?\S*`)

// dovecot prints what Dovecot needs for each source of milter.yaml.
func (s *setup) dovecot(ctx context.Context) error {
	if s.flags.apply {
		return failWith(exitUsage, errors.New("setup dovecot only prints: where these lines go is your own arrangement of its files"))
	}
	version := ""
	for _, program := range [][]string{{"dovecot", "--version"}, {"doveconf", "-n"}} {
		out, err := s.run(ctx, "", program[0], program[1:]...)
		first, _, _ := strings.Cut(out, "\n")
		if m := dovecotVersion.FindString(first); err == nil && m != "" {
			version = m
			break
		}
	}
	recent := regexp.MustCompile(`^2\.([4-9]|\d\d)`).MatchString(version)
	if version == "" {
		s.say("No Dovecot was found on this host; these are the lines for 2.3.\n")
	} else {
		s.say("Dovecot %s\n", version)
	}
	for _, source := range s.cfg.Sources {
		s.say("\n%s: ", source.Name)
		switch source.Kind {
		case config.KindJournal:
			s.say("nothing to add. Dovecot logs to syslog unless it is told otherwise, and journald takes that; see to it that log_path and info_log_path are not set to files.\n")
		case config.KindFile:
			s.say("in dovecot.conf, so that Dovecot itself writes the file and no local user can forge it:\n\n  log_path = %s\n\nNothing, if popgate is to read what syslog writes there: then every local user can forge logins.\n", source.Path)
		case config.KindPush:
			lines := contrib.DovecotPush
			if recent {
				lines = contrib.DovecotPush24
			}
			lines = strings.Replace(lines, "127.0.0.1:4001", source.Listen.Address, 1)
			s.say("in a file that only root can read and dovecot.conf includes, with the key of %s in the place of SECRET:\n\n%s", source.KeyFile, indent(lines))
		case config.KindSyslog:
			s.say("Dovecot needs nothing; the syslog daemon of its host must send the lines to %s (docs/syslog.md).\n", source.Listen)
		default:
			return fmt.Errorf("source %s: setup knows no sources of kind %s", source.Name, source.Kind)
		}
	}
	return nil
}
