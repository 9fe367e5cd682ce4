package config

import (
	"slices"
	"strings"
)

// places are the keys of the file where each stands, for the remedy of an
// unknown key.
var places = []string{
	"listen.milter", "listen.control", "listen.push", "listen.policy", "listen.socketmap", "listen.metrics", "listen.allow",
	"control_group", "socket_mode", "socket_group", "mta",
	"local_domains", "local_domain_files", "local_domains_from", "local_mailers", "remote_mailers",
	"trusted_networks", "trust_authenticated",
	"grant_ttl", "hold_open_logins", "ipv6_prefix", "max_grants", "max_grants_per_user", "never_grant", "ignore_users",
	"services", "wait_for_login", "max_waiting",
	"reject.code", "reject.enhanced", "reject.text", "reject.url",
	"sources", "formats", "state_dir", "store", "log.level", "log.format",
}

// remedy tells what would be right instead of an unknown key.
func remedy(key, path string, fs []field) string {
	names := make([]string, len(fs))
	for i, f := range fs {
		names[i] = f.key
	}
	plain := strings.ReplaceAll(strings.ToLower(key), "-", "_")
	if near := nearest(plain, names); near != "" {
		return "did you mean " + near + "?"
	}
	for _, p := range places {
		_, last, nested := strings.Cut(p, ".")
		if p == plain || nested && (last == plain || strings.ReplaceAll(p, ".", "_") == plain) {
			return "did you mean " + p + ", which stands elsewhere?"
		}
	}
	if near := nearest(plain, places); near != "" && path != "" {
		return "did you mean " + near + ", which stands elsewhere?"
	}
	if len(names) <= 14 {
		return "the keys here are " + strings.Join(names, ", ")
	}
	return "milter.yaml.example has them all"
}

// nearest gives the name that a slip of the finger away from s, or "".
func nearest(s string, names []string) string {
	best, most := "", 1+len(s)/5
	for _, name := range names {
		if d := distance(s, name); d <= most {
			best, most = name, d-1
		}
	}
	return best
}

// distance counts the letters to add, remove, change or swap.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return max(len(a), len(b))
	}
	var before, last []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		before, last = last, slices.Clone(row)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
	}
	return row[len(b)]
}
