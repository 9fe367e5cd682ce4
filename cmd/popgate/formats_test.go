package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"popgate/internal/config"
	"popgate/watcher/format"
)

// TestEveryFormatCanBeConfigured holds three packages together: a format that
// has a parser is one that a configuration may name and the daemon opens, and
// docs/formats.md has a section on it.
func TestEveryFormatCanBeConfigured(t *testing.T) {
	page, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range append(format.Names(), "mailutils", "dovcot") {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "milter.yaml")
			text := fmt.Sprintf("local_domains: [example.org]\nsources:\n  - {file: /var/log/mail.log, format: %s}\n", name)
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, _, errConfig := config.Load(path)
			_, errParser := format.New(name)
			known := slices.Contains(format.Names(), name)
			if (errConfig == nil) != known || (errParser == nil) != known {
				t.Errorf("known %v; the configuration: %v; the parser: %v", known, errConfig, errParser)
			}
			if known && cfg.Sources[0].Format != name {
				t.Errorf("configured as %q", cfg.Sources[0].Format)
			}
			if known && !strings.Contains(string(page), "\n## "+name+"\n") {
				t.Errorf("docs/formats.md has no section ## %s", name)
			}
			if !known && strings.TrimSpace(fmt.Sprint(errParser)) == "" {
				t.Error("refused without a word")
			}
		})
	}
}

// TestTheDocumentsCustomFormatReadsARealLog takes the example of
// docs/formats.md as it stands there and reads what a Dovecot configured that
// way has logged, through the whole program.
func TestTheDocumentsCustomFormatReadsARealLog(t *testing.T) {
	page, err := os.ReadFile("../../docs/formats.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(page), "```yaml\n")
	example, _, closed := strings.Cut(example, "```")
	if !ok || !closed {
		t.Fatal("docs/formats.md: no example")
	}
	conf := filepath.Join(t.TempDir(), "milter.yaml")
	if err := os.WriteFile(conf, []byte("local_domains: [example.org]\n"+example), 0o600); err != nil {
		t.Fatal(err)
	}
	const log = "../../watcher/format/testdata/dovecot23/dovecot23-syslog-customformat"
	table, err := os.ReadFile(log + ".tsv")
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]string{}
	for _, row := range strings.Split(strings.TrimSpace(string(table)), "\n")[1:] {
		var n int
		f := strings.Split(row, "\t")
		if _, err := fmt.Sscan(f[0], &n); err != nil {
			t.Fatalf("%q: %v", row, err)
		}
		if f[1] == "login" {
			want[n] = f[2] + " " + f[3] + " " + f[4]
		}
	}
	out, errs, code := testLog(t, nil, "-c", conf, "--json", "--format", "ourdovecot", log+".log")
	if code != 0 || errs != "" {
		t.Fatalf("exit %d: %s", code, errs)
	}
	got := map[int]string{}
	for line := range strings.Lines(out) {
		var e struct {
			Line                  int
			Event, Client         string
			User, Service, Format string
		}
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Event != "login" || e.Format != "ourdovecot" {
			t.Errorf("%s: %v", line, err)
		}
		got[e.Line] = e.Client + " " + e.User + " " + e.Service
	}
	if len(want) != 15 || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}
