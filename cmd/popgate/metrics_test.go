package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
)

// metricsSite is a daemon with a metrics listener.
func metricsSite(t *testing.T) (*site, *http.Client) {
	t.Helper()
	s := newSite(t)
	path := filepath.Join(s.dir, "metrics.sock")
	s.write("milter.yaml", strings.Replace(fmt.Sprintf(siteConfig, s.dir), "listen:\n", "listen:\n  metrics: unix:"+path+"\n", 1))
	s.start()
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	t.Cleanup(transport.CloseIdleConnections)
	return s, &http.Client{Transport: transport}
}

func get(t *testing.T, c *http.Client, path string) (int, string) {
	t.Helper()
	r, err := c.Get("http://popgate" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(body)
}

// refuseStranger has a recipient refused at the milter.
func refuseStranger(t *testing.T, s *site, recipient string) {
	t.Helper()
	d := door{name: "milter", speak: speakMilter}
	q := &question{client: netip.MustParseAddr("192.0.2.66"), recipient: recipient, asked: func() {}}
	if o, err := d.ask(s.dir, 10*time.Second, q); o != refused || err != nil {
		t.Fatalf("a stranger was answered %v, %v; want a refusal", o, err)
	}
}

func TestMetricsSayWhatStatusSays(t *testing.T) {
	s, c := metricsSite(t)
	refuseStranger(t, s, "x@remote.example")
	s.login("192.0.2.10")
	s.until("the grant is there", func() bool { return strings.Contains(s.must("list"), "192.0.2.10") })
	_, text := get(t, c, "/metrics")
	for _, want := range []string{
		`popgate_decisions_total{reason="no_grant",verdict="refuse"} 1`,
		`popgate_decision_duration_seconds_count 1`,
		`popgate_logins_total{outcome="granted"} 1`,
		fmt.Sprintf(`popgate_source_up{source="file:%s/mail.log",type="file"} 1`, s.dir),
		`popgate_table_entries{table="grants"} 1`,
		`popgate_connections_total{listener="milter"} 1`,
		`popgate_problems 0`, `popgate_state_failing 0`, `popgate_local_domains 1`, `popgate_log_dropped_total 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("no line %q", want)
		}
	}
	if t.Failed() {
		t.Logf("%s", text)
	}
}

func TestMetricsNameNoStranger(t *testing.T) {
	s, c := metricsSite(t)
	refuseStranger(t, s, "secret-recipient@remote.example")
	s.login("192.0.2.10")
	s.until("the grant is there", func() bool { return strings.Contains(s.must("list"), "192.0.2.10") })
	_, text := get(t, c, "/metrics")
	for _, never := range []string{"192.0.2.", "bob", "secret-recipient", "remote.example"} {
		if strings.Contains(text, never) {
			t.Errorf("the metrics hold %q", never)
		}
	}
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestHealthzSaysWhatIsWrong(t *testing.T) {
	s, c := metricsSite(t)
	if code, text := get(t, c, "/healthz"); code != 200 || text != "ok\n" {
		t.Errorf("a daemon that is well answers %d %q", code, text)
	}
	fault := errors.New("the copy is stale")
	s.fault.Store(&fault)
	if code, text := get(t, c, "/healthz"); code != 503 || !strings.Contains(text, "store: the copy is stale") {
		t.Errorf("a degraded daemon answers %d %q", code, text)
	}
	if _, text := get(t, c, "/metrics"); !strings.Contains(text, "popgate_problems 1\n") {
		t.Errorf("popgate_problems is not 1")
	}
}

var metricName = regexp.MustCompile(`\bpopgate_[a-z_]+`)

// Alerts and dashboard name metrics that there are, and the page names all.
func TestContribNamesMetricsThatThereAre(t *testing.T) {
	_, c := metricsSite(t)
	_, text := get(t, c, "/metrics")
	have := map[string]bool{"popgate_decisions_total": true, "popgate_logins_total": true, // shown from the first on
		"popgate_source_last_line_timestamp_seconds": true, "popgate_source_last_login_timestamp_seconds": true}
	for line := range strings.Lines(text) {
		if name, ok := strings.CutPrefix(line, "# TYPE popgate_"); ok {
			have["popgate_"+strings.Fields(name)[0]] = true
		}
	}
	page := map[string]bool{}
	for _, file := range []string{"contrib/prometheus/popgate.rules.yml", "contrib/grafana/popgate.json", "docs/monitoring.md"} {
		text, err := os.ReadFile("../../" + file)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range metricName.FindAllString(string(text), -1) {
			name = strings.TrimSuffix(name, "_bucket")
			page[name] = true
			if !have[name] {
				t.Errorf("%s names %s, which popgate does not show", file, name)
			}
		}
	}
	for name := range have {
		if !page[name] {
			t.Errorf("docs/monitoring.md does not name %s", name)
		}
	}
}
