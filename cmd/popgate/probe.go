package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/internal/probe"
	"popgate/internal/relay"
)

func newProbe(e *env, g *global) *cobra.Command {
	var from string
	var o probe.Options
	cmd := &cobra.Command{
		Use:   "probe HOST:PORT --from CLIENT --local ADDR",
		Short: "Try whether a running MTA relays for a stranger; nothing is delivered",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			o.Target = args[0]
			if _, _, err := net.SplitHostPort(o.Target); err != nil {
				return failWith(exitUsage, fmt.Errorf("%q: write HOST:PORT, such as mail.example.org:25", o.Target))
			}
			if domain, ok := relay.Strict(o.Local); !ok || domain == "" {
				return failWith(exitUsage, fmt.Errorf("--local %q: write an address that the MTA takes, such as postmaster@example.org", o.Local))
			}
			if from != "" {
				a, err := relay.ParseClient(from)
				if err != nil {
					return failWith(exitUsage, fmt.Errorf("--from: %w", err))
				}
				o.From = a
			} else if o.XCLIENT {
				return failWith(exitUsage, errors.New("--xclient needs the address to tell: --from"))
			}
			return runProbe(c.Context(), e, g, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&from, "from", "", "address of this host to connect from; it must be nobody whom the MTA trusts")
	f.StringVar(&o.Local, "local", "", "address of the site's own that must be taken")
	f.StringVar(&o.Virtual, "also-local", "", "another domain of the site's own, for more shapes")
	f.StringVar(&o.Remote, "remote", "example.com", "domain of another site")
	f.StringVar(&o.Sender, "sender", "popgate-probe@example.com", "sender")
	f.BoolVar(&o.XCLIENT, "xclient", false, "tell --from by Postfix's XCLIENT in place of connecting from it")
	return cmd
}

// noStranger says why the client might be no stranger.
func noStranger(g *global, from netip.Addr) string {
	const remedy = "a stranger would be treated otherwise: probe from another host, with --from an address of its own"
	cfg, _, err := config.Load(g.config)
	if err != nil {
		cfg = config.Default()
	}
	switch {
	case !from.IsValid():
		return "without --from the system chooses the client's address; see to it that the MTA does not trust that"
	case from.IsLoopback():
		return from.String() + " is loopback, which every MTA trusts; " + remedy
	case cfg.Rules(nil).Trusts(from):
		return from.String() + " is in trusted_networks; " + remedy
	}
	return ""
}

func runProbe(ctx context.Context, e *env, g *global, o probe.Options) error {
	doubt := noStranger(g, o.From)
	r, err := probe.Run(ctx, o)
	if errors.Is(err, probe.ErrUnreachable) {
		return failWith(exitUnreachable, err)
	}
	if err != nil {
		return err
	}
	open, well := r.Count(probe.Taken) > 0, r.Local.Outcome == probe.Taken || r.Local.Outcome == probe.Deferred
	closed := !open && well && r.Plain() == probe.Refused
	if g.json {
		err = printJSON(e.stdout, struct {
			Open    bool   `json:"open"`
			Closed  bool   `json:"closed"` // neither: this can't tell
			Warning string `json:"warning,omitempty"`
			*probe.Result
		}{open, closed, doubt, r})
	} else {
		printProbe(e, r, o, doubt)
	}
	switch {
	case err != nil:
	case open || !well:
		err = answerNo(exitNo)
	case !closed:
		err = answerNo(exitDegraded)
	}
	return err
}

func printProbe(e *env, r *probe.Result, o probe.Options, doubt string) {
	say := func(format string, args ...any) { fmt.Fprintf(e.stdout, format+"\n", args...) }
	if doubt != "" {
		say("WARN  %s", doubt)
	}
	switch r.Local.Outcome {
	case probe.Taken:
		say("ok    %s is taken: %s", quoted(o.Local), quoted(r.Local.Reply))
	case probe.Deferred:
		say("WARN  %s is put off: %s", quoted(o.Local), quoted(r.Local.Reply))
	default:
		say("FAIL  %s is refused, so that the refusals below say little: %s", quoted(o.Local), quoted(r.Local.Reply))
	}
	for _, t := range r.Tries {
		if t.Outcome == probe.Taken {
			say("FAIL  taken: MAIL FROM:<%s> RCPT TO:%s: %s", quoted(t.Sender), quoted(t.Rcpt), quoted(t.Reply))
		}
	}
	taken, refused, deferred := r.Count(probe.Taken), r.Count(probe.Refused), r.Count(probe.Deferred)
	say("%d tries: %d taken, %d refused, %d only put off", len(r.Tries), taken, refused, deferred)
	if n := r.Count(probe.Named); n > 0 {
		say("%d were taken as an address at %s like any other", n, o.Local[strings.LastIndexByte(o.Local, '@')+1:])
	}
	if n := r.Count(probe.Weak); n > 0 {
		say("%d were refused for their domain, which says nothing about relaying; name one that takes mail with --remote", n)
	}
	switch well := r.Local.Outcome == probe.Taken || r.Local.Outcome == probe.Deferred; {
	case taken > 0 && r.Any:
		say("OPEN RELAY, unless each of those is a mailbox of that name: this MTA takes every name at its domain")
	case taken > 0:
		say("OPEN RELAY")
	case !well:
		say("not shown to be closed: who refuses %s may refuse everything from here for another reason", quoted(o.Local))
	case r.Plain() == probe.Weak:
		say("not shown to be closed: a plain address at %s was refused for its domain, as an open relay might; try again with another --remote", quoted(o.Remote))
	case r.Plain() == probe.Deferred:
		say("not shown to be closed: nothing was taken, but a plain address at %s was only put off, as an open relay might; try again when the MTA is well", quoted(o.Remote))
	case deferred > 0:
		say("closed, as far as this shows: those that were put off prove less than a refusal")
	default:
		say("closed")
	}
}
