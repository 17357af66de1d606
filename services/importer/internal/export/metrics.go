package export

import "github.com/prometheus/client_golang/prometheus"

// Metrics count exports.
type Metrics struct {
	rows     prometheus.Counter
	exports  *prometheus.CounterVec
	lettings *prometheus.CounterVec
}

// NewMetrics registers them.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		rows:     prometheus.NewCounter(prometheus.CounterOpts{Name: "importer_export_rows_total", Help: "Rows written by exports, those of attempts that came to nothing among them."}),
		exports:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "importer_exports_total", Help: "Exports that have ended, by how."}, []string{"state"}),
		lettings: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "importer_exports_let_go_total", Help: "Exports that this instance let go of before their end."}, []string{"reason"}),
	}
	r.MustRegister(m.rows, m.exports, m.lettings)
	return m
}

func (m *Metrics) ended(state string) { m.exports.WithLabelValues(state).Inc() }
