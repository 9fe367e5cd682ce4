package control

import (
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"popgate/internal/relay"
)

// FuzzAppendGrant: a list spells a grant as everything else here is spelled,
// whatever a stranger's name is.
func FuzzAppendGrant(f *testing.F) {
	f.Add("192.0.2.1", "alice", "pop3-session", "a note", int64(1795417545), int64(120683212), uint8(1), uint8(32), true)
	f.Add("2001:db8::1", "\"quoted\" <b>&</b> \\ \x7f", "\u2028\u202e", "\xff\xfe", int64(0), int64(0), uint8(200), uint8(128), false)
	f.Add("", "", "", "", int64(-1), int64(999_999_999), uint8(0), uint8(0), false)
	f.Fuzz(func(t *testing.T, client, user, session, note string, seconds, nanos int64, service, prefix uint8, yes bool) {
		login := time.Unix(seconds%(1<<33), nanos%1e9)
		g := relay.Grant{User: user, Session: session, Note: note, Source: "file:" + user, Format: note, Service: relay.Service(service),
			Prefix: prefix, Login: login, Expires: login.Add(30 * time.Minute), Open: yes, Operator: !yes}
		g.Client, _ = netip.ParseAddr(client)
		want, err := json.Marshal(FromGrant(g))
		if err != nil {
			t.Fatal(err)
		}
		var s speller
		for range 2 { // as the first grant of a list, and behind one that is alike
			if got := s.appendGrant(nil, &g); string(got) != string(want) {
				t.Errorf("\n%s\n%s", got, want)
			}
		}
		other := relay.Grant{Login: g.Login.Add(-36 * time.Hour), Expires: g.Login, Format: g.Source, Source: g.Format}
		if want, err = json.Marshal(FromGrant(other)); err != nil {
			t.Fatal(err)
		}
		if got := s.appendGrant(nil, &other); string(got) != string(want) {
			t.Errorf("behind another:\n%s\n%s", got, want)
		}
	})
}

func BenchmarkAppendGrant(b *testing.B) {
	g := relay.Grant{Client: netip.MustParseAddr("192.0.2.1"), Prefix: 32, User: "alice", Session: "pop3-session", Source: "file:/var/log/mail.log",
		Format: "dovecot", Service: relay.POP3, Login: time.Unix(1795417545, 0), Expires: time.Unix(1795419345, 0)}
	var line []byte
	var s speller
	b.ReportAllocs()
	for b.Loop() {
		line = s.appendGrant(line[:0], &g)
	}
}
