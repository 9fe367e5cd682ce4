package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"popgate/contrib"
	"popgate/internal/config"
)

func page(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile("../../docs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Each way into an MTA is shown with the lines that the tests run, whole.
func TestMTADocumentsShowTheLinesThatTheTestsRun(t *testing.T) {
	for name, lines := range map[string][]string{
		"postfix.md":  {contrib.PostfixPolicy, contrib.PostfixSocketMap, contrib.PostfixMilter},
		"sendmail.md": {contrib.SendmailSocketMap, contrib.SendmailDrac, contrib.SendmailMilter},
		"exim.md":     {contrib.EximSocketMap},
	} {
		text := blocks(page(t, name))
		for _, l := range lines {
			if !slices.Contains(text, l) {
				t.Errorf("docs/%s does not show the lines of contrib:\n%s", name, l)
			}
		}
	}
}

// What the documents show of milter.yaml is a configuration that can be run.
func TestConfigurationsInTheDocumentsAreRead(t *testing.T) {
	for _, name := range []string{"postfix.md", "sendmail.md", "exim.md", "courier.md", "cyrus.md", "migration.md", "troubleshooting.md"} {
		for _, m := range regexp.MustCompile("(?ms)^```yaml\n(.*?)^```").FindAllStringSubmatch(page(t, name), -1) {
			cfg, warnings, err := config.Parse(name, []byte(m[1]))
			if err != nil || len(warnings) > 0 {
				t.Errorf("%v %v in\n%s", warnings, err, m[1])
				continue
			}
			// Cyrus runs as a user of its own, which a host without it lacks.
			if _, err := planSources(name, cfg); err != nil && !strings.Contains(err.Error(), "this host has no user cyrus") {
				t.Error(err)
			}
		}
	}
}

// Links between the documents lead somewhere, to the heading too.
func TestDocumentLinksLeadSomewhere(t *testing.T) {
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(pages, "../../README.md") {
		text, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`\]\(([^)#:]*)(#[^)]*)?\)`).FindAllStringSubmatch(string(text), -1) {
			target := p
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(p), m[1])
			}
			linked, err := os.ReadFile(target)
			if info, errStat := os.Stat(target); errStat == nil && info.IsDir() {
				continue
			}
			if err != nil {
				t.Errorf("%s links to %s: %v", p, m[1], err)
				continue
			}
			if m[2] != "" && !slices.Contains(anchors(string(linked)), m[2]) {
				t.Errorf("%s links to %s%s: no such heading", p, m[1], m[2])
			}
		}
	}
}

// anchors gives the headings as links name them.
func anchors(text string) (all []string) {
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(text, -1) {
		kept := regexp.MustCompile(`[^\pL\pN _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, "#"+strings.ReplaceAll(kept, " ", "-"))
	}
	return all
}

var testName = regexp.MustCompile(`(?m)\b(?:Test|Fuzz)[A-Z][A-Za-z0-9]+`)

// Every claim of the security model names the test that holds it, and every
// test that it names is there.
func TestSecurityDocumentNamesTestsThatThereAre(t *testing.T) {
	there := map[string]bool{}
	err := filepath.WalkDir("../..", func(path string, e os.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllStringSubmatch(string(text), -1) {
			there[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	text := page(t, "security.md")
	named := testName.FindAllString(text, -1)
	for _, name := range named {
		if !there[name] {
			t.Errorf("docs/security.md names %s, which is no test", name)
		}
	}
	if len(named) < 60 {
		t.Errorf("docs/security.md names %d tests; it did name more", len(named))
	}
	claims := 0
	for line := range strings.Lines(text) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "| ") || strings.HasPrefix(line, "| can't |") || strings.HasPrefix(line, "| ---") {
			continue
		}
		claims++
		if len(cells) != 2 || !testName.MatchString(cells[1]) {
			t.Errorf("docs/security.md: no test holds %q", line)
		}
	}
	if claims == 0 {
		t.Error("docs/security.md: no claims")
	}
}
