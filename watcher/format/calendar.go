package format

import "time"

// Calendar resolves the stamps of one log as Stamp.Time does, and quicker: what
// a stamp without year and zone means is worked out once for all that were
// written in one minute. The zero Calendar is ready.
type Calendar struct {
	text    [uptoMinute]byte // of the minute
	minute  time.Time        // zero: none is known
	arrived time.Time
	loc     *time.Location
}

const uptoMinute = len("Nov 22 02:05:")

// Time is Stamp.Time.
func (c *Calendar) Time(s Stamp, arrived time.Time, loc *time.Location) (t time.Time, zoned, ok bool) {
	if s.form != traditional {
		return s.Time(arrived, loc)
	}
	second := two(s.text[uptoMinute:])
	if second > 59 {
		return s.Time(arrived, loc)
	}
	if c.minute.IsZero() || string(c.text[:]) != string(s.text[:uptoMinute]) || c.loc != loc || !c.arrived.Equal(arrived) {
		if !c.turn(s, arrived, loc) {
			return s.Time(arrived, loc)
		}
	}
	return c.minute.Add(time.Duration(second) * time.Second), false, true
}

// turn works out the stamp's minute. It is false for one that is not over at
// the arrival: what lies ahead, or may be of another year, is judged by the
// second.
func (c *Calendar) turn(s Stamp, arrived time.Time, loc *time.Location) bool {
	var full [stampLen]byte
	copy(full[:], s.text)
	full[stampLen-2], full[stampLen-1] = '0', '0'
	minute, ok := yearless(full[:], arrived, loc)
	if !ok || minute.Add(time.Minute).After(arrived) {
		return false
	}
	copy(c.text[:], s.text)
	c.minute, c.arrived, c.loc = minute, arrived, loc
	return true
}
