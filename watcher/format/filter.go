package format

import (
	"bytes"
	"encoding/binary"
)

// MayMatter is a cheap look at a whole line, before Split, for reading in
// bulk. False means that to this parser the line is None and changes nothing
// it remembers; most lines of a busy mail log are of that kind. True means
// nothing.
func MayMatter(p Parser, line []byte) bool {
	// A journal line may spell any character as an escape.
	if len(line) > 0 && line[0] == '{' {
		return true
	}
	return p.mayMatter(line)
}

// shortLine is how long a line Skip passes over by itself. Longer ones are
// for the caller, who may know a limit.
const shortLine = 4 << 10

// Skip passes over the lines at the front of a block that don't matter to the
// parser, as MayMatter has it, and says how many bytes and lines that are. The
// block must begin where a line does. Skip stops at the first line that may
// matter, is long, or has no line end in the block; next is how long that line
// is, 0 if it is empty or none of the first kind.
func Skip(p Parser, block []byte) (n, lines, next int) {
	switch p := p.(type) {
	case *dovecot:
		return p.skip(block)
	case *auto:
		if p.chosen != nil {
			return Skip(p.chosen, block)
		}
	}
	for {
		rest := block[n:]
		i := bytes.IndexByte(rest, '\n')
		if i < 0 || i > shortLine {
			return n, lines, 0
		}
		if MayMatter(p, rest[:i]) {
			return n, lines, i
		}
		n += i + 1
		lines++
	}
}

// skip is Skip, without asking for each line again what the parser is.
func (d *dovecot) skip(block []byte) (n, lines, next int) {
	for rest := block; ; lines++ {
		i := bytes.IndexByte(rest, '\n')
		if i < 1 || i > shortLine {
			return len(block) - len(rest), lines, 0
		}
		line := rest[:i]
		var matters bool
		switch c := line[0]; {
		case c == '{':
			matters = true
		case len(line) > stampLen && c >= 'A' && d.host.begins(line[stampLen+1:]): // as mayMatter would go on
			rest := line[stampLen+1+d.host.len:]
			matters = !startsWith(rest, "postfix/") && afterHost(rest)
		default:
			matters = d.mayMatter(line)
		}
		if matters {
			return len(block) - len(rest), lines, i
		}
		rest = rest[i+1:]
	}
}

// mayMatter of dovecot goes from word to word, which is quicker than to search
// the line for the tag.
func (d *dovecot) mayMatter(line []byte) bool {
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
	if d.host.begins(rest) {
		rest = rest[d.host.len:]
	} else {
		i := bytes.IndexByte(rest, ' ')
		if i < 1 || rest[i-1] == ':' || bytes.IndexByte(rest[:i], '(') >= 0 {
			return true // Dovecot's own file has the service where others have the host
		}
		d.host.remember(rest[:i+1])
		rest = rest[i+1:]
	}
	// What others than Postfix are asked would give the same for it.
	return !startsWith(rest, "postfix/") && afterHost(rest)
}

// afterHost is mayMatter for what follows the host.
func afterHost(rest []byte) bool {
	switch {
	case startsWith(rest, "dovecot: "):
		return !dovecotFailed(rest[len("dovecot: "):])
	case startsWith(rest, "dovecot"):
		return true
	}
	i := bytes.IndexByte(rest, ' ')
	return i > 0 && rest[i-1] != ':' // BusyBox has the priority before the tag
}

// lastHost is the host of a line and the blank after it.
type lastHost struct {
	len  int // 0: none
	text [64]byte
	// The first sixteen bytes once more, as two words, and which bits of those
	// count: nearly every host is compared by them alone.
	word, mask [2]uint64
}

// begins says whether a text begins with the host. It may be false where it
// does: the text is short then.
func (h *lastHost) begins(b []byte) bool {
	const words = 16
	if h.len == 0 || len(b) < words || len(b) < h.len {
		return false
	}
	differ := (binary.LittleEndian.Uint64(b)^h.word[0])&h.mask[0] | (binary.LittleEndian.Uint64(b[8:])^h.word[1])&h.mask[1]
	return differ == 0 && (h.len <= words || string(b[words:h.len]) == string(h.text[words:h.len]))
}

// remember keeps a host and the blank after it, if Split would take it for one.
func (h *lastHost) remember(host []byte) {
	*h = lastHost{}
	for _, c := range host[:len(host)-1] {
		if !hostChars[c] {
			return
		}
	}
	if len(host) > len(h.text) {
		return
	}
	h.len = copy(h.text[:], host)
	for i := range h.word {
		h.word[i] = binary.LittleEndian.Uint64(h.text[8*i:])
		if n := h.len - 8*i; n >= 8 {
			h.mask[i] = ^uint64(0)
		} else if n > 0 {
			h.mask[i] = 1<<(8*n) - 1
		}
	}
}

// SplitFor is Split for the lines that one parser reads: it does the same, and
// is quicker where the line begins as the last ones did.
func SplitFor(p Parser, line []byte, m *Message) bool {
	const tag, tagEnd = "dovecot", "dovecot: "
	if a, ok := p.(*auto); ok && a.chosen != nil {
		p = a.chosen
	}
	if d, ok := p.(*dovecot); ok && d.host.len > 0 {
		at := stampLen + 1 + d.host.len
		if len(line) >= at+len(tagEnd) && 'A' <= line[0] && line[0] <= 'S' && looksTraditional(line) && line[stampLen] == ' ' &&
			d.host.begins(line[stampLen+1:]) && startsWith(line[at:], tagEnd) {
			// Field by field, which is quicker than to make a Message and copy it.
			m.Transport, m.Stamp.text, m.Stamp.form = Syslog, line[:stampLen], traditional
			m.Host, m.Tag, m.Text = line[stampLen+1:at-1], line[at:at+len(tag)], line[at+len(tagEnd):]
			m.PID, m.Unit, m.Withheld, m.buf = nil, nil, false, m.buf[:0]
			return true
		}
	}
	return Split(line, m)
}

// dovecotFailed says whether a message is that of a login that failed, of
// which a host on the Internet logs more than of any other kind.
func dovecotFailed(text []byte) bool {
	const imap, pop3 = "imap-login: ", "pop3-login: "
	if !startsWith(text, imap) && !startsWith(text, pop3) {
		return false
	}
	text = text[len(imap):]
	return startsWith(text, "Disconnected") || startsWith(text, "Login aborted") || startsWith(text, "Aborted login")
}

// startsWith is bytes.HasPrefix for a short constant, which the compiler turns
// into a comparison of words.
func startsWith(b []byte, s string) bool { return len(b) >= len(s) && string(b[:len(s)]) == s }

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
