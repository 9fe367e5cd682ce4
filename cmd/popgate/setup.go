package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"popgate/internal/config"
	"popgate/internal/wiring"
)

// setupFlags are those of `popgate setup`.
type setupFlags struct {
	door       string
	apply, yes bool
}

// setup is one run of the command.
type setup struct {
	e     *env
	g     *global
	flags setupFlags
	cfg   *config.Config
	run   wiring.Runner
}

func newSetup(e *env, g *global) *cobra.Command {
	var flags setupFlags
	cmd := &cobra.Command{
		Use:       "setup postfix|sendmail|dovecot [--door policy|socketmap|milter] [--apply]",
		Short:     "Print the lines that a server's configuration needs, or put them in",
		Args:      cobra.ExactArgs(1),
		ValidArgs: []string{"postfix", "sendmail", "dovecot"},
		RunE: func(c *cobra.Command, args []string) error {
			s := &setup{e: e, g: g, flags: flags, run: wiring.Exec}
			return s.do(c.Context(), args[0])
		},
	}
	f := cmd.Flags()
	f.StringVar(&flags.door, "door", "", "how the MTA is to ask: policy (Postfix unless given), socketmap (sendmail unless given), milter")
	f.BoolVar(&flags.apply, "apply", false, "show the difference, then change the files, and take it back if the MTA would not do")
	f.BoolVarP(&flags.yes, "yes", "y", false, "apply without a question")
	return cmd
}

func (s *setup) do(ctx context.Context, server string) error {
	doors := map[string][]string{"postfix": {wiring.Policy, wiring.SocketMap, wiring.Milter}, "sendmail": {wiring.SocketMap, wiring.Milter}, "dovecot": {""}}[server]
	if doors == nil {
		return failWith(exitUsage, fmt.Errorf("setup knows no %q; write postfix, sendmail or dovecot", server))
	}
	if s.flags.door == "" {
		s.flags.door = doors[0]
	}
	known := false
	for _, d := range doors {
		known = known || d == s.flags.door
	}
	if !known {
		return failWith(exitUsage, fmt.Errorf("--door %s: %s has no such door; choose one of %s", s.flags.door, server, strings.Join(doors, ", ")))
	}
	var err error
	s.cfg, _, err = config.Load(s.g.config)
	if errors.Is(err, fs.ErrNotExist) && s.g.config == defaultConfig {
		s.cfg, err = config.Default(), nil
	}
	if err != nil {
		return failWith(exitConfig, err)
	}
	switch server {
	case "postfix":
		return s.postfix(ctx)
	case "sendmail":
		return s.sendmail(ctx)
	default:
		return s.dovecot(ctx)
	}
}

func (s *setup) say(format string, args ...any) { fmt.Fprintf(s.e.stdout, format, args...) }

// listening gives where popgate's configuration has it listen for a door.
func (s *setup) listening(kind string) (all []wiring.Listener) {
	for _, a := range map[string][]config.Address{wiring.Milter: s.cfg.Listen.Milter, wiring.Policy: s.cfg.Listen.Policy, wiring.SocketMap: s.cfg.Listen.Socketmap}[kind] {
		all = append(all, wiring.Listener{Network: a.Network, Address: a.Address})
	}
	return all
}

// popgateFirst says what popgate's own configuration lacks for a door, and
// whether popgate takes the MTA's connections there now.
func (s *setup) popgateFirst(ctx context.Context, d *wiring.Door) (ready bool) {
	conn, err := d.Dial(ctx)
	if err == nil {
		conn.Close()
		return true
	}
	listens := false
	for _, l := range s.listening(d.Kind) {
		listens = listens || sameAddress(l.Network, l.Address, d.Network, d.Address)
	}
	if errors.Is(err, wiring.ErrNotRoot) && listens {
		return true
	}
	s.say("First popgate: it has to take %s's connections at %s, which it does not (%v).\n", d.MTA, d.Address, err)
	if !listens {
		s.say("In %s, then restart popgate:\n\n  listen:\n    %s: [%q]\n", s.g.config, d.Kind, "unix:"+d.Address)
	}
	if d.Root != "" || d.User != "root" {
		if s.cfg.SocketGroup != groupOf(d.User) {
			s.say("  socket_group: %s\n", groupOf(d.User))
		}
	}
	s.say("\n")
	return false
}

// edit is a file that a setup changes.
type edit struct {
	path     string
	old, now string
}

// show prints what would change, and says whether anything would.
func (s *setup) show(edits []edit) (changes bool) {
	for _, e := range edits {
		if text := difference(e.path, e.old, e.now); text != "" {
			changes = true
			s.say("%s", text)
		}
	}
	return changes
}

// agreed asks whether the changes are to be made.
func (s *setup) agreed() (bool, error) {
	if s.flags.yes {
		return true, nil
	}
	if !isTerminal(s.e.stdin) {
		return false, failWith(exitUsage, errors.New("there is no terminal to ask at; add --yes if the difference is right"))
	}
	s.say("\nMake these changes? [yes/no] ")
	answer, err := bufio.NewReader(s.e.stdin).ReadString('\n')
	if err == io.EOF && answer == "" { // /dev/null looks like a terminal
		return false, failWith(exitUsage, errors.New("there was no answer; add --yes if the difference is right"))
	}
	if err != nil && err != io.EOF {
		return false, err
	}
	return strings.EqualFold(strings.TrimSpace(answer), "yes"), nil
}

// backup copies each file that is there. The copy has the file's owner and mode.
func (s *setup) backup(paths ...string) (map[string]string, error) {
	copies := map[string]string{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			copies[path] = "" // taking it back is to remove it
			continue
		}
		if err != nil {
			return nil, err
		}
		name := path + ".popgate-" + s.e.now().Wall.Format("20060102-150405")
		if err := overwrite(name, string(text), path); err != nil {
			return nil, err
		}
		copies[path] = name
		s.say("%s is kept as %s\n", path, name)
	}
	return copies, nil
}

// restore puts the copies back.
func (s *setup) restore(copies map[string]string) error {
	var errs []error
	for path, name := range copies {
		if name == "" {
			if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
			continue
		}
		text, err := os.ReadFile(name)
		if err == nil {
			err = overwrite(path, string(text), name)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// overwrite replaces a file in one step. The new one has the owner and mode of
// another.
func overwrite(path, text, like string) error {
	mode, uid, gid := fs.FileMode(0o644), 0, 0
	if info, err := os.Stat(like); err == nil {
		mode = info.Mode().Perm()
		uid, gid = owner(info)
	}
	f, err := os.CreateTemp(dirOf(path), ".popgate-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(text)
	err = errors.Join(err, f.Chmod(mode), f.Chown(uid, gid), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// wrong gives what check finds wrong with an MTA's wiring.
func (s *setup) wrong(ctx context.Context, mta string) []string {
	k := &checker{e: s.e}
	files := mtaFiles{}
	if mta == "Postfix" {
		files.postfix = mainCF
	} else {
		files.sendmail = sendmailCF
	}
	w := k.wiring(ctx, s.cfg, files, s.run)
	w.reach(ctx)
	var all []string
	for _, f := range k.findings {
		if f.Result == "FAIL" || w.reports() == nil {
			all = append(all, f.What+": "+f.Text)
		}
	}
	return all
}

// apply makes changes, has them verified, and takes them back if they would
// not do.
func (s *setup) apply(ctx context.Context, mta string, paths []string, change, undone func(context.Context) error) error {
	copies, err := s.backup(paths...)
	if err != nil {
		return err
	}
	err = change(ctx)
	if err == nil {
		if wrong := s.wrong(ctx, mta); len(wrong) > 0 {
			err = fmt.Errorf("check finds\n  %s", strings.Join(wrong, "\n  "))
		}
	}
	if err == nil {
		s.say("popgate check finds nothing wrong with %s's side.\n", mta)
		return nil
	}
	// The MTA must not be left half changed because somebody interrupts.
	ctx, stop := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
	defer stop()
	if bad := errors.Join(s.restore(copies), undone(ctx)); bad != nil {
		return fmt.Errorf("%w\nand it could not be taken back: %w\nthe copies are beside the files", err, bad)
	}
	return fmt.Errorf("%w\nso it was taken back, and nothing has changed", err)
}
