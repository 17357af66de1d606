package kafka

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// recovery is what a former owner's claim left behind in one partition.
type recovery struct {
	claim    claim
	open     map[int64]bool
	answered map[int64]bool // has an outcome with this source
}

func (r *recovery) stateOf(offset int64) itemState {
	switch {
	case r.open[offset]:
		return itemFresh
	case r.answered[offset]:
		return itemSettled
	}
	return itemUnresolved
}

// recover reads, for the partitions of a new assignment, which claimed records have
// their answer in outcomes, and where the partitions of outcomes end. The read is
// uncommitted: behind another writer's open transaction a committed one is blind,
// takes answered records for unresolved and, under at_least_once, sends them again.
// Only senders write `source`, and never in a transaction.
func (l *claimLoop) recover(ctx context.Context, committed []committedOffset) ([]*claimPartition, map[int32]int64, error) {
	var partitions []*claimPartition
	scan := map[int32]int64{}
	bySource := map[event.Source]*recovery{}
	for _, o := range committed {
		p := &claimPartition{
			name: o.topic, topic: o.topic.In(l.c.cfg.Namespace), number: o.partition,
			next: o.offset, offset: o.offset, metadata: o.metadata,
			keys: map[string]struct{}{}, pause: *newBackoff(),
		}
		partitions = append(partitions, p)
		if o.metadata == "" {
			continue
		}
		rec := &recovery{open: map[int64]bool{}, answered: map[int64]bool{}}
		if err := json.Unmarshal([]byte(o.metadata), &rec.claim); err != nil {
			// Nothing but this loop commits for its group.
			err = fault.Fatal(fmt.Errorf("reading the claim of group %s on %s/%d, %q: %w", l.o.Group, o.topic, o.partition, o.metadata, err))
			l.end(err)
			return nil, nil, err
		}
		for _, offset := range rec.claim.Open {
			rec.open[offset] = true
		}
		if rec.claim.To < o.offset {
			continue
		}
		p.recovered = rec
		if at, ok := scan[o.partition]; !ok || rec.claim.Scan < at {
			scan[o.partition] = rec.claim.Scan
		}
		bySource[p.source()] = rec
	}
	ends, err := l.outcomeEnds(ctx)
	if err != nil {
		return nil, nil, err
	}
	var ranges []Range
	for n, from := range scan {
		if from < ends[n] {
			ranges = append(ranges, Range{Topic: topic.Outcomes, Partition: n, From: from, To: ends[n]})
		}
	}
	if len(ranges) == 0 {
		return partitions, ends, nil
	}
	var o event.Outcome
	err = l.c.Read(ctx, ranges, kgo.ReadUncommitted(), func(r *kgo.Record) error {
		if err := l.decode(ctx, r, &o); err != nil || o.Source == nil {
			return err
		}
		at := *o.Source
		at.Offset = 0
		if rec := bySource[at]; rec != nil {
			rec.answered[o.Source.Offset] = true
		}
		return nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("reading the answers to the claims of group %s: %w", l.o.Group, err)
	}
	return partitions, ends, nil
}

// outcomeEnds waits for the ends of the partitions of outcomes.
func (l *claimLoop) outcomeEnds(ctx context.Context) (map[int32]int64, error) {
	for pause := newBackoff(); ; {
		m, err := l.c.HighWatermarks(ctx, topic.Outcomes)
		if err == nil {
			return m[topic.Outcomes], nil
		}
		if !pause.wait(ctx, l.ended) {
			return nil, err
		}
	}
}

// decode waits while the registry is away. An outcome that nobody can read was not
// written by a sender of ours.
func (l *claimLoop) decode(ctx context.Context, r *kgo.Record, o *event.Outcome) error {
	for pause := newBackoff(); ; {
		err := l.c.Decode(r, o)
		switch {
		case err == nil:
			return nil
		case fault.ClassOf(err) == fault.ClassPoison:
			o.Source = nil
			return nil
		case !pause.wait(ctx, l.ended):
			return err
		}
	}
}
