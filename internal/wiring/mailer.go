package wiring

import (
	"bytes"
	"context"
	"os"
	"strings"

	"popgate/internal/postconf"
)

// Mailer gives the mailer that Postfix's milter would be told for a recipient
// in a domain; empty where it can't be told.
func (p *Postfix) Mailer(ctx context.Context, domain string) string {
	for _, spec := range postconf.Split(p.values["transport_maps"]) {
		if out, err := p.run(ctx, "", "postmap", "-q", domain, spec); err == nil {
			if name, _, _ := strings.Cut(strings.TrimSpace(out), ":"); name != "" {
				return name
			}
		}
	}
	for _, class := range []struct{ list, transport string }{
		{"mydestination", "local_transport"}, {"virtual_alias_domains", ""},
		{"virtual_mailbox_domains", "virtual_transport"}, {"relay_domains", "relay_transport"},
	} {
		if !p.listed(ctx, p.values[class.list], domain, class.list == "relay_domains") {
			continue
		}
		if class.transport == "" {
			return "error"
		}
		name, _, _ := strings.Cut(p.values[class.transport], ":")
		return name
	}
	return ""
}

// listed says whether one of Postfix's lists has a domain.
func (p *Postfix) listed(ctx context.Context, list, domain string, below bool) bool {
	for _, word := range postconf.Split(list) {
		switch {
		case strings.EqualFold(word, domain), below && strings.HasSuffix(strings.ToLower(domain), "."+strings.ToLower(strings.TrimPrefix(word, "."))):
			return true
		case strings.HasPrefix(word, "/"):
			if text, err := os.ReadFile(word); err == nil && p.listed(ctx, string(withoutComments(text)), domain, below) {
				return true
			}
		case strings.Contains(word, ":"):
			if out, err := p.run(ctx, "", "postmap", "-q", domain, word); err == nil && strings.TrimSpace(out) != "" {
				return true
			}
		}
	}
	return false
}

func withoutComments(text []byte) (out []byte) {
	for line := range bytes.Lines(text) {
		if t := bytes.TrimSpace(line); len(t) > 0 && t[0] != '#' {
			out = append(append(out, t...), '\n')
		}
	}
	return out
}
