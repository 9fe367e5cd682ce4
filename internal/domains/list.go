package domains

import (
	"fmt"
	"net/netip"
	"strings"
)

// readList reads a file of domains, one a line. Addresses and networks, which
// sendmail's relay-domains may hold, are given back as skipped: they say who
// may send, not whose a recipient is. The error names the first line that is
// neither; the other names are good.
func readList(text []byte, subdomains bool) (names []Name, skipped []string, err error) {
	number := 0
	for line := range strings.Lines(string(text)) {
		number++
		word := strings.TrimSpace(uncomment(line))
		if word == "" {
			continue
		}
		if numeric(word) {
			skipped = append(skipped, word)
			continue
		}
		s := word
		if subdomains && !strings.HasPrefix(s, ".") && !strings.HasPrefix(s, "+") {
			s = "+" + s
		}
		name, e := ParseName(s)
		if e != nil {
			if err == nil {
				err = fmt.Errorf("line %d: %w", number, e)
			}
			continue
		}
		names = append(names, name)
	}
	return names, skipped, err
}

// uncomment cuts a comment off: a # at the beginning or behind a blank.
func uncomment(line string) string {
	for i := range len(line) {
		if line[i] == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t') {
			return line[:i]
		}
	}
	return line
}

// numeric says whether a word is an address, a network, or the beginning of
// one as sendmail writes it: 192.0.2, [192.0.2.1], IPv6:2001:db8.
func numeric(word string) bool {
	w := strings.TrimSuffix(strings.TrimPrefix(word, "["), "]")
	if len(w) > 5 && strings.EqualFold(w[:5], "IPv6:") {
		return true
	}
	bare, _, _ := strings.Cut(w, "/")
	if _, err := netip.ParseAddr(bare); err == nil {
		return true
	}
	return strings.Trim(bare, "0123456789.") == "" && bare != "" && bare != "."
}
