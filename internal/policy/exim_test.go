package policy

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"popgate/contrib"
)

const eximConf = `primary_hostname = mx1.local.test
spool_directory = %[1]s
log_file_path = %[1]s/%%slog
domainlist local_domains = local.test : virtual.test
acl_smtp_rcpt = rcpt
begin acl
rcpt:
  accept  domains = +local_domains
%[2]s
  deny    message = relay not permitted
begin routers
all:
  driver = redirect
  data = :blackhole:
`

// Exim is asked by its own test of hosts (-bh), which runs the ACL for any
// client address and really reads the socket, but delivers nothing.
func TestEximHoldsTheDoorShut(t *testing.T) {
	exim, err := exec.LookPath("exim4")
	if err != nil {
		t.Skip("no exim4 on this machine")
	}
	dir := t.TempDir()
	for path, mode := range map[string]os.FileMode{filepath.Dir(dir): 0o755, dir: 0o777} { // Exim gives up being root
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	socket, conf := filepath.Join(dir, "s"), filepath.Join(dir, "exim.conf")
	lines := strings.Replace(contrib.EximSocketMap, "/run/popgate/socketmap.sock", socket, 1)
	if err := os.WriteFile(conf, fmt.Appendf(nil, eximConf, dir, lines), 0o644); err != nil {
		t.Fatal(err)
	}
	codes := regexp.MustCompile(`(?m)^[245][0-9][0-9] `)
	ask := func(client, to string) outcome {
		cmd := exec.CommandContext(t.Context(), exim, "-C", conf, "-bh", client)
		cmd.Stdin = strings.NewReader("EHLO copier.test\r\nMAIL FROM:<scan@sender.test>\r\nRCPT TO:<" + to + ">\r\nQUIT\r\n")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("exim: %v\n%s", err, out)
		}
		replies := codes.FindAllString(string(out), -1) // greeting, EHLO, MAIL, RCPT, QUIT
		if len(replies) != 5 {
			t.Fatalf("exim answered %q:\n%s", replies, out)
		}
		switch replies[3][0] {
		case '2':
			return taken
		case '4':
			return deferred
		default:
			return refused
		}
	}
	for _, up := range []bool{true, false} {
		if up {
			defer at(t, socket, NewSocketMap(&witness{}, Options{}))()
		} else if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
		for _, tt := range []struct {
			client, to string
			up         outcome
		}{
			{bob, "x@remote.test", taken},
			{bob6, "x@remote.test", taken},
			{eve, "x@remote.test", refused},
			{maybe, "x@remote.test", deferred},
			{eve, "alice@local.test", taken},
			{maybe, "alice@local.test", taken},
		} {
			want := tt.up
			if !up && strings.HasSuffix(tt.to, "@remote.test") {
				want = deferred
			}
			if got := ask(tt.client, tt.to); got != want {
				t.Errorf("popgate up %v: %s to %s: %s, want %s", up, tt.client, tt.to, got, want)
			}
		}
	}
}
