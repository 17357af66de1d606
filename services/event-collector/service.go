// Package collector is the event-collector. Its intake takes in what people do,
// over HTTP, and writes it to Kafka; its sink writes everything the pipeline
// knows from Kafka to ClickHouse. An instance has one role or both.
package collector

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/classify"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/spool"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/sink"
)

// Service is one instance of the collector. What belongs to a role that it does
// not have is nil.
type Service struct {
	cfg     Config
	tel     *telemetry.Telemetry
	cluster *kafka.Cluster

	front *front         // intake
	out   *output.Writer // intake

	conn     *clickhouse.Conn // sink
	erasures *kafka.Table     // sink
	imports  *kafka.Table     // sink
	sink     *sink.Sink       // sink
	progress *sink.Progress   // sink
	// sink: every version, the one to go by last
	classifiers []*classify.Classifier
}

// New validates and wires; it opens nothing.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	cluster, err := kafka.New(cfg.Kafka, topic.Collector, tel)
	if err != nil {
		return nil, err
	}
	s := &Service{cfg: cfg, tel: tel, cluster: cluster}
	if s.classifiers, err = classify.All(); err != nil {
		return nil, err
	}
	if cfg.Has(RoleIntake) {
		s.out = output.New(output.Options{Cluster: cluster, Spool: cfg.spool(cluster.Member()), AckTimeout: cfg.Intake.AckTimeout, Tel: tel})
		// Without Kafka intake goes on, and whoever routes requests must not turn away.
		cluster.Tolerate(topic.GroupSink)
		tel.Health.Tolerate(output.Component)
		if s.front, err = newFront(cfg, tel, s.out); err != nil {
			return nil, err
		}
	}
	if cfg.Has(RoleSink) {
		conn, err := clickhouse.Open(cfg.ClickHouse, cfg.Kafka.Namespace)
		if err != nil {
			return nil, err
		}
		s.sinkInto(conn)
		cluster.Expect(topic.GroupSink)
	}
	return s, nil
}

func (s *Service) sinkInto(conn *clickhouse.Conn) {
	erased := sink.NewErased(s.cfg.Kafka.Namespace, s.cluster.Record)
	s.erasures = s.cluster.Table([]topic.Name{topic.Erasures}, func(r *kgo.Record) error {
		if r.Value == nil {
			return nil
		}
		x := new(event.Erasure)
		if err := s.cluster.Decode(r, x); err != nil {
			// Whoever it names would be stored again: nothing is, until it can be read.
			return fmt.Errorf("reading whom the erasure at offset %d names: %w", r.Offset, err)
		}
		erased.Put(x)
		return nil
	})
	s.conn, s.sink = conn, sink.New(s.cluster, conn, s.tel.Registry, s.classifiers...)
	s.imports = s.cluster.Table([]topic.Name{topic.Imports}, func(r *kgo.Record) error {
		if r.Value == nil {
			return nil
		}
		i := new(event.Import)
		if err := s.cluster.Decode(r, i); fault.ClassOf(err) == fault.ClassPoison {
			return nil // the loop parks it
		} else if err != nil {
			return err
		}
		s.sink.Undone().Put(i)
		return nil
	})
	s.sink.LeaveOut(erased, func(ctx context.Context) error {
		if err := s.erasures.CaughtUp(ctx); err != nil {
			return err
		}
		return s.imports.CaughtUpStable(ctx)
	}, func(ctx context.Context) (kafka.Mark, error) { return s.cluster.Committed(ctx, topic.GroupSink) })
	s.progress = sink.NewProgress(s.cluster, conn, s.tel.Registry, s.tel.Log)
}

// Run collects until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if s.conn != nil {
		defer s.conn.Close()
	}
	if s.front != nil {
		// A taken port, or spool, is known before anything is waited for.
		if err := s.front.listen(); err != nil {
			return err
		}
		if err := s.out.Open(); err != nil {
			s.front.listener.Close()
			if errors.Is(err, spool.ErrLocked) {
				return fault.Transient(err)
			}
			return err
		}
	}
	defer s.cluster.Close()
	g, ctx := errgroup.WithContext(ctx)
	if s.front != nil {
		// What comes while Kafka is still away goes into the spool, so the front is
		// open before the cluster is there.
		g.Go(func() error { return s.front.run(ctx, s.out) })
	}
	g.Go(func() error {
		if err := s.cluster.Start(ctx); err != nil {
			return err
		}
		if s.out != nil {
			if err := s.out.Start(); err != nil {
				return err
			}
		}
		if s.sink == nil {
			return nil
		}
		return s.runSink(ctx)
	})
	return g.Wait()
}

// pace is how often the sink looks for more to gather, which it does for far longer.
const pace = 100 * time.Millisecond

// quiet is how long nothing must come for the sink to gather no further: the end of
// an import or of a run is in ClickHouse at once.
const quiet = 200 * time.Millisecond

// batchTime is longer than other loops take for a batch: on a machine that is busy smaller
// inserts make more parts, whose merges make it busier.
const batchTime = 2 * time.Second

// runSink moves Kafka to ClickHouse. When ClickHouse is away the loop waits with
// its batch in hand.
func (s *Service) runSink(ctx context.Context) error {
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go s.watchClickHouse(watch)
	measured := make(chan struct{})
	go func() { defer close(measured); s.progress.Run(watch) }()
	defer func() { stop(); <-measured }()
	// The tables outlive the loop, which asks them until its last batch is done.
	reading, end := context.WithCancel(context.WithoutCancel(ctx))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.erasures.Run(reading) })
	g.Go(func() error { return s.imports.Run(reading) })
	g.Go(func() error {
		defer end()
		return s.sinkLoop(ctx)
	})
	return g.Wait()
}

func (s *Service) sinkLoop(ctx context.Context) error {
	return s.cluster.RunEffect(ctx, kafka.EffectOptions{
		Group: topic.GroupSink, Topics: topic.ReadBy(topic.GroupSink),
		MaxPollRecords: s.cfg.Sink.BatchRecords, MaxPollBytes: s.cfg.Sink.BatchMiB << 20, Linger: s.cfg.Sink.Linger, Quiet: quiet, Pace: pace,
		BatchTime: batchTime,
		// The freshness barrier and the balance wait for this group to pass the
		// markers of transactions.
		KeepControlRecords: true,
		Assigned:           s.progress.Assigned,
		Handler:            s.sink,
	})
}

// watchClickHouse says in Health whether ClickHouse answers, also while there is
// nothing to insert.
func (s *Service) watchClickHouse(ctx context.Context) {
	const every = 2 * time.Second
	for {
		ping, cancel := context.WithTimeout(ctx, every)
		err := s.conn.Ping(ping)
		cancel()
		if ctx.Err() != nil {
			return
		}
		s.tel.Health.Set("clickhouse", err)
		select {
		case <-ctx.Done():
			return
		case <-time.After(every):
		}
	}
}
