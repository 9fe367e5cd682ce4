// Package metrics shows what the daemon counts to Prometheus, at /metrics, and
// whether it is well, at /healthz. It counts nothing itself: each scrape asks
// the daemon once and prints what it is told.
//
// No label holds an address, a user or anything else that a stranger chose, so
// the number of series is bounded by the configuration. What is shown is still
// the site's own business: the listener belongs on loopback or a unix socket.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"popgate/internal/relay"
)

// Snapshot is what the daemon counts, at one moment.
type Snapshot struct {
	Version    string
	Started    time.Time
	Problems   int // as status lists them; 0: well
	Decisions  map[relay.Decision]uint64
	Times      Times
	Logins     map[string]uint64 // logins and logouts by what became of them
	Sources    []relay.SourceState
	Tables     map[string]int // entries of each bounded table; "grants" is one
	Doors      map[string]Door
	Domains    int
	StateFails bool   // the state directory can't be written
	LogDropped uint64 // lines
}

// Times are the decisions by the time they took.
type Times struct {
	UpTo map[time.Duration]uint64 // decisions that took at most this long
	All  uint64
	Sum  time.Duration
}

// Door is what one kind of listener counts.
type Door struct {
	Open  int
	Total uint64
	Ended map[string]uint64 // connections not ended by the MTA, by cause
}

const prefix = "popgate_"

// family is one metric with its help.
func family(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

var (
	info           = family("build_info", "Always 1; the label says which popgate this is.", "version")
	started        = family("start_time_seconds", "When the daemon was started, in seconds since 1970.")
	problems       = family("problems", "Problems that popgate status lists; 0 is well.")
	decisions      = family("decisions_total", "Recipients decided, by verdict and reason.", "verdict", "reason")
	decisionTime   = family("decision_duration_seconds", "Time from question to answer, with waiting for a login.")
	logins         = family("logins_total", "Logins and logouts read, by what became of them.", "outcome")
	sourceUp       = family("source_up", "1 while the source is read up to the present.", "source", "type")
	sourceStarting = family("source_starting", "1 while what was logged before the start is being read.", "source", "type")
	sourceLines    = family("source_lines_total", "Records read.", "source", "type")
	sourceLogins   = family("source_logins_total", "Logins read.", "source", "type")
	sourceUnparsed = family("source_unparsed_total", "Lines that look like a login and match nothing.", "source", "type")
	sourceGaps     = family("source_gaps_total", "Places where lines may be missing.", "source", "type")
	sourceMissed   = family("source_missed_total", "Gaps at which lines were passed over unread.", "source", "type")
	sourceLag      = family("source_lag_seconds", "How far behind the present reading is, where that can be told.", "source", "type")
	sourceLine     = family("source_last_line_timestamp_seconds", "When the last line was read; no sample before the first.", "source", "type")
	sourceLogin    = family("source_last_login_timestamp_seconds", "The last login's own time; no sample before the first.", "source", "type")
	table          = family("table_entries", "Entries of each bounded table. Grants that ended stay among them for up to ten minutes.", "table")
	open           = family("connections", "Connections of MTAs at the moment.", "listener")
	total          = family("connections_total", "Connections taken from MTAs.", "listener")
	ended          = family("connections_ended_total", "Connections popgate ended or did not take, by cause.", "listener", "cause")
	domains        = family("local_domains", "Local domains known.")
	stateFails     = family("state_failing", "1 while the state directory can't be written.")
	logDropped     = family("log_dropped_total", "Lines of popgate's own log lost because whoever reads it was too slow.")
)

// collector asks for a snapshot at each scrape.
type collector struct{ snapshot func() Snapshot }

// Describe names nothing: which series there are depends on the configuration.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends one snapshot.
func (c collector) Collect(to chan<- prometheus.Metric) {
	s := c.snapshot()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		to <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(info, 1, s.Version)
	gauge(started, seconds(s.Started))
	gauge(problems, float64(s.Problems))
	for d, n := range s.Decisions {
		counter(decisions, n, d.Verdict.String(), d.Reason.String())
	}
	buckets := map[float64]uint64{}
	for upTo, n := range s.Times.UpTo {
		buckets[upTo.Seconds()] = n
	}
	to <- prometheus.MustNewConstHistogram(decisionTime, s.Times.All, s.Times.Sum.Seconds(), buckets)
	for outcome, n := range s.Logins {
		counter(logins, n, outcome)
	}
	for _, src := range s.Sources {
		collectSource(&src, gauge, counter)
	}
	for name, n := range s.Tables {
		gauge(table, float64(n), name)
	}
	for name, d := range s.Doors {
		gauge(open, float64(d.Open), name)
		counter(total, d.Total, name)
		for cause, n := range d.Ended {
			counter(ended, n, name, cause)
		}
	}
	gauge(domains, float64(s.Domains))
	gauge(stateFails, flag(s.StateFails))
	counter(logDropped, s.LogDropped)
}

func collectSource(s *relay.SourceState, gauge func(*prometheus.Desc, float64, ...string), counter func(*prometheus.Desc, uint64, ...string)) {
	name, kind := s.Name, s.Type
	gauge(sourceUp, flag(s.Status == relay.SourceUp), name, kind)
	gauge(sourceStarting, flag(s.Status == relay.SourceStarting), name, kind)
	counter(sourceLines, s.Lines, name, kind)
	counter(sourceLogins, s.Logins, name, kind)
	counter(sourceUnparsed, s.Unparsed, name, kind)
	counter(sourceGaps, s.Gaps, name, kind)
	counter(sourceMissed, s.Missed, name, kind)
	gauge(sourceLag, s.Lag.Seconds(), name, kind)
	if !s.LastLine.IsZero() {
		gauge(sourceLine, seconds(s.LastLine), name, kind)
	}
	if !s.LastLogin.IsZero() {
		gauge(sourceLogin, seconds(s.LastLogin), name, kind)
	}
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
