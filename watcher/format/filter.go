package format

import "bytes"

// MayMatter is a cheap look at a whole line, before Split, for reading in
// bulk. False means that to this parser the line is None and changes nothing
// it remembers; most lines of a busy mail log are of that kind. True means
// nothing.
func MayMatter(p Parser, line []byte) bool {
	// A journal line may spell any character as an escape.
	if len(line) > 0 && line[0] == '{' {
		return true
	}
	if f, ok := p.(interface{ mayMatter(line []byte) bool }); ok {
		return f.mayMatter(line)
	}
	return true
}

// mayMatter of dovecot goes from word to word, which is quicker than to search
// the line for the tag.
func (*dovecot) mayMatter(line []byte) bool {
	if len(line) <= stampLen || line[0] == '<' {
		return true
	}
	rest := line[stampLen+1:]
	if digit(line[0]) {
		i := bytes.IndexByte(line, ' ')
		if i < 0 {
			return false
		}
		rest = line[i+1:]
	}
	i := bytes.IndexByte(rest, ' ')
	if i < 1 || rest[i-1] == ':' || bytes.IndexByte(rest[:i], '(') >= 0 {
		return true // Dovecot's own file has the service where others have the host
	}
	rest = rest[i+1:]
	if bytes.HasPrefix(rest, []byte("dovecot")) {
		return true
	}
	i = bytes.IndexByte(rest, ' ')
	return i > 0 && rest[i-1] != ':' // BusyBox has the priority before the tag
}

// mayMatter of courier lets through every record of its tags, for it has to
// see what goes before a login, and whatever tells a loss.
func (*courier) mayMatter(line []byte) bool {
	return bytes.Contains(line, []byte("pop3d")) || bytes.Contains(line, []byte("imapd")) ||
		bytes.Contains(line, []byte("rsyslogd")) || bytes.Contains(line, []byte("systemd-journald"))
}

func (*cyrus) mayMatter(line []byte) bool { return bytes.Contains(line, []byte("login: ")) }

func (*perdition) mayMatter(line []byte) bool { return bytes.Contains(line, []byte("perdition")) }

func (*imapproxy) mayMatter(line []byte) bool { return bytes.Contains(line, []byte("imapproxyd")) }

func (*solidPOP3D) mayMatter(line []byte) bool { return bytes.Contains(line, []byte("solid-pop3d")) }

// mayMatter of popa3d lets through all that the server logs, for any of it may
// end a session, and whatever tells a loss.
func (*popa3d) mayMatter(line []byte) bool {
	return bytes.Contains(line, []byte("popa3d")) ||
		bytes.Contains(line, []byte("rsyslogd")) || bytes.Contains(line, []byte("systemd-journald"))
}

func (*uw) mayMatter(line []byte) bool { return bytes.Contains(line, []byte(" user=")) }

func (*qpopper) mayMatter(line []byte) bool {
	return bytes.Contains(line, []byte(") POP login by user "))
}

func (*dbmail) mayMatter(line []byte) bool { return bytes.Contains(line, []byte("login accepted: ")) }

func (a *auto) mayMatter(line []byte) bool { return a.chosen == nil || MayMatter(a.chosen, line) }

func (p *custom) mayMatter(line []byte) bool {
	return bytes.Contains(line, p.login.literal) || p.logout != nil && bytes.Contains(line, p.logout.literal)
}
