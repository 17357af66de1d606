package drill

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/topic"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
)

// What the broker says, asked with a client of our own.

func (d *drill) connect() error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(d.brokers()...), kgo.RequestRetries(3), kgo.RetryTimeout(3*time.Second))
	if err != nil {
		return err
	}
	d.kafka = kadm.NewClient(cl)
	return nil
}

// held are the partitions that a member has in a group. A member that was killed
// keeps them until its session ends.
func (d *drill) held(ctx context.Context, group string, m *member) (map[string][]int32, error) {
	groups, err := d.kafka.DescribeGroups(ctx, d.namespace+"."+group)
	if err != nil {
		return nil, err
	}
	held := map[string][]int32{}
	for _, g := range groups {
		for _, one := range g.Members {
			if one.InstanceID == nil || *one.InstanceID != m.name() {
				continue
			}
			if assigned, ok := one.Assigned.AsConsumer(); ok {
				for _, t := range assigned.Topics {
					held[t.Topic] = append(held[t.Topic], t.Partitions...)
				}
			}
		}
	}
	return held, nil
}

// idle tells whether a member has its partitions and nothing in them is waiting, or
// says what is. Markers of transactions, and what was aborted, wait for nobody.
func (d *drill) idle(group string, m *member) (bool, string) {
	ctx, cancel := context.WithTimeout(d.ctx, 3*time.Second)
	defer cancel()
	held, err := d.held(ctx, group, m)
	if err != nil {
		return false, err.Error()
	}
	if len(held) == 0 {
		return false, "it has no partitions of group " + group
	}
	committed, err := d.kafka.FetchOffsets(ctx, d.namespace+"."+group)
	if err != nil {
		return false, err.Error()
	}
	topics := make([]string, 0, len(held))
	for t := range held {
		topics = append(topics, t)
	}
	ends, err := d.kafka.ListCommittedOffsets(ctx, topics...)
	if err != nil {
		return false, err.Error()
	}
	for t, partitions := range held {
		for _, p := range partitions {
			c, ok := committed.Lookup(t, p)
			end, there := ends.Lookup(t, p)
			if !ok || !there || end.Err != nil || end.Offset-c.At > 1 && !d.nothing(ctx, t, p, c.At, end.Offset) {
				return false, fmt.Sprintf("group %s has passed %d of %d in %s/%d", group, c.At, end.Offset, t[len(d.namespace)+1:], p)
			}
		}
	}
	return true, ""
}

// nothing tells whether there is no committed record in a partition from one offset to before another,
// which is that of the last marker or behind the last record.
func (d *drill) nothing(ctx context.Context, name string, partition int32, from, to int64) bool {
	cl, err := kgo.NewClient(kgo.SeedBrokers(d.brokers()...), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{name: {partition: kgo.NewOffset().At(from)}}))
	if err != nil {
		return false
	}
	defer cl.Close()
	for {
		fetches := cl.PollFetches(ctx)
		if fetches.Err() != nil {
			return false
		}
		for _, r := range fetches.Records() {
			if !r.Attrs.IsControl() {
				return false
			}
			if r.Offset >= to-1 {
				return true
			}
		}
	}
}

// claim is one partition's claim as the group's metadata has it.
type claim struct {
	Topic     string // without the namespace
	Partition int32
	From, To  int64
	Open      map[int64]bool
}

// snapshot is what a sender had claimed at a moment.
type snapshot struct {
	at     time.Time
	i      *incident
	claims []claim
}

// claimed notes what a sender had claimed when it died or was paused. How much of it
// had no outcome is counted at the end, when the outcomes are known. A claim that was
// on its way counts too: the broker is asked until it says the same after a while,
// in which nobody else goes on with it.
func (d *drill) claimed(m *member, i *incident, while time.Duration) {
	s := snapshot{at: time.Now(), i: i}
	ctx, cancel := context.WithTimeout(d.ctx, 10*time.Second)
	defer cancel()
	for again := false; ; again = true {
		claims, err := d.claims(ctx, m)
		if err != nil {
			return
		}
		same := again && reflect.DeepEqual(claims, s.claims)
		s.claims = claims
		if same {
			break
		}
		if !command.Wait(ctx, while) {
			return
		}
	}
	i.Seen = true
	d.mu.Lock()
	defer d.mu.Unlock()
	d.snapshots = append(d.snapshots, s)
}

// claims are what a sender has claimed in the partitions that it holds, in order.
func (d *drill) claims(ctx context.Context, m *member) ([]claim, error) {
	group := string(topic.GroupSender)
	held, err := d.held(ctx, group, m)
	if err != nil {
		return nil, err
	}
	committed, err := d.kafka.FetchOffsets(ctx, d.namespace+"."+group)
	if err != nil {
		return nil, err
	}
	var claims []claim
	committed.Each(func(c kadm.OffsetResponse) {
		// While the group shares its work out anew nobody says who holds what.
		if len(held) > 0 && !slices.Contains(held[c.Topic], c.Partition) {
			return
		}
		var meta struct {
			To   int64   `json:"to"`
			Open []int64 `json:"open"`
		}
		if c.Metadata == "" || json.Unmarshal([]byte(c.Metadata), &meta) != nil || meta.To < c.At {
			return
		}
		one := claim{Topic: c.Topic[len(d.namespace)+1:], Partition: c.Partition, From: c.At, To: meta.To, Open: map[int64]bool{}}
		for _, o := range meta.Open {
			one.Open[o] = true
		}
		claims = append(claims, one)
	})
	slices.SortFunc(claims, func(a, b claim) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return claims, nil
}
