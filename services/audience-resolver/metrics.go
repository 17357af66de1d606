package resolver

import "github.com/prometheus/client_golang/prometheus"

// metrics are the resolver's own; records, lag and results per stage come from
// the loops.
type metrics struct {
	partitions prometheus.Gauge
	parked     prometheus.Counter
	// undoForgotten counts people whom an undo left alone.
	undoForgotten prometheus.Counter
	admitted      *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		partitions: prometheus.NewGauge(prometheus.GaugeOpts{Name: "resolver_partitions", Help: "Person partitions this instance owns."}),
		parked:     prometheus.NewCounter(prometheus.CounterOpts{Name: "resolver_parked_total", Help: "Records put to dead letters by the person loop."}),
		undoForgotten: prometheus.NewCounter(prometheus.CounterOpts{Name: "resolver_undo_forgotten_total",
			Help: "People whom the undo of an import left as they are, since what it replaced was no longer known."}),
		admitted: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "resolver_candidates_total",
			Help: "Candidates decided, by result: requested, repeat, or the reason of the exclusion. Counted when decided, not when committed."}, []string{"result"}),
	}
	reg.MustRegister(m.partitions, m.parked, m.undoForgotten, m.admitted)
	return m
}
