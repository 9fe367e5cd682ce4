package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// mta is one milter connection, from the MTA's end. It speaks as Postfix does:
// version 6 offered, macros and command in one write, stages that the filter
// doesn't want left out, and the macros sent that the filter asked for.
type mta struct {
	conn    net.Conn
	in      *bufio.Reader
	out     []byte
	answer  []byte // of the last packet, good until the next
	refused uint32 // stages the filter doesn't want
	asked   bool   // for macros beyond Postfix's own
	client  string
}

const (
	noHelo = 1 << 1
	noMail = 1 << 2
)

func dial(socket string) (*mta, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	m := &mta{conn: conn, in: bufio.NewReaderSize(conn, 512)}
	offer := binary.BigEndian.AppendUint32(nil, 6)
	offer = binary.BigEndian.AppendUint32(offer, 0x1ff) // every action
	offer = binary.BigEndian.AppendUint32(offer, 0x37f) // any stage may be left out
	m.packet('O', string(offer))
	code, err := m.ask()
	if err == nil && (code != 'O' || len(m.answer) < 12) {
		err = fmt.Errorf("negotiation answered with %c %q", code, m.answer)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	m.refused, m.asked = binary.BigEndian.Uint32(m.answer[8:]), len(m.answer) > 12
	return m, nil
}

// packet appends a packet to what is sent with the next question.
func (m *mta) packet(code byte, parts ...string) {
	at := len(m.out)
	m.out = append(m.out, 0, 0, 0, 0, code)
	for _, p := range parts {
		m.out = append(m.out, p...)
	}
	binary.BigEndian.PutUint32(m.out[at:], uint32(len(m.out)-at-4))
}

// ask sends what has been gathered and reads one answer.
func (m *mta) ask() (code byte, err error) {
	if err := m.send(); err != nil {
		return 0, err
	}
	return m.hear()
}

// hear reads one answer.
func (m *mta) hear() (code byte, err error) {
	head, err := m.in.Peek(5)
	if err != nil {
		return 0, err
	}
	size, code := binary.BigEndian.Uint32(head), head[4]
	if size == 0 || size > 1<<16 {
		return 0, fmt.Errorf("an answer of %d bytes", size)
	}
	if _, err := m.in.Discard(5); err != nil {
		return 0, err
	}
	if cap(m.answer) < int(size-1) {
		m.answer = make([]byte, size-1)
	}
	m.answer = m.answer[:size-1]
	_, err = io.ReadFull(m.in, m.answer)
	return code, err
}

func (m *mta) send() error {
	_, err := m.conn.Write(m.out)
	m.out = m.out[:0]
	return err
}

// stage asks what must be answered with "continue".
func (m *mta) stage() error {
	code, err := m.ask()
	if err == nil && code != 'c' {
		err = fmt.Errorf("a stage before RCPT answered with %c %q", code, m.answer)
	}
	return err
}

// begin tells of a client, as far as HELO.
func (m *mta) begin(client netip.Addr) error {
	// One deadline for the session: none of them lasts that long.
	if err := m.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	m.client = client.String()
	m.packet('D', "C", "j\x00mx.test\x00{daemon_name}\x00mx.test\x00v\x00Postfix 3.7.11\x00")
	m.packet('C', "client.test\x00", "4", "\x9c\x40", m.client, "\x00")
	if err := m.stage(); err != nil || m.refused&noHelo != 0 {
		return err
	}
	m.packet('H', "client.test\x00")
	return m.stage()
}

// mail begins a message.
func (m *mta) mail() error {
	if m.refused&noMail != 0 {
		return nil
	}
	m.packet('D', "M", "{mail_addr}\x00sender@client.test\x00{mail_host}\x00client.test\x00{mail_mailer}\x00smtp\x00")
	m.packet('M', "<sender@client.test>\x00SIZE=1000\x00")
	return m.stage()
}

// rcpt asks for one recipient. A refusal is a reply with 550 and nothing else.
func (m *mta) rcpt(user, domain, mailer string) (passed, refused bool, err error) {
	m.recipient(user, domain, mailer)
	code, err := m.ask()
	return code == 'c', code == 'y' && len(m.answer) > 3 && string(m.answer[:4]) == "550 ", err
}

// recipient gathers the question for one.
func (m *mta) recipient(user, domain, mailer string) {
	macros := len(m.out)
	m.packet('D', "R", "i\x004BxYzQ1abcz1\x00{rcpt_addr}\x00", user, "@", domain, "\x00{rcpt_host}\x00", domain, "\x00{rcpt_mailer}\x00", mailer, "\x00")
	if m.asked {
		// Into the same macro packet: only one may come before a command.
		m.extend(macros, "{client_addr}\x00", m.client, "\x00v\x00Postfix 3.7.11\x00")
	}
	m.packet('R', "<", user, "@", domain, ">\x00")
}

// extend adds to the last packet, which begins at a place.
func (m *mta) extend(at int, parts ...string) {
	for _, p := range parts {
		m.out = append(m.out, p...)
	}
	binary.BigEndian.PutUint32(m.out[at:], uint32(len(m.out)-at-4))
}

// abort ends the message; it has no answer.
func (m *mta) abort() error {
	m.packet('A')
	return m.send()
}

func (m *mta) close() error {
	m.packet('Q')
	return errors.Join(m.send(), m.conn.Close())
}
