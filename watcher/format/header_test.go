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
		{"RFC 5424, structured data not ended", `<22>1 2026-11-22T01:57:54Z mx1 dovecot - - [a b="x" x`},
		{"RFC 5424, structured data with a quote in a value", `<22>1 2026-11-22T01:57:54Z mx1 dovecot - - [a b="x"y"] x`},
		{"RFC 5424, text behind structured data without a blank", `<22>1 2026-11-22T01:57:54Z mx1 dovecot - - [a]x`},
		{"RFC 5424, no structured data", `<22>1 2026-11-22T01:57:54Z mx1 dovecot - - x`},
		{"priority that is none", "<192>Nov 22 02:05:32 mx1 dovecot: x"},
		{"priority with a leading zero", "<022>Nov 22 02:05:32 mx1 dovecot: x"},
		{"priority without a number", "<>Nov 22 02:05:32 mx1 dovecot: x"},
		{"two priorities before the stamp", "<22><22>Nov 22 02:05:32 mx1 dovecot: x"},
		{"blank behind the priority", "<22> Nov 22 02:05:32 mx1 dovecot: x"},
		{"priority, no stamp", "<22>mx1 dovecot: imap-login: Login: x"},
		{"priority, neither host nor tag", "<22>Nov 22 02:05:32 : imap-login: Login: x"},
		{"priority, no host, two blanks", "<22>Nov 22 02:05:32  dovecot: imap-login: Login: x"},
		{"priority, host with a control byte", "<22>Nov 22 02:05:32 mx\x011 dovecot: x"},
		{"priority, word between host and tag", "<22>Nov 22 02:05:32 mx1 mail.info dovecot: x"},
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

func TestSplitTakesWhatSyslogDaemonsSend(t *testing.T) {
	for _, tt := range []struct{ name, line, transport, host, tag, pid, text string }{
		{"rsyslog, traditional", "<22>Nov 22 02:05:32 mx1 dovecot: imap-login: x", "rfc3164", "mx1", "dovecot", "", "imap-login: x"},
		{"rsyslog, RFC 3339 stamp", "<22>2026-11-22T02:05:32.540141+01:00 mx1 dovecot: imap-login: x", "rfc3164", "mx1", "dovecot", "", "imap-login: x"},
		{"pid", "<21>Nov 22 02:05:32 mx1 cyrus/imap[312]: login: x", "rfc3164", "mx1", "cyrus/imap", "312", "login: x"},
		{"BusyBox sends no host", "<22>Nov 22 02:05:32 dovecot: imap-login: x", "rfc3164", "", "dovecot", "", "imap-login: x"},
		{"BusyBox sends no host, pid", "<22>Nov 22 02:05:32 cyrus/imap[312]: login: x", "rfc3164", "", "cyrus/imap", "312", "login: x"},
		{"Dovecot's own form is a tag like others here", "<22>Nov 22 02:05:32 imap-login: Info: Login: x", "rfc3164", "", "imap-login", "", "Info: Login: x"},
		{"IPv6 address for a host", "<22>Nov 22 02:05:32 2001:db8::7 dovecot: x", "rfc3164", "2001:db8::7", "dovecot", "", "x"},
		{"no text", "<22>Nov 22 02:05:32 mx1 dovecot:", "rfc3164", "mx1", "dovecot", "", ""},
		{"rsyslog, RFC 5424", "<22>1 2026-11-22T01:57:54Z mx1 dovecot - - -  imap-login: x", "rfc5424", "mx1", "dovecot", "", "imap-login: x"},
		{"syslog-ng, structured data", `<22>1 2026-11-22T01:57:54+00:00 mx1 dovecot 7 - [meta sequenceId="1"][a b="\"\]" c="d"] imap-login: x`, "rfc5424", "mx1", "dovecot", "7", "imap-login: x"},
		{"byte order mark", "<22>1 2026-11-22T01:57:54Z mx1 dovecot - - - \ufeffimap-login: x", "rfc5424", "mx1", "dovecot", "", "imap-login: x"},
		{"RFC 5424 without host", "<22>1 2026-11-22T01:57:54Z - dovecot - - - x", "rfc5424", "", "dovecot", "", "x"},
		{"lowest priority", "<0>Nov 22 02:05:32 mx1 dovecot: x", "rfc3164", "mx1", "dovecot", "", "x"},
		{"highest priority", "<191>Nov 22 02:05:32 mx1 dovecot: x", "rfc3164", "mx1", "dovecot", "", "x"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Message
			if !Split([]byte(tt.line), &m) {
				t.Fatalf("%q was not taken", tt.line)
			}
			got := [...]string{m.Transport.String(), string(m.Host), string(m.Tag), string(m.PID), string(m.Text)}
			if want := [...]string{tt.transport, tt.host, tt.tag, tt.pid, tt.text}; got != want || m.Withheld {
				t.Errorf("%q gave %q, want %q", tt.line, got, want)
			}
		})
	}
}

// A stranger's text with a line end in it may hold a whole log line; where the
// daemon in between passes it on in one message, it is one message.
func TestSyslogWithholdsAMessageWithControlBytes(t *testing.T) {
	for name, line := range map[string]string{
		"line end":              "<22>Nov 22 02:05:32 mx1 pop3d: x\nNov 22 02:05:32 mx1 dovecot: imap-login: Login: x",
		"line end, RFC 5424":    "<22>1 2026-11-22T01:57:54Z mx1 pop3d - - - x\n<22>Nov 22 02:05:32 mx1 dovecot: imap-login: Login: x",
		"carriage return, last": "<22>Nov 22 02:05:32 mx1 pop3d: LOGIN FAILED, user=x\r",
		"NUL":                   "<22>Nov 22 02:05:32 mx1 pop3d: x\x00y",
	} {
		var m Message
		if !Split([]byte(line), &m) || !m.Withheld || m.Text != nil || string(m.Tag) != "pop3d" {
			t.Errorf("%s: withheld %v, text %q, tag %q", name, m.Withheld, m.Text, m.Tag)
		}
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
	want := `"dovcot" is not a log format popgate reads; choose one of auto, courier, cyrus, dbmail, dovecot, imapproxy, perdition, popa3d, qpopper, solid-pop3d, uw`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	for _, name := range Names() {
		if _, err := New(name); err != nil {
			t.Error(err)
		}
	}
}
