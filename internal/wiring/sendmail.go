package wiring

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
)

// Sendmail is what sendmail.cf says.
type Sendmail struct {
	Report
	run     Runner
	ours    Ours
	cf      string // path
	lines   []string
	program string
	user    string
}

// sendmailPrograms are the places of the real sendmail; /usr/sbin/sendmail may
// be another MTA's.
var sendmailPrograms = []string{"/usr/libexec/sendmail/sendmail", "/usr/lib/sm.bin/sendmail", "/usr/sbin/sendmail.sendmail", "/usr/sbin/sendmail", "/usr/lib/sendmail"}

// ReadSendmail looks at this host's sendmail. What sendmail's rules come to is
// asked of sendmail itself, which may ask popgate.
func ReadSendmail(ctx context.Context, run Runner, cf string, ours Ours) (*Sendmail, error) {
	text, err := os.ReadFile(cf)
	if err != nil {
		return nil, err
	}
	s := &Sendmail{run: run, ours: ours, cf: cf, user: "root"}
	s.MTA = "sendmail"
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\r\n")
		if line != "" && strings.ContainsAny(line[:1], " \t") && len(s.lines) > 0 {
			s.lines[len(s.lines)-1] += line
			continue
		}
		s.lines = append(s.lines, line)
	}
	if who := s.option("RunAsUser"); who != "" {
		s.user, _, _ = strings.Cut(who, ":")
	}
	s.findProgram(ctx)
	milter := s.milters()
	door := s.maps()
	s.rule(ctx, milter, door)
	return s, nil
}

// option gives the last setting of an option.
func (s *Sendmail) option(name string) (value string) {
	for _, line := range s.lines {
		if rest, ok := strings.CutPrefix(line, "O "); ok {
			if key, v, found := strings.Cut(rest, "="); found && strings.EqualFold(strings.TrimSpace(key), name) {
				value = strings.TrimSpace(v)
			}
		}
	}
	return value
}

var sendmailVersion = regexp.MustCompile(`(?m)^Version (8\.\S+)`)

func (s *Sendmail) findProgram(ctx context.Context) {
	for _, path := range sendmailPrograms {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		out, _ := s.run(ctx, "", path, "-C", s.cf, "-d0.1", "-bt")
		if m := sendmailVersion.FindStringSubmatch(out); m != nil {
			s.program, s.Version = path, m[1]
			return
		}
	}
}

// equates reads "S=..., F=T".
func equates(text string) map[string]string {
	all := map[string]string{}
	for part := range strings.SplitSeq(text, ",") {
		key, value, _ := strings.Cut(strings.TrimSpace(part), "=")
		if key = strings.TrimSpace(key); key != "" {
			all[strings.ToUpper(key[:1])] = strings.TrimSpace(value)
		}
	}
	return all
}

// milters looks at popgate's milter, and says whether every message is seen by
// it or waits for it.
func (s *Sendmail) milters() (asked bool) {
	used := strings.FieldsFunc(s.option("InputMailFilters"), func(r rune) bool { return r == ',' || r == ' ' || r == ';' })
	for _, line := range s.lines {
		rest, ok := strings.CutPrefix(line, "X")
		if !ok {
			continue
		}
		name, rest, _ := strings.Cut(rest, ",")
		name = strings.TrimSpace(name)
		e := equates(rest)
		network, address, ok := sendmailAddress(e["S"])
		if !ok || !s.ours(Milter, network, address) {
			continue
		}
		what := "sendmail milter " + name
		if !slices.Contains(used, name) {
			s.add(Warn, what, "it is defined, but O InputMailFilters doesn't name it, so that it is never asked; use INPUT_MAIL_FILTER in sendmail.mc, and not MAIL_FILTER")
			continue
		}
		s.door(Door{Kind: Milter, MTA: s.MTA, Version: s.Version, Spec: e["S"], Network: network, Address: address, User: s.user})
		switch e["F"] {
		case "T":
			asked = true
			s.add(OK, what, "F=T: mail waits while popgate is down")
		case "":
			s.add(Fail, what, "it has no F=T: sendmail goes on without popgate while that is down; write F=T into its line in sendmail.mc, or use FEATURE(`popgate')")
		default:
			s.add(Fail, what, "F=%s: the site's own mail is refused while popgate is down; write F=T", e["F"])
		}
		for _, l := range s.lines {
			options, ok := strings.CutPrefix(l, "O DaemonPortOptions=")
			if filters, own := equates(options)["I"]; ok && own && !slices.Contains(strings.Split(filters, ";"), name) {
				asked = false
				s.add(Fail, "sendmail DaemonPortOptions", "%s has filters of its own (%q), which leave popgate out; take InputMailFilters out of that DAEMON_OPTIONS line", equates(options)["N"], filters)
			}
		}
	}
	return asked
}

// maps looks at the socket maps of the closed doors, and says whether one is
// used.
func (s *Sendmail) maps() (used bool) {
	for _, line := range s.lines {
		words := strings.Fields(strings.TrimPrefix(line, "K"))
		if !strings.HasPrefix(line, "K") || len(words) < 3 || words[1] != "socket" {
			continue
		}
		name, spec := words[0], words[len(words)-1]
		what := "sendmail map " + name
		temporary := slices.ContainsFunc(words[2:], func(w string) bool { return strings.HasPrefix(w, "-T") })
		if name == "drac" && temporary { // whosever it is
			s.add(Fail, what, "FEATURE(`drac') with -T is an OPEN RELAY whenever popgate is down: take -T out of its line in sendmail.mc, or use contrib/sendmail/socketmap.mc instead")
		}
		network, address, ok := sendmailAddress(spec)
		if !ok || !s.ours(SocketMap, network, address) {
			continue
		}
		rules := slices.ContainsFunc(s.lines, func(l string) bool {
			return strings.HasPrefix(l, "R") && strings.Contains(l, "$("+name+" ")
		})
		if !rules {
			s.add(Warn, what, "no rule asks it; take the rules of `popgate setup sendmail` with it")
			continue
		}
		used = true
		s.door(Door{Kind: SocketMap, MTA: s.MTA, Version: s.Version, Spec: spec, Network: network, Address: address, User: s.user, Map: name})
		switch {
		case name == "drac" && temporary: // said above
		case name == "drac":
			s.add(OK, what, "a closed door; while popgate is down clients with a grant are refused for good, which contrib/sendmail/socketmap.mc does better")
		case !temporary:
			s.add(Warn, what, "without -T<TMPF> clients with a grant are refused for good while popgate is down; take the lines of `popgate setup sendmail` as they are")
		default:
			s.add(OK, what, "a closed door, by %s", spec)
		}
	}
	return used
}

// stranger is a recipient and the macros of a client that nobody knows. Neither
// needs the DNS.
const stranger = ".D{client_addr}203.0.113.251\n.D{client_name}[203.0.113.251]\n.D{client_ptr}[203.0.113.251]\n.D{client_resolve}FAIL\ncheck_rcpt <x@[198.51.100.251]>\n"

// refuses asks sendmail's own rules about a stranger's foreign recipient.
func (s *Sendmail) refuses(ctx context.Context) (bool, error) {
	if s.program == "" {
		return false, errors.New("the sendmail program was not found")
	}
	out, err := s.run(ctx, stranger, s.program, "-C", s.cf, "-bt")
	answer := ""
	for line := range strings.Lines(out) {
		if i := strings.Index(line, "check_rcpt"); i >= 0 {
			if _, returns, found := strings.Cut(line[i:], "returns:"); found && !strings.Contains(line[:i], "_") {
				answer = strings.TrimSpace(returns)
			}
		}
	}
	if answer == "" {
		return false, errors.Join(errors.New("sendmail -bt does not answer"), err)
	}
	return strings.HasPrefix(answer, "$# error") || strings.HasPrefix(answer, "$# TEMP"), nil
}

// rule judges sendmail's relay rule beside the doors.
func (s *Sendmail) rule(ctx context.Context, milter, door bool) {
	const what = "sendmail relay rule"
	// Without FEATURE(promiscuous_relay) there is this ruleset.
	promiscuous := !slices.Contains(s.lines, "SRelay_ok")
	refuses, err := s.refuses(ctx)
	switch {
	case err != nil && promiscuous && !milter:
		s.add(Fail, what, "OPEN RELAY: FEATURE(`promiscuous_relay') without a milter of popgate's that every message waits for; take it out of sendmail.mc, or use FEATURE(`popgate')")
	case err != nil:
		s.add(Warn, what, "it could not be tried: %v", err)
	case !refuses && !milter:
		why := "no milter of popgate's is there that every message waits for"
		if promiscuous {
			why = "FEATURE(`promiscuous_relay'), and " + why
		}
		s.add(Fail, what, "OPEN RELAY: it takes a stranger's recipient at another site (%s); take the lines of `popgate setup sendmail`", why)
	case !refuses && !s.byFeature():
		s.add(Warn, what, "it stands open behind the milter and would stay so without it: an OPEN RELAY if the milter's line is lost; put FEATURE(`popgate') in the place of both lines (contrib/sendmail/feature/popgate.m4)")
	case !refuses:
		s.add(OK, what, "open behind the milter, written by FEATURE(`popgate')")
	case milter && !door:
		s.add(Fail, what, "the milter is asked, but sendmail's own rule stays shut, so that clients with a grant are refused; use FEATURE(`popgate')")
	default:
		s.add(OK, what, "it refuses a stranger's recipient at another site")
	}
}

// byFeature says whether sendmail.cf was made with FEATURE(popgate).
func (s *Sendmail) byFeature() bool {
	return slices.ContainsFunc(s.lines, func(l string) bool { return strings.HasPrefix(l, "#####") && strings.Trim(l, "# ") == "popgate" })
}

// Networks gives the addresses and networks that sendmail lets relay (class R),
// as sendmail means them.
func (s *Sendmail) Networks(ctx context.Context) ([]string, error) {
	if s.program == "" {
		return nil, errors.New("the sendmail program was not found")
	}
	out, err := s.run(ctx, "$=R\n", s.program, "-C", s.cf, "-bt")
	if err != nil {
		return nil, fmt.Errorf("sendmail -bt: %w", err)
	}
	var all []string
	for line := range strings.Lines(out) {
		word := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "> "))
		bare := strings.TrimPrefix(word, "IPv6:")
		if bare != word || word != "" && strings.Trim(word, "0123456789.") == "" {
			all = append(all, bare)
		}
	}
	return all, nil
}

// parsed is what sendmail's test mode says of an address.
var parsed = regexp.MustCompile(`(?m)^mailer (\S+?),`)

// Mailer gives the mailer that the milter would be told for a recipient in a
// domain; empty where it can't be told.
func (s *Sendmail) Mailer(ctx context.Context, domain string) string {
	if s.program == "" {
		return ""
	}
	out, _ := s.run(ctx, "/parse postmaster@"+domain+"\n", s.program, "-C", s.cf, "-bt")
	if m := parsed.FindStringSubmatch(out); m != nil {
		return strings.Trim(m[1], "*") // *error* stands for what nobody receives
	}
	return ""
}
