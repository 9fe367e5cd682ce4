package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"popgate/contrib"
	"popgate/internal/config"
)

func readme(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// blocks gives the fenced blocks of a document, without their indentation.
func blocks(text string) []string {
	var out []string
	for _, m := range regexp.MustCompile("(?ms)^( *)```[a-z]*\n(.*?)^ *```").FindAllStringSubmatch(text, -1) {
		out = append(out, regexp.MustCompile("(?m)^"+m[1]).ReplaceAllString(m[2], ""))
	}
	return out
}

func TestReadmeShowsTheLinesThatTheTestsRun(t *testing.T) {
	all := strings.Join(blocks(readme(t)), "\x00")
	for name, lines := range map[string]string{
		"Postfix": contrib.PostfixMilter, "sendmail": contrib.SendmailMilter, "Postfix, the door closed": contrib.PostfixPolicy,
	} {
		if !strings.Contains(all, lines) {
			t.Errorf("the README's lines for %s are not those of contrib:\n%s", name, lines)
		}
	}
}

func TestReadmeConfigurationIsRead(t *testing.T) {
	n := 0
	for _, b := range blocks(readme(t)) {
		if !strings.Contains(b, "sources:") {
			continue
		}
		n++
		cfg, warnings, err := config.Parse("README.md", []byte(b))
		if err != nil || len(warnings) > 0 {
			t.Fatalf("%v %v", warnings, err)
		}
		if _, err := planSources("README.md", cfg); err != nil {
			t.Error(err)
		}
		// Where the lines for Postfix look for it, below the queue directory.
		for _, a := range append(cfg.Listen.Policy, cfg.Listen.Milter...) {
			path, chrooted := strings.CutPrefix(a.Address, "/var/spool/postfix/")
			if chrooted && !strings.Contains(contrib.PostfixPolicy+contrib.PostfixMilter, path) {
				t.Errorf("nothing in Postfix's lines looks for %s", a)
			}
		}
	}
	if n < 2 {
		t.Errorf("the README shows %d configurations, want one for each way", n)
	}
}

// Every command the README names is one, and every command is named.
func TestReadmeNamesTheCommands(t *testing.T) {
	e := processEnv()
	root := newRoot(&e)
	known := map[string]bool{}
	for _, c := range root.Commands() {
		known[c.Name()] = true
		if c.Name() != "completion" && c.Name() != "help" && !regexp.MustCompile("`[^`]*\\b"+c.Name()+"\\b").MatchString(readme(t)) {
			t.Errorf("the README does not name popgate %s", c.Name())
		}
	}
	for _, m := range regexp.MustCompile("(?m)(?:^ +(?:sudo )?|`)popgate ([a-z-]+)").FindAllStringSubmatch(readme(t), -1) {
		if !known[m[1]] {
			t.Errorf("the README names popgate %s, which is no command", m[1])
		}
	}
	makefile, err := os.ReadFile("../../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?m)(?:^ +|`)make ([a-z]+)").FindAllStringSubmatch(readme(t), -1) {
		if !regexp.MustCompile("(?m)^" + m[1] + ":").Match(makefile) {
			t.Errorf("the README names make %s, which the Makefile doesn't have", m[1])
		}
	}
}
