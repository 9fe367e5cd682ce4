// Package postconf reads the values of Postfix's main.cf.
package postconf

import "strings"

// Split takes a list apart as Postfix does (postconf(5)): commas and blanks part
// its words, except inside braces.
func Split(value string) []string {
	var out []string
	depth, start := 0, -1
	for i, c := range value + " " {
		switch {
		case c == '{':
			depth++
		case c == '}' && depth > 0:
			depth--
		}
		if i < len(value) && (depth > 0 || !strings.ContainsRune(", \t\r\n", c)) {
			if start < 0 {
				start = i
			}
			continue
		}
		if start >= 0 {
			out = append(out, value[start:i])
			start = -1
		}
	}
	return out
}
