// Package renderer turns message requests into finished messages or
// rejections. The same request always renders to the same bytes.
package renderer

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/render"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// maxPoll bounds a transaction to a fraction of a second of rendering.
const maxPoll = 1000

// maxOutputBytes bounds it when messages are large: a thousand of the largest would
// be a gigabyte.
const maxOutputBytes = 16 << 20

// recordOverheadBytes is what a message record holds beside the message.
const recordOverheadBytes = 8 << 10

// Service is one instance of the renderer.
type Service struct {
	cluster *kafka.Cluster
	mail    *render.Renderer
	metrics *metrics
}

// New validates and wires; it opens nothing.
func New(cfg Config, tel *telemetry.Telemetry) (*Service, error) {
	cluster, err := kafka.New(cfg.Kafka, topic.Renderer, tel)
	if err != nil {
		return nil, err
	}
	keys, err := cfg.Tracking.Keys()
	if err != nil {
		return nil, err
	}
	cluster.Expect(topic.GroupRenderer)
	return &Service{cluster: cluster, mail: render.New(cfg.Tracking.URL, keys, topic.MaxRecordBytes-recordOverheadBytes), metrics: newMetrics(tel.Registry)}, nil
}

// Run renders until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	if err := s.cluster.Start(ctx); err != nil {
		return err
	}
	defer s.cluster.Close()
	defs := definitions.NewStore(s.cluster)
	in := &input{cluster: s.cluster,
		campaigns: definitions.NewExact[*definition.Campaign](defs, definition.KindCampaign),
		templates: definitions.NewExact[*definition.Template](defs, definition.KindTemplate)}
	out := &output{cluster: s.cluster, now: func() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }}

	// The batch in hand at a signal may still need a definition: the store ends
	// after the loop.
	behind, stopBehind := context.WithCancel(context.WithoutCancel(ctx))
	defer stopBehind()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := defs.Run(behind); behind.Err() == nil {
			return err
		}
		return nil
	})
	g.Go(func() error {
		defer stopBehind()
		return s.cluster.RunTransform(ctx, kafka.TransformOptions{Group: topic.GroupRenderer, Topics: topic.ReadBy(topic.GroupRenderer),
			MaxPollRecords: maxPoll, MaxOutputBytes: maxOutputBytes, Transformer: kafka.Each(s.cluster, s.stage(in, out))})
	})
	return g.Wait()
}
