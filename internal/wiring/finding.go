package wiring

import "fmt"

// Result says how bad a finding is.
type Result uint8

const (
	OK   Result = iota
	Warn        // an admin should look
	Fail        // mail is relayed for strangers, refused to the site, or grants have no effect
)

// Finding is one thing that was looked at.
type Finding struct {
	Result Result
	What   string // the setting
	Text   string // what is wrong, and what would be right
}

// Report is what there is to tell about one MTA.
type Report struct {
	MTA      string // Postfix, sendmail
	Version  string
	Doors    []Door
	Findings []Finding
}

// Wired says whether the MTA asks popgate in any way.
func (r *Report) Wired() bool { return len(r.Doors) > 0 }

// Milter says whether the MTA asks popgate about every recipient.
func (r *Report) Milter() bool {
	for _, d := range r.Doors {
		if d.Kind == Milter {
			return true
		}
	}
	return false
}

func (r *Report) add(result Result, what, format string, args ...any) {
	f := Finding{result, what, fmt.Sprintf(format, args...)}
	for _, g := range r.Findings {
		if g == f {
			return // two services of the same settings
		}
	}
	r.Findings = append(r.Findings, f)
}

func (r *Report) door(d Door) {
	for i := range r.Doors {
		if e := &r.Doors[i]; e.Kind == d.Kind && e.Network == d.Network && e.Address == d.Address && e.Root == d.Root {
			return
		}
	}
	r.Doors = append(r.Doors, d)
}
