package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/coreos/go-systemd/v22/activation"

	"popgate/internal/config"
	"popgate/internal/listen"
)

type openListener struct {
	net.Listener
	name string // milter, policy, socketmap, control, metrics, push
	text string // as the configuration has it
}

// openListeners opens every listener, or none. Sockets handed over by systemd
// take the place of the configured ones of the same name.
func openListeners(e *env, cfg *config.Config) ([]openListener, error) {
	handed := e.listeners
	if handed == nil {
		var err error
		if handed, err = activation.ListenersWithNames(); err != nil {
			return nil, fmt.Errorf("sockets handed over by systemd: %w", err)
		}
	}
	var open []openListener
	fail := func(err error) ([]openListener, error) {
		for _, l := range open {
			l.Close()
		}
		return nil, err
	}
	add := func(name string, mode fs.FileMode, group string, addresses ...config.Address) error {
		if ls := handed[name]; len(ls) > 0 {
			for _, l := range ls {
				open = append(open, openListener{l, name, l.Addr().String()})
			}
			return nil
		}
		for _, a := range addresses {
			l, err := listenOn(a, mode, group)
			if err != nil {
				return fmt.Errorf("listen.%s: %s: %w", name, a, err)
			}
			open = append(open, openListener{l, name, a.String()})
		}
		return nil
	}
	for _, door := range []struct {
		name      string
		addresses []config.Address
	}{{"milter", cfg.Listen.Milter}, {"policy", cfg.Listen.Policy}, {"socketmap", cfg.Listen.Socketmap}} {
		if err := add(door.name, cfg.SocketMode, cfg.SocketGroup, door.addresses...); err != nil {
			return fail(err)
		}
	}
	// Whoever may connect is judged by the kernel's word, not by the mode.
	if err := add("control", 0o666, "", cfg.Listen.Control); err != nil {
		return fail(err)
	}
	if len(handed["metrics"]) > 0 || !cfg.Listen.Metrics.IsZero() {
		if err := add("metrics", cfg.SocketMode, cfg.SocketGroup, cfg.Listen.Metrics); err != nil {
			return fail(err)
		}
	}
	if len(handed["push"]) > 0 || !cfg.Listen.Push.IsZero() {
		if err := add("push", cfg.SocketMode, cfg.SocketGroup, cfg.Listen.Push); err != nil {
			return fail(err)
		}
	}
	for _, l := range open {
		if l.name != "push" {
			continue
		}
		if err := scriptsOnly(l); err != nil {
			return fail(err)
		}
	}
	return open, nil
}

// overruled names the addresses that listen says and nobody opens, since systemd
// hands over sockets of that name. The defaults, which nobody wrote, are left out.
func overruled(cfg *config.Config, open []openListener) (keys []string) {
	usual := config.Default().Listen
	for _, k := range []struct {
		name         string
		asked, usual []config.Address
	}{
		{"milter", cfg.Listen.Milter, usual.Milter},
		{"policy", cfg.Listen.Policy, nil},
		{"socketmap", cfg.Listen.Socketmap, nil},
		{"control", []config.Address{cfg.Listen.Control}, []config.Address{usual.Control}},
		{"metrics", []config.Address{cfg.Listen.Metrics}, []config.Address{usual.Metrics}},
		{"push", []config.Address{cfg.Listen.Push}, []config.Address{usual.Push}},
	} {
		for _, a := range k.asked {
			if !slices.Contains(k.usual, a) && !slices.ContainsFunc(open, func(l openListener) bool { return l.name == k.name && (l.text == a.Text || l.text == a.Address) }) {
				keys = append(keys, "listen."+k.name+": "+a.String())
			}
		}
	}
	return keys
}

// scriptsOnly holds that a socket for `popgate login` is one only those can
// write to whom its mode names: whoever can, can have any address granted.
// systemd makes sockets that everybody can write to unless it is told otherwise.
func scriptsOnly(l openListener) error {
	path := l.Addr().String()
	info, err := os.Stat(path)
	switch {
	case l.Addr().Network() != "unix" || err != nil:
		return fmt.Errorf("listen.push: %s is no unix socket with a path; in the systemd socket unit, write ListenStream=/run/popgate/push.sock", l.text)
	case info.Mode().Perm()&0o007 != 0:
		return fmt.Errorf("listen.push: %s has mode %04o, so that everybody could grant himself a relay; in the systemd socket unit, write SocketMode=0660", l.text, info.Mode().Perm())
	}
	return nil
}

func listenOn(a config.Address, mode fs.FileMode, group string) (net.Listener, error) {
	if a.Network != "unix" {
		return net.Listen(a.Network, a.Address)
	}
	// The last directory is made, as /run is empty after a boot; a misspelt path
	// is not.
	switch err := os.Mkdir(filepath.Dir(a.Address), 0o755); {
	case errors.Is(err, fs.ErrExist):
	case err != nil:
		return nil, err
	default: // the MTA's user must get through, whatever the umask says
		if err := os.Chmod(filepath.Dir(a.Address), 0o755); err != nil {
			return nil, err
		}
	}
	if err := listen.ClearSocket(a.Address); err != nil {
		return nil, err
	}
	// The socket is made with no rights and opened up when it is as it should
	// be, so that nobody connects in between.
	old := syscall.Umask(0o777)
	l, err := listen.ListenUnix(a.Address)
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	if group != "" {
		if err := chgrp(a.Address, group); err != nil {
			l.Close()
			return nil, err
		}
	}
	if err := os.Chmod(a.Address, mode); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// lookupGroup finds a group of this host.
func lookupGroup(name string) (*user.Group, error) {
	g, err := user.LookupGroup(name)
	if errors.As(err, new(user.UnknownGroupError)) {
		err = fmt.Errorf("this host has no group %s; install first what makes it, such as Postfix, or name a group that exists", name)
	}
	return g, err
}

func chgrp(path, name string) error {
	g, err := lookupGroup(name)
	if err != nil {
		return fmt.Errorf("socket_group: %w", err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return fmt.Errorf("socket_group: group id %q: %w", g.Gid, err)
	}
	if err := os.Chown(path, -1, gid); err != nil {
		return fmt.Errorf("socket_group: %w; popgate's user must be a member of group %s", err, name)
	}
	return nil
}

// mayConnect says which addresses may connect to a TCP listener: loopback, and
// what listen.allow names.
func mayConnect(allow []netip.Prefix) func(netip.Addr) bool {
	return func(a netip.Addr) bool {
		a = a.Unmap()
		if a.IsLoopback() {
			return true
		}
		for _, p := range allow {
			if p.Contains(a) {
				return true
			}
		}
		return false
	}
}

// readGroup is the id of control_group as it is configured now, or -1.
func (d *daemon) readGroup() int {
	name := d.config.Load().ControlGroup
	if name == "" {
		return -1
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return -1
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return -1
	}
	return gid
}

// checkReadGroup warns of a control_group that this host doesn't have.
func (d *daemon) checkReadGroup() {
	if name := d.config.Load().ControlGroup; name != "" && d.readGroup() < 0 {
		d.log.Warn("control_group is unknown on this host: only root and popgate's own user may use the control socket", "control_group", name)
	}
}
