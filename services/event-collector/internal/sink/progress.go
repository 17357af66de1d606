package sink

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

const (
	// looking is how often the sink looks how far it is.
	looking = time.Second
	// resting is how often it says so in ClickHouse while nothing comes: each time is
	// an insert.
	resting = 5 * time.Second
	// maxLooks bounds what is remembered of a partition that is behind.
	maxLooks = 64
)

// Place is where the sink's group and its topics stand.
type Place interface {
	HighWatermarks(ctx context.Context, names ...topic.Name) (kafka.Mark, error)
	Committed(ctx context.Context, group topic.Group) (kafka.Mark, error)
}

// look is where a partition ended at a moment.
type look struct {
	at  time.Time
	end int64
}

// lane is how far the sink is in one partition.
type lane struct {
	passed, end int64
	until       time.Time // everything that lay there then is stored; zero if that was never seen
	looks       []look    // those that are not passed yet, by time and end
}

// see notes where the partition ended at a moment, and that everything before passed
// is stored now. Passed is learnt after end: whatever it covers of earlier looks holds.
func (l *lane) see(at time.Time, end, passed int64) {
	l.passed, l.end = max(l.passed, passed), end
	if n := len(l.looks); n > 0 && l.looks[n-1].end == end {
		l.looks[n-1].at = at // nothing has come meanwhile
	} else {
		if n == maxLooks {
			// Half of them say nearly as much.
			for i := range n / 2 {
				l.looks[i] = l.looks[2*i+1]
			}
			l.looks = l.looks[:n/2]
		}
		l.looks = append(l.looks, look{at, end})
	}
	done := 0
	for done < len(l.looks) && l.looks[done].end <= l.passed {
		l.until = l.looks[done].at
		done++
	}
	l.looks = slices.Delete(l.looks, 0, done)
}

// lanes are all partitions of the group's topics.
type lanes map[topic.Name]map[int32]*lane

// see is lane.see for all of them.
func (ls lanes) see(at time.Time, ends, passed kafka.Mark) {
	for name, partitions := range ends {
		if ls[name] == nil {
			ls[name] = map[int32]*lane{}
		}
		for p, end := range partitions {
			if ls[name][p] == nil {
				ls[name][p] = &lane{}
			}
			ls[name][p].see(at, end, passed[name][p])
		}
	}
}

// until is the moment up to which all partitions are complete; zero if one never was.
func (ls lanes) until() time.Time {
	var least time.Time
	first := true
	for _, partitions := range ls {
		for _, l := range partitions {
			if first || l.until.Before(least) {
				least, first = l.until, false
			}
		}
	}
	return least
}

// lag is how many records of each topic are not stored.
func (ls lanes) lag() map[topic.Name]int64 {
	out := make(map[topic.Name]int64, len(ls))
	for name, partitions := range ls {
		for _, l := range partitions {
			out[name] += max(0, l.end-l.passed)
		}
	}
	return out
}

// progressRow is a row of sink_progress_rows.
type progressRow struct {
	topic     topic.Name
	partition int32
	lane
}

func (ls lanes) rows() []progressRow {
	var out []progressRow
	for _, name := range slices.Sorted(maps.Keys(ls)) {
		for _, p := range slices.Sorted(maps.Keys(ls[name])) {
			out = append(out, progressRow{name, p, *ls[name][p]})
		}
	}
	return out
}

// Progress says how far the sink's group is, in metrics and in ClickHouse. It goes by
// what the group has committed, which is stored (I1), and never by what a batch in hand
// may come to. Each instance measures the whole group; one of them writes.
type Progress struct {
	place  Place
	into   Database
	log    *slog.Logger
	lanes  lanes
	writes atomic.Bool // this instance is the one that does
	said   struct {
		at    time.Time
		moved int64 // the sum of all offsets then
	}
	failing bool

	until prometheus.Gauge
	lag   *prometheus.GaugeVec
}

// NewProgress returns one whose metrics are registered with reg.
func NewProgress(place Place, into Database, reg prometheus.Registerer, log *slog.Logger) *Progress {
	p := &Progress{
		place: place, into: into, log: log, lanes: lanes{},
		until: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sink_complete_until_seconds", Help: "Everything that lay in Kafka at this moment (Unix time) is in ClickHouse; 0 until this instance has seen such a moment.",
		}),
		lag: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sink_lag_records", Help: "Records that the whole group has still to store, by topic, transaction markers included.",
		}, []string{"topic"}),
	}
	reg.MustRegister(p.until, p.lag)
	return p
}

// Assigned hears which partitions this instance has. Whoever has the first of events writes.
func (p *Progress) Assigned(partitions map[topic.Name][]int32) {
	p.writes.Store(slices.Contains(partitions[topic.Events], 0))
}

// Run looks until ctx ends. That it cannot is nobody's loss: the mark stands still.
func (p *Progress) Run(ctx context.Context) {
	tick := time.NewTicker(looking)
	defer tick.Stop()
	for {
		err := p.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if failing := err != nil; failing != p.failing {
			p.failing = failing
			if failing {
				p.log.Warn("how far the sink is cannot be said", "error", err)
			} else {
				p.log.Info("how far the sink is can be said again")
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// look measures, and says it.
func (p *Progress) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, insertPatience)
	defer cancel()
	// The moment comes first, and what is committed last: what lay there at that
	// moment lies before the ends.
	at := time.Now()
	ends, err := p.place.HighWatermarks(ctx, topic.ReadBy(topic.GroupSink)...)
	if err != nil {
		return err
	}
	passed, err := p.place.Committed(ctx, topic.GroupSink)
	if err != nil {
		return err
	}
	p.lanes.see(at, ends, passed)
	if until := p.lanes.until(); !until.IsZero() {
		p.until.Set(float64(until.UnixMilli()) / 1000)
	}
	for name, n := range p.lanes.lag() {
		p.lag.WithLabelValues(string(name)).Set(float64(n))
	}
	if !p.writes.Load() {
		return nil
	}
	rows := p.lanes.rows()
	var moved int64
	for i := range rows {
		moved += rows[i].passed + rows[i].end
	}
	if moved == p.said.moved && at.Sub(p.said.at) < resting {
		return nil
	}
	if err := p.write(ctx, at, rows); err != nil {
		return err
	}
	p.said.at, p.said.moved = at, moved
	return nil
}

func (p *Progress) write(ctx context.Context, at time.Time, rows []progressRow) error {
	topics, partitions := clickhouse.NewWord(), clickhouse.NewInt32()
	passed, ends, until, looked := clickhouse.NewInt64(), clickhouse.NewInt64(), clickhouse.NewMillis(), clickhouse.NewMillis()
	for i := range rows {
		r := &rows[i]
		topics.Append(string(r.topic))
		partitions.Append(r.partition)
		passed.Append(r.passed)
		ends.Append(r.end)
		until.Append(r.until)
		looked.Append(at)
	}
	return p.into.Send(ctx, "sink_progress_rows", []string{"topic", "partition", "passed_offset", "end_offset", "complete_until", "looked_at"},
		[]clickhouse.Column{topics, partitions, passed, ends, until, looked})
}
