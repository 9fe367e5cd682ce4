package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/control"
)

func newWatch(e *env, g *global) *cobra.Command {
	var logins, decisions, grants bool
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Show logins, grants and decisions as they happen",
		Long: "watch prints one line for each login, each decision and each change of the grants, until\n" +
			"it is interrupted (exit 0) or the daemon stops (exit 3). With none of --logins, --decisions\n" +
			"and --grants it prints all three. It never slows the daemon down: what it can't keep up\n" +
			"with is dropped, and it says how much.",
		Example: "  popgate watch\n" +
			"  popgate watch --decisions | grep verdict=defer\n" +
			"  popgate watch --json --logins | jq -r 'select(.outcome == \"granted\") | .client'",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			var topics control.Topic
			for _, t := range []struct {
				asked bool
				topic control.Topic
			}{{logins, control.WatchLogins}, {decisions, control.WatchDecisions}, {grants, control.WatchGrants}} {
				if t.asked {
					topics |= t.topic
				}
			}
			ready := func() {
				if isTerminal(e.stderr) {
					fmt.Fprintln(e.stderr, "watching; Ctrl-C ends")
				}
			}
			var line []byte
			return told(client.Watch(c.Context(), topics, ready, func(s *control.Seen) error {
				if g.json {
					return printJSON(e.stdout, s)
				}
				line = appendSeen(line[:0], s)
				_, err := e.stdout.Write(line)
				return err
			}))
		},
	}
	f := cmd.Flags()
	f.BoolVar(&logins, "logins", false, "logins, logouts and restarts of the server, and what became of them")
	f.BoolVar(&decisions, "decisions", false, "decisions about recipients")
	f.BoolVar(&grants, "grants", false, "grants, ends of sessions and revocations")
	return cmd
}

// appendSeen writes an event as a line, in the words and the order of the log.
func appendSeen(b []byte, s *control.Seen) []byte {
	b = s.Time.Local().AppendFormat(b, "2006-01-02 15:04:05.000 ")
	b = fmt.Appendf(b, "%-8s", quoted(s.Event))
	field := func(key, value string) {
		if value != "" {
			b = append(b, ' ')
			b = append(b, key...)
			b = append(b, '=')
			b = append(b, oneWord(value)...)
		}
	}
	moment := func(key string, t time.Time) {
		if !t.IsZero() {
			field(key, t.Local().Format(time.RFC3339))
		}
	}
	field("verdict", s.Verdict)
	field("reason", s.Reason)
	if s.Network.IsValid() {
		field("network", s.Network.String())
	}
	if s.All {
		field("all", "true")
	}
	switch {
	case s.Prefix > 0:
		field("client", covered(control.Grant{Client: s.Client, Prefix: s.Prefix}))
	case s.Client.IsValid():
		field("client", s.Client.String())
	}
	field("user", s.User)
	field("service", s.Service)
	field("source", s.Source)
	field("format", s.Format)
	field("session", s.Session)
	moment("time", s.Login)
	field("outcome", s.Outcome)
	moment("expires", s.Expires)
	if s.Open {
		field("open", "true")
	}
	if s.Operator {
		field("operator", "true")
	}
	field("note", s.Note)
	moment("block", s.Block)
	field("rcpt", s.Rcpt)
	field("recipient", s.Recipient)
	field("sender", s.Sender)
	field("queue", s.Queue)
	field("door", s.Door)
	field("waited", s.Waited)
	if s.Dropped > 0 {
		b = fmt.Appendf(b, " %d events: this watcher is too slow", s.Dropped)
	}
	return append(b, '\n')
}
