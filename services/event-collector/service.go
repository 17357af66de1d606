// Package collector is the event-collector: it takes in what people do and
// writes everything the pipeline knows to ClickHouse.
package collector

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/sink"
)

// Service is one instance of the collector.
type Service struct {
	cfg     Config
	tel     *telemetry.Telemetry
	cluster *kafka.Cluster
	conn    *clickhouse.Conn
	sink    *sink.Sink
}

// New validates and wires; it opens nothing.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	cluster, err := kafka.New(cfg.Kafka, topic.Collector, tel)
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(cfg.ClickHouse, cfg.Kafka.Namespace)
	if err != nil {
		return nil, err
	}
	return newService(cfg, tel, cluster, conn), nil
}

func newService(cfg Config, tel *telemetry.Telemetry, cluster *kafka.Cluster, conn *clickhouse.Conn) *Service {
	return &Service{cfg: cfg, tel: tel, cluster: cluster, conn: conn, sink: sink.New(cluster, conn, tel.Registry)}
}

// Run collects until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.conn.Close()
	if err := s.cluster.Start(ctx); err != nil {
		return err
	}
	defer s.cluster.Close()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.runSink(ctx) })
	return g.Wait()
}

// runSink moves Kafka to ClickHouse. When ClickHouse is away the loop waits with
// its batch in hand.
func (s *Service) runSink(ctx context.Context) error {
	watch, stop := context.WithCancel(ctx)
	defer stop()
	go s.watchClickHouse(watch)
	return s.cluster.RunEffect(ctx, kafka.EffectOptions{
		Group: topic.GroupSink, Topics: topic.ReadBy(topic.GroupSink),
		MaxPollRecords: s.cfg.Sink.BatchRecords, MaxPollBytes: s.cfg.Sink.BatchMiB << 20, Linger: s.cfg.Sink.Linger,
		// The freshness barrier and the balance wait for this group to pass the
		// markers of transactions.
		KeepControlRecords: true,
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
