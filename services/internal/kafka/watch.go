package kafka

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// silence is how long no broker may answer while connecting to one fails before
// Kafka is called away. Fetches are answered every second, so that of three
// brokers one may be down.
const silence = 2 * time.Second

// brokerWatch tells Health whether Kafka can be reached, from what happens to the
// connections of all clients of this process. (Counting open connections does not
// tell: the client notices that an idle one is dead when it next uses it.)
type brokerWatch struct {
	health *telemetry.Health

	answered atomic.Int64 // Unix nanoseconds of the last answer
	away     atomic.Bool
}

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (w *brokerWatch) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	if err != nil && time.Since(time.Unix(0, w.answered.Load())) > silence {
		w.away.Store(true)
		w.health.Set(componentKafka, fmt.Errorf("connecting to broker %s:%d: %w", meta.Host, meta.Port, err))
	}
}

// OnBrokerRead implements kgo.HookBrokerRead.
func (w *brokerWatch) OnBrokerRead(meta kgo.BrokerMetadata, _ int16, _ int, _, _ time.Duration, err error) {
	if err != nil {
		// A network that swallows everything refuses no connection.
		if time.Since(time.Unix(0, w.answered.Load())) > silence && !errors.Is(err, context.Canceled) && !errors.Is(err, net.ErrClosed) {
			w.away.Store(true)
			w.health.Set(componentKafka, fmt.Errorf("no answer from broker %s:%d: %w", meta.Host, meta.Port, err))
		}
		return
	}
	w.answered.Store(time.Now().UnixNano())
	if w.away.CompareAndSwap(true, false) {
		w.health.Set(componentKafka, nil)
	}
}

func isMissingTopic(err error) bool { return errors.Is(err, kerr.UnknownTopicOrPartition) }
