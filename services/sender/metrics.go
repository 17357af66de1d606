package sender

import "github.com/prometheus/client_golang/prometheus"

// metrics are the sender's own; records, claims and lag come from the loop.
type metrics struct {
	outcomes *prometheus.CounterVec
	seconds  prometheus.Histogram
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "sender_outcomes_total", Help: "Outcomes made, by outcome; after a crash some are made again."}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "sender_call_seconds", Help: "Time from asking for a connection to the server's final reply.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}}),
	}
	reg.MustRegister(m.outcomes, m.seconds)
	return m
}
