package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/control"
)

func newStatus(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the daemon's health",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			st, err := client.Status(c.Context())
			if err != nil {
				return told(err)
			}
			if g.json {
				err = printJSON(e.stdout, st)
			} else {
				err = printStatus(e, &st)
			}
			if err == nil && st.Health != "ok" {
				err = answerNo(exitDegraded)
			}
			return err
		},
	}
}

// manyLines without a login are worth a word: the server's own lines on the way
// to its first login are fewer.
const manyLines = 100

func printStatus(e *env, st *control.Status) error {
	fmt.Fprintf(e.stdout, "health: %s\n", st.Health)
	for _, p := range st.Problems {
		fmt.Fprintf(e.stdout, "  ! %s\n", p)
	}
	w := table(e.stdout)
	if st.PutOff {
		until := "until a source is up"
		if st.PutOffUntil != nil {
			until = "until " + stampOf(*st.PutOffUntil)
		}
		fmt.Fprintf(w, "strangers\tput off instead of refused %s: logins may have been missed\n", until)
	}
	fmt.Fprintf(w, "version\t%s, up since %s\n", st.Version, stampOf(st.Started))
	for _, l := range st.Listeners {
		fmt.Fprintf(w, "listener\t%s %s\n", l.Name, l.Address)
	}
	for _, s := range st.Sources {
		fmt.Fprintf(w, "source\t%s: %s, %d lines, %d logins, %d unparsed, last line %s, last login %s\n",
			quoted(s.Name), s.State, s.Lines, s.Logins, s.Unparsed, ago(e, s.LastLine), ago(e, s.LastLogin))
		for _, text := range s.Doubts {
			fmt.Fprintf(w, "\t%s\n", quoted(text))
		}
		if s.Lines >= manyLines && s.Logins == 0 {
			fmt.Fprintf(w, "\tnot one login in these lines: `popgate test-log` on this log says whether the format is right\n")
		}
		if s.Lag >= 1 {
			fmt.Fprintf(w, "\tstill reading what was logged %s ago\n", brief(time.Duration(s.Lag)*time.Second))
		}
		if s.Gaps > s.Missed {
			fmt.Fprintf(w, "\t%d %s, where lines may be missing\n", s.Gaps-s.Missed, plural(int(s.Gaps-s.Missed), "gap"))
		}
		if s.Missed > 0 {
			lost := ""
			if s.Skipped > 0 {
				lost = fmt.Sprintf("; %d bytes were passed over unread", s.Skipped)
			}
			fmt.Fprintf(w, "\tlogins may have been missed %d %s%s\n", s.Missed, plural(int(s.Missed), "time"), lost)
		}
	}
	fmt.Fprintf(w, "grants\t%d\n", st.Grants)
	if n := st.Tables["revocations"]; n > 0 {
		fmt.Fprintf(w, "revocations\t%d in force\n", n)
	}
	for _, what := range slices.Sorted(maps.Keys(st.Events)) {
		label := "logins"
		if what == "closed" || what == "ignored" { // a session's end, or one that held no grant
			label = "logouts"
		}
		fmt.Fprintf(w, "%s\t%s: %d\n", label, what, st.Events[what])
	}
	for _, d := range st.Decisions {
		fmt.Fprintf(w, "decisions\t%s %s: %d\n", d.Verdict, d.Reason, d.Count)
	}
	store := st.Store.Kind
	if st.Store.Dir != "" {
		store += ", kept in " + st.Store.Dir
	} else {
		store += ", not kept on disk"
	}
	fmt.Fprintf(w, "store\t%s\n", store)
	fmt.Fprintf(w, "local domains\t%d\n", st.Domains)
	fmt.Fprintf(w, "connections\t%d open, %d in all", st.Connections["open"], st.Connections["total"])
	for _, what := range slices.Sorted(maps.Keys(st.Connections)) {
		if n := st.Connections[what]; n > 0 && what != "open" && what != "total" {
			fmt.Fprintf(w, ", %d %s", n, strings.ReplaceAll(what, "_", " "))
		}
	}
	fmt.Fprintln(w)
	if st.Watchers > 0 {
		fmt.Fprintf(w, "watchers\t%d\n", st.Watchers)
	}
	if st.LogDropped > 0 {
		fmt.Fprintf(w, "log\t%d lines dropped: whoever reads the log is too slow\n", st.LogDropped)
	}
	return w.Flush()
}

func ago(e *env, t *time.Time) string {
	if t == nil {
		return "never"
	}
	d := e.now().Wall.Sub(*t).Round(time.Second)
	if d < 0 {
		return (-d).String() + " ahead of this host's clock"
	}
	return d.String() + " ago"
}

func newReload(e *env, g *global) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Make the daemon read its configuration anew, and print the verdict",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			client, err := g.client()
			if err != nil {
				return err
			}
			a, err := client.Reload(c.Context())
			if errors.Is(err, control.ErrRejected) {
				return failWith(exitConfig, fmt.Errorf("the old configuration stays in force: %w", err))
			}
			if err != nil {
				return told(err)
			}
			if g.json {
				return printJSON(e.stdout, a)
			}
			for _, n := range a.Notes {
				fmt.Fprintln(e.stdout, n)
			}
			_, err = fmt.Fprintln(e.stdout, "reloaded")
			return err
		},
	}
}
