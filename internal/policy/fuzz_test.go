package policy

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"

	"popgate/internal/relay"
)

// opener lets everybody relay, so that an answer that opens tells only that the
// question was understood, and about whom.
func opener(asked *[]relay.Query) *witness {
	return &witness{answer: func(_ context.Context, q *relay.Query) relay.Decision {
		*asked = append(*asked, *q)
		if !q.Client.IsValid() {
			return relay.Decision{Verdict: relay.Defer, Reason: relay.ReasonNoClient}
		}
		return relay.Decision{Verdict: relay.Pass, Reason: relay.ReasonGrant}
	}}
}

// spelled is the model of a client address: what an MTA writes is one of the
// spellings of the address it stands for.
func spelled(s string, a netip.Addr) bool {
	if !a.IsValid() || a.Zone() != "" || a.Is4In6() || strings.ContainsAny(s, "% \t\r\n\x00/[]") {
		return false
	}
	if a.Is4() && !strings.Contains(s, ":") {
		return s == a.String()
	}
	if tag := "ipv6:"; strings.HasPrefix(strings.ToLower(s), tag) {
		s = s[len(tag):]
	}
	got, err := netip.ParseAddr(s)
	return err == nil && strings.Count(s, ":") > 1 && got.As16() == a.As16()
}

// FuzzDelegation compares the parser with a model that splits into lines first
// and counts.
func FuzzDelegation(f *testing.F) {
	for _, s := range []string{
		asPostfix(bob), asPostfix(bob6 + "%eth0"), asPostfix("::ffff:" + bob), asPostfix(bob, "protocol_state=DATA", "recipient="),
		added(asPostfix(bob), "client_address="+eve), asPostfix(bob, "recipient"), strings.ReplaceAll(asPostfix(bob), "\n", "\r\n"),
		asPostfix(bob) + asPostfix(eve), asPostfix(bob, "sender=a\x00b"), "\n\n", "request=smtpd_access_policy\n\n", "=\n\n",
		"request=smtpd_access_policy\nprotocol_state=RCPT\nclient_address=" + bob + "\nrecipient=x\n\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, read []byte) {
		var asked []relay.Query
		d := &delegation{judge: opener(&asked)}
		length, ok := d.whole(read)
		want, whole := strings.Index(string(read), "\n\n")+2, strings.Contains(string(read), "\n\n")
		bad := strings.HasPrefix(string(read), "\n") || whole && want > maxRequest
		switch {
		case ok == bad, ok && !whole && length != 0, ok && whole && length != want:
			t.Fatalf("%q: length %d, %v", read, length, ok)
		case !ok || length == 0:
			return
		}
		answer, ok := d.answer(t.Context(), nil, read[:length])
		values, sound := modelRequest(string(read[:length]))
		if ok != sound {
			t.Fatalf("%q: understood %v, want %v", read[:length], ok, sound)
		}
		wanted := putOff
		switch {
		case !sound:
		case values["protocol_state"] != "RCPT":
			wanted = dunno
		case len(asked) != 1:
			t.Fatalf("%q: judged %d times", read[:length], len(asked))
		default:
			q := asked[0]
			if q.Client.IsValid() {
				wanted = yes
				if !spelled(values["client_address"], q.Client) {
					t.Fatalf("%q: judged client %v", read[:length], q.Client)
				}
			}
			if q.Rcpt != values["recipient"] || q.Sender != values["sender"] || q.Queue != values["queue_id"] ||
				q.AuthType != values["sasl_method"] || q.AuthUser != values["sasl_username"] || q.Door != "policy" || q.ClientAddr != "" {
				t.Fatalf("%q: judged %+v", read[:length], q)
			}
		}
		if string(answer) != wanted {
			t.Fatalf("%q: answered %q, want %q", read[:length], answer, wanted)
		}
	})
}

// modelRequest reads a question the slow way.
func modelRequest(text string) (values map[string]string, ok bool) {
	ours := []string{"request", "protocol_state", "client_address", "client_port", "recipient", "sender", "queue_id", "instance",
		"sasl_method", "sasl_username"}
	values = map[string]string{}
	for _, line := range strings.Split(strings.TrimSuffix(text, "\n\n"), "\n") {
		parts := strings.SplitN(line, "=", 2)
		if len(parts) != 2 || parts[0] == "" || strings.Contains(line, "\x00") {
			return nil, false
		}
		if _, twice := values[parts[0]]; twice && slices.Contains(ours, parts[0]) {
			return nil, false
		}
		values[parts[0]] = parts[1]
	}
	_, stated := values["protocol_state"]
	return values, stated && values["request"] == "smtpd_access_policy" &&
		(values["protocol_state"] != "RCPT" || values["recipient"] != "")
}

var (
	netstringHead = regexp.MustCompile(`\A(0|[1-9][0-9]{0,3}):`)
	netstringPart = regexp.MustCompile(`\A(0|[1-9][0-9]{0,3})?\z`)
)

// FuzzSocketMap compares the parser with one made of regular expressions.
func FuzzSocketMap(f *testing.F) {
	for _, s := range []string{
		netstring("postfix " + bob), netstring("popgate IPv6:2001:db8:0:0:0:0:0:7"), netstring("drac ::ffff:" + bob), netstring("exim " + bob6 + "%lo"),
		netstring("postfix " + bob + ".example"), netstring("popgate IPv6:" + bob), netstring("x y"), netstring("popgate"), "0:,", "020:popgate ",
		"4097:", "4096:x", "21:popgate " + bob + ",1", "-1:", ":", netstring("postfix "+bob) + netstring("postfix "+eve),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, read []byte) {
		var asked []relay.Query
		m := &socketMap{judge: opener(&asked)}
		length, ok := m.whole(read)
		text, whole, sound := modelNetstring(string(read))
		if ok != sound || ok && (length > 0) != whole {
			t.Fatalf("%q: length %d, %v; the model says whole %v, sound %v", read, length, ok, whole, sound)
		}
		if !ok || length == 0 {
			return
		}
		if got := fmt.Sprintf("%d:%s,", len(text), text); got != string(read[:length]) {
			t.Fatalf("%q was taken for %q", read[:length], got)
		}
		answer, ok := m.answer(t.Context(), nil, read[:length])
		name, key, found := strings.Cut(text, " ")
		if ok != found {
			t.Fatalf("%q: understood %v", text, ok)
		}
		open := map[string]string{"postfix": "5:OK OK,", "popgate": "8:OK RELAY,", "drac": "8:OK RELAY,", "exim": "8:OK RELAY,"}
		wanted := mapPutOff
		switch _, known := open[name]; {
		case !found:
		case !known:
			wanted = mapNone
		case len(asked) == 0:
			wanted = mapNo
		default:
			wanted = open[name]
			if !spelled(key, asked[0].Client) || asked[0].Rcpt != "" || asked[0].Door != "socketmap" {
				t.Fatalf("%q: judged %+v", text, asked[0])
			}
		}
		if string(answer) != wanted {
			t.Fatalf("%q: answered %q, want %q", text, answer, wanted)
		}
	})
}

func modelNetstring(read string) (text string, whole, sound bool) {
	if netstringPart.MatchString(read) {
		n := 0
		_, _ = fmt.Sscan(read, &n)
		return "", false, n <= maxKey
	}
	head := netstringHead.FindStringSubmatch(read)
	if head == nil {
		return "", false, false
	}
	n := 0
	_, _ = fmt.Sscan(head[1], &n)
	if n > maxKey {
		return "", false, false
	}
	rest := read[len(head[0]):]
	if len(rest) <= n {
		return "", false, true
	}
	return rest[:n], true, rest[n] == ','
}
