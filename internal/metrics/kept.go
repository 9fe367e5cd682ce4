package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// keptLife is how old what the runtime and the kernel tell of the process may
// be. Half of a scrape's time goes into that (most of it into files of /proc
// that hold far more), and it is taken from RCPT.
const keptLife = 900 * time.Millisecond

// kept is a collector that is asked once in keptLife at most.
type kept struct {
	of prometheus.Collector

	mu   sync.Mutex
	at   time.Time // of last; zero: never
	last []prometheus.Metric
}

func (k *kept) Describe(to chan<- *prometheus.Desc) { k.of.Describe(to) }

func (k *kept) Collect(to chan<- prometheus.Metric) {
	for _, m := range k.metrics() {
		to <- m
	}
}

func (k *kept) metrics() []prometheus.Metric {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.at.IsZero() && time.Since(k.at) < keptLife {
		return k.last
	}
	k.at = time.Now()
	from := make(chan prometheus.Metric)
	go func() {
		defer close(from)
		k.of.Collect(from)
	}()
	var fresh []prometheus.Metric
	for m := range from {
		fresh = append(fresh, m)
	}
	k.last = fresh
	return fresh
}
