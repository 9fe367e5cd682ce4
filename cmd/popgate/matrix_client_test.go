package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// outcome is what the MTA makes of a recipient after it has asked at a door, or
// could not. A set of them is their sum.
type outcome uint8

const (
	taken    outcome = 1 << iota
	later            // popgate answered with a temporary failure
	silent           // no answer: the MTA makes a temporary failure of it
	refused          // for good
	notAsked         // the MTA decides before it comes to popgate
)

func (o outcome) String() string {
	var words []string
	for _, w := range [...]struct {
		o    outcome
		text string
	}{{taken, "taken"}, {later, "4xx"}, {silent, "4xx, no answer"}, {refused, "5xx"}, {notAsked, "not asked"}} {
		if o&w.o != 0 {
			words = append(words, w.text)
		}
	}
	return strings.Join(words, " or ")
}

// question is one recipient as an MTA asks about it.
type question struct {
	client        netip.Addr
	recipient     string
	authenticated bool
	asked         func() // called when the question is on its way
}

// door is a way in which an MTA asks.
type door struct {
	name  string
	asks  func(client) bool // whether the MTA, configured as we ship it, comes to popgate about this client
	speak func(c net.Conn, q *question) (outcome, error)
}

// ask has a door asked, and gives what the MTA makes of it. An error is an
// answer that no MTA would understand.
func (d *door) ask(dir string, patience time.Duration, q *question) (outcome, error) {
	c, err := net.DialTimeout("unix", filepath.Join(dir, d.name+".sock"), patience)
	if err != nil {
		q.asked()
		return silent, nil
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return silent, err
	}
	o, err := d.speak(c, q)
	if _, ok := errors.AsType[answerError](err); err != nil && !ok {
		return silent, nil // cut short, or too late
	}
	return o, err
}

// answerError is an answer that breaks the protocol.
type answerError string

func (e answerError) Error() string { return string(e) }

// code reads a reply code.
func code(text string) (outcome, error) {
	switch {
	case len(text) < 4 || text[3] != ' ':
	case text[0] == '4':
		return later, nil
	case text[0] == '5':
		return refused, nil
	}
	return 0, answerError(fmt.Sprintf("reply %q", text))
}

// speakMilter is a session as Postfix leads it, up to the answer to RCPT.
func speakMilter(c net.Conn, q *question) (outcome, error) {
	r := bufio.NewReader(c)
	nul := func(words ...string) string { return strings.Join(words, "\x00") + "\x00" }
	family := "4"
	if q.client.Is6() {
		family = "6"
	}
	domain := q.recipient[strings.LastIndexByte(q.recipient, '@')+1:]
	auth := ""
	if q.authenticated {
		auth = nul("{auth_type}", "PLAIN", "{auth_authen}", "bob")
	}
	for _, step := range []struct{ macros, packet string }{
		{"", "O\x00\x00\x00\x06\x00\x00\x01\xff\x00\x1f\xff\xff"},
		{"C" + nul("j", "mx.test", "v", "Postfix 3.7.11"), "C" + nul("client.test") + family + "\x61\xa8" + nul(q.client.String())},
		{"", "H" + nul("client.test")},
		{"M" + nul("i", "4Bq1x2") + auth, "M" + nul("<sender@client.test>")},
		// The mailer is the one that proves nothing local: the domain must.
		{"R" + nul("i", "4Bq1x2", "{rcpt_mailer}", "smtp", "{rcpt_host}", domain, "{rcpt_addr}", q.recipient) + auth, "R" + nul("<"+q.recipient+">")},
	} {
		var out []byte
		if step.macros != "" {
			out = appendPacket(out, "D"+step.macros)
		}
		if _, err := c.Write(appendPacket(out, step.packet)); err != nil {
			return silent, err
		}
		if step.packet[0] == 'R' {
			q.asked()
		}
		reply, err := readPacket(r)
		if err != nil {
			return silent, err
		}
		switch {
		case step.packet[0] == 'O' && reply[0] == 'O':
		case step.packet[0] == 'R' && reply[0] == 'c':
			return taken, nil
		case step.packet[0] == 'R' && reply[0] == 'y':
			return code(strings.TrimSuffix(reply[1:], "\x00"))
		case reply == "c":
		default:
			return 0, answerError(fmt.Sprintf("packet %q to %q", reply, step.packet))
		}
	}
	return 0, answerError("no answer to the recipient")
}

func appendPacket(to []byte, packet string) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(packet))), packet...)
}

func readPacket(r io.Reader) (string, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return "", err
	}
	n := binary.BigEndian.Uint32(length[:])
	if n == 0 || n > 1<<16 {
		return "", answerError(fmt.Sprintf("a packet of %d bytes", n))
	}
	packet := make([]byte, n)
	_, err := io.ReadFull(r, packet)
	return string(packet), err
}

// speakPolicy asks as Postfix's smtpd does. Behind the question stands
// reject_unauth_destination, which a DUNNO leaves the recipient to.
func speakPolicy(c net.Conn, q *question) (outcome, error) {
	method, user := "", ""
	if q.authenticated {
		method, user = "PLAIN", "bob"
	}
	_, err := fmt.Fprintf(c, "request=smtpd_access_policy\nprotocol_state=RCPT\nprotocol_name=ESMTP\nclient_address=%s\nclient_name=unknown\n"+
		"client_port=25000\nhelo_name=client.test\nsender=sender@client.test\nrecipient=%s\nrecipient_count=0\nqueue_id=\ninstance=1.2.%s\n"+
		"sasl_method=%s\nsasl_username=%s\nsasl_sender=\nsize=0\n\n", q.client, q.recipient, q.client, method, user)
	if err != nil {
		return silent, err
	}
	q.asked()
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if err != nil {
		return silent, err
	}
	end, err := r.ReadString('\n')
	if err != nil {
		return silent, err
	}
	action, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "action=")
	switch {
	case !ok || end != "\n":
		return 0, answerError(fmt.Sprintf("policy answer %q", line+end))
	case action == "OK":
		return taken, nil
	case action == "DUNNO":
		return refused, nil
	}
	return code(action)
}

// speakSocketMap asks as sendmail does. What is not found is left to sendmail's
// own relay rule.
func speakSocketMap(c net.Conn, q *question) (outcome, error) {
	key := "popgate " + q.client.String()
	if q.client.Is6() {
		key = "popgate IPv6:" + sendmailSpelling(q.client)
	}
	if _, err := fmt.Fprintf(c, "%d:%s,", len(key), key); err != nil {
		return silent, err
	}
	q.asked()
	r := bufio.NewReader(c)
	length, err := r.ReadString(':')
	if err != nil {
		return silent, err
	}
	n, err := strconv.Atoi(strings.TrimSuffix(length, ":"))
	if err != nil || n < 0 || n > 1000 {
		return 0, answerError(fmt.Sprintf("netstring of length %q", length))
	}
	answer := make([]byte, n+1)
	if _, err := io.ReadFull(r, answer); err != nil {
		return silent, err
	}
	switch status, _, _ := strings.Cut(string(answer[:n]), " "); {
	case answer[n] != ',':
	case string(answer[:n]) == "OK RELAY":
		return taken, nil
	case status == "NOTFOUND":
		return refused, nil
	case status == "TEMP":
		return later, nil
	}
	return 0, answerError(fmt.Sprintf("socket map answer %q", answer))
}

// sendmailSpelling writes an IPv6 address out, without "::".
func sendmailSpelling(a netip.Addr) string {
	var words []string
	b := a.As16()
	for i := 0; i < 16; i += 2 {
		words = append(words, strconv.FormatUint(uint64(binary.BigEndian.Uint16(b[i:])), 16))
	}
	return strings.Join(words, ":")
}
