package renderer

import "github.com/prometheus/client_golang/prometheus"

// metrics are the renderer's own; records, lag and results come from the loop.
type metrics struct {
	rejected *prometheus.CounterVec
	bytes    prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "renderer_rejected_total", Help: "Requests that could not be rendered, by reason."}, []string{"reason"}),
		bytes:    prometheus.NewCounter(prometheus.CounterOpts{Name: "renderer_rendered_bytes_total", Help: "Bytes of rendered messages."}),
	}
	reg.MustRegister(m.rejected, m.bytes)
	return m
}
