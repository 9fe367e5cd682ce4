package config

import (
	"io/fs"
	"log/slog"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"popgate/internal/domains"
	"popgate/internal/relay"
)

var groupName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}$`)

func (v value) group(to *string) {
	s, ok := v.text()
	switch {
	case !ok:
	case s != "" && !groupName.MatchString(s):
		v.fail("%q is not the name of a group", clip(s))
	default:
		*to = s
	}
}

// mode reads octal digits however they are written: YAML takes 0660, 0o660 and
// 660 for three different numbers, an admin means one.
func (v value) mode(to *fs.FileMode) {
	if !v.plain() {
		return
	}
	n, err := strconv.ParseUint(strings.TrimPrefix(v.n.Value, "0o"), 8, 32)
	switch {
	case err != nil || v.n.Value == "":
		v.fail("%s is not a mode; write octal digits such as 0660", v.shown())
	case n > 0o777:
		v.fail("%s is not a mode of a socket; 0777 is the most", v.shown())
	case n&0o222 == 0:
		v.fail("%s lets nobody connect: connecting needs the right to write; write 0660", v.shown())
	default:
		*to = fs.FileMode(n)
	}
}

func (c *Config) readMTA(v value) {
	if s, ok := v.word("auto", "postfix", "sendmail"); ok {
		c.MTA, _ = relay.ParseMTA(s) // auto is no MTA's name and stays unknown
	}
}

func (c *Config) readLocalDomains(v value) {
	items, ok := v.list()
	if !ok {
		return
	}
	c.LocalDomains = nil
	lines := map[string]int{}
	for _, item := range items {
		s, ok := item.text()
		if !ok {
			continue
		}
		name, err := domains.ParseName(s)
		if err != nil {
			item.fail("%v", err)
			continue
		}
		if first, twice := lines[name.String()]; twice {
			item.warn("%q is in line %d already", s, first)
			continue
		}
		lines[name.String()] = item.n.Line
		c.LocalDomains = append(c.LocalDomains, name)
	}
}

func (c *Config) readLocalDomainFiles(v value) {
	items, ok := v.list()
	if !ok {
		return
	}
	c.LocalDomainFiles = nil
	for _, item := range items {
		var f domains.File
		if item.n.Kind != yaml.MappingNode {
			f.Path, ok = item.path()
		} else {
			var given map[string]value
			given, ok = item.fields(
				field{"path", func(v value) { f.Path, _ = v.path() }},
				field{"subdomains", func(v value) { v.boolean(&f.Subdomains) }},
			)
			if _, has := given["path"]; ok && !has {
				item.fail("path is missing; write {path: /etc/mail/relay-domains, subdomains: true}")
			}
		}
		if !ok || f.Path == "" {
			continue
		}
		if slices.ContainsFunc(c.LocalDomainFiles, func(g domains.File) bool { return g.Path == f.Path }) {
			item.fail("%q is in the list already", clip(f.Path))
			continue
		}
		c.LocalDomainFiles = append(c.LocalDomainFiles, f)
	}
}

func (c *Config) readLocalDomainsFrom(v value) {
	if s, ok := v.word("auto", "postfix", "sendmail", "none"); ok {
		c.LocalDomainsFrom = domains.From(s)
	}
}

func (c *Config) readServices(v value) {
	items, ok := v.list()
	if !ok {
		return
	}
	if len(items) == 0 {
		v.fail("no service: no login would ever grant; name at least one of pop3, imap, submission, sieve, other")
		return
	}
	c.Services = nil
	for _, item := range items {
		s, ok := item.text()
		if !ok {
			continue
		}
		service, ok := relay.ParseService(s)
		if plain, known := relay.ParseService(strings.TrimSuffix(s, "s")); !ok && known {
			item.fail("%q goes by the name of %s, with TLS and without; write %s", s, plain, plain)
			continue
		}
		if !ok {
			item.fail("%q is not a service popgate knows; choose one of pop3, imap, submission, sieve, other", clip(s))
			continue
		}
		if !slices.Contains(c.Services, service) {
			c.Services = append(c.Services, service)
		}
	}
}

func (c *Config) readStateDir(v value) {
	if v.n.ShortTag() == "!!str" && v.n.Value == "" {
		c.StateDir = ""
		return
	}
	s, ok := v.path()
	switch {
	case !ok:
	case s == "/":
		v.fail("\"/\" is not a directory to keep files in; write one of popgate's own, or \"\" to keep nothing")
	default:
		c.StateDir = s
	}
}

func (c *Config) readStore(v value) {
	s, ok := v.text()
	switch {
	case !ok:
	case s == "redis":
		v.fail(`"redis" is not available in this release; use memory`)
	case s != "memory":
		v.fail("%q is not a store popgate knows; write memory", clip(s))
	default:
		c.Store = s
	}
}

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

func (c *Config) readLog(v value) {
	v.fields(
		field{"level", func(v value) {
			if s, ok := v.word("debug", "info", "warn", "error"); ok {
				c.Log.Level = levels[s]
			}
		}},
		field{"format", func(v value) {
			if s, ok := v.word("text", "json"); ok {
				c.Log.Format = s
			}
		}},
	)
}

// maxReply bounds the text of a refusal. A reply line holds 512 characters
// (RFC 5321, section 4.5.3.1.5) and sendmail puts the recipient before ours.
const maxReply = 200

// widestClient is as long as a client address gets.
const widestClient = "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"

var enhancedCode = regexp.MustCompile(`^[45]\.(0|[1-9][0-9]{0,2})\.(0|[1-9][0-9]{0,2})$`)

func (c *Config) readReject(v value) {
	r, before := &c.Reject, len(v.r.errs)
	given, ok := v.fields(
		field{"code", func(v value) { v.replyCode(&r.Code) }},
		field{"enhanced", func(v value) {
			if v.plain() && enhancedCode.MatchString(v.n.Value) {
				r.Enhanced = v.n.Value
			} else {
				v.fail("%s is not an enhanced status code; write one as 5.7.1", v.shown())
			}
		}},
		field{"text", func(v value) { v.replyText(&r.Text) }},
		field{"url", func(v value) { v.url(&r.URL) }},
	)
	if !ok || len(v.r.errs) > before {
		return
	}
	class := strconv.Itoa(r.Code)[:1]
	if k, ok := given["enhanced"]; !ok {
		r.Enhanced = class + r.Enhanced[1:]
	} else if r.Enhanced[:1] != class {
		k.fail("%s does not go with the code %d; begin it with %s", r.Enhanced, r.Code, class)
	}
	at, ok := given["text"]
	if !ok {
		at = v
	}
	switch uses := strings.Contains(r.Text, "{url}"); {
	case uses && r.URL == "":
		at.fail("{url} stands for nothing; add reject.url")
	case !uses && r.URL != "" && given["url"].n != nil:
		given["url"].warn("nobody will see it: reject.text has no {url}")
	}
	if long := len(strings.NewReplacer("{client}", widestClient, "{url}", r.URL).Replace(r.Text)); long > maxReply {
		at.fail("%d characters with {client} and {url} filled in; %d is the most", long, maxReply)
	}
}

func (v value) replyCode(to *int) {
	code := *to
	v.integer(&code, 400, 599)
	if code == 421 {
		v.fail("421 closes the connection and takes the other recipients with it; write another code from 400 to 599")
		return
	}
	*to = code
}

// replyText holds what may go out in a reply: one line of plain ASCII, nothing
// of the client's but its address.
func (v value) replyText(to *string) {
	s, ok := v.text()
	if !ok {
		return
	}
	bare := strings.NewReplacer("{client}", "", "{url}", "").Replace(s)
	first, _, _ := strings.Cut(s, " ")
	switch {
	case strings.TrimSpace(s) == "":
		v.fail("an empty text tells a refused user nothing; say what to do")
	case !isPrintable(s):
		v.fail("%s has a character that is not plain ASCII; mail servers would not pass it on", v.shown())
	case strings.ContainsAny(bare, "{}"):
		v.fail("%s has a brace; {client} and {url} are the only placeholders", v.shown())
	case enhancedCode.MatchString(first) || len(first) == 3 && digits(first):
		v.fail("%s begins with a code; codes belong into reject.code and reject.enhanced", v.shown())
	default:
		*to = s
	}
}

func (v value) url(to *string) {
	s, ok := v.text()
	if !ok {
		return
	}
	u, err := url.Parse(s)
	switch {
	case s == "":
		*to = ""
	case err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "":
		v.fail("%q is not a web address; write one as https://example.org/mail", clip(s))
	case !isPrintable(s) || strings.ContainsAny(s, " {}<>\""):
		v.fail("%q has a character that a web address can't have as it is; write it as %%XX", clip(s))
	default:
		*to = s
	}
}

func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
