// Package resolver is the audience-resolver: it decides when a run starts, who
// is in it, who may be messaged, and when a run balances. Three loops share one
// picture of runs and definitions: the person loop (everything about people,
// one transaction per batch), the shard loop (ClickHouse to candidates), and
// the ticker, through which time enters.
package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/resolve"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/schedule"
	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/state"
)

// maxPoll bounds a batch of the person loop to about 20 ms of work, so that a
// transaction is short and nothing waits long behind another.
const maxPoll = 2000

// pace is how long records may wait for others, so that a batch of the person loop
// is worth a transaction.
const pace = 60 * time.Millisecond

// Service is one instance of the resolver.
type Service struct {
	cfg     Config
	tel     *telemetry.Telemetry
	cluster *kafka.Cluster
	conn    *clickhouse.Conn
	metrics *metrics

	// Tests make them smaller.
	maxShard  int           // people
	tickEvery time.Duration // in every partition
}

// New validates and wires; it opens nothing.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	cluster, err := kafka.New(cfg.Kafka, topic.Resolver, tel)
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(cfg.ClickHouse, cfg.Kafka.Namespace)
	if err != nil {
		return nil, err
	}
	cluster.Expect(topic.GroupPersonLoop, topic.GroupShardLoop)
	return &Service{cfg: cfg, tel: tel, cluster: cluster, conn: conn, metrics: newMetrics(tel.Registry),
		maxShard: schedule.MaxShard, tickEvery: time.Second}, nil
}

// Run resolves until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.conn.Close()
	if err := s.cluster.Start(ctx); err != nil {
		return err
	}
	defer s.cluster.Close()
	store, err := s.openStore(ctx)
	if err != nil || store == nil {
		return err
	}
	defer store.Close()
	ticks, err := s.cluster.Producer()
	if err != nil {
		return err
	}
	defer ticks.Close()

	// What the loops read must outlive them: a batch in hand at the signal may
	// still ask the tables and ClickHouse. loops ends first, then behind.
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	loops, ctx := errgroup.WithContext(ctx)

	defs := definitions.NewStore(s.cluster)
	view := runs.NewView()
	table := s.cluster.Table([]topic.Name{topic.Runs}, func(r *kgo.Record) error { return applyRun(s.cluster, view, s.tel.Log, r) },
		kafka.TablePace(pace))
	loops.Go(func() error { return untilStopped(defs.Run(behind), behind) })
	loops.Go(func() error { return untilStopped(table.Run(behind), behind) })
	unreadSpools := &spools{}
	told := s.cluster.Table([]topic.Name{topic.Spools}, func(r *kgo.Record) error { return applySpool(s.cluster, unreadSpools, s.tel.Log, r) },
		kafka.TablePace(pace))
	unreadSpools.caught = told.CaughtUp
	loops.Go(func() error { return untilStopped(told.Run(behind), behind) })

	asker := &asker{conn: s.conn, audiences: definitions.NewExact[*definition.Audience](defs, definition.KindAudience)}
	driver := schedule.NewDriver(behind, view, asker, waiter{s.cluster, unreadSpools}, s.cfg.StaleAfter)
	person := newPersonLoop(s.cluster, s.cfg, s.tel.Log, s.metrics)
	person.store, person.defs, person.view, person.driver, person.caught = store, defs, view, driver, table.CaughtUp

	shards := &resolve.Shards{Cluster: s.cluster, Reader: asker, Max: s.maxShard, Now: func() time.Time { return time.Now().UTC().Truncate(time.Microsecond) },
		State: func(ctx context.Context, shard *event.RunShard) (event.RunState, bool, error) {
			return stateOf(ctx, view, table, shard)
		},
		Campaign: func(ctx context.Context, run identity.ID) (string, bool, error) {
			if err := table.CaughtUp(ctx); err != nil {
				return "", false, fault.Transient(fmt.Errorf("reading the topic runs: %w", err))
			}
			campaign, _, ok := view.State(run)
			return campaign, ok, nil
		}}

	work, ctx := errgroup.WithContext(ctx)
	loops.Go(func() error {
		defer stopBehind() // the tables end when the last loop has
		work.Go(func() error {
			return s.cluster.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupPersonLoop, Topics: topic.ReadBy(topic.GroupPersonLoop),
				MaxPollRecords: maxPoll, Pace: pace, KeepControlRecords: true, Transformer: person})
		})
		work.Go(func() error {
			return s.cluster.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupShardLoop, Topics: topic.ReadBy(topic.GroupShardLoop),
				MaxPollRecords: 1, Transformer: kafka.Each(s.cluster, shards.Resolve)})
		})
		work.Go(func() error { return (&ticker{s.cluster, ticks, s.tickEvery, person.Owned}).Run(ctx) })
		return work.Wait()
	})
	err = loops.Wait()
	stopBehind()
	driver.Wait()
	return err
}

var _ lifecycle.Service = (*Service)(nil)

// openStore waits while the disk is full, and says so; nil when ctx ended first.
func (s *Service) openStore(ctx context.Context) (*state.Store, error) {
	const component = "person store"
	// The rest of the process may be waiting for the store for ever.
	dead := func(err error) {
		s.tel.Log.Error("ended", "error", err, "exit_code", lifecycle.ExitFailed)
		os.Exit(lifecycle.ExitFailed)
	}
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		store, err := state.Open(filepath.Join(s.cfg.DataDir, s.cluster.Member()), s.cfg.StoreCacheMiB<<20, dead)
		if err == nil {
			s.tel.Health.Set(component, nil)
			return store, nil
		}
		if !errors.Is(err, syscall.ENOSPC) {
			return nil, err
		}
		s.tel.Health.Set(component, err)
		select {
		case <-ctx.Done():
			return nil, nil
		case <-time.After(pause):
		}
	}
}

// untilStopped drops the error of something that ended because it was told to.
func untilStopped(err error, ctx context.Context) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// applyRun reads one record of the topic runs. One that cannot be read keeps its run
// from balancing, and nobody else.
func applyRun(c *kafka.Cluster, view *runs.View, log *slog.Logger, r *kgo.Record) error {
	if r.Value == nil {
		return nil
	}
	var rec event.Run
	err := c.Decode(r, &rec)
	if err == nil {
		view.Apply(string(r.Key), &rec)
		return nil
	}
	if fault.ClassOf(err) != fault.ClassPoison {
		return fmt.Errorf("reading run %s: %w", r.Key, err)
	}
	view.Spoil(string(r.Key), err.Error())
	log.Error("a record of a run cannot be read: the run does not balance until it is written anew", "run_key", string(r.Key), "error", err)
	return nil
}

// stateOf returns the state of a shard's run, and whether the shard is done. Both
// were written, if at all, before this instance was given the shard: the shard
// after the state, and the done mark with the offset that passes it.
func stateOf(ctx context.Context, view *runs.View, table *kafka.Table, shard *event.RunShard) (s event.RunState, done bool, err error) {
	if err := table.CaughtUp(ctx); err != nil {
		return s, false, fault.Transient(fmt.Errorf("reading the topic runs: %w", err))
	}
	_, s, ok := view.State(shard.RunID)
	if why := view.Unreadable(shard.RunID); !ok && why != "" {
		return s, false, fault.Poison(fmt.Errorf("the state of run %s cannot be read: %s", shard.RunID, why))
	}
	if !ok {
		return s, false, fault.Poison(fmt.Errorf("run %s does not exist", shard.RunID))
	}
	return s, view.Done(shard.RunID, shard.Shard, shard.Of), nil
}

// waiter lets the driver wait for the pipeline.
type waiter struct {
	cluster *kafka.Cluster
	spools  *spools
}

func (w waiter) Fresh(ctx context.Context, report func(string)) (int64, error) {
	report("reading the topic spools")
	before, err := w.spools.now(ctx)
	if err != nil {
		return 0, err
	}
	if err := schedule.Fresh(ctx, w.cluster, report); err != nil {
		return 0, err
	}
	after, err := w.spools.now(ctx)
	return unread(before, after), err
}

func (w waiter) Sunk(ctx context.Context, report func(string)) error {
	return schedule.Sunk(ctx, w.cluster, report, topic.MessageRequestsBulk, topic.Outcomes, topic.Runs)
}
