// Package output writes what came in over HTTP to Kafka: a request is answered
// when all of its records are acknowledged, or when its patience has ended.
package output

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// Entry is a record on its way to a topic.
type Entry struct {
	Topic  topic.Name
	Key    string
	Record event.Record
}

// ErrAway says that Kafka has not acknowledged everything in time. What it was
// given may still arrive: repeating the request must be harmless.
var ErrAway = errors.New("Kafka has not acknowledged")

// Writer writes entries. It refuses all until Start.
type Writer struct {
	cluster  *kafka.Cluster
	log      *slog.Logger
	producer atomic.Pointer[kgo.Client]
}

// New returns a writer that opens nothing.
func New(cluster *kafka.Cluster, log *slog.Logger) *Writer {
	return &Writer{cluster: cluster, log: log}
}

// What may wait for Kafka. Beyond it requests are refused at once, so that an
// outage costs neither memory without end nor each client its whole patience.
const (
	maxBufferedRecords = 200_000
	maxBufferedBytes   = 128 << 20
)

// Start opens the producer. The cluster has been started.
func (w *Writer) Start() error {
	producer, err := w.cluster.Producer(kgo.MaxBufferedRecords(maxBufferedRecords), kgo.MaxBufferedBytes(maxBufferedBytes))
	if err != nil {
		return err
	}
	w.producer.Store(producer)
	return nil
}

// Stop waits until everything handed over is acknowledged, or ctx ends, and
// closes the producer.
func (w *Writer) Stop(ctx context.Context) error {
	producer := w.producer.Swap(nil)
	if producer == nil {
		return nil
	}
	defer producer.Close()
	if err := producer.Flush(ctx); err != nil {
		return fmt.Errorf("flushing what came in over HTTP: %w", err)
	}
	return nil
}

// Write returns nil when every in-sync replica has all entries (I1). When ctx
// ends first it returns ErrAway; the entries are not taken back.
func (w *Writer) Write(ctx context.Context, entries ...Entry) error {
	producer := w.producer.Load()
	if producer == nil {
		return fmt.Errorf("%w: the collector has not found it yet", ErrAway)
	}
	records := make([]*kgo.Record, len(entries))
	for i, e := range entries {
		var err error
		if records[i], err = w.cluster.Record(e.Topic, e.Key, e.Record); err != nil {
			return fmt.Errorf("making a record for %s: %w", e.Topic, err)
		}
	}
	// Room for all, so that an answer which comes too late blocks nobody.
	answers := make(chan error, len(records))
	for _, r := range records {
		// The request's end does not take a record back: the client may have to
		// drop others with it to keep its sequence whole.
		producer.TryProduce(context.WithoutCancel(ctx), r, func(r *kgo.Record, err error) {
			if err != nil && !errors.Is(err, kgo.ErrMaxBuffered) && !errors.Is(err, kgo.ErrClientClosed) {
				// Away is waited for without an end: this is Kafka saying no.
				w.log.Error("Kafka refuses a record", "topic", string(w.cluster.NameOf(r.Topic)), "error", err)
			}
			answers <- err
		})
	}
	for range records {
		select {
		case err := <-answers:
			if err != nil {
				return fmt.Errorf("%w: %w", ErrAway, err)
			}
			crash.At(crash.IntakePartly)
		case <-ctx.Done():
			return ErrAway
		}
	}
	return nil
}
