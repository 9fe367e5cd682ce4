package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"popgate/internal/lab"
	"popgate/internal/relay"
	"popgate/man"
)

// manText is a page without its macros' escapes: --flag, not Fl -flag.
func manText(page string) string {
	page = regexp.MustCompile(`(?m)\bFl -`).ReplaceAllString(page, "--")
	return regexp.MustCompile(`\bFl (\w)\b`).ReplaceAllString(page, "-$1")
}

// Every command and flag there is stands in popgate(8), and no other.
func TestManPageHasEveryCommandAndFlag(t *testing.T) {
	text := manText(man.Popgate)
	e := processEnv()
	root := newRoot(&e)
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	known := map[string]bool{"help": true, "no-descriptions": true}
	flags := func(usages string) {
		for _, m := range regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`).FindAllStringSubmatch(usages, -1) {
			known[m[1]] = true
			if !regexp.MustCompile(`--` + m[1] + `\b`).MatchString(text) {
				t.Errorf("popgate(8) does not have --%s", m[1])
			}
		}
	}
	flags(root.PersistentFlags().FlagUsages())
	commands := map[string]bool{}
	for _, c := range root.Commands() {
		commands[c.Name()] = true
		if !regexp.MustCompile(`(?m)^\.It Cm ` + c.Name() + `\b`).MatchString(text) {
			t.Errorf("popgate(8) does not have the command %s", c.Name())
		}
		flags(c.LocalNonPersistentFlags().FlagUsages())
	}
	for _, m := range regexp.MustCompile(`--([a-z][a-z-]*)`).FindAllStringSubmatch(text, -1) {
		if !known[m[1]] {
			t.Errorf("popgate(8) has --%s, which no command knows", m[1])
		}
	}
	_, section, _ := strings.Cut(text, "\n.Sh COMMANDS\n")
	section, _, _ = strings.Cut(section, "\n.Sh ")
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm ([a-z-]+)`).FindAllStringSubmatch(section, -1) {
		if !commands[m[1]] {
			t.Errorf("popgate(8) has the command %s, which there is not", m[1])
		}
	}
}

func TestManPageHasEveryReasonExitCodeAndSocket(t *testing.T) {
	for r := relay.Reason(0); r < relay.Reasons; r++ {
		if !strings.Contains(man.Popgate, "\n.It Sy "+r.String()+"\n") {
			t.Errorf("popgate(8) does not have the reason %s", r)
		}
	}
	for _, code := range []int{0, exitNo, exitUsage, exitUnreachable, exitConfig, exitDegraded} {
		if !strings.Contains(man.Popgate, fmt.Sprintf("\n.It %d\n", code)) {
			t.Errorf("popgate(8) does not have exit code %d", code)
		}
	}
	for _, page := range []string{man.Popgate, man.MilterYAML} {
		if !strings.Contains(page, ".Cm milter , policy , socketmap , control , push\nand\n.Cm metrics") {
			t.Error("a page does not have the names of the sockets that systemd hands over")
		}
	}
	if !strings.Contains(man.Popgate, "\n.It Pa "+defaultConfig+"\n") {
		t.Error("popgate(8) has another configuration file")
	}
}

func TestMandocFindsNothingToSayAboutTheManPages(t *testing.T) {
	mandoc := filepath.Join(lab.Tools(t, "mandoc", "mandoc"), "usr/bin/mandoc")
	out, err := exec.Command(mandoc, "-T", "lint", "-W", "warning", "../../man/popgate.8", "../../man/milter.yaml.5").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestManPrintsThePages(t *testing.T) {
	for args, want := range map[string]string{"man": man.Popgate, "man popgate": man.Popgate, "man milter.yaml": man.MilterYAML} {
		var out, errs bytes.Buffer
		e := processEnv()
		e.stdout, e.stderr = &out, &errs
		if code := run(t.Context(), strings.Fields(args), e); code != 0 || out.String() != want || errs.Len() > 0 {
			t.Errorf("popgate %s: exit %d, %d bytes, %s", args, code, out.Len(), &errs)
		}
	}
	var errs bytes.Buffer
	e := processEnv()
	e.stderr = &errs
	if code := run(t.Context(), []string{"man", "dovecot"}, e); code != exitUsage || !strings.Contains(errs.String(), "popgate man [popgate|milter.yaml]") {
		t.Errorf("man dovecot: exit %d, %s", code, &errs)
	}
}

// /dev/null is as much of a terminal as a test can have.
func TestManShowsThePagesFormattedOnATerminal(t *testing.T) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	for _, tt := range []struct{ name, program, want string }{
		{"by mandoc", "mandoc", "-a\n" + man.Popgate},
		{"by man where there is no mandoc", "man", "-l -\n" + man.Popgate},
		{"as its source where there is neither", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("PATH", dir)
			if tt.program != "" {
				script := "#!/bin/sh\n{ echo \"$@\"; /bin/cat; } > " + dir + "/shown\n"
				if err := os.WriteFile(filepath.Join(dir, tt.program), []byte(script), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			var errs bytes.Buffer
			e := processEnv()
			e.stdout, e.stderr = null, &errs
			if code := run(t.Context(), []string{"man"}, e); code != 0 || (errs.Len() > 0) != (tt.program == "") {
				t.Errorf("exit %d: %s", code, &errs)
			}
			if got, _ := os.ReadFile(dir + "/shown"); string(got) != tt.want {
				t.Errorf("it was shown %q", got)
			}
		})
	}
}

// Each shell reads the script that completes popgate for it.
func TestCompletionsAreReadByTheirShells(t *testing.T) {
	for shell, check := range map[string]string{"bash": "-n", "zsh": "-n", "fish": "--no-execute"} {
		t.Run(shell, func(t *testing.T) {
			var out, errs bytes.Buffer
			e := processEnv()
			e.stdout, e.stderr = &out, &errs
			if code := run(t.Context(), []string{"completion", shell}, e); code != 0 || errs.Len() > 0 || !strings.Contains(out.String(), "popgate") {
				t.Fatalf("exit %d, %d bytes, %s", code, out.Len(), &errs)
			}
			script := filepath.Join(t.TempDir(), "popgate")
			if err := os.WriteFile(script, out.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(shell, check, script)
			if cmd.Err != nil { // not on this machine
				root := lab.Tools(t, "shells", "zsh", "fish")
				cmd = exec.Command(root+"/usr/bin/"+shell, check, script)
				libraries, _ := filepath.Glob(root + "/usr/lib/*-linux-*")
				cmd.Env = append(os.Environ(), "HOME="+t.TempDir(), "LD_LIBRARY_PATH="+strings.Join(libraries, ":"))
			}
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", shell, err, out)
			}
		})
	}
}
