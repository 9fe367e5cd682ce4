package metrics

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// keptLife is how old what the runtime and the kernel tell of the process may
// be. Half of a scrape's time goes into that (most of it into files of /proc
// that hold far more), and it is taken from RCPT.
const keptLife = time.Second

// kept is a collector that is asked at most once in keptLife.
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
	from := make(chan prometheus.Metric)
	go func() {
		defer close(from)
		k.of.Collect(from)
	}()
	var fresh []prometheus.Metric
	for m := range from {
		fresh = append(fresh, m)
	}
	k.at, k.last = time.Now(), fresh
	return fresh
}
