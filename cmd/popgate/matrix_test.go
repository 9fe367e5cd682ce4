package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"popgate/contrib"
	"popgate/internal/relay"
)

// The fail-closed matrix: every state the daemon can be in, by every kind of
// client, by every door, each with what an MTA may make of the recipient.

// client is who asks, and about which recipient.
type client int

const (
	localRecipient client = iota // a stranger, to a domain of ours
	granted                      // has logged in, and popgate knows
	stranger                     // has never logged in
	authenticated                // to the MTA, by SMTP AUTH
	unread                       // logs in and sends at once: its line is written as it asks
	clients
)

var clientNames = [clients]string{"local recipient", "granted", "stranger", "authenticated", "granted, login unread"}

// doors, and about whom the MTAs, configured as contrib has it, ask at each:
// behind the closed ones the MTA takes its own domains without asking, and the
// socket map knows of nobody but the client.
var doors = []door{
	{"milter", func(client) bool { return true }, speakMilter},
	{"policy", func(c client) bool { return c != localRecipient }, speakPolicy},
	{"socketmap", func(c client) bool { return c != localRecipient && c != authenticated }, speakSocketMap},
}

// row is what each client may get in one state, at every door that is asked
// about it.
type row [clients]outcome

var (
	// well: everything is known, so a login that is late is waited for.
	well = row{taken, taken, refused, taken, taken}
	// blind: a login may have been missed, so nobody is refused for good.
	blind = row{taken, taken, later, taken, later}
	// dumb: popgate doesn't answer.
	dumb = row{silent, silent, silent, silent, silent}
)

// condition is one row of the matrix: a state the daemon is in.
type condition struct {
	name    string
	how     string // the test brings it about
	arrange func(*scene)
	shows   string // what `popgate status --json` says before and after; "": it can't be asked
	want    row
}

var states = []condition{
	{"all well", "", (*scene).begin, `"health":"ok"`, well},
	{"first start, replay unfinished", "the log is a terabyte long, and what matters stands at its beginning and its end", (*scene).replaying, `"state":"starting"`, blind},
	{"empty cache", "the state directory is gone, the log is not", (*scene).emptied, `"health":"ok"`, well},
	{"saved state damaged", "every file in the state directory is overwritten; a login written from then on counts", (*scene).damaged, "were damaged",
		row{taken, later, later, taken, taken | later}},
	{"source missing", "there is no log at the start", (*scene).missing, "no such file", blind},
	{"source unreadable", "anybody could write to the log, so nothing in it is believed", (*scene).distrusted, `"state":"down"`, blind},
	{"source died", "the log is removed while it is read", (*scene).died, `"state":"down"`, blind},
	{"source died, another one lives", "one of two logs is removed", (*scene).halfDead, `"state":"down"`, blind},
	{"copy stale", "look-up has an error beside what it knew before", (*scene).stale, "the copy is old", blind},
	{"copy lying: revoked", "look-up still has a stranger's grant that was revoked", (*scene).lyingRevoked, `"health":"ok"`, well},
	{"copy lying: expired", "look-up still has a stranger's grant that has ended", (*scene).lyingExpired, `"health":"ok"`, well},
	{"copy lying: another's", "look-up has another client's grant for a stranger", (*scene).lyingOther, `"health":"ok"`, well},
	{"disk full", "no file of the daemon's may grow", (*scene).diskFull, "state: ", well},
	{"configuration broken at reload", "the file trusts everybody, has lost our domains, and an error in its last line", (*scene).brokenReload, "the last reload was refused", well},
	{"domain file half written", "it is being written anew, and up to now ends inside a name; the stranger writes to what is left of the name", (*scene).halfWritten, `"local_domains":3`, well},
	{"domain file left half written", "so for longer than a second: the domain is lost, and neither ours nor foreign for ten minutes", (*scene).leftHalfWritten, `"health":"ok"`,
		row{later, taken, refused, taken, taken}},
	{"clock a day ahead", "set while the daemon runs: grants from before have ended by the wall clock", (*scene).ahead, `"health":"ok"`,
		row{taken, later, later, taken, taken | later}},
	{"clock a day ahead at the start", "saved grants have ended by the wall clock", (*scene).aheadAtStart, `"health":"ok"`,
		row{taken, refused, refused, taken, taken}},
	{"clock a day behind at the start", "saved grants are of logins in the future and don't count", (*scene).behindAtStart, "in the future",
		row{taken, later, later, taken, taken | later}},
	{"clock a day behind", "set while the daemon runs; the stranger has a grant that had ended before", (*scene).behind, `"health":"ok"`, well},
	{"table full", "max_grants is reached, and a login has been turned away", (*scene).full, "max_grants is reached", blind},
	{"out of descriptors", "the daemon may open none", (*scene).starved, "", dumb},
	{"daemon stopped", "SIGTERM", (*scene).stopped, "", dumb},
	{"daemon killed", "SIGKILL: the sockets are still there", (*scene).killed, "", dumb},
	{"daemon frozen", "SIGSTOP: connections are made, nothing is read", (*scene).frozen, "", dumb},
}

// expected is what a cell may be.
func (s *condition) expected(d *door, c client) outcome {
	if !d.asks(c) {
		return notAsked
	}
	return s.want[c]
}

// scene is one daemon brought into a state.
type scene struct {
	*site
	process *process     // not nil: it runs in one of its own
	clock   atomic.Int64 // how far the wall clock is set from the right time
	forward atomic.Int64 // how far both clocks are put forward
	remote  string       // whom the clients write to
	local   string
	arrived func() bool  // nil: status tells all there is to wait for
	heal    func() error // ends the state; nil: nothing can be asked then
}

const matrixConfig = `listen:
  milter: [unix:%[1]s/milter.sock]
  policy: [unix:%[1]s/policy.sock]
  socketmap: [unix:%[1]s/socketmap.sock]
  control: unix:%[1]s/control.sock
local_domains: [example.org]
local_domains_from: none
sources:
  - {file: %[1]s/mail.log, format: dovecot}
state_dir: %[1]s/state
wait_for_login: 1s
`

func newScene(t *testing.T) *scene {
	s := &scene{site: newSite(t), remote: "x@remote.test", local: "bob@example.org"}
	s.configure("")
	return s
}

func (s *scene) configure(more string) {
	s.write("milter.yaml", fmt.Sprintf(matrixConfig, s.dir)+more)
}

// address gives each client at each door an address of its own, so that no wait
// of one is in the way of another.
func address(d int, c client) netip.Addr {
	return [...]netip.Addr{
		netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + c)}),
		netip.AddrFrom4([4]byte{203, 0, 113, byte(10 + c)}),
		netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: byte(10 + c)}),
	}[d]
}

// wall is the time by the wall clock of the daemon's host.
func (s *scene) wall() time.Time {
	return time.Now().Add(time.Duration(s.clock.Load() + s.forward.Load()))
}

// line is a login as the host's log has it.
func (s *scene) line(client netip.Addr) string {
	return fmt.Sprintf("%s mx1 dovecot: imap-login: Login: user=<bob>, method=PLAIN, rip=%s, lip=192.0.2.1, mpid=4711, TLS, session=<s%x>\n",
		s.wall().Format("2006-01-02T15:04:05.000000-07:00"), client, client.AsSlice())
}

// logIn appends a login to the log.
func (s *scene) logIn(client netip.Addr) { s.append(s.line(client)) }

// append adds to the log, if there is one.
func (s *scene) append(text string) {
	f, err := os.OpenFile(filepath.Join(s.dir, "mail.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		s.t.Error(err)
	}
}

func (s *scene) noError(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// eachDoor does something for the client of each door.
func eachDoor(c client, do func(netip.Addr)) {
	for d := range doors {
		do(address(d, c))
	}
}

func (s *scene) untilShown(c client) {
	s.t.Helper()
	eachDoor(c, func(a netip.Addr) {
		s.until(a.String()+" has a grant", func() bool { _, _, code := s.run("show", a.String()); return code == 0 })
	})
}

func (s *scene) says(text string) bool { return strings.Contains(s.must("status", "--json"), text) }

// env is the daemon's: its wall clock can be set.
func (s *scene) env() env {
	e, start := s.daemonEnv(), time.Now()
	e.now = func() relay.Now {
		return relay.Now{Wall: s.wall(), Mono: time.Since(start) + time.Duration(s.forward.Load())}
	}
	return e
}

// begin starts a daemon that knows of the granted clients' logins.
func (s *scene) begin() { s.beginWith(s.env()) }

func (s *scene) beginWith(e env) {
	s.t.Helper()
	s.serve(e)
	s.settle()
}

func (s *scene) settle() {
	s.t.Helper()
	s.until("the source is up", func() bool { return s.says(`"state":"up"`) })
	eachDoor(granted, s.logIn)
	s.untilShown(granted)
}

// again does something to the site while the daemon is down.
func (s *scene) again(do func()) {
	s.t.Helper()
	s.begin()
	s.site.end()
	do()
	s.serve(s.env())
}

func (s *scene) replaying() {
	var head strings.Builder
	eachDoor(granted, func(a netip.Addr) { head.WriteString(s.line(a)) })
	s.write("mail.log", head.String())
	s.noError(os.Truncate(filepath.Join(s.dir, "mail.log"), 1<<40))
	s.append("\n") // ends the hole; what follows are lines
	eachDoor(unread, s.logIn)
	s.serve(s.env())
	s.untilShown(granted)
}

func (s *scene) emptied() {
	s.again(func() { os.RemoveAll(filepath.Join(s.dir, "state")) })
	s.untilShown(granted)
}

func (s *scene) damaged() {
	s.again(func() {
		files, _ := filepath.Glob(filepath.Join(s.dir, "state", "*"))
		for _, f := range files {
			if filepath.Base(f) != "lock" {
				os.WriteFile(f, []byte("this was a state file once"), 0o600)
			}
		}
	})
	s.until("the source is up", func() bool { return s.says(`"state":"up"`) })
}

func (s *scene) remove(name string) {
	s.t.Helper()
	s.noError(os.Remove(filepath.Join(s.dir, name)))
}

func (s *scene) missing() { s.again(func() { s.remove("mail.log") }) }

func (s *scene) distrusted() {
	s.begin()
	s.noError(os.Chmod(filepath.Join(s.dir, "mail.log"), 0o666))
}

func (s *scene) died() {
	s.begin()
	s.remove("mail.log")
}

func (s *scene) halfDead() {
	s.write("second.log", "")
	s.write("milter.yaml", strings.Replace(fmt.Sprintf(matrixConfig, s.dir), "format: dovecot}", "format: dovecot}\n  - {file: "+s.dir+"/second.log, format: dovecot}", 1))
	s.begin()
	s.until("both are up", func() bool { return strings.Count(s.must("status", "--json"), `"state":"up"`) == 2 })
	s.remove("mail.log")
}

// stale has look-up know nothing that is newer than its fault.
func (s *scene) stale() {
	known := map[relay.Key]bool{}
	eachDoor(granted, func(a netip.Addr) { known[relay.KeyOf(a, 128)] = true })
	e := s.env()
	e.storeLie = func(k relay.Key, g relay.Grant) relay.Grant {
		if !known[k] {
			return relay.Grant{}
		}
		return g
	}
	s.beginWith(e)
	fault := errors.New("the copy is old")
	s.fault.Store(&fault)
}

// lying has look-up answer with a grant made by lie where strangers' would lie.
func (s *scene) lying(lie func(a netip.Addr, now relay.Now) relay.Grant) {
	e := s.env()
	strangers := map[relay.Key]netip.Addr{}
	eachDoor(stranger, func(a netip.Addr) { strangers[relay.KeyOf(a, 128)] = a })
	e.storeLie = func(k relay.Key, g relay.Grant) relay.Grant {
		if a, ok := strangers[k]; ok {
			return lie(a, e.now())
		}
		return g
	}
	s.beginWith(e)
}

// alive is a grant that would open the door for a.
func alive(a netip.Addr, now relay.Now) relay.Grant {
	return relay.Grant{Client: a, Prefix: uint8(relay.PrefixFor(a, 128)), User: "bob", Login: now.Wall.Add(-5 * time.Minute),
		Expires: now.Wall.Add(25 * time.Minute), Deadline: now.Mono + 25*time.Minute}
}

func (s *scene) lyingRevoked() {
	s.lying(alive)
	eachDoor(stranger, func(a netip.Addr) { s.must("revoke", a.String()) })
}

func (s *scene) lyingExpired() {
	s.lying(func(a netip.Addr, now relay.Now) relay.Grant {
		g := alive(a, now)
		if a.Is6() {
			g.Expires = now.Wall.Add(-time.Second) // by the wall clock
		} else {
			g.Deadline = now.Mono - time.Second // by the other one
		}
		return g
	})
}

func (s *scene) lyingOther() {
	s.lying(func(a netip.Addr, now relay.Now) relay.Grant { return alive(a.Next(), now) })
}

func (s *scene) diskFull() {
	s.begins()
	s.noError(s.process.tell("disk full"))
	s.logIn(netip.MustParseAddr("198.51.100.99")) // something to write
}

// brokenReload would open everything, had it no error.
func (s *scene) brokenReload() {
	s.begin()
	bad := strings.Replace(fmt.Sprintf(matrixConfig, s.dir), "[example.org]", "[other.test]", 1)
	s.write("milter.yaml", bad+"trusted_networks: [0.0.0.0/0, \"::/0\"]\nreject: {code: 250}\n")
	if _, errs, code := s.run("reload", "--socket", filepath.Join(s.dir, "control.sock")); code != exitConfig {
		s.t.Fatalf("reload: exit %d: %s", code, errs)
	}
	s.configure("")
}

// Of the second domain of the file a part is left that is a domain too.
const (
	domainFile    = "# domains\nfirst.example\nmail.example.community\n"
	domainFileCut = "# domains\nfirst.example\nmail.example.com"
)

func (s *scene) domainFile() {
	s.local = "bob@mail.example.community"
	s.write("domains", domainFile)
	old := time.Now().Add(-time.Hour)
	s.noError(os.Chtimes(filepath.Join(s.dir, "domains"), old, old))
	s.configure("local_domain_files: [" + s.dir + "/domains]\n")
	s.begin()
}

// halfWritten has a writer at work as long as the test runs. No two readings
// agree.
func (s *scene) halfWritten() {
	s.domainFile()
	s.remote = "x@mail.example.com"
	s.write("domains", "# 0\n"+domainFileCut)
	done := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-done:
				return
			case <-tick.C:
				_ = os.WriteFile(filepath.Join(s.dir, "domains"), fmt.Appendf(nil, "# %d\n%s", n, domainFileCut), 0o600)
			}
		}
	})
	s.t.Cleanup(func() { close(done); writer.Wait() })
}

func (s *scene) leftHalfWritten() {
	s.domainFile()
	s.write("domains", domainFileCut)
	s.arrived = func() bool {
		_, _, code := s.run("ask", address(0, localRecipient).String(), s.local)
		return code == exitNo
	}
}

const day = 24 * time.Hour

func (s *scene) ahead() {
	s.begin()
	s.clock.Store(int64(day))
}

func (s *scene) aheadAtStart()  { s.again(func() { s.clock.Store(int64(day)) }) }
func (s *scene) behindAtStart() { s.again(func() { s.clock.Store(-int64(day)) }) }

// behind has strangers whose grants have ended by the clock that only runs
// forward, and would not have by the one that is set back.
func (s *scene) behind() {
	s.serve(s.env())
	s.until("the source is up", func() bool { return s.says(`"state":"up"`) })
	eachDoor(stranger, s.logIn)
	s.untilShown(stranger)
	s.forward.Store(int64(31 * time.Minute))
	s.settle()
	s.clock.Store(-int64(day))
}

func (s *scene) full() {
	s.configure(fmt.Sprintf("max_grants: %d\n", len(doors)))
	s.begin()
	s.logIn(netip.MustParseAddr("198.51.100.99"))
}

// begins starts a daemon in a process of its own.
func (s *scene) begins() {
	s.process = newProcess(s)
	s.settle()
}

func (s *scene) starved() {
	s.begins()
	s.noError(s.process.tell("no descriptors"))
	s.heal = func() error { return s.process.tell("descriptors") }
}

func (s *scene) stopped() { s.begins(); s.process.stop(s.t) }
func (s *scene) killed()  { s.begins(); s.process.kill() }

func (s *scene) frozen() {
	s.begins()
	s.process.freeze(s.t)
	s.heal = func() error { return s.process.cmd.Process.Signal(syscall.SIGCONT) }
}

// cell is what was seen.
type cell struct {
	got outcome
	err error
}

// results are those of one state, by door and client.
type results struct {
	cells [3][clients]cell
	err   error
}

// askAll asks every question of a state at once.
func (s *scene) askAll(ctx context.Context, st *condition) (r results) {
	shown := func() bool { return st.shows == "" || s.says(st.shows) }
	for end := time.Now().Add(10 * time.Second); !shown() || s.arrived != nil && !s.arrived(); {
		if time.Now().After(end) {
			r.err = fmt.Errorf("waited in vain until status shows %q:\n%s", st.shows, s.must("status", "--json"))
			return r
		}
		time.Sleep(5 * time.Millisecond)
	}
	var asking sync.WaitGroup
	for d := range doors {
		for c := range clients {
			if r.cells[d][c].got = notAsked; doors[d].asks(c) {
				asking.Go(func() { r.cells[d][c].got, r.cells[d][c].err = s.ask(d, c, st) })
			}
		}
	}
	asking.Wait()
	if !shown() {
		r.err = fmt.Errorf("status shows %q no longer:\n%s", st.shows, s.must("status", "--json"))
	}
	if r.err == nil && s.heal != nil {
		r.err = s.healed()
	}
	return r
}

// healed ends the state and has every door asked once more.
func (s *scene) healed() error {
	if err := s.heal(); err != nil {
		return err
	}
	for d := range doors {
		if got, err := s.ask(d, granted, &states[0]); got != taken || err != nil {
			return fmt.Errorf("afterwards: %s, %s: %s, %v", doors[d].name, clientNames[granted], got, err)
		}
	}
	return nil
}

func (s *scene) ask(d int, c client, st *condition) (outcome, error) {
	q := question{client: address(d, c), recipient: s.remote, authenticated: c == authenticated, asked: func() {}}
	switch c {
	case localRecipient:
		q.recipient = s.local
	case unread:
		q.asked = func() { s.logIn(q.client) }
	}
	patience := 20 * time.Second
	switch {
	case st.want[c] == silent && c == stranger:
		patience = 1500 * time.Millisecond // a daemon that is well would answer after wait_for_login
	case st.want[c] == silent:
		patience = 500 * time.Millisecond
	}
	return doors[d].ask(s.dir, patience, &q)
}

var update = flag.Bool("update", false, "rewrite docs/fail-closed.md")

func TestFailClosedMatrix(t *testing.T) {
	scenes, seen := make([]*scene, len(states)), make([]results, len(states))
	for i := range states {
		scenes[i] = newScene(t)
		states[i].arrange(scenes[i])
	}
	var asking sync.WaitGroup
	for i, s := range scenes {
		asking.Go(func() { seen[i] = s.askAll(t.Context(), &states[i]) })
	}
	asking.Wait()
	t.Log("\n" + grid(func(s int, d int, c client) string { return seen[s].cells[d][c].got.String() }))
	for i := range states {
		t.Run(states[i].name, func(t *testing.T) { states[i].judge(t, &seen[i], scenes[i]) })
	}
}

// judge holds what was seen against what may be, and against what must never
// be.
func (s *condition) judge(t *testing.T, seen *results, sc *scene) {
	if seen.err != nil {
		t.Errorf("%v\n%s", seen.err, sc.log.String())
	}
	for d := range doors {
		for c := range clients {
			at := seen.cells[d][c]
			if want := s.expected(&doors[d], c); at.err != nil || at.got&^want != 0 || at.got == 0 {
				t.Errorf("%s, %s: %s (%v), want %s", doors[d].name, clientNames[c], at.got, at.err, want)
			}
			switch {
			case c == stranger && at.got == taken:
				t.Errorf("%s: a stranger passes", doors[d].name)
			case (c == localRecipient || c == unread) && at.got == refused:
				t.Errorf("%s: %s is refused for good", doors[d].name, clientNames[c])
			}
		}
	}
}

// What must never be stands in no row of the table either.
func TestMatrixPromisesNothingForbidden(t *testing.T) {
	names := map[string]bool{}
	for i := range states {
		s := &states[i]
		if names[s.name] {
			t.Errorf("%s is there twice", s.name)
		}
		names[s.name] = true
		if s.want[stranger]&taken != 0 || (s.want[localRecipient]|s.want[unread])&refused != 0 || slices.Contains(s.want[:], 0) {
			t.Errorf("%s: %v", s.name, s.want)
		}
	}
}

// The matrix leans on what stands around popgate in the MTAs' configuration.
func TestMatrixKnowsTheLinesThatAreShipped(t *testing.T) {
	for lines, order := range map[string][]string{
		contrib.PostfixMilter:     {"milter_default_action = tempfail", "reject_unauth_destination"},
		contrib.PostfixPolicy:     {"permit_auth_destination", "check_policy_service", "default_action = 451", "reject_unauth_destination"},
		contrib.PostfixSocketMap:  {"permit_auth_destination", "check_client_access socketmap", "reject_unauth_destination"},
		contrib.SendmailMilter:    {"F=T"},
		contrib.SendmailSocketMap: {"-T<TMPF>", `$>"Rcpt_ok"`, `$>"Relay_ok"`, "$(popgate", "<TMPF>\t$#error $@ 4.3.0"},
	} {
		rest := lines
		for _, word := range order {
			_, after, found := strings.Cut(rest, word)
			if !found {
				t.Errorf("%q is not there, or not behind what stands before it:\n%s", word, lines)
				break
			}
			rest = after
		}
	}
}

// grid prints a matrix, a line for each state and door.
func grid(cell func(s int, d int, c client) string) string {
	var b strings.Builder
	w := table(&b)
	fmt.Fprintf(w, "state\tdoor\t%s\n", strings.Join(clientNames[:], "\t"))
	for s := range states {
		name := states[s].name
		for d := range doors {
			fmt.Fprintf(w, "%s\t%s", name, doors[d].name)
			for c := range clients {
				fmt.Fprintf(w, "\t%s", cell(s, d, c))
			}
			fmt.Fprintln(w)
			name = ""
		}
	}
	w.Flush()
	return b.String()
}

const matrixDocument = "../../docs/fail-closed.md"

// The document shows what the test expects. `go test ./cmd/popgate -run Matrix
// -update` rewrites it.
func TestMatrixDocument(t *testing.T) {
	b, err := os.ReadFile(matrixDocument)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- the matrix: written by the test -->\n", "<!-- end of the matrix -->"
	head, rest, found := strings.Cut(string(b), begin)
	shown, tail, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s lacks the lines between which the matrix stands", matrixDocument)
	}
	want := "\n" + markdown()
	switch {
	case shown == want:
	case *update:
		if err := os.WriteFile(matrixDocument, []byte(head+begin+want+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("%s is not what the test expects; run go test ./cmd/popgate -run Matrix -update", matrixDocument)
	}
}

// markdown is the matrix in two tables, of which a cell is the product: what
// each state allows, and who is asked about where.
func markdown() string {
	var b strings.Builder
	line := func(cells ...string) { fmt.Fprintf(&b, "| %s |\n", strings.Join(cells, " | ")) }
	rule := func(n int) { line(slices.Repeat([]string{"---"}, n)...) }
	line(append([]string{"door"}, clientNames[:]...)...)
	rule(1 + int(clients))
	for d := range doors {
		row := []string{doors[d].name}
		for c := range clients {
			asked := "asked"
			if !doors[d].asks(c) {
				asked = notAsked.String()
			}
			row = append(row, asked)
		}
		line(row...)
	}
	fmt.Fprintln(&b)
	line(append([]string{"state", "how the test brings it about"}, clientNames[:]...)...)
	rule(2 + int(clients))
	for i := range states {
		row := []string{states[i].name, states[i].how}
		for _, o := range states[i].want {
			row = append(row, o.String())
		}
		line(row...)
	}
	fmt.Fprintln(&b)
	return b.String()
}
