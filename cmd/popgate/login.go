package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/watcher/push"
)

func newLogin(g *global) *cobra.Command {
	var l push.Login
	c := &cobra.Command{
		Use:   "login CLIENT --user U --service S",
		Short: "Tell the daemon of a login, from a script of the POP/IMAP server",
		Long: "Tells the daemon, on the socket of listen.push, that somebody has logged in from CLIENT.\n" +
			"It is a login like one read from a log: the rules for services, users and addresses hold.\n\n" +
			"Exit code 0: told; what follows from it, `popgate show CLIENT` knows. 1: the daemon would\n" +
			"not take it. 2: wrong use. 3: no daemon takes logins there. It takes at most 2 seconds. A\n" +
			"script must let its user in all the same: write `popgate login ... || true`.\n\n" +
			"--socket names the socket of listen.push here, for scripts that may not read the\n" +
			"configuration.",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			l.Client = args[0]
			if err := l.Check(); err != nil {
				return failWith(exitUsage, err)
			}
			path, err := g.scriptSocket()
			if err != nil {
				return err
			}
			err = l.Tell(c.Context(), path)
			switch {
			case errors.Is(err, fs.ErrPermission):
				return failWith(exitUnreachable, fmt.Errorf("%w; the script's user must be popgate's own, root, or in socket_group", err))
			case errors.Is(err, push.ErrNobodyListens):
				return failWith(exitUnreachable, fmt.Errorf("%w; is popgate serve running, with this socket in listen.push?", err))
			case err != nil:
				return failWith(exitNo, err)
			}
			return nil
		},
	}
	f := c.Flags()
	f.StringVar(&l.User, "user", "", "who logged in")
	f.StringVar(&l.Service, "service", "", "pop3, imap, submission, sieve or other")
	f.StringVar(&l.Session, "session", "", "the session's id, for the record")
	return c
}

// scriptSocket gives the path of the socket of `popgate login`.
func (g *global) scriptSocket() (string, error) {
	address := g.socket
	if address == "" {
		c, _, err := config.Load(g.config)
		if err != nil {
			return "", failWith(exitConfig, fmt.Errorf("%w; or name the socket of listen.push with --socket", err))
		}
		if c.Listen.Push.IsZero() {
			return "", failWith(exitConfig, fmt.Errorf("%s: listen.push is off; write listen: {push: unix:/run/popgate/push.sock}", g.config))
		}
		return c.Listen.Push.Address, nil
	}
	for _, scheme := range []string{"unix:", "local:"} {
		address = strings.TrimPrefix(address, scheme)
	}
	return address, nil
}
