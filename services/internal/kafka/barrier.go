package kafka

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Mark is a moment in topics: an offset for each partition, that of the next
// record to be written there. A group has passed it when it has committed at
// least these.
type Mark map[topic.Name]map[int32]int64

// Merge sets in m the later of both offsets for each partition of other.
func (m Mark) Merge(other Mark) {
	for name, partitions := range other {
		if m[name] == nil {
			m[name] = map[int32]int64{}
		}
		for p, offset := range partitions {
			m[name][p] = max(m[name][p], offset)
		}
	}
}

// Behind says how much of a mark a group has still to pass on a topic.
type Behind struct {
	Group   topic.Group
	Topic   topic.Name
	Records int64 // transaction markers included
}

// HighWatermarks returns the ends of the topics at a moment during the call,
// transaction markers and open transactions included. Errors are Transient.
func (c *Cluster) HighWatermarks(ctx context.Context, names ...topic.Name) (Mark, error) {
	return c.ends(ctx, c.adm.ListEndOffsets, names)
}

// LastStable returns how far the topics could be read committed at a moment during
// the call. Errors are Transient.
func (c *Cluster) LastStable(ctx context.Context, names ...topic.Name) (Mark, error) {
	return c.ends(ctx, c.adm.ListCommittedOffsets, names)
}

// Since returns the offsets of the first records of the topics that were produced at
// or after t; where there is none, the end. Errors are Transient.
func (c *Cluster) Since(ctx context.Context, t time.Time, names ...topic.Name) (Mark, error) {
	return c.ends(ctx, func(ctx context.Context, topics ...string) (kadm.ListedOffsets, error) {
		return c.adm.ListOffsetsAfterMilli(ctx, t.UnixMilli(), topics...)
	}, names)
}

func (c *Cluster) ends(ctx context.Context, list func(context.Context, ...string) (kadm.ListedOffsets, error), names []topic.Name) (Mark, error) {
	ends, err := list(ctx, c.kafkaNames(names)...)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fault.Transient(fmt.Errorf("reading offsets of %v: %w", names, err))
	}
	m := Mark{}
	for t, partitions := range ends {
		name := c.NameOf(t)
		m[name] = make(map[int32]int64, len(partitions))
		for p, o := range partitions {
			m[name][p] = o.Offset
		}
	}
	return m, nil
}

// Committed returns the offsets that a group has committed, of topics that it has
// ever read. Errors are Transient.
func (c *Cluster) Committed(ctx context.Context, group topic.Group) (Mark, error) {
	committed, err := c.adm.FetchOffsets(ctx, group.In(c.cfg.Namespace))
	if err == nil {
		err = committed.Error()
	}
	if err != nil {
		return nil, fault.Transient(fmt.Errorf("fetching the offsets of group %s: %w", group, err))
	}
	m := Mark{}
	committed.Each(func(o kadm.OffsetResponse) {
		name := c.NameOf(o.Topic)
		if m[name] == nil {
			m[name] = map[int32]int64{}
		}
		m[name][o.Partition] = max(0, o.At)
	})
	return m, nil
}

// Passed returns what a group has still to pass of a mark, by topic; empty when its
// committed offsets have passed it. Topics of the mark that the group does not
// read are left out. A committed offset passes transaction markers only in groups
// that keep control records. Errors are Transient.
func (c *Cluster) Passed(ctx context.Context, group topic.Group, m Mark) ([]Behind, error) {
	reads := topic.ReadBy(group)
	committed, err := c.Committed(ctx, group)
	if err != nil {
		return nil, err
	}
	var behind []Behind
	for name, partitions := range m {
		if !slices.Contains(reads, name) {
			continue
		}
		b := Behind{Group: group, Topic: name}
		for p, mark := range partitions {
			b.Records += max(0, mark-committed[name][p]) // none committed: nothing passed
		}
		if b.Records > 0 {
			behind = append(behind, b)
		}
	}
	sort.Slice(behind, func(i, j int) bool { return behind[i].Topic < behind[j].Topic })
	return behind, nil
}

func (c *Cluster) kafkaNames(names []topic.Name) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = n.In(c.cfg.Namespace)
	}
	return out
}
