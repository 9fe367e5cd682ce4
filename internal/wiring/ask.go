package wiring

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	gomilter "github.com/emersion/go-milter"
)

// Question is a recipient as an MTA puts it to a door.
type Question struct {
	Client netip.Addr
	Rcpt   string
	Mailer string // the MTA's, for the milter
}

// Answer is what the MTA would make of a door's answer.
type Answer struct {
	Pass bool   // the recipient is let through; at a closed door: opened for this client
	Code int    // of the reply; 0: none, the MTA's own rule decides
	Text string // as it came
}

// Ask puts a question through a door as the MTA would.
func (d *Door) Ask(ctx context.Context, q Question) (Answer, error) {
	conn, err := d.Dial(ctx)
	if err != nil {
		return Answer{}, err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(askTime))
	switch d.Kind {
	case Milter:
		return d.askMilter(conn, q)
	case Policy:
		return d.askPolicy(conn, q)
	default:
		return d.askMap(conn, q)
	}
}

// made hands go-milter's client a connection that is there already.
type made struct{ conn net.Conn }

func (m made) Dial(string, string) (net.Conn, error) { return m.conn, nil }

func (d *Door) askMilter(conn net.Conn, q Question) (Answer, error) {
	c := gomilter.NewClientWithOptions(d.Network, d.Address, gomilter.ClientOptions{
		Dialer: made{conn}, ReadTimeout: askTime, WriteTimeout: askTime,
		ActionMask: gomilter.OptAddHeader | gomilter.OptAddRcpt, ProtocolMask: gomilter.OptNoBody | gomilter.OptNoHeaders | gomilter.OptNoEOH,
	})
	defer c.Close()
	s, err := c.Session()
	if err != nil {
		return Answer{}, err
	}
	defer s.Close()
	version := d.Version
	if d.MTA == "Postfix" {
		version = "Postfix " + version
	}
	host := q.Rcpt[strings.LastIndexByte(q.Rcpt, '@')+1:]
	family := gomilter.FamilyInet
	if q.Client.Is6() {
		family = gomilter.FamilyInet6
	}
	steps := []func() (*gomilter.Action, error){
		func() (*gomilter.Action, error) {
			if err := s.Macros(gomilter.CodeConn, "v", version); err != nil {
				return nil, err
			}
			return s.Conn("["+q.Client.String()+"]", family, 25000, q.Client.String())
		},
		func() (*gomilter.Action, error) { return s.Helo("popgate-check.invalid") },
		func() (*gomilter.Action, error) { return s.Mail("popgate-check@example.com", nil) },
		func() (*gomilter.Action, error) {
			if err := s.Macros(gomilter.CodeRcpt, "{rcpt_mailer}", q.Mailer, "{rcpt_host}", host, "{rcpt_addr}", q.Rcpt, "{client_addr}", q.Client.String(), "v", version); err != nil {
				return nil, err
			}
			return s.Rcpt(q.Rcpt, nil)
		},
	}
	var a *gomilter.Action
	for _, step := range steps {
		if a, err = step(); err != nil {
			return Answer{}, err
		}
		switch a.Code {
		case gomilter.ActContinue:
		case gomilter.ActAccept:
			return Answer{Pass: true, Text: "accept"}, nil
		case gomilter.ActReplyCode:
			return Answer{Code: a.SMTPCode, Text: fmt.Sprintf("%d %s", a.SMTPCode, a.SMTPText)}, nil
		default:
			return Answer{Code: 550, Text: fmt.Sprintf("milter action %q", rune(a.Code))}, nil
		}
	}
	return Answer{Pass: true, Text: "continue"}, nil
}

func (d *Door) askPolicy(conn net.Conn, q Question) (Answer, error) {
	if _, err := fmt.Fprintf(conn, "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nhelo_name=popgate-check.invalid\nqueue_id=\nsender=popgate-check@example.com\nrecipient=%s\nrecipient_count=0\nclient_address=%s\nclient_name=unknown\nreverse_client_name=unknown\ninstance=check.%d\n\n",
		q.Rcpt, q.Client, time.Now().UnixNano()); err != nil {
		return Answer{}, err
	}
	line, err := bufio.NewReader(io.LimitReader(conn, 4096)).ReadString('\n')
	if err != nil {
		return Answer{}, err
	}
	action, ok := strings.CutPrefix(strings.TrimSpace(line), "action=")
	if !ok {
		return Answer{}, fmt.Errorf("answer %q is no action", strings.TrimSpace(line))
	}
	word, _, _ := strings.Cut(action, " ")
	code, _ := strconv.Atoi(word)
	switch strings.ToUpper(word) {
	case "REJECT":
		code = 554
	case "DEFER", "DEFER_IF_PERMIT":
		code = 451
	}
	pass := strings.EqualFold(word, "OK") || strings.EqualFold(word, "PERMIT") || code/100 == 2
	return Answer{Pass: pass, Code: code, Text: action}, nil
}

func (d *Door) askMap(conn net.Conn, q Question) (Answer, error) {
	client := q.Client.String()
	if d.MTA == "sendmail" && q.Client.Is6() {
		client = "IPv6:" + q.Client.String()
	}
	question := d.Map + " " + client
	if _, err := fmt.Fprintf(conn, "%d:%s,", len(question), question); err != nil {
		return Answer{}, err
	}
	r := bufio.NewReader(io.LimitReader(conn, 4096))
	length, err := r.ReadString(':')
	if err != nil {
		return Answer{}, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, ":"))
	if err != nil || n < 0 || n > 4000 {
		return Answer{}, fmt.Errorf("answer %q is no netstring", length)
	}
	text := make([]byte, n)
	if _, err := io.ReadFull(r, text); err != nil {
		return Answer{}, err
	}
	a := Answer{Text: strings.TrimSpace(string(text))}
	switch word, _, _ := strings.Cut(a.Text, " "); word {
	case "OK":
		a.Pass = true
	case "NOTFOUND":
	default: // TEMP, TIMEOUT, PERM
		a.Code = 451
	}
	return a, nil
}
