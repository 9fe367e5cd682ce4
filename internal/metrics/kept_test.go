package metrics

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// rising counts how often it is asked, and shows that.
type rising struct {
	desc  *prometheus.Desc
	asked int
}

func (r *rising) Describe(to chan<- *prometheus.Desc) { to <- r.desc }

func (r *rising) Collect(to chan<- prometheus.Metric) {
	r.asked++
	to <- prometheus.MustNewConstMetric(r.desc, prometheus.CounterValue, float64(r.asked))
}

func TestTheProcessIsReadOnceASecondHoweverOftenItIsScraped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &rising{desc: family("asked_total", "For this test.")}
		registry := prometheus.NewRegistry()
		registry.MustRegister(&kept{of: r})
		for i, want := range []float64{1, 1, 1, 1, 2, 2, 2, 2, 3} {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			if got := families[0].GetMetric()[0].GetCounter().GetValue(); got != want {
				t.Errorf("scrape %d, %v after the first: %v, want %v", i, time.Duration(i)*keptLife/4, got, want)
			}
			time.Sleep(keptLife / 4)
		}
	})
}
