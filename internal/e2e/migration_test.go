package e2e

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"popgate/internal/lab"
)

// docs/migration.md has Postfix ask the old daemon's table and popgate.
func TestAnOldTableAndPopgateEachOpenTheDoorForTheirClients(t *testing.T) {
	page, err := os.ReadFile("../../docs/migration.md")
	if err != nil {
		t.Fatal(err)
	}
	const table = "hash:/etc/postfix/pop-before-smtp"
	lines := regexp.MustCompile("(?s)```\n(smtpd_relay_restrictions[^`]*" + table + "[^`]*)```").FindStringSubmatch(string(page))
	if lines == nil {
		t.Fatal("docs/migration.md does not show both at once")
	}
	const old = "192.0.2.77" // logged in where only the old daemon saw it
	d := *doorCalled("Postfix policy service")
	set := setup{door: &d, postfix: lab.PostfixOptions{Files: map[string]string{"pop-before-smtp": old + " OK\n"}}}
	d.wire(&set, strings.Replace(lines[1], table, "text"+table, 1))
	on(t, "postfix", set, func(t *testing.T, s *site) {
		turnedAway(t, s.SMTP(t, alice), "before the login")
		s.login(t, alice)
		s.relays(t, s.SMTP(t, alice), "by popgate")
		s.relays(t, s.SMTP(t, old), "by the old table")
		turnedAway(t, s.SMTP(t, mallet), "in neither")
		s.popgate.Kill()
		s.unable(t, s.SMTP(t, alice), "popgate killed")
		s.relays(t, s.SMTP(t, old), "by the old table, popgate killed")
		s.onlySubjects(t, "by popgate", "by the old table", "by the old table, popgate killed")
	})
}
