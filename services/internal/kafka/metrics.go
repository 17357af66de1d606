package kafka

import (
	"errors"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"
)

// metrics are the same for every stage, so that one dashboard row fits all.
type metrics struct {
	records    *prometheus.CounterVec // stage, result
	lagRecords *prometheus.GaugeVec   // stage
	lagSeconds *prometheus.GaugeVec   // stage
	seconds    *prometheus.CounterVec // stage, phase
	batches    *prometheus.CounterVec // stage, result
}

// The values of the label result.
const (
	resultOK         = "ok"
	resultDeadLetter = "dead_letter"
	resultRetried    = "retried" // read again: aborted, rebalanced, or something was away
)

func newMetrics(r prometheus.Registerer) *metrics {
	return &metrics{
		records: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stage_records_total", Help: "Records by what became of them: ok, dead_letter, retried.",
		}, []string{"stage", "result"})),
		lagRecords: register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "stage_lag_records", Help: "Records between what the stage has read and the end of its partitions.",
		}, []string{"stage"})),
		lagSeconds: register(r, prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "stage_lag_seconds", Help: "Age of the record read last, in seconds since it was produced; 0 when there is no lag.",
		}, []string{"stage"})),
		seconds: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stage_seconds_total", Help: "Where a loop's time goes, in seconds: wait for records, work, commit (flush, offsets and end of transaction: the bubble).",
		}, []string{"stage", "phase"})),
		batches: register(r, prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "stage_batches_total", Help: "Batches by what became of them: ok, retried.",
		}, []string{"stage", "result"})),
	}
}

// register returns the collector of this name that is registered already, if any:
// two clusters in one process share it.
func register[C prometheus.Collector](r prometheus.Registerer, c C) C {
	if r == nil {
		return c
	}
	var already prometheus.AlreadyRegisteredError
	if err := r.Register(c); errors.As(err, &already) {
		if there, ok := already.ExistingCollector.(C); ok {
			return there
		}
	}
	return c
}

// stage holds one loop's metrics with its label filled in.
type stage struct {
	m    *metrics
	name string

	ok, deadLetters, retried prometheus.Counter
	okBatches, retriedBatch  prometheus.Counter
	wait, work, commit       prometheus.Counter

	mu  sync.Mutex
	lag map[string]map[int32]int64
}

func (m *metrics) stage(name string) *stage {
	return &stage{
		m: m, name: name, lag: map[string]map[int32]int64{},
		ok:           m.records.WithLabelValues(name, resultOK),
		deadLetters:  m.records.WithLabelValues(name, resultDeadLetter),
		retried:      m.records.WithLabelValues(name, resultRetried),
		okBatches:    m.batches.WithLabelValues(name, resultOK),
		retriedBatch: m.batches.WithLabelValues(name, resultRetried),
		wait:         m.seconds.WithLabelValues(name, "wait"),
		work:         m.seconds.WithLabelValues(name, "work"),
		commit:       m.seconds.WithLabelValues(name, "commit"),
	}
}

// read notes how far behind the end a poll leaves the stage.
func (s *stage) read(fetches kgo.Fetches, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var newest time.Time
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		if len(p.Records) == 0 {
			return
		}
		last := p.Records[len(p.Records)-1]
		if s.lag[p.Topic] == nil {
			s.lag[p.Topic] = map[int32]int64{}
		}
		s.lag[p.Topic][p.Partition] = max(0, p.HighWatermark-last.Offset-1)
		if last.Timestamp.After(newest) {
			newest = last.Timestamp
		}
	})
	total := s.total()
	s.m.lagRecords.WithLabelValues(s.name).Set(float64(total))
	switch {
	case total == 0:
		s.m.lagSeconds.WithLabelValues(s.name).Set(0)
	case !newest.IsZero():
		s.m.lagSeconds.WithLabelValues(s.name).Set(max(0, now.Sub(newest).Seconds()))
	}
}

// behind is how many records lay behind what was read, when it was.
func (s *stage) behind() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total()
}

// gone forgets partitions that another member reads now.
func (s *stage) gone(partitions map[string][]int32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for t, ps := range partitions {
		for _, p := range ps {
			delete(s.lag[t], p)
		}
	}
	s.m.lagRecords.WithLabelValues(s.name).Set(float64(s.total()))
}

func (s *stage) total() (n int64) {
	for _, ps := range s.lag {
		for _, l := range ps {
			n += l
		}
	}
	return n
}
