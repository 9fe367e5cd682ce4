package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"popgate/internal/lab"
)

const contribDir = "../../contrib"

func TestPromtoolAcceptsTheAlertRulesAndTheirTests(t *testing.T) {
	promtool := filepath.Join(lab.Tools(t, "prometheus", "prometheus"), "usr/bin/promtool")
	for _, args := range [][]string{{"check", "rules", "popgate.rules.yml"}, {"test", "rules", "popgate.rules.test.yml"}} {
		cmd := exec.Command(promtool, args...)
		cmd.Dir = contribDir + "/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// fail2ban gives a way to run its programs, configured as the package has it
// with popgate's filter and jail put in.
func fail2ban(t *testing.T) (dir string, program func(name string, args ...string) *exec.Cmd) {
	t.Helper()
	root := lab.Tools(t, "fail2ban", "fail2ban")
	dir = t.TempDir()
	if out, err := exec.Command("cp", "-a", root+"/etc/fail2ban/.", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.RemoveAll(dir + "/jail.d/defaults-debian.conf"); err != nil { // its jail reads sshd's log
		t.Fatal(err)
	}
	for from, to := range map[string]string{"popgate.conf": "filter.d/popgate.conf", "jail.conf": "jail.d/popgate.conf"} {
		text, err := os.ReadFile(contribDir + "/fail2ban/" + from)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, to), text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir, func(name string, args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", append([]string{root + "/usr/bin/" + name, "-c", dir}, args...)...)
		cmd.Env = append(os.Environ(), "PYTHONPATH="+root+"/usr/lib/python3/dist-packages", "LC_ALL=C.UTF-8")
		return cmd
	}
}

// banned gives the addresses that fail2ban's filter counts, in order.
func banned(t *testing.T, lines ...string) string {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, program := fail2ban(t)
	cmd := program("fail2ban-regex", "-o", "ip", log, "popgate")
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil && len(out) > 0 {
		t.Fatalf("fail2ban-regex: %v\n%s%s", err, out, errs.String())
	}
	return strings.Join(strings.Fields(string(out)), " ")
}

// decisionLine is a line of popgate's log of this moment.
func decisionLine(attributes string) string {
	return "time=" + time.Now().UTC().Format("2006-01-02T15:04:05.000Z07:00") + " level=INFO msg=decision " + attributes
}

func TestFail2banFilter(t *testing.T) {
	decision := decisionLine
	for name, c := range map[string]struct{ line, want string }{
		"a stranger's refusal counts":               {decision("verdict=refuse reason=no_grant client=203.0.113.9 rcpt=x@remote.test recipient=foreign door=milter"), "203.0.113.9"},
		"over IPv6 too":                             {decision("verdict=refuse reason=no_grant client=2001:db8::9 rcpt=x@remote.test recipient=foreign door=milter"), "2001:db8::9"},
		"a copier whose grant ran out does not":     {decision("verdict=refuse reason=expired client=203.0.113.9 rcpt=x@remote.test recipient=foreign door=milter"), ""},
		"one who is put off does not":               {decision("verdict=defer reason=not_ready client=203.0.113.9 rcpt=x@remote.test recipient=foreign door=milter"), ""},
		"one who passes does not":                   {decision("verdict=pass reason=grant client=203.0.113.9 rcpt=x@remote.test recipient=foreign door=milter"), ""},
		"nobody is banned by a stranger's sender":   {decision(`verdict=pass reason=local client=203.0.113.9 rcpt=bob@local.test recipient=local sender="decision verdict=refuse reason=no_grant client=198.51.100.7 rcpt=" door=milter`), ""},
		"nor by a recipient that begins a new line": {decision(`verdict=pass reason=local client=203.0.113.9 rcpt="x\ntime=2026-11-23T00:00:00.000Z level=INFO msg=decision verdict=refuse reason=no_grant client=198.51.100.7 rcpt=y" recipient=local door=milter`), ""},
		"an entry of the journal counts":            {time.Now().Format("Jan 02 15:04:05") + " mx1 popgate[4711]: decision verdict=refuse reason=no_grant client=203.0.113.9 rcpt=x@remote.test recipient=foreign door=milter", "203.0.113.9"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := banned(t, c.line); got != c.want {
				t.Errorf("counted %q, want %q", got, c.want)
			}
		})
	}
}

// A copier sends a message to many recipients before it fetches: by the time the
// ban would come it holds a grant.
func TestFail2banJailBansAStrangerAndNoCopierThatSendsBeforeItFetches(t *testing.T) {
	dir, program := fail2ban(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{
		// What popgate show answers for a client with a grant.
		"show":               "#!/bin/sh\ntest \"$1\" = 198.51.100.7\n",
		"log":                decisionLine("verdict=pass reason=local client=203.0.113.9 rcpt=bob@local.test recipient=local door=milter") + "\n",
		"action.d/tell.conf": "[Definition]\nactionban = echo <ip> >> " + at("banned") + "\n",
		"fail2ban.local":     "[Definition]\ndbfile = None\n",
		// The jail as it is shipped, but for where it reads and what it does.
		"jail.d/zz-test.conf": "[popgate]\nbackend = polling\nlogpath = " + at("log") + "\nignorecommand = " + at("show") + " <ip>\naction = tell\n",
	} {
		if err := os.WriteFile(at(name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	server := program("fail2ban-server", "-f", "-s", at("socket"), "-p", at("pid"), "--logtarget", at("server.log"), "start")
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	until := func(file, text string) {
		t.Helper()
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			have, _ := os.ReadFile(at(file))
			if strings.Contains(string(have), text) {
				return
			}
			if time.Now().After(end) {
				log, _ := os.ReadFile(at("server.log"))
				t.Fatalf("%s does not tell of %q\n%s", file, text, log)
			}
		}
	}
	until("server.log", "Jail 'popgate' started")
	f, err := os.OpenFile(at("log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for range 60 {
		for _, client := range []string{"198.51.100.7", "203.0.113.9"} {
			fmt.Fprintln(f, decisionLine("verdict=refuse reason=no_grant client="+client+" rcpt=x@remote.test recipient=foreign door=milter"))
		}
	}
	until("banned", "203.0.113.9")
	until("server.log", "Ignore 198.51.100.7 by command")
	if all, _ := os.ReadFile(at("banned")); string(all) != "203.0.113.9\n" {
		t.Errorf("banned: %q, want the stranger alone", all)
	}
}
