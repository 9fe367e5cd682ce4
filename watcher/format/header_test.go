package format

import (
	"strings"
	"testing"

	"popgate/internal/relay"
)

func TestSplitRefuses(t *testing.T) {
	for _, tt := range []struct{ name, line string }{
		{"empty", ""},
		{"stamp only", "Nov 22 02:05:32"},
		{"blank before the stamp", " Nov 22 02:05:32 mx1 dovecot: x"},
		{"text before the stamp", "x Nov 22 02:05:32 mx1 dovecot: x"},
		{"no host", "Nov 22 02:05:32 dovecot: x"},
		{"no tag", "Nov 22 02:05:32 mx1 : x"},
		{"mark", "Nov 22 02:05:32 mx1 -- MARK --"},
		{"repetition", "Nov 22 02:05:32 mx1 last message repeated 2 times"},
		{"two priorities", "Nov 22 02:05:32 mx1 mail.info mail.info dovecot: x"},
		{"pid that is no number", "Nov 22 02:05:32 mx1 dovecot[1x]: x"},
		{"no blank behind the tag", "Nov 22 02:05:32 mx1 dovecot:x"},
		{"continuation of journalctl -o short", "                          imap-login: Login: user=<x>"},
		{"RFC 3339 without zone", "2026-11-22T02:05:32.540141 mx1 dovecot: x"},
		{"RFC 5424 without stamp", "<22>1 - mx1 dovecot - - -  x"},
		{"RFC 5424 with structured data", `<22>1 2026-11-22T01:57:54Z mx1 dovecot - - [a b="] x"] x`},
		{"RFC 5424, other version", "<22>2 2026-11-22T01:57:54Z mx1 dovecot - - -  x"},
		{"journal, no stamp", `{"MESSAGE":"x","SYSLOG_IDENTIFIER":"dovecot"}`},
		{"journal, message twice", `{"__REALTIME_TIMESTAMP":"1","MESSAGE":"x","MESSAGE":"y"}`},
		{"journal, tag twice", `{"__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"x","SYSLOG_IDENTIFIER":"y"}`},
		{"journal, cut", `{"__REALTIME_TIMESTAMP":"1","MESSAGE":"x"`},
		{"journal, text behind", `{"__REALTIME_TIMESTAMP":"1","MESSAGE":"x"} `},
		{"journal, bad escape", `{"__REALTIME_TIMESTAMP":"1","MESSAGE":"\x41"}`},
		{"journal, escaped name", `{"__REALTIME_TIMESTAMP":"1","MES\u0053AGE":"x"}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Message
			if Split([]byte(tt.line), &m) {
				t.Errorf("%q was taken for %v: %q %q %q", tt.line, m.Transport, m.Host, m.Tag, m.Text)
			}
		})
	}
}

func TestJournalWithholdsWhatIsNotText(t *testing.T) {
	for _, tt := range []struct {
		name, message, want string
		withheld            bool
	}{
		{"text", `"a \"b\" \\ \u00e9\t"`, "a \"b\" \\ \u00e9\t", false},
		{"bytes", `[105,109,97]`, "", true},
		{"too long", `null`, "", true},
		{"several", `["a","b"]`, "", true},
		{"line end", `"a\nb"`, "", true},
		{"line end in hexadecimal", `"a\u000ab"`, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Message
			line := `{"__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"pop3d","MESSAGE":` + tt.message + `}`
			if !Split([]byte(line), &m) || m.Withheld != tt.withheld || string(m.Text) != tt.want || string(m.Tag) != "pop3d" {
				t.Errorf("%s: withheld %v, text %q, tag %q", line, m.Withheld, m.Text, m.Tag)
			}
		})
	}
}

func TestAutoGoesByTheUnitBeforeTheTag(t *testing.T) {
	const login = `{"__REALTIME_TIMESTAMP":"1","SYSLOG_IDENTIFIER":"dovecot",UNIT"MESSAGE":"imap-login: Login: user=<bob>, method=PLAIN, rip=192.0.2.7, lip=192.0.2.1, mpid=1, session=<ab>"}`
	for unit, want := range map[string]Result{
		"":                    None,
		"dovecot.service":     Login,
		"user@1000.service":   None,
		"dovecot.socket":      None,
		"courier-pop.service": None,
	} {
		line := strings.Replace(login, "UNIT", `"_SYSTEMD_UNIT":"`+unit+`",`, 1)
		if unit == "" {
			line = strings.Replace(login, "UNIT", "", 1)
		}
		var m Message
		if !Split([]byte(line), &m) {
			t.Fatalf("not taken: %s", line)
		}
		p, _ := New("auto")
		if _, got := p.Parse(&m); got != want {
			t.Errorf("unit %q: %v, want %v", unit, got, want)
		}
	}
}

func TestAutoKeepsCouriersStateFromBeforeItsChoice(t *testing.T) {
	p, _ := New("auto")
	for _, line := range []string{
		opened,
		"pop3d: LOGIN FAILED, user=" + filler,
		"authdaemond: stopping",
		"pop3d: Connection, ip=[::ffff:192.0.2.46], port=[60137]", // the rest of the piece
		"pop3d: LOGIN, user=victim, ip=[::ffff:192.0.2.46], port=[60137]",
	} {
		if e, result := parseLine(t, p, line); result != None && result != Unparsed || e != (relay.Event{}) {
			t.Errorf("%q gave %v %+v", line, result, e)
		}
	}
}

func TestNewNamesTheChoices(t *testing.T) {
	_, err := New("dovcot")
	want := `"dovcot" is not a log format popgate reads; choose one of auto, courier, cyrus, dovecot`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	for _, name := range Names() {
		if _, err := New(name); err != nil {
			t.Error(err)
		}
	}
}
