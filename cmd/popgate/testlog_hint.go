package main

import (
	"bytes"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"popgate/internal/config"
)

// sourceEntry and formatEntry are what a configuration would have to say.
type sourceEntry struct {
	File     string   `yaml:"file,omitempty"`
	Journal  []string `yaml:"journal,omitempty,flow"`
	Programs []string `yaml:"programs,omitempty,flow"`
	Users    []string `yaml:"users,omitempty,flow"`
	Format   string   `yaml:"format"`
	TimeZone string   `yaml:"time_zone,omitempty"`
}

type formatEntry struct {
	Tag     string `yaml:"tag"`
	Pattern string `yaml:"pattern"`
	Logout  string `yaml:"logout,omitempty"`
	Service string `yaml:"service,omitempty"`
}

// rotated is what rotation puts behind a log's name.
var rotated = regexp.MustCompile(`(\.[0-9]{1,3}|[-.]20[0-9]{6}([-.]?[0-9]+)?)?(\.(gz|xz|bz2|zst))?$`)

// nextStep tells what to write into the configuration, unless it stands there.
func (t *logTest) nextStep() {
	var entries []sourceEntry
	for _, f := range t.count.files {
		e := sourceEntry{Format: f.format}
		switch {
		case f.logins == 0 || f.name == "-":
			continue
		case strings.HasPrefix(f.name, journalName):
			e.Journal, e.Programs, e.Users = t.units, t.trust.Programs, t.trust.Users
		default:
			abs, err := filepath.Abs(f.name)
			if err != nil {
				continue
			}
			e.File = rotated.ReplaceAllString(abs, "")
			e.TimeZone = t.flags.timeZone
		}
		same := func(o sourceEntry) bool { return o.File == e.File && slices.Equal(o.Journal, e.Journal) }
		configured := func(s config.Source) bool {
			return s.Path == e.File && slices.Equal(s.Units, e.Journal) && s.Format == e.Format
		}
		if !slices.ContainsFunc(entries, same) && !(t.named && slices.ContainsFunc(t.cfg.Sources, configured)) {
			entries = append(entries, e)
		}
	}
	if len(entries) == 0 {
		return
	}
	doc := struct {
		Sources []sourceEntry          `yaml:"sources"`
		Formats map[string]formatEntry `yaml:"formats,omitempty"`
	}{Sources: entries}
	if t.custom != nil {
		doc.Formats = map[string]formatEntry{t.custom.Name: {t.custom.Tag, t.custom.Pattern, t.custom.Logout, t.custom.Service.String()}}
	}
	var text bytes.Buffer
	enc := yaml.NewEncoder(&text)
	enc.SetIndent(2)
	if enc.Encode(doc) != nil {
		return
	}
	fmt.Fprintln(t.out, "\nto have popgate read these logins, in milter.yaml:")
	for line := range strings.Lines(text.String()) {
		fmt.Fprint(t.out, "  "+line)
	}
}
