package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/internal/control"
	"popgate/internal/relay"
)

// Exit codes of every command.
const (
	exitNo          = 1 // no, or found wanting
	exitUsage       = 2
	exitUnreachable = 3 // the daemon doesn't answer
	exitConfig      = 4 // the configuration is invalid
	exitDegraded    = 5
)

// env is what a run takes from outside, so that a test can run the whole
// program inside itself.
type env struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	now            func() relay.Now
	listeners      map[string][]net.Listener                // handed over under their names: milter, control
	storeFault     func() error                             // for tests: what look-up answers beside the grant
	storeLie       func(relay.Key, relay.Grant) relay.Grant // for tests: what look-up makes of the grant; nil: the truth
	hangup         <-chan os.Signal                         // asks the daemon to reload
	ready          func()                                   // called when the last listener is open
	supervisor     supervisor                               // who started the daemon and watches it
	giveWay        func()                                   // has this process wait for processors behind others; nil: others are in it
}

func processEnv() env {
	start := time.Now()
	return env{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		now: func() relay.Now {
			t := time.Now()
			return relay.Now{Wall: t, Mono: t.Sub(start)}
		},
		storeFault: func() error { return nil },
		ready:      func() {},
		supervisor: systemd(),
	}
}

// exitError carries the exit code of an error. With silent, everything has
// been said already.
type exitError struct {
	code   int
	err    error
	silent bool
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func failWith(code int, err error) error { return &exitError{code: code, err: err} }

var errNo = errors.New("no")

// answerNo is the error of a command whose printed answer is no.
func answerNo(code int) error { return &exitError{code: code, err: errNo, silent: true} }

// run runs one command and gives its exit code.
func run(ctx context.Context, args []string, e env) int {
	root := newRoot(&e)
	root.SetArgs(args)
	root.SetIn(e.stdin)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var exit *exitError
	if !errors.As(err, &exit) {
		exit = &exitError{code: exitNo, err: err}
	}
	if !exit.silent {
		fmt.Fprintf(e.stderr, "popgate: %s\n", shown(err.Error()))
		if exit.code == exitUsage {
			fmt.Fprintln(e.stderr, "`popgate help` shows the commands")
		}
	}
	return exit.code
}

// global are the flags every command knows.
type global struct {
	config string
	socket string
	json   bool
	stderr io.Writer
}

const defaultConfig = "/etc/popgate/milter.yaml"

func newRoot(e *env) *cobra.Command {
	g := &global{stderr: e.stderr}
	root := &cobra.Command{
		Use:   "popgate",
		Short: "POP before SMTP for Postfix and sendmail",
		Long: "popgate lets a client relay mail for a while after it has logged in to POP or IMAP\n" +
			"from the same address, and refuses every other recipient that is not local.",
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return c.Help()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = false
	f := root.PersistentFlags()
	f.StringVarP(&g.config, "config", "c", defaultConfig, "configuration file")
	f.StringVar(&g.socket, "socket", "", "control socket (overrides the configuration file)")
	f.BoolVar(&g.json, "json", false, "print JSON")
	root.AddCommand(
		newServe(e, g), newCheck(e, g), newTestLog(e, g), newAsk(e, g), newList(e, g), newShow(e, g),
		newGrant(e, g), newLogin(g), newRevoke(e, g), newStatus(e, g), newReload(e, g), newWatch(e, g), newDemo(e), newSetup(e, g), newProbe(e, g), newMan(e), newVersion(e, g),
	)
	asUsage := func(err error) error {
		if err == nil {
			return nil
		}
		return failWith(exitUsage, err)
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return asUsage(err) })
	for _, c := range append(root.Commands(), root) {
		args, use := c.Args, c.UseLine()
		c.Args = func(c *cobra.Command, given []string) error {
			if args == nil || args(c, given) == nil {
				return nil
			}
			if c == root {
				return asUsage(fmt.Errorf("%q is no command of popgate", given[0]))
			}
			return asUsage(fmt.Errorf("wrong number of arguments; write %s", use))
		}
	}
	return root
}

// client gives a client of the daemon's control socket.
func (g *global) client() (*control.Client, error) {
	if g.socket != "" {
		path := g.socket
		for _, scheme := range []string{"unix:", "local:"} {
			path = strings.TrimPrefix(path, scheme)
		}
		return control.NewClient(path), nil
	}
	c, _, err := config.Load(g.config)
	if (errors.Is(err, os.ErrNotExist) || errors.Is(err, os.ErrPermission)) && g.config == defaultConfig {
		// Members of control_group need not be able to read the file.
		c, err = config.Default(), nil
	}
	if err == nil {
		return control.NewClient(c.Listen.Control.Address), nil
	}
	// On the day the file is broken the daemon, which runs on by the one of
	// before, is asked more than on others.
	if text, e := os.ReadFile(g.config); e == nil {
		if address, ok := config.Control(g.config, text); ok {
			fmt.Fprintf(g.stderr, "popgate: the configuration is invalid, and the daemon does not run by it: %v\n", err)
			return control.NewClient(address.Address), nil
		}
	}
	return nil, failWith(exitConfig, fmt.Errorf("%w\nto ask a daemon that runs by the file of before, name its control socket with --socket", err))
}

// told maps an error of the control socket to its exit code.
func told(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, control.ErrUnreachable):
		return failWith(exitUnreachable, err)
	default:
		return failWith(exitNo, err)
	}
}
