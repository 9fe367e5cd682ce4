package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"

	"popgate/internal/control"
	"popgate/internal/lab"
)

const (
	pushKey    = "0123456789abcdef0123456789abcdef"
	pushFile   = "/etc/popgate/push.key"
	pushSource = "push:127.0.0.1:4001"
)

// reporting are the lines of docs/dovecot.md for Dovecot 2.3.
var reporting = []string{
	"auth_policy_server_url = http://127.0.0.1:4001/",
	"auth_policy_server_api_header = X-API-Key:" + pushKey,
	"auth_policy_hash_nonce = popgate",
	"auth_policy_check_before_auth = no",
	"auth_policy_check_after_auth = no",
	"auth_policy_request_attributes = login=%{requested_username} remote=%{rip} protocol=%s session_id=%{session} mech=%m proxy=%{passdb:proxy:no} nologin=%{passdb:nologin:no}",
}

// pushed is a site whose popgate reads no log.
func pushed(more ...string) setup {
	return setup{
		config:  []string{fmt.Sprintf("sources: [{push: 127.0.0.1:4001, format: dovecot, key_file: %s}]", pushFile)},
		dovecot: lab.DovecotOptions{Extra: append(append([]string{}, reporting...), more...)},
		prepare: func(t *testing.T) { writeKey(t, pushKey) },
	}
}

// writeKey writes popgate's key file as docs/dovecot.md has it done.
func writeKey(t *testing.T, key string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll("/etc/popgate", 0o755), os.WriteFile(pushFile, []byte(key+"\n"), 0o400)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chown", "popgate", pushFile).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// source gives one source as status shows it.
func (s *site) source(t *testing.T, name string) control.Source {
	t.Helper()
	out, _ := s.popgate.Run(t, "status", "--json")
	var st control.Status
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		t.Fatalf("popgate status --json: %v in %q", err, out)
	}
	for _, one := range st.Sources {
		if one.Name == name {
			return one
		}
	}
	t.Fatalf("no source %s in %s", name, out)
	return control.Source{}
}

// reportsTaken waits until popgate listens for reports.
func (s *site) reportsTaken(t *testing.T) {
	t.Helper()
	lab.Until(t, "popgate takes reports", func() bool { return s.source(t, pushSource).State == "up" })
}

func TestADovecotLoginThatIsReportedMayRelay(t *testing.T) {
	onBoth(t, pushed(), func(t *testing.T, s *site) {
		s.reportsTaken(t)
		deferred(t, s.SMTP(t, mallet), "who logged in before popgate listened is not known")
		s.POP3(t, alice, "alice").Logout()
		s.relays(t, s.SMTP(t, alice), "by POP3") // the report is there before the client can send
		s.IMAP(t, alice6, "bob").Logout()
		s.relays(t, s.SMTP(t, alice6), "by IMAP")
		s.POP3Fails(t, mallet, "alice")
		deferred(t, s.SMTP(t, mallet), "a wrong password")
		s.onlySubjects(t, "by POP3", "by IMAP")
	})
}
