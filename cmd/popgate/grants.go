package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"popgate/internal/control"
	"popgate/internal/ledger"
	"popgate/internal/relay"
)

func newList(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the grants in force, next to expire first",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			out := bufio.NewWriter(e.stdout)
			defer out.Flush()
			client.Much = e.giveWay
			if g.json {
				return told(client.ListJSON(c.Context(), func(line []byte) error {
					_, err := out.Write(append(asciiJSON(line), '\n'))
					return err
				}))
			}
			var now time.Time
			first := true
			err = client.List(c.Context(), func(gr control.Grant) error {
				if first { // not before: a long list takes a while
					now = e.now().Wall
					fmt.Fprintf(out, "%-40s  %-20s  %-12s  %s\n", "CLIENT", "USER", "EXPIRES IN", "WHY")
					first = false
				}
				_, err := fmt.Fprintf(out, "%-40s  %-20s  %-12s  %s\n", covered(gr), orDash(gr.User), left(gr, now), proof(gr))
				return err
			})
			if err == nil && first {
				fmt.Fprintln(out, "no grants")
			}
			return told(err)
		},
	}
}

// giveWay has this process, for the rest of its life, run on one processor,
// collect early, and wait for the processor behind all others: a list of a
// million grants is much work, and nobody's mail is to be late for it. Being nice
// (nice(2)) will not do: those who wake up then still wait for up to 4 ms until
// it is their turn. Linux has the priority for each thread by itself; those made
// later have it from those that make them. Where it can't be had, the list is
// made all the same.
//
// But SCHED_IDLE has some 3 parts in a thousand of a processor that another
// program keeps busy, so that a list would hardly ever end there. After longestWait
// it goes on at nice 10, which is a tenth. Who may not take a priority back (it
// takes CAP_SYS_NICE or RLIMIT_NICE, which most users lack) waits for an idle one.
func giveWay() { giveWayUntil(time.After(longestWait)) }

const (
	longestWait = 30 * time.Second
	niceAfter   = 10
)

func giveWayUntil(enough <-chan time.Time) {
	runtime.GOMAXPROCS(1)  // one processor is enough to be in the way of
	debug.SetGCPercent(20) // nearly all of a list stays until it is printed
	before, err := unix.SchedGetAttr(0, 0)
	schedule(unix.SchedAttr{Policy: unix.SCHED_IDLE})
	if err != nil || before.Policy == unix.SCHED_IDLE { // whoever began it so wanted that, however long it takes
		return
	}
	go func() {
		<-enough
		schedule(unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: max(niceAfter, before.Nice)})
	}()
}

// schedule gives all threads of this process a policy, as far as that is permitted.
func schedule(how unix.SchedAttr) {
	how.Size = unix.SizeofSchedAttr
	done := map[int]bool{}
	for more := true; more; { // until none was made meanwhile by one that had its turn later
		more = false
		threads, _ := os.ReadDir("/proc/self/task")
		for _, t := range threads {
			if id, err := strconv.Atoi(t.Name()); err == nil && !done[id] {
				done[id], more = true, true
				_ = unix.SchedSetAttr(id, &how, 0)
			}
		}
	}
}

func newShow(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "show CLIENT",
		Short: "Show one client's grant with its proof",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			addr, err := relay.ParseClient(args[0])
			if err != nil {
				return failWith(exitUsage, err)
			}
			client, err := g.client()
			if err != nil {
				return err
			}
			gr, err := client.Show(c.Context(), addr)
			if err != nil {
				return told(err)
			}
			if g.json {
				return printJSON(e.stdout, gr)
			}
			w := table(e.stdout)
			row := func(name, value string) { fmt.Fprintf(w, "%s\t%s\n", name, value) }
			row("client", gr.Client.String())
			row("covers", covered(gr))
			row("expires", stampOf(gr.Expires)+" (in "+left(gr, e.now().Wall)+")")
			row("why", proof(gr))
			row("user", orDash(gr.User))
			row("source", orDash(gr.Source))
			row("format", orDash(gr.Format))
			row("session", orDash(gr.Session))
			row("note", orDash(gr.Note))
			return w.Flush()
		},
	}
}

func newGrant(e *env, g *global) *cobra.Command {
	var q control.GrantRequest
	cmd := &cobra.Command{
		Use:   "grant CLIENT",
		Short: "Let a client relay for a while, by the operator's word",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if q.Client, err = relay.ParseClient(args[0]); err != nil {
				return failWith(exitUsage, err)
			}
			if c.Flags().Changed("ttl") && (q.TTL <= 0 || q.TTL > ledger.MaxOperatorTTL) {
				return failWith(exitUsage, fmt.Errorf("--ttl %s: write a time above 0, at most 24h", q.TTL))
			}
			client, err := g.client()
			if err != nil {
				return err
			}
			gr, err := client.Grant(c.Context(), q)
			if err != nil {
				return told(err)
			}
			if g.json {
				return printJSON(e.stdout, gr)
			}
			_, err = fmt.Fprintf(e.stdout, "%s may relay until %s\n", covered(gr), stampOf(gr.Expires))
			return err
		},
	}
	f := cmd.Flags()
	f.DurationVar(&q.TTL, "ttl", 0, "how long, at most 24h (default: grant_ttl)")
	f.StringVar(&q.User, "user", "", "user to note with the grant")
	f.StringVar(&q.Note, "note", "", "why, for list and show")
	f.BoolVar(&q.Force, "force", false, "grant in spite of the never-grant rules and blocks")
	return cmd
}

func newRevoke(e *env, g *global) *cobra.Command {
	var q control.RevokeRequest
	cmd := &cobra.Command{
		Use:   "revoke CLIENT|NETWORK | --user U | --all",
		Short: "Take grants away; earlier logins don't grant again",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				if q.Network, err = parseNetwork(args[0]); err != nil {
					return failWith(exitUsage, err)
				}
			}
			if n := len(args) + count(q.User != "") + count(q.All); n != 1 {
				return failWith(exitUsage, errors.New("name a client, a network, --user or --all, and only one of them"))
			}
			client, err := g.client()
			if err != nil {
				return err
			}
			a, err := client.Revoke(c.Context(), q)
			if err != nil {
				return told(err)
			}
			if g.json {
				return printJSON(e.stdout, a)
			}
			for _, gr := range a.Revoked {
				fmt.Fprintf(e.stdout, "revoked %s, %s\n", covered(gr), whose(gr))
			}
			_, err = fmt.Fprintf(e.stdout, "%d %s revoked\n", len(a.Revoked), plural(len(a.Revoked), "grant"))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.User, "user", "", "take away every grant of this user; a bare name matches every domain")
	f.BoolVar(&q.All, "all", false, "take away every grant")
	f.DurationVar(&q.Block, "block", 0, "and let no login of them grant for this long")
	return cmd
}

// whose says in a word or two who a grant was made for.
func whose(g control.Grant) string {
	if g.User == "" {
		return "granted by an operator"
	}
	return "user " + quoted(g.User)
}

func count(b bool) int {
	if b {
		return 1
	}
	return 0
}

func plural(n int, word string) string {
	if n == 1 {
		return word
	}
	return word + "s"
}

// parseNetwork reads a client address or a network.
func parseNetwork(s string) (netip.Prefix, error) {
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return p, fmt.Errorf("network %q: write 192.0.2.0/24 or 2001:db8::/64", s)
		}
		return p.Masked(), nil
	}
	a, err := relay.ParseClient(s)
	if err != nil {
		return netip.Prefix{}, err
	}
	return netip.PrefixFrom(a, a.BitLen()), nil
}

func newAsk(e *env, g *global) *cobra.Command {
	var q control.AskRequest
	cmd := &cobra.Command{
		Use:   "ask CLIENT RCPT",
		Short: "Ask what the daemon would answer now, and why",
		Args:  cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if q.Client, err = relay.ParseClient(args[0]); err != nil {
				return failWith(exitUsage, err)
			}
			q.Rcpt = strings.TrimSuffix(strings.TrimPrefix(args[1], "<"), ">")
			if _, known := relay.ParseMTA(q.MTA); q.MTA != "" && !known {
				return failWith(exitUsage, fmt.Errorf("--mta %s: write postfix or sendmail", q.MTA))
			}
			if q.Mailer == "" && (q.Addr != "" || q.Host != "") {
				return failWith(exitUsage, errors.New("--addr and --host go with --mailer"))
			}
			client, err := g.client()
			if err != nil {
				return err
			}
			a, err := client.Ask(c.Context(), q)
			if err != nil {
				return told(err)
			}
			if g.json {
				err = printJSON(e.stdout, a)
			} else {
				printAnswer(e, &q, &a)
			}
			if err == nil && a.Verdict != relay.Pass.String() {
				err = answerNo(exitNo)
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&q.Mailer, "mailer", "", "the MTA's {rcpt_mailer}")
	f.StringVar(&q.Addr, "addr", "", "the MTA's {rcpt_addr}")
	f.StringVar(&q.Host, "host", "", "the MTA's {rcpt_host}")
	f.StringVar(&q.MTA, "mta", "", "postfix or sendmail")
	f.StringVar(&q.Auth, "auth", "", "user the client has authenticated as")
	return cmd
}

func printAnswer(e *env, q *control.AskRequest, a *control.AskAnswer) {
	fmt.Fprintf(e.stdout, "%s: %s\n", a.Verdict, a.Reason)
	fmt.Fprintf(e.stdout, "  %s\n", reasonText(a))
	if a.Reply != "" {
		fmt.Fprintf(e.stdout, "  behind the milter the client would read: %s\n  behind a closed door it reads the MTA's own words\n", a.Reply)
	}
	if a.Revoked != "" {
		fmt.Fprintf(e.stdout, "  but: %s\n", a.Revoked)
	}
	if a.Grant != nil {
		fmt.Fprintf(e.stdout, "  grant: %s, user %s, expires %s, %s\n", covered(*a.Grant), orDash(a.Grant.User), stampOf(a.Grant.Expires), proof(*a.Grant))
	}
	if q.Mailer == "" {
		fmt.Fprintf(e.stdout, "  asked as if the MTA had sent no macros; --mailer, --addr and --mta tell what it would send\n")
	}
}

// reasonText explains a reason as the manual does.
func reasonText(a *control.AskAnswer) string {
	switch a.Reason {
	case "local":
		return "the recipient is this site's own"
	case "authenticated":
		return "the client has authenticated (SMTP AUTH)"
	case "trusted":
		return "the client is in trusted_networks"
	case "no_client":
		return "the MTA gave no client address, or two that differ"
	case "grant":
		if a.Grant != nil && a.Grant.Operator {
			return "an operator has granted it"
		}
		return "the client has logged in to POP or IMAP"
	case "unsure":
		return "the recipient is neither clearly local nor clearly foreign, or no local domain is known; see local_domains"
	case "store_error":
		return "this copy of the grants may be stale"
	case "not_ready":
		return "a login may have been missed, so strangers are put off instead of refused; popgate status says why and until when"
	case "full":
		return "max_grants is reached, so a login may have been turned away"
	case "busy":
		return "too many clients wait for their login"
	case "no_grant":
		return "the client has not logged in"
	case "expired":
		return "the client's login is too long ago"
	}
	return ""
}
