package journal

import (
	"bytes"
	"fmt"
	"hash/crc64"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"popgate/watcher/format"
)

// Trust says which of a unit's processes are believed when they tell of a
// login. In a unit also run what an administrator hangs into the server, what
// the server runs for its users, and whatever broke into it.
type Trust struct {
	Programs []string // paths, as /proc/PID/exe has them
	Users    []string // names or numbers: who runs them
}

// The programs that write a server's log, wherever its packages put them.
// Dovecot's is its logging process, which holds the pipes of all the others;
// its master tells of start and stop. Courier's servers pipe what they have to
// say into courierlogger. Cyrus has its servers write themselves.
var trusted = map[string]Trust{
	"dovecot": {Users: []string{"0"}, Programs: []string{
		"/usr/lib/dovecot/log", "/usr/libexec/dovecot/log", "/usr/local/lib/dovecot/log", "/usr/local/libexec/dovecot/log",
		"/usr/sbin/dovecot", "/usr/bin/dovecot", "/usr/local/sbin/dovecot",
	}},
	"courier": {Users: []string{"0"}, Programs: []string{
		"/usr/sbin/courierlogger", "/usr/bin/courierlogger", "/usr/lib/courier/sbin/courierlogger", "/usr/lib/courier/courierlogger",
		"/usr/libexec/courier/courierlogger", "/usr/local/sbin/courierlogger",
	}},
	"cyrus": {Users: []string{"cyrus"}, Programs: []string{
		"/usr/lib/cyrus/bin/imapd", "/usr/lib/cyrus/bin/pop3d", "/usr/lib/cyrus-imapd/imapd", "/usr/lib/cyrus-imapd/pop3d",
		"/usr/libexec/cyrus-imapd/imapd", "/usr/libexec/cyrus-imapd/pop3d", "/usr/cyrus/bin/imapd", "/usr/cyrus/bin/pop3d",
		"/usr/local/libexec/imapd", "/usr/local/libexec/pop3d",
	}},
}

// author is a program run by somebody.
type author struct{ uid, exe string }

// proof is what an entry must show to be read: its unit, and who wrote it.
type proof struct {
	units   []string
	authors map[author]bool
	// Any other way than syslog(3) is closed to the servers popgate knows: a
	// unit's output is open to all it runs. A program that the administrator
	// named may use journald's own protocol too.
	native bool
}

// newProof makes the proof for units, a format and what the administrator says
// of the programs. Its errors are about the configuration.
func newProof(units []string, formatName string, own Trust) (proof, error) {
	p := proof{units: slices.Sorted(slices.Values(units)), authors: map[author]bool{}, native: len(own.Programs) > 0}
	p.units = slices.Compact(p.units)
	names := []string{formatName}
	if formatName == "auto" {
		names = []string{"courier", "cyrus", "dovecot"}
	}
	for _, name := range names {
		t, known := trusted[name]
		if !known && len(own.Programs) == 0 {
			return proof{}, fmt.Errorf("popgate does not know which program writes the lines of format %s; name it, as in programs: [/usr/sbin/perdition.imap4] and users: [nobody]", formatName)
		}
		if len(own.Programs) > 0 {
			t.Programs = own.Programs
		}
		if len(own.Users) > 0 {
			t.Users = own.Users
		}
		if len(t.Users) == 0 {
			t.Users = []string{"0"}
		}
		for _, u := range t.Users {
			uid, err := uidOf(u)
			if err != nil && formatName == "auto" && len(own.Users) == 0 {
				continue // no Cyrus on this host
			}
			if err != nil {
				return proof{}, err
			}
			for _, exe := range t.Programs {
				p.authors[author{uid, exe}] = true
			}
		}
	}
	return p, nil
}

// uidOf gives the number of a user, as the journal writes it.
func uidOf(name string) (string, error) {
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return strconv.FormatUint(n, 10), nil
	}
	u, err := user.Lookup(name)
	if err != nil {
		return "", fmt.Errorf("this host has no user %s, who writes the log; name the one who does, as in users: [cyrus]", name)
	}
	return u.Uid, nil
}

// suppressed is the id of journald's messages that say it dropped others.
const suppressed = "a596d6fe7bfa4994828e72309e95d61e"

// matches are journalctl's, which needn't be exact: every entry is tested
// again. What they let through needn't be read in vain.
func (p *proof) matches() []string {
	var m []string
	exes, uids := map[string]bool{}, map[string]bool{}
	for a := range p.authors {
		exes[a.exe], uids[a.uid] = true, true
	}
	for _, u := range p.units {
		m = append(m, "_SYSTEMD_UNIT="+u)
	}
	for exe := range exes {
		m = append(m, "_EXE="+exe)
	}
	for uid := range uids {
		m = append(m, "_UID="+uid)
	}
	m = append(m, "_TRANSPORT=syslog")
	if p.native {
		m = append(m, "_TRANSPORT=journal")
	}
	slices.Sort(m)
	return append(m, "+", "_TRANSPORT=driver", "MESSAGE_ID="+suppressed)
}

// systemUsers says whether all authors' entries lie in the system's journal and
// none in one that journald keeps for a user.
func (p *proof) systemUsers() bool {
	const lastSystem = 999
	for a := range p.authors {
		if n, err := strconv.ParseUint(a.uid, 10, 32); err != nil || n > lastSystem {
			return false
		}
	}
	return true
}

// sum tells one proof from another.
func (p *proof) sum() uint64 {
	text := []string{fmt.Sprint(p.systemUsers())}
	for a := range p.authors {
		text = append(text, a.uid+" "+a.exe)
	}
	slices.Sort(text)
	s := crc64.Checksum([]byte(strings.Join(append(text, p.matches()...), "\n")), crc64.MakeTable(crc64.ECMA))
	return max(1, s)
}

// verdict is what an entry is good for.
type verdict uint8

const (
	foreign verdict = iota // not to be read
	believed
	dropped // journald dropped entries of one of the units
)

// judge tests one entry.
func (p *proof) judge(e *format.Entry, machine string) verdict {
	if string(e.Machine) != machine {
		return foreign
	}
	switch string(e.Transport) {
	case "driver": // nobody but journald has it
		if string(e.MessageID) == suppressed && p.concerns(e) {
			return dropped
		}
		return foreign
	case "journal":
		if !p.native {
			return foreign
		}
	case "syslog":
	default:
		return foreign
	}
	if !slices.Contains(p.units, string(e.Unit)) || !p.authors[author{string(e.UID), string(e.EXE)}] {
		return foreign
	}
	return believed
}

// unit gives the unit of an entry that is believed.
func (p *proof) unit(e *format.Entry) string {
	if i := slices.Index(p.units, string(e.Unit)); i >= 0 {
		return p.units[i]
	}
	return ""
}

// concerns says whether a notice of dropped entries is about one of the units,
// or about one nobody can tell.
func (p *proof) concerns(e *format.Entry) bool {
	unit := e.Object
	if len(unit) == 0 {
		if i := bytes.LastIndexByte(e.Message, ' '); i >= 0 {
			unit = e.Message[i+1:]
		}
	}
	return len(unit) == 0 || slices.Contains(p.units, string(unit))
}
