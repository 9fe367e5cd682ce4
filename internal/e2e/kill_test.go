package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"popgate/contrib"
	"popgate/internal/lab"
)

// soakSite is an MTA whose ports lead through different doors.
type soakSite struct {
	name, mta string
	listen    string // line of milter.yaml
	set       setup
	doors     []soakDoor
}

type soakDoor struct {
	port   string
	closed bool // local mail is never put off
	unable int  // the worst class of reply to a client while popgate can't be asked
}

func soakSites() []soakSite {
	const spool, run = "unix:/var/spool/postfix/popgate/", "unix:/run/popgate/"
	inOwn := func(name, lines string) string {
		return strings.Replace(lines, "smtpd_relay_restrictions =", name+" =", 1)
	}
	var master []string
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		for port, name := range map[int]string{26: "policy_door", 27: "map_door"} {
			master = append(master, fmt.Sprintf("%s:%d inet n - y - 200 smtpd", ip, port), "  -o smtpd_milters=", "  -o smtpd_relay_restrictions=$"+name)
		}
	}
	return []soakSite{
		{
			name: "Postfix, three doors", mta: "postfix",
			listen: fmt.Sprintf("listen: {milter: [%[1]smilter.sock], policy: [%[1]spolicy.sock], socketmap: [%[1]ssocketmap.sock]}", spool),
			set: setup{postfix: lab.PostfixOptions{Master: master,
				Main: []string{inOwn("policy_door", contrib.PostfixPolicy), inOwn("map_door", contrib.PostfixSocketMap)}}},
			doors: []soakDoor{{"25", false, 4}, {"26", true, 4}, {"27", true, 4}},
		},
		{
			name: "sendmail, milter", mta: "sendmail", listen: "listen: {milter: [" + run + "milter.sock]}",
			doors: []soakDoor{{"25", false, 4}},
		},
		{
			name: "sendmail, Local_check_rcpt", mta: "sendmail", listen: "listen: {socketmap: [" + run + "socketmap.sock]}",
			set:   setup{door: &door{}, sendmail: lab.SendmailOptions{Tail: []string{contrib.SendmailSocketMap}}},
			doors: []soakDoor{{"25", true, 4}},
		},
		{
			name: "sendmail, drac", mta: "sendmail", listen: "listen: {socketmap: [" + run + "socketmap.sock]}",
			set:   setup{door: &door{}, sendmail: lab.SendmailOptions{M4: []string{contrib.SendmailDrac}}},
			doors: []soakDoor{{"25", true, 5}},
		},
	}
}

// POPGATE_KILLS says how often the daemon is killed, over all sites.
// POPGATE_SEED=n repeats a run as far as the machine's own chance allows.
func TestKillSoakRelaysNothingForStrangersAndLosesNoGrant(t *testing.T) {
	sites := soakSites()
	for i, c := range sites {
		t.Run(c.name, func(t *testing.T) {
			set := c.set
			set.config = []string{c.listen, "grant_ttl: 12h"}
			on(t, c.mta, set, func(t *testing.T, s *site) {
				kills, seed := fromEnv(t, "POPGATE_KILLS", 20), fromEnv(t, "POPGATE_SEED", uint64(time.Now().UnixNano()))
				t.Logf("POPGATE_KILLS=%d POPGATE_SEED=%d", kills, seed)
				k := &killing{site: s, doors: c.doors, chance: rand.New(rand.NewPCG(seed, uint64(i))), relayed: map[string]bool{}}
				k.run(t, (int(kills)+len(sites)-1-i)/len(sites), seed)
			})
		})
	}
}

func fromEnv(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

// killing is one site whose popgate is killed again and again.
type killing struct {
	*site
	doors  []soakDoor
	chance *rand.Rand // of the loop that kills
	logins int

	mu       sync.Mutex
	granted  []string        // clients whose grant is on the disk
	relayed  map[string]bool // subjects of what was taken for other sites
	attempts map[string]int  // by kind and class of reply
	trouble  []string
}

// login is a grant that popgate has confirmed.
type login struct {
	client string
	at     time.Time
}

func (k *killing) run(t *testing.T, kills int, seed uint64) {
	k.attempts = map[string]int{}
	load, stop := context.WithCancel(t.Context())
	var clients sync.WaitGroup
	for n := range uint64(2) {
		for _, one := range []func(*rand.Rand, string){k.stranger, k.client} {
			clients.Go(func() { k.repeat(load, rand.New(rand.NewPCG(seed, 100+n)), one) })
		}
	}
	defer clients.Wait()
	defer stop()
	for range kills {
		k.kill(t)
	}
	k.relayNow(t)
	stop()
	clients.Wait()
	t.Logf("%d kills, %d logins, attempts: %v", kills, k.logins, k.attempts)
	for _, kind := range []string{"stranger 2xx", "client 2xx", "local 2xx"} {
		if n := k.attempts[kind]; (n == 0) != (kind == "stranger 2xx") {
			t.Errorf("%s: %d", kind, n)
		}
	}
	for i, text := range k.trouble {
		if i < 10 {
			t.Error(text)
		}
	}
	k.drain(t)
	arrived := map[string]bool{}
	for _, subject := range k.subjects() {
		arrived[subject] = true
		if !k.relayed[subject] {
			t.Errorf("left the site, but was not taken from a client: %q", subject)
		}
	}
	for subject := range k.relayed {
		if !arrived[subject] {
			t.Errorf("was taken, but did not arrive: %q", subject)
		}
	}
}

// kill logs clients in, kills popgate at a random moment and looks for the
// grants of those clients.
func (k *killing) kill(t *testing.T) {
	t.Helper()
	var fresh []login
	for range 1 + k.chance.IntN(2) {
		client := fmt.Sprintf("198.51.100.%d", 1+k.logins/2%250)
		if k.logins++; k.logins%2 == 0 {
			client = fmt.Sprintf("2001:db8:1::%x", k.logins)
		}
		k.login(t, client)
		fresh = append(fresh, login{client, time.Now()})
		k.pause(600 * time.Millisecond)
	}
	k.pause(900 * time.Millisecond)
	killed := time.Now()
	k.popgate.Kill()
	lost := k.chance.IntN(2) == 0 // what the log has told can't be read again
	if lost {
		k.dovecot.Rotate(t, func() {})
		if err := os.Remove(lab.DovecotLog + ".1"); err != nil {
			t.Fatal(err)
		}
	}
	if k.chance.IntN(3) == 0 { // and once more while it starts
		k.popgate.Launch(t)
		k.pause(40 * time.Millisecond)
		k.popgate.Kill()
	}
	k.popgate.Start(t)
	list := k.popgate.Must(t, "list", "--json")
	for _, l := range fresh {
		held := strings.Contains(list, strconv.Quote(l.client))
		switch age := killed.Sub(l.at); {
		case !held && age > time.Second:
			t.Errorf("the grant of %s was lost, %v after popgate had it", l.client, age)
			continue
		case !held && lost:
			continue
		case !held:
			k.popgate.WaitGrant(t, l.client)
		}
		k.mu.Lock()
		k.granted = append(k.granted, l.client)
		k.mu.Unlock()
	}
	// Every older one was there before.
	for _, client := range k.granted {
		if !strings.Contains(list, strconv.Quote(client)) && !k.popgate.Holds(t, client) {
			t.Errorf("the grant of %s was lost, long after popgate had it", client)
		}
	}
}

// pause waits for a random time: what is tested is that no moment matters.
func (k *killing) pause(most time.Duration) {
	time.Sleep(time.Duration(k.chance.Int64N(int64(most))))
}

// relayNow has clients relay through every door, now that popgate stays.
func (k *killing) relayNow(t *testing.T) {
	t.Helper()
	for _, d := range k.doors {
		for _, client := range k.granted[max(0, len(k.granted)-4):] {
			subject := "in the end from " + client + " port " + d.port
			r, err := lab.Attempt(client, d.port, subject, "x@remote.test")
			if err != nil || !r.Is(2) {
				t.Errorf("%s: %v %v, want it relayed", subject, r, err)
				continue
			}
			k.mu.Lock()
			k.relayed[subject] = true
			k.mu.Unlock()
		}
	}
}

// repeat is one client that doesn't give up.
func (k *killing) repeat(ctx context.Context, chance *rand.Rand, one func(*rand.Rand, string)) {
	for n := 0; ctx.Err() == nil; n++ {
		one(chance, strconv.Itoa(n)+" "+strconv.FormatUint(chance.Uint64(), 36))
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(chance.Int64N(int64(20 * time.Millisecond)))):
		}
	}
}

// stranger tries the site's own mail and another site's.
func (k *killing) stranger(chance *rand.Rand, n string) {
	from := fmt.Sprintf("203.0.113.%d", 1+chance.IntN(250))
	if chance.IntN(3) == 0 {
		from = fmt.Sprintf("2001:db8:2::%x", 1+chance.IntN(1000))
	}
	d := k.doors[chance.IntN(len(k.doors))]
	if chance.IntN(3) > 0 {
		k.try("stranger", from, d, n, "x@remote.test", func(r lab.Reply) bool { return !r.Is(2) })
		return
	}
	k.try("local", from, d, n, "bob@local.test", func(r lab.Reply) bool { return r.Is(2) || !d.closed && r.Is(4) })
}

// client tries another site's mail, with a grant.
func (k *killing) client(chance *rand.Rand, n string) {
	k.mu.Lock()
	granted := k.granted
	k.mu.Unlock()
	if len(granted) == 0 {
		return
	}
	d := k.doors[chance.IntN(len(k.doors))]
	k.try("client", granted[chance.IntN(len(granted))], d, n, "x@remote.test", func(r lab.Reply) bool { return r.Is(2) || r.Is(4) || r.Is(d.unable) })
}

func (k *killing) try(kind, from string, d soakDoor, n, rcpt string, well func(lab.Reply) bool) {
	subject := kind + " " + n
	r, err := lab.Attempt(from, d.port, subject, rcpt)
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil || !well(r) {
		k.trouble = append(k.trouble, fmt.Sprintf("%s from %s to port %s: %v %v", subject, from, d.port, r, err))
	}
	k.attempts[fmt.Sprintf("%s %dxx", kind, r.Code/100)]++
	if kind == "client" && r.Is(2) {
		k.relayed[subject] = true
	}
}
