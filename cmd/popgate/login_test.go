package main

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// scripted is a site with a socket for `popgate login`.
func scripted(t *testing.T, more string) *site {
	t.Helper()
	s := newSite(t)
	config := strings.Replace(fmt.Sprintf(siteConfig, s.dir), "listen:\n", fmt.Sprintf("listen:\n  push: unix:%s/push.sock\n", s.dir), 1)
	s.write("milter.yaml", config+more)
	return s
}

func TestLoginToldByAScript(t *testing.T) {
	s := scripted(t, "services: [imap]\nignore_users: [root]\nnever_grant: [198.51.100.128/25]\n")
	s.start()
	for _, tt := range []struct {
		name string
		code int
		text string
		args []string
	}{
		{"told", 0, "", []string{"198.51.100.7", "--user", "al ice", "--service", "imaps", "--session", "x"}},
		{"a user that begins like a flag", 0, "", []string{"198.51.100.8", "--user=--force", "--service", "imap"}},
		{"socket named", 0, "", []string{"198.51.100.9", "--user", "bob", "--service", "imap", "--socket", "unix:" + s.dir + "/push.sock"}},
		{"told what grants nothing: service", 0, "", []string{"198.51.100.21", "--user", "bob", "--service", "pop3"}},
		{"told what grants nothing: user", 0, "", []string{"198.51.100.22", "--user", "root", "--service", "imap"}},
		{"told what grants nothing: never_grant", 0, "", []string{"198.51.100.129", "--user", "bob", "--service", "imap"}},
		{"told what grants nothing: loopback", 0, "", []string{"127.0.0.9", "--user", "bob", "--service", "imap"}},
		{"no client", 2, "wrong number of arguments", []string{"--user", "bob", "--service", "imap"}},
		{"no address", 2, "no full IPv4 or IPv6 address", []string{"copier", "--user", "bob", "--service", "imap"}},
		{"network", 2, "no full IPv4 or IPv6 address", []string{"0.0.0.0/0", "--user", "bob", "--service", "imap"}},
		{"no user", 2, "user is missing", []string{"198.51.100.23", "--service", "imap"}},
		{"anonymous", 2, "nobody", []string{"198.51.100.23", "--user", "anonymous", "--service", "imap"}},
		{"no service", 2, "none of pop3, imap", []string{"198.51.100.23", "--user", "bob"}},
		{"another socket of popgate's", 3, "milter.sock: daemon not reachable: ", []string{"198.51.100.23", "--user", "bob", "--service", "imap", "--socket", s.dir + "/milter.sock"}},
	} {
		s.t = t
		t.Run(tt.name, func(t *testing.T) {
			out, errs, code := s.run(append([]string{"login"}, tt.args...)...)
			if code != tt.code || !strings.Contains(out+errs, tt.text) || code == 0 && out+errs != "" {
				t.Errorf("exit %d, want %d with %q\n%s%s", code, tt.code, tt.text, out, errs)
			}
		})
	}
	s.login("198.51.100.7") // in the log as well
	s.until("the logins grant", func() bool {
		_, _, a := s.run("show", "198.51.100.8")
		_, _, b := s.run("show", "198.51.100.9")
		return a == 0 && b == 0
	})
	for _, client := range []string{"198.51.100.21", "198.51.100.22", "198.51.100.23", "198.51.100.129", "127.0.0.9"} {
		s.want(1, "has no grant", "show", client)
	}
	s.want(0, "push:unix:"+s.dir+"/push.sock", "show", "198.51.100.9")
	// The socket stays as it is, whatever becomes of the sources.
	s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), "mail.log", "other.log", 1))
	s.write("other.log", "")
	s.must("reload")
	s.must("login", "198.51.100.10", "--user", "bob", "--service", "imap")
	s.until("the login after the reload grants", func() bool { _, _, code := s.run("show", "198.51.100.10"); return code == 0 })
	s.end()
	s.want(3, "push.sock: daemon not reachable: ", "login", "198.51.100.7", "--user", "bob", "--service", "imap")
}

func (s *site) read(name string) string {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return string(b)
}

func TestLoginWithoutASocketSaysWhatToWrite(t *testing.T) {
	s := newSite(t)
	s.want(4, "listen.push is off", "login", "198.51.100.7", "--user", "bob", "--service", "imap")
	os.Remove(s.config)
	s.want(4, "name the socket of listen.push with --socket", "login", "198.51.100.7", "--user", "bob", "--service", "imap")
}

// Whoever can write to the socket can have any address granted, and systemd
// makes sockets for everybody unless told otherwise.
func TestASocketForEverybodyTakesNoLogins(t *testing.T) {
	for name, listen := range map[string]func(s *site) (net.Listener, error){
		"mode 0666": func(s *site) (net.Listener, error) {
			l, err := net.Listen("unix", s.dir+"/push.sock")
			if err != nil {
				return nil, err
			}
			return l, os.Chmod(s.dir+"/push.sock", 0o666)
		},
		"TCP":      func(*site) (net.Listener, error) { return net.Listen("tcp", "127.0.0.1:0") },
		"abstract": func(s *site) (net.Listener, error) { return net.Listen("unix", "@"+s.dir) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			l, err := listen(s)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			e := s.daemonEnv()
			e.listeners = map[string][]net.Listener{"push": {l}}
			if code := run(t.Context(), []string{"serve", "-c", s.config}, e); code != exitNo || !strings.Contains(s.log.String(), "listen.push: ") {
				t.Errorf("exit %d, want %d and the reason: %s", code, exitNo, s.log.String())
			}
		})
	}
}

func TestASourceCantTakeTheNameOfTheSocket(t *testing.T) {
	s := scripted(t, "")
	s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), "format: dovecot}", fmt.Sprintf("format: dovecot, name: \"push:unix:%s/push.sock\"}", s.dir), 1))
	s.want(4, "is what the socket of listen.push is called", "serve")
}

func TestCheckLooksAtTheKeyFileOfAPushSource(t *testing.T) {
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := fmt.Sprintf("{file: %s/mail.log, format: dovecot}", s.dir)
	s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), file, fmt.Sprintf("{push: %q, format: dovecot, key_file: %s/key}", l.Addr(), s.dir), 1))
	s.want(1, "key: no such file; make it with", "check")
	s.write("key", "0123456789abcdef0123456789abcdef\n")
	s.want(0, "in use; by a running popgate", "check")
	os.Chmod(filepath.Join(s.dir, "key"), 0o644)
	s.want(1, "has mode 0644, so that others can read it", "check")
	os.Chmod(filepath.Join(s.dir, "key"), 0o600)
	s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), "{push: \"127.0.0.1:", "{insecure: true, allow: [192.0.2.0/24], push: \"0.0.0.0:", 1))
	s.want(0, "comes over the network in the clear", "check")
}

// The key file is right for popgate's user, not for the root who runs check.
func TestCheckByRootLooksAtTheKeyFileForPopgatesUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to give files away")
	}
	const popgate = 4711
	s := newSite(t)
	key, state := filepath.Join(s.dir, "key"), filepath.Join(s.dir, "state")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := fmt.Sprintf("{file: %s/mail.log, format: dovecot}", s.dir)
	s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), file, fmt.Sprintf("{push: %q, format: dovecot, key_file: %s}", l.Addr(), key), 1))
	s.write("key", "0123456789abcdef0123456789abcdef\n")
	if err := errors.Join(os.Chmod(key, 0o400), os.MkdirAll(state, 0o700), os.Chown(state, popgate, popgate), os.Chown(key, popgate, popgate)); err != nil {
		t.Fatal(err)
	}
	s.want(0, "ok    source push:127.0.0.1:", "check")
	os.Chown(key, 0, 0)
	s.want(1, "key: permission denied; it must belong to popgate's user", "check")
	os.Chown(key, popgate+1, 0)
	s.want(1, "key belongs to uid 4712", "check")
}

// A Dovecot with the wrong address or secret must not look like a quiet night.
func TestStatusSaysThatNobodyReportsAndWhoIsTurnedAway(t *testing.T) {
	s := newSite(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	file := fmt.Sprintf("{file: %s/mail.log, format: dovecot}", s.dir)
	s.write("milter.yaml", strings.Replace(s.read("milter.yaml"), file, fmt.Sprintf("{push: %q, format: dovecot, key_file: %s/key}", address, s.dir), 1))
	s.write("key", "0123456789abcdef0123456789abcdef\n")
	s.start()
	s.until("it is up", func() bool { out, _, _ := s.run("status"); return strings.Contains(out, ": up, 0 lines") })
	s.want(0, "nobody has told of a login yet; does Dovecot's auth_policy_server_url", "status")
	answer, err := http.Post("http://"+address+"/?command=report", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	s.until("status tells of it", func() bool {
		out, _, _ := s.run("status")
		return strings.Contains(out, "turned away 1 time, the last: report from 127.0.0.1:") && strings.Contains(out, "no secret; set auth_policy_server_api_header")
	})
}
