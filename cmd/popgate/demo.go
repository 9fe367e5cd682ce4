package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	gomilter "github.com/emersion/go-milter"
	"github.com/spf13/cobra"

	"popgate/contrib"
	"popgate/internal/control"
)

func newDemo(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "demo",
		Short: "Tell the whole story in seconds, without root and without an MTA",
		Long: "demo runs the daemon on a configuration of its own in a temporary directory, with its real\n" +
			"milter listener, log watcher and state. A milter client plays the MTA, lines written to a log\n" +
			"play the POP/IMAP server.",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := context.WithTimeout(c.Context(), 30*time.Second)
			defer stop()
			if err := runDemo(ctx, e); err != nil {
				return failWith(exitNo, fmt.Errorf("demo: %w", err))
			}
			return nil
		},
	}
}

// The cast, all from the ranges kept for documentation (RFC 5737).
const (
	demoCopier   = "198.51.100.7"
	demoOther    = "198.51.100.8"
	demoStranger = "203.0.113.9"
	demoForged   = "203.0.113.66"
	demoRemote   = "customer@remote.test"
	demoLocal    = "alice@example.org"
)

const demoConfig = `listen:
  milter: [unix:%[1]s/milter.sock]
  control: unix:%[1]s/control.sock
mta: postfix
local_domains: [example.org]
local_domains_from: none
sources:
  - file: %[1]s/mail.log
    format: dovecot
state_dir: %[1]s/state
wait_for_login: 100ms
`

// demo is the stage: a running daemon, its log and its socket.
type demo struct {
	e       *env
	dir     string
	control *control.Client
	step    int
	failed  int
}

func runDemo(ctx context.Context, e *env) (err error) {
	dir, err := os.MkdirTemp("", "popgate-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	d := &demo{e: e, dir: dir, control: control.NewClient(filepath.Join(dir, "control.sock"))}
	if err := os.WriteFile(d.path("milter.yaml"), fmt.Appendf(nil, demoConfig, dir), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(d.path("mail.log"), nil, 0o600); err != nil {
		return err
	}
	ctx, stop := context.WithCancel(ctx)
	var daemonLog lockedBuffer
	ready, ended := make(chan struct{}), make(chan int, 1)
	go func() {
		ended <- run(ctx, []string{"serve", "-c", d.path("milter.yaml")}, env{
			stdin: strings.NewReader(""), stdout: &daemonLog, stderr: &daemonLog, now: e.now, storeFault: e.storeFault,
			hangup: make(chan os.Signal), ready: func() { close(ready) },
		})
	}()
	defer func() {
		stop()
		if code := <-ended; code != 0 && err == nil {
			err = fmt.Errorf("the daemon ended with exit code %d: %s", code, daemonLog.String())
		}
	}()
	select {
	case <-ready:
	case code := <-ended:
		ended <- code
		return fmt.Errorf("the daemon did not start: %s", daemonLog.String())
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := d.story(ctx); err != nil {
		return fmt.Errorf("%w\nthe daemon's log:\n%s", err, daemonLog.String())
	}
	if d.failed > 0 {
		return fmt.Errorf("%d of %d answers were not as they should be; the daemon's log:\n%s", d.failed, d.step, daemonLog.String())
	}
	howTo(e.stdout)
	return nil
}

func (d *demo) path(name string) string { return filepath.Join(d.dir, name) }

func (d *demo) say(format string, a ...any) { fmt.Fprintf(d.e.stdout, format+"\n", a...) }

// story plays the acts.
func (d *demo) story(ctx context.Context) error {
	if err := d.untilUp(ctx); err != nil {
		return err
	}
	d.say("popgate serves a milter for a site with the domain example.org; a POP server logs to a file.\n")
	acts := []func(context.Context) error{d.stranger, d.login, d.forgery, d.revocation, d.expiry}
	for _, act := range acts {
		if err := act(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) stranger(context.Context) error {
	return errors.Join(
		d.expect("a stranger sends to another site", demoStranger, demoRemote, false),
		d.expect("a stranger sends to this site", demoStranger, demoLocal, true),
		d.expect("a copier that has not fetched mail sends to another site", demoCopier, demoRemote, false),
	)
}

func (d *demo) login(ctx context.Context) error {
	if err := d.log("pop3-login: Login: user=<copier>, method=PLAIN, rip=" + demoCopier + ", lip=192.0.2.1, mpid=4711, TLS, session=<ZGVtbzE>"); err != nil {
		return err
	}
	if err := d.untilGranted(ctx, demoCopier); err != nil {
		return err
	}
	return errors.Join(
		d.expect("the copier has logged in to POP and sends again", demoCopier, demoRemote, true),
		d.expect("another address sends to another site", demoOther, demoRemote, false),
	)
}

// forgery writes what a stranger without a password can put into a log.
func (d *demo) forgery(ctx context.Context) error {
	const login = "pop3-login: Login: user=<victim>, method=PLAIN, rip=" + demoForged + ", lip=192.0.2.1, mpid=1, session=<eA>"
	err := errors.Join(
		d.log("pop3-login: Disconnected: Aborted login (auth failed, 1 attempts in 2 secs): user=<x>, rip="+demoForged+", lip=192.0.2.1>, method=PLAIN, rip="+demoStranger+", lip=192.0.2.1, session=<eQ>"),
		d.log("auth: passwd-file(x,"+demoStranger+",<eQ>): Password mismatch (given password: "+login+")"),
		d.log(login+"\x23012 trailing text"),
	)
	if err != nil {
		return err
	}
	if err := d.untilRead(ctx); err != nil {
		return err
	}
	return d.expect("a stranger has forged three log lines and sends", demoForged, demoRemote, false)
}

func (d *demo) revocation(ctx context.Context) error {
	client := netip.MustParseAddr(demoCopier)
	if _, err := d.control.Revoke(ctx, control.RevokeRequest{Network: netip.PrefixFrom(client, 32)}); err != nil {
		return err
	}
	return d.expect("`popgate revoke "+demoCopier+"`, and the copier sends again", demoCopier, demoRemote, false)
}

func (d *demo) expiry(ctx context.Context) error {
	client := netip.MustParseAddr(demoOther)
	g, err := d.control.Grant(ctx, control.GrantRequest{Client: client, TTL: time.Second, Note: "demo"})
	if err != nil {
		return err
	}
	if err := d.expect("`popgate grant --ttl 1s "+demoOther+"`, and it sends", demoOther, demoRemote, true); err != nil {
		return err
	}
	timer := time.NewTimer(time.Until(g.Expires) + 20*time.Millisecond)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return ctx.Err()
	}
	return d.expect("a second later its grant has expired", demoOther, demoRemote, false)
}

// log appends a line as Dovecot writes it through syslog.
func (d *demo) log(message string) error {
	f, err := os.OpenFile(d.path("mail.log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%s mx1 dovecot: %s\n", time.Now().Format(time.Stamp), message)
	return errors.Join(err, f.Close())
}

// expect asks as Postfix would and prints the answer.
func (d *demo) expect(what, client, rcpt string, pass bool) error {
	answer, ok, err := d.ask(client, rcpt)
	if err != nil {
		return err
	}
	d.step++
	mark := "  "
	if ok != pass {
		d.failed++
		mark = "!!"
	}
	d.say("%2d. %s\n    %s -> %s\n %s %s\n", d.step, what, client, rcpt, mark, answer)
	return nil
}

// ask is one SMTP session in an MTA: it gives what the client would read.
func (d *demo) ask(client, rcpt string) (answer string, ok bool, err error) {
	// Masks within version 2 of the protocol, which is what go-milter serves.
	c := gomilter.NewClientWithOptions("unix", d.path("milter.sock"), gomilter.ClientOptions{
		ReadTimeout: 10 * time.Second, WriteTimeout: 10 * time.Second,
		ActionMask: gomilter.OptAddHeader | gomilter.OptAddRcpt, ProtocolMask: gomilter.OptNoBody | gomilter.OptNoHeaders | gomilter.OptNoEOH,
	})
	defer c.Close()
	s, err := c.Session()
	if err != nil {
		return "", false, err
	}
	defer s.Close()
	mailer, domain := "smtp", rcpt[strings.LastIndexByte(rcpt, '@')+1:]
	if rcpt == demoLocal {
		mailer = "local"
	}
	steps := []func() (*gomilter.Action, error){
		func() (*gomilter.Action, error) {
			if err := s.Macros(gomilter.CodeConn, "v", "Postfix 3.7.11"); err != nil {
				return nil, err
			}
			return s.Conn("client.test", gomilter.FamilyInet, 25000, client)
		},
		func() (*gomilter.Action, error) { return s.Helo("client.test") },
		func() (*gomilter.Action, error) { return s.Mail("sender@client.test", nil) },
		func() (*gomilter.Action, error) {
			if err := s.Macros(gomilter.CodeRcpt, "{rcpt_mailer}", mailer, "{rcpt_host}", domain, "{rcpt_addr}", rcpt); err != nil {
				return nil, err
			}
			return s.Rcpt(rcpt, nil)
		},
	}
	var a *gomilter.Action
	for _, step := range steps {
		if a, err = step(); err != nil {
			return "", false, err
		}
	}
	if a.Code == gomilter.ActContinue {
		return "250 accepted", true, nil
	}
	return fmt.Sprintf("%d %s", a.SMTPCode, a.SMTPText), false, nil
}

// until asks until the answer is yes.
func (d *demo) until(ctx context.Context, what string, yes func() bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !yes() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, ctx.Err())
		}
	}
	return nil
}

func (d *demo) source(ctx context.Context) control.Source {
	st, err := d.control.Status(ctx)
	if err != nil || len(st.Sources) == 0 {
		return control.Source{}
	}
	return st.Sources[0]
}

func (d *demo) untilUp(ctx context.Context) error {
	return d.until(ctx, "the log is read", func() bool { return d.source(ctx).State == "up" })
}

func (d *demo) untilGranted(ctx context.Context, client string) error {
	a := netip.MustParseAddr(client)
	return d.until(ctx, client+" has a grant", func() bool {
		_, err := d.control.Show(ctx, a)
		return err == nil
	})
}

func (d *demo) untilRead(ctx context.Context) error {
	log, err := os.ReadFile(d.path("mail.log"))
	if err != nil {
		return err
	}
	lines := uint64(bytes.Count(log, []byte("\n")))
	return d.until(ctx, "every line is read", func() bool { return d.source(ctx).Lines >= lines })
}

// lockedBuffer keeps the daemon's log for the case that something goes wrong.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	demoPostfix = `All answers were as they should be. To do this with a real MTA:

Postfix, /etc/postfix/main.cf (the relay rule shuts itself when the milter line goes):

`
	demoChroot = `
  The path is below /var/spool/postfix, because Debian's smtpd is chrooted: have popgate listen on
  unix:/var/spool/postfix/popgate/milter.sock with socket_group: postfix.

sendmail, /etc/mail/sendmail.mc (never one line without the other: the second alone is an open relay):

`
)

// howTo prints the lines for the MTAs.
func howTo(w io.Writer) {
	fmt.Fprint(w, demoPostfix, indent(contrib.PostfixMilter), demoChroot, indent(contrib.SendmailMilter))
}

func indent(text string) string {
	return "    " + strings.ReplaceAll(strings.TrimSuffix(text, "\n"), "\n", "\n    ") + "\n"
}
