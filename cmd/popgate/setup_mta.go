package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"popgate/contrib"
	"popgate/internal/wiring"
)

const (
	mainCF     = "/etc/postfix/main.cf"
	sendmailCF = "/etc/mail/sendmail.cf"
	sendmailMC = "/etc/mail/sendmail.mc"
	makefile   = "/etc/mail/Makefile"
)

func dirOf(path string) string { return filepath.Dir(path) }

func owner(info fs.FileInfo) (uid, gid int) {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}

// postfix prints the settings for this host's Postfix, or makes them.
func (s *setup) postfix(ctx context.Context) error {
	if !exists(mainCF) {
		return fmt.Errorf("%s: there is no Postfix here; its lines are in contrib/postfix, and in the README", mainCF)
	}
	p, err := wiring.ReadPostfix(ctx, s.run, ours(s.cfg))
	if err != nil {
		return err
	}
	lines := map[string]string{wiring.Policy: contrib.PostfixPolicy, wiring.SocketMap: contrib.PostfixSocketMap, wiring.Milter: contrib.PostfixMilter}[s.flags.door]
	plan, err := p.Plan(ctx, s.flags.door, lines, s.listening(s.flags.door))
	if err != nil {
		return err
	}
	now, err := s.postconfed(ctx, plan.Settings)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(mainCF)
	if err != nil {
		return err
	}
	edits := []edit{{path: mainCF, old: string(old), now: now}}
	if s.g.json {
		return printJSON(s.e.stdout, plan)
	}
	s.say("Postfix %s, %s\n", p.Version, map[bool]string{true: "by the milter: popgate's rule takes the place of Postfix's own", false: "by a closed door: Postfix's own rule stays shut, and popgate opens it for one client at a time"}[s.flags.door == wiring.Milter])
	ready := s.popgateFirst(ctx, &plan.Door)
	if !s.flags.apply {
		s.say("In %s:\n\n", mainCF)
		for _, set := range plan.Settings {
			s.say("%s\n", folded(set))
		}
		s.say("\nThen: postfix reload. Or have all of that done: popgate setup postfix --door %s --apply\n", s.flags.door)
		s.notes(plan.Notes)
		return nil
	}
	changes := s.show(edits)
	s.notes(plan.Notes)
	switch {
	case !changes:
		s.say("Nothing to change: %s has these lines.\n", mainCF)
		return nil
	case !ready:
		return errors.New("nothing was changed: popgate first, then Postfix, or mail would have to wait")
	}
	if yes, err := s.agreed(); err != nil || !yes {
		return err
	}
	change := func(ctx context.Context) error {
		if _, err := s.run(ctx, "", "postconf", append([]string{"-e"}, assigned(plan.Settings)...)...); err != nil {
			return err
		}
		_, err := s.run(ctx, "", "postfix", "check")
		return err
	}
	// An smtpd that was started meanwhile has read what was taken back, and would
	// live by it for a hundred clients more.
	undone := func(ctx context.Context) error {
		if _, err := s.run(ctx, "", "postfix", "status"); err != nil {
			return nil // none runs
		}
		_, err := s.run(ctx, "", "postfix", "reload")
		return err
	}
	if err := s.apply(ctx, "Postfix", []string{mainCF}, change, undone); err != nil {
		return err
	}
	if _, err := s.run(ctx, "", "postfix", "reload"); err != nil {
		return fmt.Errorf("%s is changed, and Postfix has still to be reloaded: %w", mainCF, err)
	}
	s.say("Postfix is reloaded.\n")
	return nil
}

func (s *setup) notes(notes []string) {
	for _, n := range notes {
		s.say("Note: %s.\n", n)
	}
}

func assigned(settings []wiring.Setting) (all []string) {
	for _, set := range settings {
		all = append(all, set.Name+"="+set.Value)
	}
	return all
}

// postconfed gives the main.cf that postconf would make.
func (s *setup) postconfed(ctx context.Context, settings []wiring.Setting) (string, error) {
	dir, err := os.MkdirTemp("", "popgate-setup-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"main.cf", "master.cf"} {
		text, err := os.ReadFile(filepath.Join(dirOf(mainCF), name))
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), text, 0o600)
		}
		if err != nil {
			return "", err
		}
	}
	if _, err := s.run(ctx, "", "postconf", append([]string{"-c", dir, "-e"}, assigned(settings)...)...); err != nil {
		return "", err
	}
	text, err := os.ReadFile(filepath.Join(dir, "main.cf"))
	return string(text), err
}

// folded writes a setting over several lines where it is long, as main.cf is
// written by hand.
func folded(set wiring.Setting) string {
	const width = 100
	var b strings.Builder
	line := set.Name + " ="
	for word := range strings.FieldsSeq(set.Value) {
		if len(line)+1+len(word) > width {
			b.WriteString(line + "\n")
			line = " "
		}
		line += " " + word
	}
	return b.String() + line
}

// sendmail prints the lines for this host's sendmail.mc, or puts them in.
func (s *setup) sendmail(ctx context.Context) error {
	old, err := os.ReadFile(sendmailMC)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: there is no sendmail here, or its macro file is elsewhere; the lines are in contrib/sendmail", sendmailMC)
	}
	if err != nil {
		return err
	}
	d := wiring.Door{Kind: s.flags.door, MTA: "sendmail", Network: "unix", Address: "/run/popgate/" + s.flags.door + ".sock", User: "root", Map: "popgate"}
	for _, l := range s.listening(s.flags.door) {
		if l.Network == "unix" {
			d.Address = l.Address
			break
		}
	}
	address := "local:" + d.Address
	edits := []edit{{path: sendmailMC, old: string(old)}}
	e := &edits[0]
	lines := ""
	if s.flags.door == wiring.Milter {
		equates := ""
		if d.Address != "/run/popgate/milter.sock" {
			equates = "S=" + address + ", T=C:10s;S:10s;R:10s;E:30s"
		}
		if e.now, err = wiring.SendmailMilter(e.old, equates); err == nil {
			var feature edit
			if feature, err = s.feature(); err == nil {
				edits = append(edits, feature)
			}
		}
	} else {
		e.now, err = wiring.SendmailMap(e.old, contrib.SendmailSocketMap, address)
		lines = strings.Replace(contrib.SendmailSocketMap, "local:/run/popgate/socketmap.sock", address, 1)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", sendmailMC, err)
	}
	if s.g.json {
		return printJSON(s.e.stdout, map[string]string{"file": sendmailMC, "difference": difference(sendmailMC, e.old, e.now)})
	}
	s.say("sendmail, %s\n", map[bool]string{true: "by the milter: popgate's rule takes the place of sendmail's own", false: "by a closed door: sendmail's own rule stays shut, and popgate opens it for one client at a time"}[s.flags.door == wiring.Milter])
	ready := s.popgateFirst(ctx, &d)
	if !s.flags.apply {
		if lines != "" {
			s.say("At the end of %s; left and right-hand sides are separated by tabs:\n\n%s", sendmailMC, lines)
		} else {
			s.say("In %s, with contrib/sendmail/feature/popgate.m4 in %s:\n\n", sendmailMC, dirOf(edits[1].path))
			s.show(edits[:1])
		}
		s.say("\nThen: make -C /etc/mail, and restart sendmail. Or have it done: popgate setup sendmail --door %s --apply\n", s.flags.door)
		return nil
	}
	return s.applySendmail(ctx, edits, ready)
}

// feature gives the edit that puts FEATURE(popgate) among sendmail's
// configuration files.
func (s *setup) feature() (edit, error) {
	for _, dir := range []string{"/usr/share/sendmail/cf/feature", "/usr/share/sendmail-cf/feature"} {
		if exists(dir) {
			path := filepath.Join(dir, "popgate.m4")
			old, err := os.ReadFile(path)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return edit{}, err
			}
			return edit{path: path, old: string(old), now: contrib.SendmailFeature}, nil
		}
	}
	return edit{}, errors.New("sendmail's configuration files were not found in /usr/share; install sendmail-cf")
}

func (s *setup) applySendmail(ctx context.Context, edits []edit, ready bool) error {
	switch {
	case !s.show(edits):
		s.say("Nothing to change: %s has these lines.\n", sendmailMC)
		return nil
	case !ready:
		return errors.New("nothing was changed: popgate first, then sendmail, or mail would have to wait")
	}
	if yes, err := s.agreed(); err != nil || !yes {
		return err
	}
	paths := []string{sendmailCF}
	for _, e := range edits {
		paths = append(paths, e.path)
	}
	if !exists(makefile) {
		if _, err := s.backup(paths[1:]...); err != nil {
			return err
		}
		for _, e := range edits {
			if err := overwrite(e.path, e.now, e.path); err != nil {
				return err
			}
		}
		s.say("%s is changed. There is no %s: make sendmail.cf of it as you did before, restart sendmail, and let `popgate check` say whether it is well.\n", sendmailMC, makefile)
		return nil
	}
	change := func(ctx context.Context) error {
		for _, e := range edits {
			if err := overwrite(e.path, e.now, e.path); err != nil {
				return err
			}
		}
		_, err := s.run(ctx, "", "make", "-C", dirOf(makefile))
		return err
	}
	if err := s.apply(ctx, "sendmail", paths, change, func(context.Context) error { return nil }); err != nil {
		return err
	}
	s.say("Now restart sendmail (systemctl restart sendmail): it reads sendmail.cf at its start only.\n")
	return nil
}
