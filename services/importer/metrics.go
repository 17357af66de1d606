package importer

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/hikyaku/hikyaku/services/internal/importfile"
)

type metrics struct {
	rows      prometheus.Counter
	rejects   prometheus.Counter
	bytes     prometheus.Counter
	records   *prometheus.CounterVec
	committed prometheus.Histogram
	imports   *prometheus.GaugeVec
	lettings  *prometheus.CounterVec
	announced *prometheus.CounterVec
	paced     prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	m := &metrics{
		rows:      prometheus.NewCounter(prometheus.CounterOpts{Name: "importer_rows_total", Help: "Rows committed, rejected ones among them."}),
		rejects:   prometheus.NewCounter(prometheus.CounterOpts{Name: "importer_rejects_total", Help: "Rows rejected."}),
		bytes:     prometheus.NewCounter(prometheus.CounterOpts{Name: "importer_bytes_total", Help: "Bytes of objects whose rows are committed."}),
		records:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "importer_records_total", Help: "Records committed."}, []string{"topic"}),
		committed: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "importer_transaction_seconds", Help: "Time from a transaction's begin to its commit.", Buckets: prometheus.ExponentialBuckets(0.005, 2, 10)}),
		imports:   prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "importer_imports", Help: "Imports of the namespace, by state, as this instance knows them."}, []string{"state"}),
		lettings:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "importer_let_go_total", Help: "Imports that this instance let go of before their end."}, []string{"reason"}),
		paced:     prometheus.NewCounter(prometheus.CounterOpts{Name: "importer_paced_seconds_total", Help: "Time that large objects waited because the audience-resolver or the event-collector was MAX_AHEAD behind."}),
		announced: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "importer_announcements_total", Help: "Messages from a queue or by HTTP that say that objects have appeared: settled; given back because they could not be now; or refused, as they are none."}, []string{"source", "result"}),
	}
	reg.MustRegister(m.rows, m.rejects, m.bytes, m.records, m.committed, m.imports, m.lettings, m.announced, m.paced)
	for _, s := range importfile.States() {
		m.imports.WithLabelValues(s) // shown from the start, as 0
	}
	return m
}
