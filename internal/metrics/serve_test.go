package metrics

import (
	"net/http"
	"net/http/httptest"
	"os"
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

// What the runtime and the kernel tell of the process costs half of a scrape,
// unless it is kept.
func TestAScrapeReadsTheProcessOnceASecond(t *testing.T) {
	h := handler(Options{Snapshot: busy})
	names := []string{"go_memstats_alloc_bytes_total ", "process_open_fds "}
	spent := func() (lines []string) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
		for _, name := range names {
			_, rest, found := strings.Cut(w.Body.String(), "\n"+name)
			if !found {
				t.Fatalf("no %sin %d %s", name, w.Code, w.Body)
			}
			value, _, _ := strings.Cut(rest, "\n")
			lines = append(lines, name+value)
		}
		return lines
	}
	first := spent()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	again := spent()
	time.Sleep(keptLife)
	later := spent()
	for i := range names {
		if again[i] != first[i] {
			t.Errorf("%s then at once %s", first[i], again[i])
		}
		if later[i] == first[i] {
			t.Errorf("still %s after %v", first[i], keptLife)
		}
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
