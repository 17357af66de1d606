// Package sender is the sender: it hands rendered e-mail to a mail server and
// records what came of each message. It promises at most one call per attempt
// that could have had an effect, and an outcome for every message: accepted,
// refused, put off, or uncertain, which it says rather than guesses.
//
// The protocol that makes this survive a kill is the claim loop's
// (services/internal/kafka); here is read (input.go), decide and call (send.go),
// write (output.go).
package sender

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/sender/internal/smtp"
)

// Service is one instance of the sender.
type Service struct {
	cfg     Config
	tel     *telemetry.Telemetry
	cluster *kafka.Cluster
	pool    *smtp.Pool
	metrics *metrics
}

var _ lifecycle.Service = (*Service)(nil)

// New validates and wires; it opens nothing.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cluster, err := kafka.New(cfg.Kafka, topic.Sender, tel)
	if err != nil {
		return nil, err
	}
	cluster.Expect(topic.GroupSender)
	pool := smtp.NewPool(cfg.server(), smtp.PoolConfig{Connections: cfg.SMTPConnections, MessagesPerConnection: cfg.SMTPMessages, IdleLimit: cfg.SMTPIdle})
	tel.Registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "sender_connections", Help: "Connections to the mail server that are open.",
	}, func() float64 { return float64(pool.Open()) }))
	return &Service{cfg: cfg, tel: tel, cluster: cluster, pool: pool, metrics: newMetrics(tel.Registry)}, nil
}

// Run sends until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	defer s.pool.Close()
	if err := s.cluster.Start(ctx); err != nil {
		return err
	}
	defer s.cluster.Close()

	stops := newStops()
	tables := []*kafka.Table{
		s.cluster.Table([]topic.Name{topic.Runs}, stops.runs(s.cluster), kafka.TablePace(stopsPace)),
		s.cluster.Table([]topic.Name{topic.Engagements}, stops.unsubscribes(s.cluster), kafka.TableFrom(time.Now().Add(-remembered))),
	}
	all, ctx := errgroup.WithContext(ctx)
	// The tables outlive the signal: the loop asks them until it has ended.
	reading, stopReading := context.WithCancel(context.WithoutCancel(ctx))
	for _, t := range tables {
		all.Go(func() error { return t.Run(reading) })
	}
	all.Go(func() error {
		defer stopReading()
		for _, t := range tables {
			// Nobody is sent to before it is known who wants no mail any more.
			if err := t.CaughtUpStable(ctx); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
		}
		return s.cluster.RunClaims(ctx, kafka.ClaimOptions{
			Group: topic.GroupSender, Topics: topic.ReadBy(topic.GroupSender), Provider: "smtp",
			Connections: s.cfg.SMTPConnections, CallTimeout: s.cfg.CallTimeout,
			Handler: &handler{
				input:   input{s.cluster},
				output:  output{cluster: s.cluster, now: now, backoff: s.cfg.RetryBackoff, attempts: int32(s.cfg.RetryAttempts), metrics: s.metrics},
				stops:   stops,
				server:  s.pool,
				now:     now,
				metrics: s.metrics,
			},
		})
	})
	return all.Wait()
}

// stopsPace is how often the sender looks for runs that were stopped, among the counts
// of all runs.
const stopsPace = 200 * time.Millisecond

// now is the sender's clock, in the precision that records keep.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }
