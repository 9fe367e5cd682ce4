package wiring

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Feature is the line of sendmail.mc that stands for the milter and its relay
// rule.
const Feature = "FEATURE(`popgate')dnl"

var (
	macroMailer      = regexp.MustCompile(`^MAILER\(`)
	macroFeature     = regexp.MustCompile("^FEATURE\\(`popgate'")
	macroPromiscuous = regexp.MustCompile("^FEATURE\\(`?promiscuous_relay'?\\)")
	macroFilter      = regexp.MustCompile("^(INPUT_)?MAIL_FILTER\\(`popgate'")
	macroMap         = regexp.MustCompile(`^Kpopgate\s`)
	macroRuleset     = regexp.MustCompile(`^SLocal_check_rcpt\b`)
	macroLocal       = regexp.MustCompile(`^LOCAL_(CONFIG|RULESETS?|RULE_\d|NET_CONFIG)\b`)
)

// SendmailMilter gives a sendmail.mc with the milter and its relay rule, by
// FEATURE(popgate). equates are in the place of its own if popgate's socket is
// elsewhere.
func SendmailMilter(mc, equates string) (string, error) {
	line := Feature
	if equates != "" {
		line = "FEATURE(`popgate', `" + equates + "')dnl"
	}
	lines, at, filter := strings.SplitAfter(mc, "\n"), -1, false
	filter = slices.ContainsFunc(lines, func(l string) bool { return macroFilter.MatchString(l) })
	var out []string
	for _, l := range lines {
		switch {
		case macroFeature.MatchString(l):
			if at < 0 {
				at = len(out)
				out = append(out, line+"\n")
			}
			continue
		case macroFilter.MatchString(l):
			continue // the feature has a filter of its own
		case macroPromiscuous.MatchString(l):
			if !filter {
				return "", errors.New("FEATURE(`promiscuous_relay') without popgate's filter: this sendmail is an open relay for a reason of its own; take that line out first")
			}
			continue
		}
		out = append(out, l)
	}
	if at < 0 {
		if at = slices.IndexFunc(out, macroMailer.MatchString); at < 0 {
			return "", errors.New("it has no MAILER line in front of which the feature could stand")
		}
		out = slices.Insert(out, at, line+"\n")
	}
	return strings.Join(out, ""), nil
}

// SendmailMap gives a sendmail.mc with the rules of the closed door at its end.
func SendmailMap(mc, rules, address string) (string, error) {
	rules = strings.Replace(rules, "local:/run/popgate/socketmap.sock", address, 1)
	if strings.Contains(mc, rules) {
		return mc, nil
	}
	local := false
	for line := range strings.Lines(mc) {
		switch {
		case macroMap.MatchString(line):
			return "", errors.New("it has other lines of popgate's (Kpopgate); take them and their rules out first")
		case macroRuleset.MatchString(line):
			return "", errors.New("it has rules of its own in Local_check_rcpt; put popgate's behind them by hand (contrib/sendmail/socketmap.mc), only you know which come first")
		case macroPromiscuous.MatchString(line):
			return "", errors.New("FEATURE(`promiscuous_relay'): the door can't be closed as long as that stands open; take it out first, and popgate's filter with it if there is one")
		case macroFeature.MatchString(line):
			return "", errors.New("FEATURE(`popgate'): the milter opens sendmail's own rule; take it out first")
		}
		local = local || macroLocal.MatchString(line)
	}
	if !local && !strings.Contains(mc, "MAILER(") {
		return "", fmt.Errorf("it has no MAILER line, so that it is not what sendmail.cf was made of")
	}
	if mc != "" && !strings.HasSuffix(mc, "\n") {
		mc += "\n"
	}
	return mc + rules, nil
}
