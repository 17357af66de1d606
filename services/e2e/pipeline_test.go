package e2e

import (
	"context"
	"io"
	"log/slog"
	"testing"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/topic"
	resolver "github.com/hikyaku/hikyaku/services/audience-resolver"
	collector "github.com/hikyaku/hikyaku/services/event-collector"
	"github.com/hikyaku/hikyaku/services/importer"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/provision"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
	"github.com/hikyaku/hikyaku/services/renderer"
	"github.com/hikyaku/hikyaku/services/sender"
)

// build makes a service from the stack's environment, as its main does.
func build[C any](t *testing.T, s *stack, name string, wire func(C, *telemetry.Telemetry) (lifecycle.Service, error)) lifecycle.Service {
	t.Helper()
	cfg, err := config.Load[C](context.Background(), envconfig.MapLookuper(s.env))
	require.NoError(t, err, name)
	svc, err := wire(cfg, telemetry.New(name, telemetry.Config{LogLevel: slog.LevelWarn, LogFormat: "text"}, testLog{t}))
	require.NoError(t, err, name)
	return svc
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	if l.t.Context().Err() == nil {
		l.t.Log(string(p))
	}
	return len(p), nil
}

var _ io.Writer = testLog{}

func (s *stack) provision() {
	s.t.Helper()
	ctx := context.Background()
	type settings struct {
		Provision  provision.Config
		Kafka      kafka.Config
		ClickHouse clickhouse.Config
	}
	cfg, err := config.Load[settings](ctx, envconfig.MapLookuper(s.env))
	require.NoError(s.t, err)
	conn, err := clickhouse.Open(cfg.ClickHouse, cfg.Kafka.Namespace)
	require.NoError(s.t, err)
	defer conn.Close()
	_, err = provision.Run(ctx, provision.Options{Config: cfg.Provision, Kafka: cfg.Kafka,
		Migrate: func(ctx context.Context) ([]string, error) { return conn.Migrate(ctx, migrations.FS) }})
	require.NoError(s.t, err)
}

// services runs one instance of each in this process until the test ends.
func (s *stack) services() {
	t := s.t
	t.Helper()
	ctx, stop := context.WithCancel(lifecycle.WithDrain(context.Background(), lifecycle.DefaultDrain))
	ended := make(chan error, 5)
	all := map[string]lifecycle.Service{
		topic.Importer: build(t, s, topic.Importer, func(c importer.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return importer.New(c, tel)
		}),
		topic.Resolver: build(t, s, topic.Resolver, func(c resolver.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return resolver.New(c, tel)
		}),
		topic.Renderer: build(t, s, topic.Renderer, func(c renderer.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return renderer.New(c, tel)
		}),
		topic.Sender: build(t, s, topic.Sender, func(c sender.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) { return sender.New(c, tel) }),
		topic.Collector: build(t, s, topic.Collector, func(c collector.Config, tel *telemetry.Telemetry) (lifecycle.Service, error) {
			return collector.New(c, tel)
		}),
	}
	for _, svc := range all {
		go func() { ended <- svc.Run(ctx) }()
	}
	t.Cleanup(func() {
		stop()
		for range all {
			require.NoError(t, <-ended)
		}
	})
}

// One file in, one campaign out, and everybody is accounted for: by the
// resolver, by ClickHouse, and by the mail server.
func TestPipelineBalances(t *testing.T) {
	s := startStack(t)
	s.provision()
	s.services()
	s.define("")
	people := makePopulation(300)
	s.drop(people)

	b := s.run("greeting")
	s.requireBalance(people, b)
	s.requireOneMailEach(people.accepted())
	s.requireAllCommitted()
}
