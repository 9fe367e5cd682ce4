package format

import (
	"testing"
	"time"
)

func zone(t *testing.T, name string) *time.Location {
	t.Helper()
	loc, err := time.LoadLocation(name)
	if err != nil {
		t.Skipf("no time zone data: %v", err)
	}
	return loc
}

func stampOf(t *testing.T, s string) Stamp {
	t.Helper()
	var m Message
	if !Split([]byte(s+" mx1 x: y"), &m) {
		t.Fatalf("no stamp in %q", s)
	}
	return m.Stamp
}

func TestStampTime(t *testing.T) {
	berlin, utc := zone(t, "Europe/Berlin"), time.UTC
	for _, tt := range []struct {
		name, stamp, arrived string
		loc                  *time.Location
		want                 string // empty: no time
		zoned                bool
	}{
		{"just written", "Nov 22 02:05:32", "2026-11-22T02:05:33Z", utc, "2026-11-22T02:05:32Z", false},
		{"local time", "Nov 22 03:05:32", "2026-11-22T02:05:33Z", berlin, "2026-11-22T02:05:32Z", false},
		{"one digit day", "Nov  2 02:05:32", "2026-11-02T02:05:33Z", utc, "2026-11-02T02:05:32Z", false},
		{"old line keeps its age", "Nov 21 02:05:32", "2026-11-22T02:05:33Z", utc, "2026-11-21T02:05:32Z", false},
		{"last year's, read after new year", "Dec 31 23:59:59", "2027-01-01T00:00:01Z", utc, "2026-12-31T23:59:59Z", false},
		{"clock a little ahead: arrival", "Nov 22 02:05:35", "2026-11-22T02:05:33Z", utc, "2026-11-22T02:05:33Z", false},
		{"clock a little ahead, over new year: arrival", "Jan  1 00:00:03", "2026-12-31T23:59:58Z", utc, "2026-12-31T23:59:58Z", false},
		{"host in a zone far east: arrival", "Nov 22 16:05:32", "2026-11-22T02:05:33Z", utc, "2026-11-22T02:05:33Z", false},
		{"eight months old log is not from the future", "Mar  1 12:00:00", "2026-11-22T02:05:33Z", utc, "2026-03-01T12:00:00Z", false},
		{"eleven months old log is not from the future", "Dec 24 12:00:00", "2026-11-22T02:05:33Z", utc, "2025-12-24T12:00:00Z", false},
		{"leap day", "Feb 29 12:00:00", "2026-11-22T02:05:33Z", utc, "2024-02-29T12:00:00Z", false},
		{"repeated hour: the earlier reading", "Oct 25 02:30:00", "2026-10-25T05:00:00Z", berlin, "2026-10-25T00:30:00Z", false},
		{"hour before the repeated one", "Oct 25 01:30:00", "2026-10-25T05:00:00Z", berlin, "2026-10-24T23:30:00Z", false},
		{"hour after the repeated one", "Oct 25 03:30:00", "2026-10-25T05:00:00Z", berlin, "2026-10-25T02:30:00Z", false},
		{"skipped hour: the earlier of both", "Mar 29 02:30:00", "2026-03-29T05:00:00Z", berlin, "2026-03-29T00:30:00Z", false},
		{"no such month", "Nuv 22 02:05:32", "2026-11-22T02:05:33Z", utc, "", false},
		{"no such day", "Nov 31 02:05:32", "2026-11-22T02:05:33Z", utc, "", false},
		{"day nought", "Nov 00 02:05:32", "2026-11-22T02:05:33Z", utc, "", false},
		{"no such hour", "Nov 22 24:05:32", "2026-11-22T02:05:33Z", utc, "", false},

		{"zone", "2026-11-22T03:05:32.25+01:00", "2026-11-22T02:05:33Z", utc, "2026-11-22T02:05:32.25Z", true},
		{"zone without colon", "2026-11-22T00:05:32-0200", "2026-11-22T02:05:33Z", berlin, "2026-11-22T02:05:32Z", true},
		{"zulu", "2026-11-22T02:05:32Z", "2026-11-22T02:05:33Z", berlin, "2026-11-22T02:05:32Z", true},
		{"zone, from the future: as it says", "2027-11-22T02:05:32Z", "2026-11-22T02:05:33Z", utc, "2027-11-22T02:05:32Z", true},
		{"zone, no such day", "2026-02-29T02:05:32Z", "2026-11-22T02:05:33Z", utc, "", true},
		{"no such zone", "2026-11-22T02:05:32+99:00", "2026-11-22T02:05:33Z", utc, "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			arrived, err := time.Parse(time.RFC3339, tt.arrived)
			if err != nil {
				t.Fatal(err)
			}
			got, zoned, ok := stampOf(t, tt.stamp).Time(arrived, tt.loc)
			if ok != (tt.want != "") || zoned != tt.zoned {
				t.Fatalf("got %v zoned %v ok %v, want %q zoned %v", got, zoned, ok, tt.want, tt.zoned)
			}
			if ok && got.UTC().Format(time.RFC3339Nano) != tt.want {
				t.Errorf("got %v, want %s", got.UTC(), tt.want)
			}
		})
	}
}

func TestZeroStampIsNoTime(t *testing.T) {
	if got, _, ok := (Stamp{}).Time(time.Now(), time.UTC); ok {
		t.Errorf("got %v", got)
	}
}

func TestJournalStamp(t *testing.T) {
	var m Message
	if !Split([]byte(`{"__REALTIME_TIMESTAMP":"1795312674521028","MESSAGE":"x"}`), &m) {
		t.Fatal("no journal line")
	}
	got, zoned, ok := m.Stamp.Time(time.Now(), time.UTC)
	if want := time.UnixMicro(1795312674521028); !ok || !zoned || !got.Equal(want) {
		t.Errorf("got %v zoned %v ok %v, want %v", got, zoned, ok, want)
	}
}
