package journal

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"popgate/watcher/format"
)

// dovecotEntry is an entry of Dovecot's, by the fields journald sets.
const dovecotEntry = `{"__CURSOR":"s=1;i=2;b=3;m=4;t=5;x=6","__REALTIME_TIMESTAMP":"1795312674521028","_TRANSPORT":"syslog","_MACHINE_ID":"11111111222233334444555566667777",` +
	`"_SYSTEMD_UNIT":"dovecot.service","_UID":"0","_EXE":"/usr/lib/dovecot/log","MESSAGE":"a login"}`

// journald's words when it dropped entries.
const droppedEntry = `{"__CURSOR":"s=1;i=2;b=3;m=4;t=5;x=6","_TRANSPORT":"driver","_MACHINE_ID":"11111111222233334444555566667777","_UID":"0",` +
	`"_SYSTEMD_UNIT":"systemd-journald.service","OBJECT_SYSTEMD_UNIT":"dovecot.service","MESSAGE_ID":"` + suppressed + `","MESSAGE":"Suppressed 7 messages from dovecot.service"}`

func TestWhatAnEntryMustShow(t *testing.T) {
	for _, tt := range []struct {
		name, entry, old, new string
		own                   Trust
		want                  verdict
	}{
		{"Dovecot's", dovecotEntry, "", "", Trust{}, believed},
		{"another machine's", dovecotEntry, "1111111122223333", "9999999922223333", Trust{}, foreign},
		{"no machine's", dovecotEntry, `"_MACHINE_ID"`, `"_MACHINE"`, Trust{}, foreign},
		{"another unit's", dovecotEntry, "dovecot.service", "evil.service", Trust{}, foreign},
		{"no unit's", dovecotEntry, `"dovecot.service"`, "null", Trust{}, foreign},
		{"a unit whose name begins so", dovecotEntry, "dovecot.service", "dovecot.service2", Trust{}, foreign},
		{"a user's", dovecotEntry, `"_UID":"0"`, `"_UID":"1000"`, Trust{}, foreign},
		{"nobody's", dovecotEntry, `"_UID":"0",`, "", Trust{}, foreign},
		{"another program's", dovecotEntry, "/usr/lib/dovecot/log", "/usr/bin/logger", Trust{}, foreign},
		{"a program that was replaced while it ran", dovecotEntry, "dovecot/log", "dovecot/log (deleted)", Trust{}, foreign},
		{"a unit's output", dovecotEntry, "syslog", "stdout", Trust{}, foreign},
		{"by journald's own protocol", dovecotEntry, "syslog", "journal", Trust{}, foreign},
		{"by journald's own protocol, of a program that was named", dovecotEntry, "syslog", "journal", Trust{Programs: []string{"/usr/lib/dovecot/log"}}, believed},
		{"output of a program that was named", dovecotEntry, "syslog", "stdout", Trust{Programs: []string{"/usr/lib/dovecot/log"}}, foreign},
		{"of the usual program, another was named", dovecotEntry, "", "", Trust{Programs: []string{"/opt/dovecot/log"}}, foreign},
		{"of the usual user, another was named", dovecotEntry, "", "", Trust{Users: []string{"97"}}, foreign},
		{"of the user who was named", dovecotEntry, `"_UID":"0"`, `"_UID":"97"`, Trust{Users: []string{"97"}}, believed},
		{"dropped entries", droppedEntry, "", "", Trust{}, dropped},
		{"dropped entries of another unit", droppedEntry, "dovecot.service", "other.service", Trust{}, foreign},
		{"dropped entries of a unit named in the text only", droppedEntry, `"OBJECT_SYSTEMD_UNIT":"dovecot.service",`, "", Trust{}, dropped},
		{"dropped entries of nobody knows whom", droppedEntry, `"OBJECT_SYSTEMD_UNIT":"dovecot.service","MESSAGE_ID":"` + suppressed + `","MESSAGE":"Suppressed 7 messages from dovecot.service"`,
			`"MESSAGE_ID":"` + suppressed + `","MESSAGE":null`, Trust{}, dropped},
		{"dropped entries, in a program's own words", droppedEntry, "driver", "syslog", Trust{}, foreign},
		{"another word of journald's", droppedEntry, suppressed, strings.Repeat("0", 32), Trust{}, foreign},
	} {
		p, err := newProof([]string{"dovecot.service", "dovecot-lda.service"}, "dovecot", tt.own)
		if err != nil {
			t.Fatal(err)
		}
		line := tt.entry
		if tt.old != "" {
			if line = strings.ReplaceAll(line, tt.old, tt.new); line == tt.entry {
				t.Fatalf("%s: nothing was changed", tt.name)
			}
		}
		var e format.Entry
		if !format.SplitEntry([]byte(line), &e) {
			t.Fatalf("%s: no entry: %s", tt.name, line)
		}
		if got := p.judge(&e, "11111111222233334444555566667777"); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestAProofThatNobodyKnows(t *testing.T) {
	for _, tt := range []struct {
		format, want string
		own          Trust
	}{
		{"perdition", "programs: [", Trust{}},
		{"acme", "programs: [", Trust{Users: []string{"root"}}},
		{"dovecot", "no user no-such-user", Trust{Users: []string{"no-such-user"}}},
		{"acme", "", Trust{Programs: []string{"/usr/sbin/acme"}}},
		{"auto", "", Trust{}},
	} {
		_, err := New([]string{"a.service"}, tt.format, tt.own)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s %v: %v, want %q", tt.format, tt.own, err, tt.want)
		}
	}
}

// A cursor that another proof made is no place for this one: entries it passed
// over may count now.
func TestEveryProofHasASumOfItsOwn(t *testing.T) {
	seen := map[uint64]string{}
	for name, make := range map[string]func() (proof, error){
		"dovecot":      func() (proof, error) { return newProof([]string{"a.service"}, "dovecot", Trust{}) },
		"courier":      func() (proof, error) { return newProof([]string{"a.service"}, "courier", Trust{}) },
		"another unit": func() (proof, error) { return newProof([]string{"b.service"}, "dovecot", Trust{}) },
		"two units":    func() (proof, error) { return newProof([]string{"b.service", "a.service"}, "dovecot", Trust{}) },
		"another user": func() (proof, error) { return newProof([]string{"a.service"}, "dovecot", Trust{Users: []string{"5"}}) },
		"another program": func() (proof, error) {
			return newProof([]string{"a.service"}, "dovecot", Trust{Programs: []string{"/x"}})
		},
		"a user with own journal": func() (proof, error) {
			return newProof([]string{"a.service"}, "dovecot", Trust{Users: []string{"5000"}})
		},
	} {
		p, err := make()
		if err != nil {
			t.Fatal(err)
		}
		if other, twice := seen[p.sum()]; twice || p.sum() == 0 {
			t.Errorf("%s has the sum of %s", name, other)
		}
		seen[p.sum()] = name
	}
	one, _ := newProof([]string{"a.service", "b.service"}, "dovecot", Trust{})
	two, _ := newProof([]string{"b.service", "a.service", "a.service"}, "dovecot", Trust{})
	if one.sum() != two.sum() {
		t.Error("the order of units matters")
	}
}

// journalctl is handed nothing but places in a journal.
func FuzzCursor(f *testing.F) {
	f.Add([]byte("s=1;i=2;b=3;m=4;t=5;x=6"))
	f.Add([]byte("s=1;i=2;b=3;m=4;t=5;x=6;"))
	f.Add([]byte("--file=/etc/shadow"))
	f.Fuzz(func(t *testing.T, c []byte) {
		if isCursor(c) && strings.Trim(string(c), "simtx=;0123456789abcdef") != "" {
			t.Errorf("%q passes for a cursor", c)
		}
		if sameEntry(c, []byte("s=1;i=2;b=3;m=4;t=5;x=6")) && !strings.HasSuffix(string(c), "b=3;m=4;t=5;x=6") {
			t.Errorf("%q passes for the same entry", c)
		}
	})
}

// Every login that a real server of the corpus wrote is believed, with no more
// than its unit known, and Cyrus's user of that machine.
func TestTheServersOfTheCorpusAreBelieved(t *testing.T) {
	for folder, tt := range map[string]struct {
		format string
		own    Trust
	}{
		"dovecot23": {"dovecot", Trust{}}, "dovecot24": {"dovecot", Trust{}},
		"courier10": {"courier", Trust{}}, "courier14": {"courier", Trust{}},
		"cyrus36": {"cyrus", Trust{Users: []string{"101"}}}, "cyrus310": {"cyrus", Trust{Users: []string{"101"}}},
	} {
		base := filepath.Join("..", "format", "testdata", folder, folder+"-journal-json")
		text, err := os.ReadFile(base + ".log")
		if err != nil {
			t.Fatal(err)
		}
		table, err := os.ReadFile(base + ".tsv")
		if err != nil {
			t.Fatal(err)
		}
		lines, rows := strings.Split(strings.TrimSpace(string(text)), "\n"), strings.Split(strings.TrimSpace(string(table)), "\n")[1:]
		units := []string{"dovecot.service", "courier-pop.service", "courier-imap.service", "courier-pop-ssl.service", "courier-imap-ssl.service", "cyrus-imapd.service"}
		p, err := newProof(units, tt.format, tt.own)
		if err != nil {
			t.Fatal(err)
		}
		logins := 0
		for i, row := range rows {
			if columns := strings.Split(row, "\t"); len(columns) < 2 || columns[1] != "login" {
				continue
			}
			logins++
			var e format.Entry
			if !format.SplitEntry([]byte(lines[i]), &e) || p.judge(&e, string(e.Machine)) != believed {
				t.Errorf("%s: line %d is not believed: %s", folder, i+1, lines[i])
			}
		}
		if logins == 0 {
			t.Errorf("%s: no login in it", folder)
		}
	}
}
