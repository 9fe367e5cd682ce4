package format

import "time"

type stampForm uint8

const (
	noStamp     stampForm = iota
	traditional           // Nov 22 02:05:32, in the logging host's local time
	iso                   // 2026-11-22T02:05:32.540141+00:00
	micros                // microseconds since 1970, the journal's own
)

// Stamp is a line's time as it was written. Nothing is worked out before Time
// is asked, for most lines are not logins.
type Stamp struct {
	text []byte
	form stampForm
}

// String gives the stamp as written.
func (s Stamp) String() string { return string(s.text) }

// stampLen is the length of a traditional stamp, and no other is shorter.
const stampLen = len("Nov 22 02:05:32")

// looksTraditional says whether a line starts with a traditional stamp. Which
// month and how many days it has is left to Time.
func looksTraditional(b []byte) bool {
	return len(b) >= stampLen && letter(b[1]) && letter(b[2]) && b[3] == ' ' &&
		(b[4] == ' ' || digit(b[4])) && digit(b[5]) && b[6] == ' ' &&
		digit(b[7]) && digit(b[8]) && b[9] == ':' &&
		digit(b[10]) && digit(b[11]) && b[12] == ':' &&
		digit(b[13]) && digit(b[14])
}

func letter(c byte) bool { return 'a' <= c && c <= 'z' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }

// isoLen gives the length of the RFC 3339 stamp at the front, 0 if there is
// none. The offset must be there: "+00:00", "+0000" or "Z".
func isoLen(b []byte) int {
	const shape = "0000-00-00T00:00:00"
	if len(b) <= len(shape) {
		return 0
	}
	for i := range len(shape) {
		if shape[i] == '0' && !digit(b[i]) || shape[i] != '0' && shape[i] != b[i] {
			return 0
		}
	}
	s := scanner{b[len(shape):]}
	if s.lit(".") {
		if n := len(s.run(&digitChars)); n < 1 || n > 9 {
			return 0
		}
	}
	if !s.lit("Z") {
		if !s.lit("+") && !s.lit("-") {
			return 0
		}
		switch n := len(s.run(&digitChars)); {
		case n == 4:
		case n == 2 && s.lit(":") && len(s.rest) >= 2 && digit(s.rest[0]) && digit(s.rest[1]):
			s.rest = s.rest[2:]
		default:
			return 0
		}
	}
	return len(b) - len(s.rest)
}

// ahead is how far a stamp without a year and a zone may lie after the line's
// arrival and still be meant for it: hosts of any time zone may write into one
// log. A stamp further ahead is one of an earlier year; taken for "just now"
// it would make an old log, copied over a live one, grant.
const ahead = 26 * time.Hour

// Time resolves the stamp. With a zone in it, it is what it says, even in the
// future. Without, it is read in loc, in the year that brings it nearest to
// the arrival (but never more than a day or so after it), in the earlier
// reading of an hour that a clock change repeats; and it is never after the
// arrival. ok is false where the stamp names no time there is.
func (s Stamp) Time(arrived time.Time, loc *time.Location) (t time.Time, zoned, ok bool) {
	switch s.form {
	case traditional:
		t, ok = yearless(s.text, arrived, loc)
		return t, false, ok
	case iso:
		t, ok = rfc3339(s.text)
		return t, true, ok
	case micros:
		n, ok := number(s.text)
		return time.UnixMicro(n), true, ok
	}
	return time.Time{}, false, false
}

// seconds gives a number to compare stamps of one log by. It is no time: a
// traditional stamp has no year.
func (s Stamp) seconds() (int64, bool) {
	switch s.form {
	case traditional:
		w := clock(s.text)
		w.year = 2000 // a leap year
		t, ok := w.in(time.UTC)
		return t.Unix(), ok
	case iso:
		t, ok := rfc3339(s.text)
		return t.Unix(), ok
	case micros:
		n, ok := number(s.text)
		return n / 1e6, ok
	}
	return 0, false
}

// wall is a time of day on a day, without a zone.
type wall struct {
	year                               int
	month                              time.Month
	day, hour, minute, second, nanosec int
}

// in gives the instant at which clocks in loc show w: the earlier where they
// do so twice. ok is false for a day or time that does not exist; for one that
// a clock change skips, it is the instant at which clocks that had not been
// changed, or had been already, would have shown it, whichever is earlier.
func (w wall) in(loc *time.Location) (time.Time, bool) {
	naive := time.Date(w.year, w.month, w.day, w.hour, w.minute, w.second, w.nanosec, time.UTC)
	if naive.Month() != w.month || naive.Day() != w.day || w.hour > 23 || w.minute > 59 || w.second > 59 {
		return time.Time{}, false
	}
	var shown, skipped time.Time
	for _, near := range [...]time.Duration{-24 * time.Hour, 0, 24 * time.Hour} {
		_, offset := naive.Add(near).In(loc).Zone()
		t := naive.Add(time.Duration(-offset) * time.Second).In(loc)
		_, o := t.Zone()
		if o == offset {
			shown = earlier(shown, t)
		} else {
			skipped = earlier(skipped, t)
		}
	}
	if shown.IsZero() {
		return skipped, true
	}
	return shown, true
}

// earlier gives the earlier of two times, of which the first may not be set.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

func yearless(b []byte, arrived time.Time, loc *time.Location) (best time.Time, ok bool) {
	w := clock(b)
	// Nine years reach a 29 February from any other year.
	this := arrived.In(loc).Year()
	// The next year's stamps lie too far ahead, but at the end of a year. Two days
	// more than that, because a clock change may lie between.
	next := arrived.Add(ahead + 48*time.Hour).In(loc).Year()
	for w.year = next; w.year >= this-8; w.year-- {
		t, exists := w.in(loc)
		if !exists || t.After(arrived.Add(ahead)) {
			continue
		}
		if t.After(arrived) {
			// Less than a day ahead: no other year is nearer.
			return arrived, true
		}
		return t, true
	}
	return time.Time{}, false
}

// clock reads what looksTraditional has seen. The month is 0 if there is no
// such.
func clock(b []byte) wall {
	w := wall{
		month: monthOf(b[:3]), day: int(b[5] - '0'),
		hour: two(b[7:]), minute: two(b[10:]), second: two(b[13:]),
	}
	if b[4] != ' ' {
		w.day += 10 * int(b[4]-'0')
	}
	return w
}

func monthOf(b []byte) time.Month {
	switch string(b) {
	case "Jan":
		return time.January
	case "Feb":
		return time.February
	case "Mar":
		return time.March
	case "Apr":
		return time.April
	case "May":
		return time.May
	case "Jun":
		return time.June
	case "Jul":
		return time.July
	case "Aug":
		return time.August
	case "Sep":
		return time.September
	case "Oct":
		return time.October
	case "Nov":
		return time.November
	case "Dec":
		return time.December
	}
	return 0
}

// two reads two digits.
func two(b []byte) int { return int(b[0]-'0')*10 + int(b[1]-'0') }

// rfc3339 reads what isoLen measured.
func rfc3339(b []byte) (time.Time, bool) {
	w := wall{
		year: two(b)*100 + two(b[2:]), month: time.Month(two(b[5:])), day: two(b[8:]),
		hour: two(b[11:]), minute: two(b[14:]), second: two(b[17:]),
	}
	b = b[19:]
	if b[0] == '.' {
		unit := 100_000_000
		for b = b[1:]; digit(b[0]); b = b[1:] {
			w.nanosec += int(b[0]-'0') * unit
			unit /= 10
		}
	}
	t, ok := w.in(time.UTC)
	if !ok || b[0] == 'Z' {
		return t, ok
	}
	hours, minutes := two(b[1:]), two(b[len(b)-2:])
	if hours > 14 || minutes > 59 {
		return time.Time{}, false
	}
	offset := time.Duration(hours)*time.Hour + time.Duration(minutes)*time.Minute
	if b[0] == '-' {
		offset = -offset
	}
	return t.Add(-offset), true
}

// number reads up to 18 digits.
func number(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if !digit(c) {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}
