package kafka

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// brokerWatch tells Health whether any broker can be reached, from what happens
// to the connections of all clients of this process. It is away when a dial
// fails while no connection is open: one broker of three may be down.
type brokerWatch struct {
	health *telemetry.Health

	mu   sync.Mutex
	open int
}

// OnBrokerConnect implements kgo.HookBrokerConnect.
func (w *brokerWatch) OnBrokerConnect(meta kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		w.open++
		w.health.Set("kafka", nil)
	case w.open == 0:
		w.health.Set("kafka", fmt.Errorf("connecting to broker %s:%d: %w", meta.Host, meta.Port, err))
	}
}

// OnBrokerDisconnect implements kgo.HookBrokerDisconnect.
func (w *brokerWatch) OnBrokerDisconnect(kgo.BrokerMetadata, net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.open--
}

func isMissingTopic(err error) bool { return errors.Is(err, kerr.UnknownTopicOrPartition) }
