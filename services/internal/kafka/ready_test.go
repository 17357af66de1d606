package kafka_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

func requireNotReady(t testing.TB, c *kafka.Cluster, reason string) {
	t.Helper()
	kafkatest.Eventually(t, func() bool {
		return strings.Contains(strings.Join(kafka.TelemetryOf(c).Health.NotReady(), "\n"), reason)
	}, "Health does not say %q", reason)
}

func requireReady(t testing.TB, c *kafka.Cluster) {
	t.Helper()
	kafkatest.Eventually(t, func() bool { return len(kafka.TelemetryOf(c).Health.NotReady()) == 0 }, "not ready again")
}

// moving is the partition that a second member takes from the first, which keeps
// the lower ones: the ranges go by name.
const moving = 3

// userOf returns the nth user who lives in the partition.
func userOf(partition int32, n int) string {
	for i := 0; ; i++ {
		user := fmt.Sprintf("user-%d", i)
		if topic.Partition(user, 4) != partition {
			continue
		}
		if n == 0 {
			return user
		}
		n--
	}
}

// Those who waited out an outage may go: to another member, or because they are not
// to be sent to any more. Nobody is left to try with, and no call can open the lane.
func TestTheLaneOpensWhenNobodyIsLeftToTryWith(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(t *testing.T, k *kafkatest.Kafka, cancel *atomic.Bool){
		"moved": func(t *testing.T, k *kafkatest.Kafka, _ *atomic.Bool) {
			send(t, k, &provider{}, asInstance("b"), session(2*time.Second))
		},
		"cancelled": func(_ *testing.T, _ *kafkatest.Kafka, cancel *atomic.Bool) { cancel.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t, kafkatest.AnyBroker())
			var away, cancel atomic.Bool
			away.Store(true)
			release := make(chan struct{})
			p := &provider{
				answer: func(ctx context.Context, _ *event.Message, _ int) (string, error) {
					if away.Load() {
						return "", fault.Transient(errors.New("connection refused"))
					}
					select {
					case <-release:
					case <-ctx.Done():
					}
					return "accepted", nil
				},
				spare: func(*event.Message) (string, error) {
					if cancel.Load() {
						return "cancelled", nil
					}
					return "", nil
				},
			}
			s := send(t, k, p, asInstance("a"), session(2*time.Second), connections(4))
			put(t, k, 1, func(_ int, m *event.Message) { m.UserID = userOf(moving, 0) })
			requireNotReady(t, s.tel, "provider: connection refused")
			leave(t, k, &cancel)
			requireAtRest(t, k)
			requireReady(t, s.tel)

			// It is open for all, not for one to try with.
			away.Store(false)
			cancel.Store(false)
			put(t, k, 8, func(i int, m *event.Message) { m.UserID = userOf(0, i) })
			kafkatest.Eventually(t, func() bool { return p.inFlight() == 4 }, "the lane stays closed")
			close(release)
			requireAtRest(t, k)
		})
	}
}

// What is wrong with a partition is wrong with whoever has it.
func TestWhatIsWrongWithAClaimGoesWithItsPartition(t *testing.T) {
	t.Parallel()
	refused := errors.New("the ledger is away")
	for name, fails := range map[string]func(k *kafkatest.Kafka, p *provider) (reason string){
		"claiming": func(k *kafkatest.Kafka, _ *provider) string {
			refuseCommits(k, func(r *kmsg.OffsetCommitRequest) bool { return r.InstanceID != nil && *r.InstanceID == "sender-a" })
			return "claims: "
		},
		"preparing": func(_ *kafkatest.Kafka, p *provider) string {
			p.spare = func(*event.Message) (string, error) { return "", fault.Transient(refused) }
			return "reading " + string(topic.MessagesEmailBulk) + ": " + refused.Error()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := kafkatest.Start(t)
			first := &provider{}
			reason := fails(k, first)
			a := send(t, k, first, asInstance("a"), session(2*time.Second))
			put(t, k, 1, func(_ int, m *event.Message) { m.UserID = userOf(moving, 0) })
			requireNotReady(t, a.tel, reason)
			b := send(t, k, &provider{}, asInstance("b"), session(2*time.Second))
			requireAtRest(t, k)
			requireReady(t, a.tel)
			requireReady(t, b.tel)
			require.Zero(t, first.total())
		})
	}
}

func TestWhatAnEffectCannotDoGoesWithItsPartition(t *testing.T) {
	t.Parallel()
	k := kafkatest.Start(t, kafkatest.AnyBroker(), kafkatest.SessionTimeout(2*time.Second))
	loop := func(c *kafka.Cluster, h handle) func(context.Context) error {
		return func(ctx context.Context) error {
			return c.RunEffect(ctx, kafka.EffectOptions{Group: topic.GroupPersonLoop, Topics: []topic.Name{topic.Ticks}, Handler: h})
		}
	}
	a := k.ClusterWith(t, topic.Resolver, instance(k, "a"))
	run(t, loop(a, func(_ context.Context, recs []*kgo.Record) (int, error) {
		for i, r := range recs {
			if r.Partition == moving {
				return i, fault.Transient(errors.New("the disk is full"))
			}
		}
		return len(recs), nil
	}))
	k.Produce(t, tick(t, a, moving, 1))
	requireNotReady(t, a, "the disk is full")
	b := k.ClusterWith(t, topic.Resolver, instance(k, "b"))
	run(t, loop(b, func(_ context.Context, recs []*kgo.Record) (int, error) { return len(recs), nil }))
	kafkatest.Eventually(t, func() bool { return k.Committed(t, topic.GroupPersonLoop)[topic.Ticks][moving] == 1 }, "the other does not do it")
	requireReady(t, a)
	requireReady(t, b)
}
