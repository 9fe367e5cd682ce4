package format

import (
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"popgate/internal/relay"
)

// pick makes a text of a few words, so that random ones come near to what is
// read.
func pick(random *rand.Rand, words ...string) (text []byte) {
	for range random.IntN(10) {
		text = append(text, words[random.IntN(len(words))]...)
	}
	return text
}

// TestAddressIsReadWhole: the quick way to an IPv4 address never stops where
// something follows that can belong to an address.
func TestAddressIsReadWhole(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 3))
	good := 0
	for range 300_000 {
		text := pick(random, "0", "1", "25", "255", "256", "192.0", "1.2.3", ".", ".", ".", ":", "::", "a", "ffff", ",", "]", "x", "-")
		n := 0
		for n < len(text) && addressChars[text[n]] {
			n++
		}
		want, err := netip.ParseAddr(string(text[:n]))
		s := scanner{text}
		got, ok := s.address()
		switch {
		case ok != (err == nil):
			t.Fatalf("%q: %v, want %v", text, ok, err)
		case ok && (got != relay.Canonical(want) || len(s.rest) != len(text)-n):
			t.Fatalf("%q: %v, want %v, and %q is left", text, got, want, s.rest)
		case !ok && len(s.rest) != len(text):
			t.Fatalf("%q: none, and %q is left", text, s.rest)
		case ok:
			good++
		}
	}
	if good < 1000 {
		t.Errorf("only %d addresses among them", good)
	}
}

// TestASCIIUser: what it takes is what until and plainUser take.
func TestASCIIUser(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 4))
	long := make([]byte, maxUser)
	for i := range long {
		long[i] = 'u'
	}
	taken := 0
	for range 100_000 {
		text := pick(random, "bob", "u", "@example.net", ">", ")", "(", ",", "=", "ip=", "<", "\x00", "\x7f", "ä", " ", string(long))
		for _, by := range []struct {
			stop byte
			set  *charset
		}{{'>', &plainBytes}, {')', &prefixUserChars}} {
			plain := scanner{text}
			want, ok := plain.until(by.stop)
			s := scanner{text}
			if got, quick := s.asciiUser(by.stop, by.set); quick {
				taken++
				if !ok || !plainUser(want) || string(got) != string(want) || len(s.rest) != len(plain.rest) {
					t.Fatalf("%q: %q, want %q %v", text, got, want, ok)
				}
			} else if len(s.rest) != len(text) {
				t.Fatalf("%q: none, and %q is left", text, s.rest)
			}
		}
	}
	if taken < 1000 {
		t.Errorf("only %d users taken", taken)
	}
}

// TestStampOfTheNextYear: that next year's reading of a stamp is tried only near
// the end of a year makes no difference.
func TestStampOfTheNextYear(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 5))
	zones := []*time.Location{time.UTC, zone(t, "Pacific/Apia"), zone(t, "Pacific/Kiritimati"), zone(t, "America/New_York"), time.FixedZone("far", -12*3600)}
	for range 20_000 {
		loc := zones[random.IntN(len(zones))]
		arrived := time.Date(1990+random.IntN(50), time.January, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(random.Int64N(int64(200*time.Hour))) - 100*time.Hour)
		if random.IntN(4) == 0 {
			arrived = arrived.AddDate(0, 0, random.IntN(366))
		}
		written := arrived.Add(time.Duration(random.Int64N(int64(200*time.Hour))) - 100*time.Hour).In(loc)
		text := []byte(written.Format(time.Stamp))
		w := clock(text)
		w.year = arrived.In(loc).Year() + 1
		next, exists := w.in(loc)
		got, ok := yearless(text, arrived, loc)
		if exists && !next.After(arrived.Add(ahead)) {
			if next.After(arrived) {
				next = arrived
			}
			if !ok || !got.Equal(next) {
				t.Fatalf("%s, arrived %s, in %s: %s %v, want %s", text, arrived, loc, got, ok, next)
			}
		}
	}
}
