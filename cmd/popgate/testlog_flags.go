package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"popgate/internal/config"
	"popgate/watcher/journal"
)

// underTest is the name of a format given by --pattern.
const underTest = "mine"

// readFlags takes those flags that mean what a key of the configuration means,
// and has the configuration's own reader judge them: what it refuses there is
// refused here, in the same words.
func (t *logTest) readFlags(given func(string) bool) error {
	f := t.flags
	file := map[string]any{"file": "/dev/null", "format": "auto"}
	if given("time-zone") {
		file["time_zone"] = f.timeZone
	}
	sources := []any{file}
	if given("journal") {
		journal := map[string]any{"journal": f.journal, "format": "auto"}
		if given("programs") {
			journal["programs"] = f.programs
		}
		if given("users") {
			journal["users"] = f.users
		}
		sources = append(sources, journal)
	}
	doc := map[string]any{"sources": sources}
	if given("pattern") {
		keys := map[string]string{}
		for flag, value := range map[string]string{"pattern": f.pattern, "tag": f.tag, "logout": f.logout, "service": f.service} {
			if given(flag) {
				keys[flag] = value
			}
		}
		doc["formats"] = map[string]any{underTest: keys}
	}
	text, err := yaml.Marshal(doc)
	if err != nil {
		return err
	}
	cfg, _, err := config.Parse("", text)
	if err != nil {
		return asFlags(err)
	}
	t.zone = cfg.Sources[0].Location
	if given("journal") {
		j := cfg.Sources[1]
		t.units, t.trust = j.Units, journal.Trust{Programs: j.Programs, Users: j.Users}
		if t.since, err = readSince(f.since, t.now, t.zone); err != nil {
			return err
		}
	}
	if given("pattern") {
		t.custom = &cfg.Formats[0]
	}
	return nil
}

// readSince reads a time, or how long ago it was.
func readSince(s string, now time.Time, zone *time.Location) (time.Time, error) {
	if ago, err := time.ParseDuration(s); err == nil && ago > 0 {
		return now.Add(-ago), nil
	}
	for _, form := range [...]string{"2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02", time.RFC3339} {
		if at, err := time.ParseInLocation(form, s, zone); err == nil {
			return at, nil
		}
	}
	return time.Time{}, fmt.Errorf("--since: %q is no time; write one as 2h, 2026-11-22 or \"2026-11-22 02:00\"", s)
}

// asFlags puts the flags' names in the place of the keys'.
func asFlags(err error) error {
	var all config.Errors
	if !errors.As(err, &all) {
		return err
	}
	var lines []string
	for _, e := range all {
		flag := e.Key
		for _, k := range []struct{ key, flag string }{
			{"sources[0].time_zone", "--time-zone"}, {"sources[1].programs", "--programs"}, {"sources[1].users", "--users"}, {"sources[1]", "--journal"}, {"formats." + underTest + ".", "--"}, {"formats." + underTest, "--pattern"},
		} {
			if rest, ok := strings.CutPrefix(e.Key, k.key); ok {
				flag = k.flag
				if flag == "--" {
					flag += rest
				}
				break
			}
		}
		lines = append(lines, flag+": "+e.Text)
	}
	return errors.New(strings.Join(lines, "\n"))
}
