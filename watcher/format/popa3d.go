package format

import (
	"bytes"
	"net/netip"

	"popgate/internal/relay"
)

// popa3d reads popa3d 1.0 as it runs by itself (popa3d -D). The lines are those
// of new_connection in standalone.c and log_pop_auth in pop_root.c.
//
//	popa3d[N]: Session from A
//	popa3d[N]: Authentication passed for U
//
// One process serves one connection, so N joins the two. It logs nothing
// between them but what PAM says, so any other message of N ends its session:
// a pid that comes round again finds nothing left of the session before. The
// end of a process that was killed is not logged, so a session counts for
// popa3dLife seconds only, and a Session line that is lost in a gap makes its
// login count for nobody. Names that don't exist are not logged, so a stranger
// has no text in these lines.
//
// Run by inetd it logs no address; such logins are unparsed.
type popa3d struct {
	hosts    []string
	sessions map[popa3dProcess]popa3dSession
}

const (
	// popa3dLife is how many seconds a password may come after the connection.
	// The server itself waits for ten minutes.
	popa3dLife = 600
	// maxPopa3dSessions bounds what is remembered. With that many, all of them
	// half open, logins stop to count until some are old.
	maxPopa3dSessions = 4096
)

type popa3dProcess struct {
	host int // in hosts
	pid  int64
}

type popa3dSession struct {
	client netip.Addr
	began  int64
}

func (p *popa3d) Gap() { p.sessions = nil }

func (p *popa3d) Parse(m *Message) (relay.Event, Result) {
	if string(m.Tag) != "popa3d" {
		if tellsLoss(m) {
			p.Gap()
		}
		return relay.Event{}, None
	}
	process, known := p.process(m)
	now, timed := m.Stamp.seconds()
	s := scanner{m.Text}
	switch {
	case s.lit("Session from "):
		client, ok := s.address()
		if known && timed && ok && s.done() {
			p.open(process, popa3dSession{client, now})
			return relay.Event{}, None
		}
	case s.lit("Authentication passed for "):
		session, ok := p.sessions[process]
		delete(p.sessions, process)
		if bytes.IndexByte(s.rest, ' ') >= 0 || !plainUser(s.rest) ||
			!ok || !known || !timed || now < session.began || now > session.began+popa3dLife {
			return relay.Event{}, Unparsed
		}
		e := relay.Event{Kind: relay.Login, Service: relay.POP3, User: string(s.rest), Client: session.client}
		if anonymous(e.User) {
			return relay.Event{}, None
		}
		return e, Login
	case s.lit("pam_"):
		return relay.Event{}, None
	}
	delete(p.sessions, process)
	return relay.Event{}, None
}

// process tells which process wrote a message.
func (p *popa3d) process(m *Message) (popa3dProcess, bool) {
	pid, ok := number(m.PID)
	if !ok {
		return popa3dProcess{}, false
	}
	for i, host := range p.hosts {
		if string(m.Host) == host {
			return popa3dProcess{i, pid}, true
		}
	}
	if len(p.hosts) == maxLogs {
		return popa3dProcess{}, false
	}
	p.hosts = append(p.hosts, string(m.Host))
	return popa3dProcess{len(p.hosts) - 1, pid}, true
}

// open notes a session, and makes room by forgetting those that are too old to
// count.
func (p *popa3d) open(process popa3dProcess, session popa3dSession) {
	if p.sessions == nil {
		p.sessions = make(map[popa3dProcess]popa3dSession)
	}
	if _, there := p.sessions[process]; !there && len(p.sessions) >= maxPopa3dSessions {
		for other, old := range p.sessions {
			if session.began < old.began || session.began > old.began+popa3dLife {
				delete(p.sessions, other)
			}
		}
		if len(p.sessions) >= maxPopa3dSessions {
			return
		}
	}
	p.sessions[process] = session
}
