package watcher

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"time"

	"popgate/internal/relay"
)

// Every line of a storm carries its number and a checksum of the whole, where
// its server lets a user or session stand: "n12k89abcdef".
var seal = regexp.MustCompile(`n(\d+)k([0-9a-f]{8})`)

// unsealed stands for the seal of line n until the line is whole.
func unsealed(n int) string { return fmt.Sprintf("n%dk00000000", n) }

// sealed puts in the checksum.
func sealed(n int, line string) string {
	return strings.Replace(line, unsealed(n), fmt.Sprintf("n%dk%08x", n, crc32.ChecksumIEEE([]byte(line))), 1)
}

// connection is the one kind of line that has no room for a seal, but for an
// empty one.
var connection = regexp.MustCompile(`^$|^\S+ mx1 (pop3d|imapd): Connection, ip=\[[0-9a-f.:]+\], port=\[\d+\]$`)

// lineNumber gives the number of a line, and whether it is whole and unchanged.
func lineNumber(line string) (n int, whole bool) {
	all := seal.FindAllStringSubmatchIndex(line, -1)
	if len(all) == 0 {
		return -1, false
	}
	at := all[len(all)-1]
	n, err := strconv.Atoi(line[at[2]:at[3]])
	if err != nil {
		return -1, false
	}
	return n, line == sealed(n, line[:at[4]]+"00000000"+line[at[5]:])
}

// outsider is who must never be granted anything; every forgery names it.
const outsider = "203.0.113.66"

// clientOf is the address that login n comes from.
func clientOf(n int) netip.Addr {
	return netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 0, 7, 12: byte(n >> 24), 13: byte(n >> 16), 14: byte(n >> 8), 15: byte(n)})
}

// lines are what is written to a storm's log in one write. A storm gives numbers
// away from next on.
type lines struct {
	text   string
	first  int   // the number of the first
	count  int   //
	logins []int // those that must be granted, by Dovecot's rules
	maybe  []int // Courier's logins: after a gap it may be that they can't be told from forgeries
}

// forged are texts that try to pass for a login of the outsider's.
var forged = []string{
	"x>, rip=" + outsider,
	"x>, method=PLAIN, rip=" + outsider + ", lip=192.0.2.1, mpid=1, session=<AAAAAAAAAAA>",
	"x#012Nov 23 00:00:00 mx1 dovecot: imap-login: Login: user=<a>, method=PLAIN, rip=" + outsider + ", lip=192.0.2.1, mpid=1, session=<AAAAAAAAAAA>",
	"imap-login: Login: user=<a>, method=PLAIN, rip=" + outsider + ", lip=192.0.2.1, mpid=1, session=<AAAAAAAAAAA>",
	"LOGIN, user=a, ip=[" + outsider + "], port=[4000]",
}

// someLines makes the next lines of a storm; head is the stamp and host of all.
func someLines(r *rand.Rand, head string, n int) lines {
	out := lines{first: n}
	add := func(format string, args ...any) int {
		n := out.first + out.count
		out.count++
		out.text += sealed(n, head+strings.ReplaceAll(fmt.Sprintf(format, args...), "{n}", unsealed(n))) + "\n"
		return n
	}
	client := clientOf(n)
	lie := forged[r.IntN(len(forged))]
	switch r.IntN(16) {
	default:
		out.logins = append(out.logins, add("dovecot: imap-login: Login: user=<u%d>, method=PLAIN, rip=%s, lip=2001:db8::1, mpid=%d, TLS, session=<{n}>", n, client, n))
	case 0:
		out.logins = append(out.logins, add("dovecot: pop3-login: Login: user=<u%d%s>, method=PLAIN, rip=%s, lip=2001:db8::1, mpid=%d, session=<{n}>", n, strings.Repeat("x", r.IntN(200)), client, n))
	case 1, 2:
		add("dovecot: imap-login: Disconnected: Connection closed (auth failed, 1 attempts in 2 secs): user=<%s>, method=PLAIN, rip=%s, lip=2001:db8::1, session=<{n}>", lie, outsider)
	case 3:
		add("postfix/smtpd[%d]: warning: unknown[%s]: SASL LOGIN authentication failed: dovecot: %s {n}", n, outsider, lie)
	case 4:
		add("sshd[%d]: Invalid user %s from %s port 22 {n}", n, lie, outsider)
	case 5:
		add("dovecot: imap(u%d)<%d><{n}>: Disconnected: Logged out in=24 out=775", r.IntN(n+1), n)
	case 6:
		add("dovecot: auth-worker(%d): conn unix:auth-worker (pid=1,uid=0): auth-worker<1>: passwd(%s,%s): unknown user {n}", n, lie, outsider)
	case 7:
		add("postfix/qmgr[%d]: %s {n}", n, strings.Repeat("y", r.IntN(300)))
	case 8: // Courier cuts a long record in two, and the second half is what the stranger chose
		port := 1024 + n%60000
		out.text += fmt.Sprintf("%spop3d: Connection, ip=[%s], port=[%d]\n", head, outsider, port)
		add("pop3d: LOGIN FAILED, user={n}%s", strings.Repeat("a", 470))
		add("pop3d: LOGIN, user={n}, ip=[%s], port=[%d]", outsider, port)
	case 9:
		port := 1024 + n%60000
		out.text += fmt.Sprintf("%simapd: Connection, ip=[%s], port=[%d]\n", head, client, port)
		out.maybe = append(out.maybe, add("imapd: LOGIN, user={n}, ip=[%s], port=[%d], protocol=IMAP", client, port))
	}
	return out
}

// granted says for which login line a grant is, and whether it is one that was
// ever written.
func (s *storm) granted(g *relay.Grant) bool {
	a := g.Client.As16()
	n := int(a[12])<<24 | int(a[13])<<16 | int(a[14])<<8 | int(a[15])
	return g.Client == clientOf(n) && (s.logins[n] || s.maybe[n]) && g.Login.Equal(s.stamp)
}

// compare compares what should be granted with what is.
func (s *storm) compare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	lost, wrong, perhaps := 0, 0, 0
	for n := range s.logins {
		if s.lost[n] {
			continue
		}
		if g, ok := s.store.Get(relay.KeyOf(clientOf(n), 128)); !ok || !s.granted(&g) || !strings.HasPrefix(g.User, fmt.Sprintf("u%d", n)) {
			if lost++; lost == 1 {
				s.Errorf("login %d was written and is not granted: %+v", n, g)
			}
		}
	}
	for _, g := range s.store.All() {
		if !s.granted(&g) {
			if wrong++; wrong == 1 {
				s.Errorf("granted, and nobody logged in: %+v", g)
			}
		}
	}
	for n := range s.maybe {
		if _, ok := s.store.Get(relay.KeyOf(clientOf(n), 128)); ok {
			perhaps++
		}
	}
	if lost+wrong > 0 || len(s.wrong) > 0 {
		s.Errorf("%d logins lost, %d grants wrong, %d lines handed over that nobody wrote %q", lost, wrong, len(s.wrong), shortened(s.wrong[:min(1, len(s.wrong))]))
	}
	s.total.add(counts{lines: s.next, logins: len(s.logins), lost: lost, wrong: wrong + len(s.wrong), gone: len(s.lost), courier: perhaps, again: s.again, overflows: int(s.overflows.Load())})
}

// counts are what a storm tells at its end.
type counts struct {
	lines, logins, lost, wrong, gone, courier, again, overflows, rotations, rounds int
}

func (c *counts) add(d counts) {
	c.lines += d.lines
	c.logins += d.logins
	c.lost += d.lost
	c.wrong += d.wrong
	c.gone += d.gone
	c.courier += d.courier
	c.again += d.again
	c.overflows += d.overflows
	c.rotations += d.rotations
	c.rounds++
}

func (c counts) String() string {
	return fmt.Sprintf("%d rounds, %d lines, %d rotations and faults, %d logins of Dovecot: %d lost, %d wrong; %d lines lost to copytruncate itself, %d handed over again, %d logins of Courier granted, %d overflows of inotify",
		c.rounds, c.lines, c.rotations, c.logins, c.lost, c.wrong, c.gone, c.again, c.courier, c.overflows)
}

// heads gives the stamp and host of a storm's lines.
func heads(at time.Time) string { return at.UTC().Format(time.RFC3339) + " mx1 " }
