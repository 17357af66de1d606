package kafka

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// pollTimeout is how long a poll waits for records before the loop turns anyway,
// to say that it lives.
const pollTimeout = 5 * time.Second

// maxTurn is how long a turn of a loop may take before /healthz calls it stuck.
const maxTurn = 2 * time.Minute

// errLetGo ends the work on a batch that is given back, to be read again.
var errLetGo = errors.New("the batch is given back")

// membership is what every loop knows about its place in its group.
type membership struct {
	c     *Cluster
	group topic.Group
	stage *stage
	end   context.CancelCauseFunc // ends the loop; the first cause wins
	quiet time.Duration           // a window in which nothing comes for this long is over; 0 runs to its end
	// between is the least time between two polls of a window, a part of quiet.
	between time.Duration

	client atomic.Pointer[kgo.Client]

	mu         sync.Mutex
	wanted     chan struct{} // closed while a rebalance waits for the batch
	partitions map[string][]int32
}

func (c *Cluster) newMembership(group topic.Group, s *stage, end context.CancelCauseFunc) *membership {
	m := &membership{c: c, group: group, stage: s, end: end, wanted: make(chan struct{})}
	c.Expect(group)
	return m
}

// Expect says that this service is not ready before it is a member of these groups.
func (c *Cluster) Expect(groups ...topic.Group) {
	for _, g := range groups {
		c.tel.Health.Expect(componentOf(g), fmt.Errorf("not yet a member of group %s", g.In(c.cfg.Namespace)))
	}
}

// Tolerate says that this service is of use while Kafka is away, so that it is ready all the
// same; a group that it is not yet a member of is still waited for.
func (c *Cluster) Tolerate(groups ...topic.Group) {
	c.tel.Health.Tolerate(componentKafka, componentTopics, componentRegistry)
	for _, g := range groups {
		c.tel.Health.Tolerate(componentOf(g))
	}
}

// component is the loop's name in Health.
func (m *membership) component() string { return componentOf(m.group) }

func componentOf(g topic.Group) string { return "group " + string(g) }

// hooks are a membership's own, to be wrapped by the loop that has more to do.
func (m *membership) hooks() groupHooks {
	return groupHooks{fetched: m.fetched, assigned: m.assigned, gone: m.gone, wanted: m.rebalanceWanted}
}

func (m *membership) assigned(partitions map[string][]int32) {
	m.mu.Lock()
	m.partitions = partitions
	m.mu.Unlock()
	m.c.tel.Health.Set(m.component(), nil)
	m.c.log.Info("partitions assigned", "group", string(m.group), "partitions", len(union(partitions)))
}

// own is how many person partitions are assigned.
func (m *membership) own() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(union(m.partitions))
}

func (m *membership) gone(_ *kgo.Client, partitions map[string][]int32, orderly bool) {
	m.mu.Lock()
	m.partitions = nil
	m.mu.Unlock()
	m.stage.gone(partitions)
	if n := len(union(partitions)); n > 0 {
		m.c.log.Info("partitions gone", "group", string(m.group), "partitions", n, "orderly", orderly)
	}
}

// fetched refuses a group without an offset: see lostOffset.
func (m *membership) fetched(_ context.Context, committed []committedOffset) error {
	for _, o := range committed {
		if o.offset < 0 {
			err := m.c.lostOffset(m.group, o.topic, o.partition, "no offset is committed")
			m.end(err)
			return err
		}
	}
	return nil
}

func (m *membership) rebalanceWanted() {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.wanted:
	default:
		close(m.wanted)
	}
}

// rebalance is closed while a rebalance waits for this loop.
func (m *membership) rebalance() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.wanted
}

// letGo allows what rebalance announced. I3: nothing is in flight when it is called.
func (m *membership) letGo(allow func()) {
	m.mu.Lock()
	select {
	case <-m.wanted:
		m.wanted = make(chan struct{})
	default:
	}
	m.mu.Unlock()
	allow()
}

// OnGroupManageError implements kgo.HookGroupManageError. It runs before the client
// joins again: one that is fenced by its own name must not, or it would fence
// its successor.
func (m *membership) OnGroupManageError(err error) {
	if errors.Is(err, kerr.FencedInstanceID) {
		m.end(m.c.fenced(err))
		if cl := m.client.Load(); cl != nil {
			_ = cl.LeaveGroupContext(nil) //nolint:staticcheck // nil is the documented way not to wait, which here would deadlock
		}
	}
}

// pollErrors returns what a poll reports and a loop must not survive.
func (m *membership) pollErrors(fetches kgo.Fetches) error {
	var fatal error
	fetches.EachError(func(kafkaTopic string, partition int32, err error) {
		var session *kgo.ErrGroupSession
		name := m.c.NameOf(kafkaTopic)
		switch {
		case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, kgo.ErrClientClosed):
		case errors.Is(err, kerr.FencedInstanceID):
			fatal = m.c.fenced(err)
		case errors.Is(err, kerr.OffsetOutOfRange):
			fatal = m.c.lostOffset(m.group, name, partition, "its committed offset is not in the log any more")
		case errors.As(err, &session) && !passing(session.Err) && !isContext(session.Err):
			fatal = fault.Fatal(fmt.Errorf("being a member of group %s: %w", m.group, session.Err))
		case errors.As(err, &session), passing(err):
			// The client joins and reads again by itself.
			m.c.tel.Health.Set(m.component(), err)
		default:
			fatal = fault.Fatal(fmt.Errorf("reading %s/%d: %w", name, partition, err))
		}
	})
	return fatal
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// replaced tells whether another process has this member's name in the group now.
func (m *membership) replaced(ctx context.Context, cl *kgo.Client) bool {
	mine, _ := cl.GroupMetadata()
	if mine == "" {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	groups, err := m.c.adm.DescribeGroups(ctx, m.group.In(m.c.cfg.Namespace))
	if err != nil {
		return false
	}
	for _, g := range groups {
		for _, member := range g.Members {
			if member.InstanceID != nil && *member.InstanceID == m.c.member && member.MemberID != mine {
				return true
			}
		}
	}
	return false
}

// offsetsFetched turns the client's callback into the hook's terms.
func (c *Cluster) offsetsFetched(h groupHooks) func(context.Context, *kgo.Client, *kmsg.OffsetFetchResponse) error {
	return func(ctx context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
		var committed []committedOffset
		for _, g := range resp.Groups {
			for _, t := range g.Topics {
				for _, p := range t.Partitions {
					if p.ErrorCode != 0 {
						continue // the client reports it through the poll
					}
					o := committedOffset{topic: c.NameOf(t.Topic), partition: p.Partition, offset: p.Offset}
					if p.Metadata != nil {
						o.metadata = *p.Metadata
					}
					committed = append(committed, o)
				}
			}
		}
		err := h.fetched(ctx, committed)
		if err != nil && ctx.Err() == nil && isContext(err) {
			return errors.New(err.Error())
		}
		return err
	}
}

// gather polls once and then, for at most the window, until max records or maxBytes
// are in hand, or a rebalance wants the batch. maxBytes 0 is no limit. The window is
// asked for after the first poll, with no rebalance under way.
func (m *membership) gather(ctx context.Context, poll func(context.Context, int) kgo.Fetches, maxRecords, maxBytes int, window func() time.Duration, first time.Duration) kgo.Fetches {
	start := time.Now()
	pollCtx, cancel := context.WithTimeout(ctx, first)
	fetches := poll(pollCtx, maxRecords)
	cancel()
	n, bytes := weigh(fetches)
	m.stage.read(fetches, time.Now())
	defer func() { m.stage.wait.Add(time.Since(start).Seconds()) }()
	if n == 0 {
		return fetches
	}
	rest := window()
	if rest <= 0 {
		return fetches
	}
	pollCtx, cancel = context.WithTimeout(ctx, rest)
	defer cancel()
	rebalance := m.rebalance()
	go func() {
		select {
		case <-rebalance:
			cancel()
		case <-pollCtx.Done():
		}
	}()
	for n < maxRecords && (maxBytes == 0 || bytes < maxBytes) && pollCtx.Err() == nil {
		more, k, b := m.next(pollCtx, poll, maxRecords-n)
		n, bytes = n+k, bytes+b
		m.stage.read(more, time.Now())
		fetches = append(fetches, more...)
		if k == 0 && m.quiet > 0 {
			break
		}
	}
	return fetches
}

// next polls for what comes before the window, or its patience with silence, ends.
func (m *membership) next(ctx context.Context, poll func(context.Context, int) kgo.Fetches, max int) (fetches kgo.Fetches, records, bytes int) {
	if m.quiet > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, m.quiet)
		defer cancel()
	}
	// Whoever is behind has nothing to wait for: what is missing lies there.
	if m.stage.behind() < int64(max) {
		waitFor(ctx, m.between, nil)
	}
	fetches = poll(ctx, max)
	records, bytes = weigh(fetches)
	return fetches, records, bytes
}

func weigh(fetches kgo.Fetches) (records, bytes int) {
	fetches.EachPartition(func(p kgo.FetchTopicPartition) {
		records += len(p.Records)
		for _, r := range p.Records {
			bytes += len(r.Key) + len(r.Value)
		}
	})
	return records, bytes
}

// union returns the partition numbers that occur under any topic, in order.
func union(partitions map[string][]int32) []int32 {
	var all []int32
	for _, ps := range partitions {
		all = append(all, ps...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}
