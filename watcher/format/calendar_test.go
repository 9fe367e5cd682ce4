package format

import (
	"math/rand/v2"
	"testing"
	"time"
)

func TestCalendarReadsStampsAsTheyReadThemselves(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	var zones []*time.Location
	for _, name := range []string{"UTC", "Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Asia/Kathmandu"} {
		loc, err := time.LoadLocation(name)
		if err != nil {
			t.Skipf("no time zones on this host: %v", err)
		}
		zones = append(zones, loc)
	}
	var c Calendar
	arrivals := []time.Time{
		time.Date(2026, 11, 22, 3, 0, 30, 0, time.UTC), time.Date(2026, 1, 1, 0, 0, 30, 0, time.UTC), time.Date(2028, 2, 29, 12, 0, 0, 0, time.UTC),
		time.Date(2026, 3, 29, 1, 30, 0, 0, time.UTC), time.Date(2026, 10, 25, 1, 30, 0, 0, time.UTC),
	}
	for range 20_000 {
		arrived, loc := arrivals[r.IntN(len(arrivals))], zones[r.IntN(len(zones))]
		// Mostly near the arrival and the changes of clocks, a few anywhere.
		at := arrived.Add(time.Duration(r.Int64N(int64(60*time.Hour))) - 30*time.Hour)
		if r.IntN(4) == 0 {
			at = arrived.Add(-time.Duration(r.Int64N(int64(2 * 365 * 24 * time.Hour))))
		}
		text := []byte(at.In(loc).Format(time.Stamp))
		if r.IntN(50) == 0 {
			text[r.IntN(len(text))] = "0123456789"[r.IntN(10)] // perhaps a time there is not
		}
		if !looksTraditional(text) {
			continue
		}
		for range 3 { // some seconds of one minute, so that it is remembered
			text[13], text[14] = byte('0'+r.IntN(7)), byte('0'+r.IntN(10))
			s := Stamp{text: text, form: traditional}
			want, wantZoned, wantOK := s.Time(arrived, loc)
			got, zoned, ok := c.Time(s, arrived, loc)
			if !got.Equal(want) || zoned != wantZoned || ok != wantOK {
				t.Fatalf("seed %d: %q read at %v in %v: %v %v, want %v %v", seed, text, arrived, loc, got, ok, want, wantOK)
			}
		}
	}
	iso := Stamp{text: []byte("2026-11-22T02:05:32+01:00"), form: iso}
	want, _, _ := iso.Time(arrivals[0], time.UTC)
	if got, zoned, ok := c.Time(iso, arrivals[0], time.UTC); !got.Equal(want) || !zoned || !ok {
		t.Errorf("a stamp with a zone: %v %v %v", got, zoned, ok)
	}
}

func BenchmarkCalendar(b *testing.B) {
	arrived := time.Date(2026, 11, 22, 3, 0, 0, 0, time.UTC)
	loc, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		b.Skip(err)
	}
	text := []byte("Nov 21 02:05:00")
	s := Stamp{text: text, form: traditional}
	next := func() { text[14] = '0' + (text[14]-'0'+1)%10 }
	b.Run("stamp", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			next()
			s.Time(arrived, loc)
		}
	})
	b.Run("calendar", func(b *testing.B) {
		var c Calendar
		b.ReportAllocs()
		for b.Loop() {
			next()
			c.Time(s, arrived, loc)
		}
	})
}
