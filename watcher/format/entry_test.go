package format

import (
	"encoding/json"
	"strings"
	"testing"
)

const entryLine = `{"__CURSOR":"s=1;i=2;b=3;m=4;t=5;x=6","__REALTIME_TIMESTAMP":"1795312674521028","_TRANSPORT":"syslog","_SYSTEMD_UNIT":"dovecot.service","_UID":"0","_EXE":"/usr/lib/dovecot/log","_MACHINE_ID":"11111111222233334444555566667777","MESSAGE":"a \"word\""}`

func TestAnEntryIsSplit(t *testing.T) {
	var e Entry
	if !SplitEntry([]byte(entryLine), &e) {
		t.Fatal("refused")
	}
	for _, f := range []struct{ name, got, want string }{
		{"cursor", string(e.Cursor), "s=1;i=2;b=3;m=4;t=5;x=6"}, {"time", string(e.Time), "1795312674521028"},
		{"transport", string(e.Transport), "syslog"}, {"unit", string(e.Unit), "dovecot.service"}, {"uid", string(e.UID), "0"},
		{"exe", string(e.EXE), "/usr/lib/dovecot/log"}, {"machine", string(e.Machine), "11111111222233334444555566667777"},
		{"message", string(e.Message), `a \"word\"`}, {"message id", string(e.MessageID), ""}, {"object", string(e.Object), ""},
	} {
		if f.got != f.want {
			t.Errorf("%s %q, want %q", f.name, f.got, f.want)
		}
	}
}

func TestAnEntryThatCanBeReadInTwoWaysIsNone(t *testing.T) {
	for name, line := range map[string]string{
		"a field twice":                  strings.Replace(entryLine, `"_UID":"0"`, `"_UID":"0","_UID":"1000"`, 1),
		"twice, the first one no text":   strings.Replace(entryLine, `"_UID":"0"`, `"_UID":null,"_UID":"0"`, 1),
		"something behind it":            entryLine + "{}",
		"cut":                            entryLine[:len(entryLine)-1],
		"an escape in the field's name":  strings.Replace(entryLine, `"_UID"`, `"_U\u0049D"`, 1),
		"an escape that is none":         strings.Replace(entryLine, `a \"`, `a \x`, 1),
		"a control byte in the message":  strings.Replace(entryLine, `a \"`, "a \x01", 1),
		"a list":                         "[" + entryLine + "]",
		"nothing":                        "",
		"an object in place of a string": strings.Replace(entryLine, `"0"`, `{"a":"0"}`, 1),
	} {
		var e Entry
		if SplitEntry([]byte(line), &e) {
			t.Errorf("%s: read as %+v", name, e)
		}
	}
}

func TestAFieldThatIsNoPlainTextIsEmpty(t *testing.T) {
	for name, value := range map[string]string{"null": "null", "bytes": "[48]", "several": `["0","1000"]`, "with an escape": `"\u0030"`} {
		var e Entry
		if !SplitEntry([]byte(strings.Replace(entryLine, `"_UID":"0"`, `"_UID":`+value, 1)), &e) || len(e.UID) > 0 {
			t.Errorf("%s: uid %q", name, e.UID)
		}
	}
}

// Whatever is taken for an entry is one to encoding/json too, with the same
// fields.
func FuzzSplitEntry(f *testing.F) {
	f.Add([]byte(entryLine))
	f.Add([]byte(`{"_UID":"0","MESSAGE":[1,2],"_EXE":null,"x":{}}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		var e Entry
		if !SplitEntry(line, &e) {
			return
		}
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			t.Fatalf("taken for an entry: %v", err)
		}
		for name, got := range map[string][]byte{"__CURSOR": e.Cursor, "_UID": e.UID, "_EXE": e.EXE, "_SYSTEMD_UNIT": e.Unit, "_TRANSPORT": e.Transport, "_MACHINE_ID": e.Machine, "MESSAGE_ID": e.MessageID} {
			want, _ := fields[name].(string)
			var text string
			if len(got) > 0 && (json.Unmarshal([]byte(`"`+string(got)+`"`), &text) != nil || text != want) {
				t.Errorf("%s is %q, want %q", name, got, want)
			}
		}
	})
}
