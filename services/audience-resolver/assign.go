package resolver

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"
	"github.com/hikyaku/hikyaku/services/internal/kafka"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/state"
)

// changelogs are the topics that the person store mirrors.
var changelogs = []topic.Name{topic.Profiles, topic.PersonState}

// Assigned brings the store up to what the partitions' last owner committed,
// before the first of their records is handled. Offsets were fetched stable,
// so whatever that owner still had open was in the logs before this reads
// their ends, and reading committed up to them waits for its fate.
func (l *personLoop) Assigned(ctx context.Context, partitions []int32) error {
	ends, err := l.cluster.HighWatermarks(ctx, changelogs...)
	if err != nil {
		return fmt.Errorf("reading the ends of the changelogs: %w", err)
	}
	began := time.Now()
	replayed := 0
	for _, partition := range partitions {
		if err := l.forgetOutdated(ctx, partition, ends); err != nil {
			return err
		}
		// I1: what its last owner committed is here before the next record is
		// decided, though this store may have missed it.
		for _, name := range changelogs {
			n, err := l.replay(ctx, name, partition, ends[name][partition])
			if err != nil {
				return fmt.Errorf("restoring %s/%d: %w", name, partition, err)
			}
			replayed += n
		}
		delete(l.rates, partition)
		delete(l.now, partition)
	}
	gone := func(k counterKey) bool { return slices.Contains(partitions, k.partition) }
	maps.DeleteFunc(l.counters, func(k counterKey, _ *event.RunCounters) bool { return gone(k) })
	// The counters of these partitions and the runs driven from them are in the
	// view once it has read what the last owner wrote.
	if err := l.caught(ctx); err != nil {
		return fmt.Errorf("reading the topic runs: %w", err)
	}
	crash.At(crash.PersonRestored)
	l.own(func(owned []int32) []int32 { return append(owned, partitions...) })
	l.log.InfoContext(ctx, "partitions assigned", "partitions", len(partitions), "records_replayed", replayed, "seconds", time.Since(began).Seconds())
	return nil
}

// Revoked forgets what is kept in memory about partitions that another
// instance owns now. The store keeps their records: it may get them back.
func (l *personLoop) Revoked(partitions []int32) {
	gone := func(p int32) bool { return slices.Contains(partitions, p) }
	maps.DeleteFunc(l.counters, func(k counterKey, _ *event.RunCounters) bool { return gone(k.partition) })
	maps.DeleteFunc(l.driven, func(_ identity.ID, r *event.Run) bool { return gone(topic.Partition(r.CampaignID, l.cluster.P())) })
	maps.DeleteFunc(l.rates, func(p int32, _ *rate) bool { return gone(p) })
	maps.DeleteFunc(l.now, func(p int32, _ time.Time) bool { return gone(p) })
	l.own(func(owned []int32) []int32 { return slices.DeleteFunc(owned, gone) })
	l.driver.Keep(func(run identity.ID) bool {
		campaign, _, ok := l.view.State(run)
		return ok && !gone(topic.Partition(campaign, l.cluster.P()))
	})
}

func (l *personLoop) own(change func([]int32) []int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.owned = slices.Compact(slices.Sorted(slices.Values(change(slices.Clone(l.owned)))))
	l.metrics.partitions.Set(float64(len(l.owned)))
}

// Owned returns the partitions in hand; the ticker asks from beside the loop.
func (l *personLoop) Owned() []int32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.owned)
}

// replayChunk is the number of records that a replay writes to the store at
// once: memory stays flat.
const replayChunk = 5000

// forgetOutdated drops a partition's records from the store when they cannot be
// brought up to date: written too long ago, so that a tombstone may have been
// missed, or beyond the end, because the cluster is another one.
func (l *personLoop) forgetOutdated(ctx context.Context, partition int32, ends kafka.Mark) error {
	for _, name := range changelogs {
		mark, err := l.store.Mark(name, partition)
		if err != nil {
			return err
		}
		stale := !mark.WrittenAt.IsZero() && time.Since(mark.WrittenAt) > topic.DeleteRetention/2
		if stale || mark.Offset > ends[name][partition] {
			l.log.WarnContext(ctx, "rebuilding the store of a partition", "partition", partition, "written_at", mark.WrittenAt)
			err := l.store.Forget(partition)
			crash.At(crash.PersonForgotten)
			return err
		}
	}
	return nil
}

func (l *personLoop) replay(ctx context.Context, name topic.Name, partition int32, end int64) (int, error) {
	mark, err := l.store.Mark(name, partition)
	if err != nil {
		return 0, err
	}
	var chunk []state.Change
	n := 0
	err = l.cluster.ReadPartition(ctx, name, partition, mark.Offset, end, kgo.ReadCommitted(), func(r *kgo.Record) error {
		chunk = append(chunk, state.Change{Topic: name, Partition: partition, Offset: r.Offset, Key: r.Key, Value: r.Value})
		n++
		if len(chunk) < replayChunk {
			return nil
		}
		err := l.store.Apply(chunk, time.Now())
		chunk = chunk[:0]
		return err
	})
	if err != nil {
		return n, err
	}
	if err := l.store.Apply(chunk, time.Now()); err != nil {
		return n, err
	}
	crash.At(crash.PersonRestoring)
	return n, l.store.Advance(name, partition, end, time.Now())
}
