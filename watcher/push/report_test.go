package push

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"popgate/internal/relay"
)

// with gives a good report with a piece of it changed.
func with(old, new string) string {
	if strings.Count(goodLogin, old) != 1 {
		panic(old)
	}
	return strings.Replace(goodLogin, old, new, 1)
}

func TestReports(t *testing.T) {
	const none, broken = "none", "broken"
	for _, tt := range []struct {
		name string
		body string
		want string // address, user, service and session; or none; or broken
	}{
		{"as Dovecot 2.3 sends it", goodLogin, "198.51.100.7 alice imap GJuxzetgWtPGM2QH"},
		{"POP3", with(`"imap"`, `"pop3"`), "198.51.100.7 alice pop3 GJuxzetgWtPGM2QH"},
		{"IPv6", with("198.51.100.7", "2001:db8::7"), "2001:db8::7 alice imap GJuxzetgWtPGM2QH"},
		{"IPv4-mapped", with("198.51.100.7", "::ffff:198.51.100.7"), "198.51.100.7 alice imap GJuxzetgWtPGM2QH"},
		{"without a session", with("GJuxzetgWtPGM2QH", ""), "198.51.100.7 alice imap "},
		{"what is nested is passed over", with(`"tls":false`, `"attrs":{"remote":"203.0.113.66","login":["x"]}`), "198.51.100.7 alice imap GJuxzetgWtPGM2QH"},
		{"client's words are quoted by Dovecot", with(`"tls"`, `"device_id":"\"name\" \"x\\\"},\\\"remote\\\":\\\"203.0.113.66\"","tls"`), "198.51.100.7 alice imap GJuxzetgWtPGM2QH"},

		{"wrong password", with(`"success":true`, `"success":false`), none},
		{"refused by policy though successful", with(`"policy_reject":false`, `"policy_reject":true`), none},
		{"protocol SMTP", with(`"imap"`, `"smtp"`), none},
		{"protocol submission", with(`"imap"`, `"submission"`), none},
		{"protocol sieve", with(`"imap"`, `"sieve"`), none},
		{"protocol IMAP", with(`"imap"`, `"IMAP"`), none},
		{"anonymous mechanism", with("PLAIN", "ANONYMOUS"), none},
		{"anonymous mechanism in lower case", with("PLAIN", "anonymous"), none},
		{"user anonymous", with("alice", "Anonymous"), none},
		{"proxied, the password unchecked", with(`"host":"no"`, `"host":"10.0.0.1"`), none},
		{"proxied or not, nobody knows", with(`"host":"no"`, `"host":""`), none},
		{"as Dovecot 2.4 sends it", with(`"nologin":"no",`, `"device_id":"","fail_type":"","pwhash":"0583",`), "198.51.100.7 alice imap GJuxzetgWtPGM2QH"},
		{"nologin is false", with(`"nologin":"no"`, `"nologin":false`), broken},
		{"shut out by nologin", with(`"nologin":"no"`, `"nologin":""`), none},

		{"success is a string", with(`"success":true`, `"success":"true"`), broken},
		{"success is a number", with(`"success":true`, `"success":1`), broken},
		{"success in another case", with(`"success":true`, `"Success":true`), broken},
		{"no success", with(`"success":true,`, ``), broken},
		{"no policy_reject", with(`,"policy_reject":false`, ``), broken},
		{"policy_reject is null", with(`"policy_reject":false`, `"policy_reject":null`), broken},
		{"second remote", with(`"tls"`, `"remote":"203.0.113.66","tls"`), broken},
		{"second remote before it", with(`{`, `{"remote":"203.0.113.66",`), broken},
		{"second remote in another case", with(`"tls"`, `"Remote":"203.0.113.66","tls"`), broken},
		{"second remote by escapes", with(`"tls"`, `"\u0072emote":"203.0.113.66","tls"`), broken},
		{"second success", with(`"tls"`, `"success":true,"tls"`), broken},
		{"an unknown key twice", with(`"tls":false`, `"x":1,"X":2`), broken},
		{"remote in another case only", with(`"remote"`, `"REMOTE"`), broken},
		{"remote with text", with("198.51.100.7", "198.51.100.7 203.0.113.66"), broken},
		{"remote with a line end", with("198.51.100.7", `198.51.100.7\n`), broken},
		{"remote with a zone", with("198.51.100.7", "fe80::1%eth0"), broken},
		{"remote with a port", with("198.51.100.7", "198.51.100.7:25"), broken},
		{"remote is a network", with("198.51.100.7", "198.51.100.0/24"), broken},
		{"remote is a name", with("198.51.100.7", "localhost"), broken},
		{"remote tagged", with("198.51.100.7", "IPv6:2001:db8::7"), broken},
		{"remote with leading zeros", with("198.51.100.7", "198.051.100.7"), broken},
		{"remote empty", with("198.51.100.7", ""), broken},
		{"remote is a list", with(`"198.51.100.7"`, `["198.51.100.7"]`), broken},
		{"no mech", with(`"mech":"PLAIN",`, ``), broken},
		{"empty mech", with("PLAIN", ""), broken},
		{"no host", with(`"host":"no",`, ``), broken},
		{"no user", with("alice", ""), broken},
		{"user with a control character", with("alice", `al\u0007ice`), broken},
		{"user that is no UTF-8", with("alice", "al\xffice"), broken},
		{"user of a thousand bytes", with("alice", strings.Repeat("a", 1000)), broken},
		{"session of a thousand bytes", with("GJuxzetgWtPGM2QH", strings.Repeat("a", 1000)), broken},
		{"nested deep", with(`"tls":false`, `"x":`+strings.Repeat("[", 100)+strings.Repeat("]", 100)), broken},
		{"a hundred keys", with(`"tls":false`, manyKeys(100)), broken},
		{"two objects", goodLogin + goodLogin, broken},
		{"something after it", goodLogin + "x", broken},
		{"cut off", goodLogin[:len(goodLogin)-1], broken},
		{"comma before the end", strings.TrimSuffix(goodLogin, "}") + ",}", broken},
		{"a list", "[" + goodLogin + "]", broken},
		{"empty", "", broken},
		{"null", "null", broken},
		{"single quotes", strings.ReplaceAll(goodLogin, `"`, `'`), broken},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ev, err := readReport([]byte(tt.body))
			got := none
			switch {
			case err != nil:
				got = broken
				if ev != (relay.Event{}) {
					t.Errorf("an error and an event: %+v", ev)
				}
			case ev.Kind == relay.Login:
				got = fmt.Sprintf("%s %s %s %s", ev.Client, ev.User, ev.Service, ev.Session)
			case ev != relay.Event{}:
				t.Errorf("no login, and yet %+v", ev)
			}
			if got != tt.want {
				t.Errorf("got %s (%v), want %s", got, err, tt.want)
			}
		})
	}
}

func manyKeys(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `"k%d":0,`, i)
	}
	return strings.TrimSuffix(b.String(), ",")
}

// What a report lacks is told with the line that sends it.
func TestAReportThatLacksAnAttributeSaysWhichLineToWrite(t *testing.T) {
	_, err := readReport([]byte(with(`"mech":"PLAIN",`, ``)))
	if err == nil || !strings.Contains(err.Error(), "mech is missing") || !strings.Contains(err.Error(), reportAttributes) {
		t.Errorf("got %v, want the missing mech and the line to write", err)
	}
	if doc, err := os.ReadFile("../../docs/dovecot.md"); err != nil || !strings.Contains(string(doc), reportAttributes) {
		t.Errorf("docs/dovecot.md has another line (%v)", err)
	}
}

func FuzzReport(f *testing.F) {
	f.Add([]byte(goodLogin))
	f.Add([]byte(with(`"tls"`, `"Remote":"203.0.113.66","tls"`)))
	f.Add([]byte(with("198.51.100.7", "::ffff:198.51.100.7")))
	f.Add([]byte(with(`"tls":false`, `"x":[{},{"y":[1]}]`)))
	f.Add([]byte(`{"login":"a\ud800","success":true}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		ev, err := readReport(body)
		if ev.Kind == relay.NoEvent {
			if ev != (relay.Event{}) {
				t.Errorf("no event, and yet %+v", ev)
			}
			return
		}
		checkTold(t, &ev)
		// A reader without popgate's care finds the same login in it.
		var m map[string]any
		if err != nil || json.Unmarshal(body, &m) != nil {
			t.Fatalf("%q gave %+v, %v", body, ev, err)
		}
		remote, _ := m["remote"].(string)
		client, err := relay.ParseClient(remote)
		if err != nil || client != ev.Client || m["success"] != true || m["policy_reject"] != false || m["login"] != ev.User {
			t.Errorf("%q gave %+v", body, ev)
		}
	})
}

// checkTold checks what holds for every login that was told.
func checkTold(t *testing.T, ev *relay.Event) {
	t.Helper()
	if ev.Kind != relay.Login || !ev.Client.IsValid() || ev.Client != relay.Canonical(ev.Client) || ev.Service == relay.ServiceUnknown ||
		ev.User == "" || len(ev.User) > maxUser || len(ev.Session) > maxSession || !plainText(ev.User+ev.Session) || strings.EqualFold(ev.User, "anonymous") {
		t.Errorf("%+v is no login", *ev)
	}
	if _, err := netip.ParseAddr(ev.Client.String()); err != nil {
		t.Error(err)
	}
}
