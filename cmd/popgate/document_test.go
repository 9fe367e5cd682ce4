package main

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"popgate/contrib"
	"popgate/internal/config"
	"popgate/internal/control"
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

// docs/commands.md has every command, flag and JSON key there is.
func TestCommandsAreDocumented(t *testing.T) {
	b, err := os.ReadFile("../../docs/commands.md")
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	e := processEnv()
	for _, c := range newRoot(&e).Commands() {
		if !regexp.MustCompile(`(?m)^## .*\b` + c.Name() + `\b`).MatchString(text) {
			t.Errorf("no heading names popgate %s", c.Name())
		}
		for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`).FindAllStringSubmatch(c.LocalNonPersistentFlags().FlagUsages(), -1) {
			if m[1] != "help" && !regexp.MustCompile("--"+m[1]+"\\b").MatchString(text) {
				t.Errorf("popgate %s --%s is not documented", c.Name(), m[1])
			}
		}
	}
	for _, v := range []any{control.Grant{}, control.AskAnswer{}, control.Status{}, control.Source{}, control.Listener{},
		control.Decisions{}, control.Store{}, control.ReloadAnswer{}, control.RevokeAnswer{}, control.Seen{}, finding{}} {
		for i := range reflect.TypeOf(v).NumField() {
			key, _, _ := strings.Cut(reflect.TypeOf(v).Field(i).Tag.Get("json"), ",")
			if !regexp.MustCompile("[`\"]" + key + "[`\"]").MatchString(text) {
				t.Errorf("the key %s of %T is not documented", key, v)
			}
		}
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

// What `popgate setup dovecot` prints is what the document says.
func TestDovecotsLinesAreThoseOfTheDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/dovecot.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, lines := range map[string]string{"2.3": contrib.DovecotPush, "2.4": contrib.DovecotPush24} {
		if !strings.Contains(string(text), "```\n"+lines+"```") {
			t.Errorf("docs/dovecot.md has other lines for %s than contrib:\n%s", name, lines)
		}
	}
}
