package metrics

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"popgate/internal/relay"
)

// busy is what a daemon with two sources and all listeners counts.
func busy() Snapshot {
	s := Snapshot{
		Version: "1.0", Started: time.Unix(1_700_000_000, 0), Domains: 5,
		Decisions: map[relay.Decision]uint64{},
		Times:     Times{UpTo: map[time.Duration]uint64{}, All: 9, Sum: time.Second},
		Logins:    map[string]uint64{"granted": 1, "renewed": 2, "trusted": 3, "excluded": 4, "old": 5},
		Tables:    map[string]int{"grants": 1_000_000, "sessions": 1000, "waiting": 3},
		Doors:     map[string]Door{},
	}
	for v := range relay.Verdict(3) {
		for r := range relay.Reason(5) {
			s.Decisions[relay.Decision{Verdict: v, Reason: r}] = 7
		}
	}
	for i := range 12 {
		s.Times.UpTo[time.Microsecond<<(2*i)] = uint64(i)
	}
	for _, name := range []string{"file:/var/log/mail.log", "journal"} {
		s.Sources = append(s.Sources, relay.SourceState{Name: name, Type: "file", LastLine: s.Started, LastLogin: s.Started})
	}
	for _, name := range []string{"milter", "policy", "socketmap"} {
		s.Doors[name] = Door{Ended: map[string]uint64{"capped": 1, "denied": 2, "bad_packets": 3, "unsent": 4, "timeouts": 5, "panics": 0, "accept_errors": 0}}
	}
	return s
}

// What the kernel tells of the process costs half of a scrape, unless it is kept.
func TestAScrapeReadsTheProcessOnceASecond(t *testing.T) {
	h := handler(Options{Snapshot: busy})
	spent := func() string {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for line := range strings.Lines(w.Body.String()) {
			if strings.HasPrefix(line, "go_memstats_alloc_bytes_total ") {
				return line
			}
		}
		t.Fatalf("no such metric in %d %s", w.Code, w.Body)
		return ""
	}
	first := spent()
	if again := spent(); again != first {
		t.Errorf("%s then at once %s", first, again)
	}
	time.Sleep(keptLife)
	if later := spent(); later == first {
		t.Errorf("still %s after %v", first, keptLife)
	}
}

func BenchmarkScrape(b *testing.B) {
	h := handler(Options{Snapshot: busy})
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		if w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
