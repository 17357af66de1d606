package kafka_test

import (
	"context"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/deploy/embedded/kafka"
)

// Who holds what survives the broker, as in Kafka: nobody loses what it holds because
// the broker was killed, and nobody gets back what it has given up.
func TestAKilledBrokerKnowsTheMembersOfItsGroups(t *testing.T) {
	t.Parallel()
	live := t.TempDir()
	b := open(t, kafka.Options{Dir: live})
	createTopic(t, b.Addr(), "shop.a", nil)
	createTopic(t, b.Addr(), "shop.b", nil)
	names := []string{"sender-0", "sender-1"}
	clients, assigned := make([]*kgo.Client, len(names)), make([]atomic.Int32, len(names))
	for i, name := range names {
		cl := client(t, b.Addr(), kgo.ConsumerGroup("shop.sender"), kgo.InstanceID(name), kgo.ConsumeTopics("shop.a", "shop.b"),
			kgo.Balancers(kgo.RoundRobinBalancer()), kgo.SessionTimeout(20*time.Second), kgo.HeartbeatInterval(100*time.Millisecond),
			kgo.OnPartitionsAssigned(func(_ context.Context, _ *kgo.Client, got map[string][]int32) { assigned[i].Store(int32(len(got))) }))
		clients[i] = cl
		ctx, stop := context.WithCancel(context.Background())
		t.Cleanup(stop)
		go func() {
			for ctx.Err() == nil {
				cl.PollFetches(ctx)
			}
		}()
	}
	// members are who holds a partition, by instance id: its id and what it holds.
	members := func(addr string) (kadm.DescribedGroup, map[string]string) {
		groups, err := kadm.NewClient(client(t, addr)).DescribeGroups(within(t), "shop.sender")
		require.NoError(t, err)
		g := groups["shop.sender"]
		held := map[string]string{}
		for _, m := range g.Members {
			if c, ok := m.Assigned.AsConsumer(); ok && m.InstanceID != nil && len(c.Topics) > 0 {
				held[*m.InstanceID] = m.MemberID + " " + c.Topics[0].Topic
			}
		}
		return g, held
	}
	var before map[string]string
	require.Eventually(t, func() bool {
		var g kadm.DescribedGroup
		g, before = members(b.Addr())
		if g.State != "Stable" || len(before) != len(names) {
			return false
		}
		// They know it, too: a member that has yet to ask for its share joins once more.
		for i := range assigned {
			if assigned[i].Load() != 1 {
				return false
			}
		}
		return true
	}, 30*time.Second, 10*time.Millisecond)

	killed := filepath.Join(t.TempDir(), "kafka")
	require.NoError(t, os.CopyFS(killed, os.DirFS(live)))
	for range 2 { // and after another kill, of which nobody has joined since
		addr, kill := startChild(t, killed)
		g, after := members(addr)
		assert.Equal(t, "Stable", g.State)
		assert.Equal(t, before, after)
		for _, m := range g.Members {
			beat := kmsg.NewPtrHeartbeatRequest()
			beat.Group, beat.MemberID, beat.InstanceID = "shop.sender", m.MemberID, m.InstanceID
			for beat.Generation = 0; beat.Generation < 10; beat.Generation++ {
				resp, err := beat.RequestWith(within(t), client(t, addr))
				require.NoError(t, err)
				if resp.ErrorCode != kerr.IllegalGeneration.Code {
					assert.Zero(t, resp.ErrorCode)
					break
				}
			}
			assert.Less(t, beat.Generation, int32(10), "none of them is its generation")
		}
		kill()
	}

	clients[0].Close() // it would join again; of itself a static member does not leave
	left := kadm.LeaveGroup("shop.sender").InstanceIDs(names[0])
	_, err := kadm.NewClient(client(t, b.Addr())).LeaveGroup(within(t), left)
	require.NoError(t, err)
	gone := filepath.Join(t.TempDir(), "kafka")
	require.NoError(t, os.CopyFS(gone, os.DirFS(live)))
	addr, _ := startChild(t, gone)
	_, after := members(addr)
	assert.NotContains(t, after, names[0])
}
