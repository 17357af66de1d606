package schedule

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// facts are the topics that say something about people which a filter reads.
// Candidates and retries are not among them: they may stand still for hours.
var facts = []topic.Name{topic.ProfileUpdates, topic.SegmentMembers, topic.Events, topic.Outcomes, topic.Engagements}

// Fresh waits until ClickHouse holds everything that was in Kafka when it was
// called. Two steps, because profiles are made on the way: what was there must
// have gone through the person loop first, and what the person loop made of it
// must then have reached the sink. It must not be called from the person loop,
// which is what it waits for. report is told what is being waited for.
func Fresh(ctx context.Context, c *kafka.Cluster, report func(string)) error {
	e1, err := c.HighWatermarks(ctx, facts...)
	if err != nil {
		return fmt.Errorf("reading the ends of the topics: %w", err)
	}
	if err := passed(ctx, c, topic.GroupPersonLoop, only(e1, topic.GroupPersonLoop), report); err != nil {
		return err
	}
	e2, err := c.HighWatermarks(ctx, topic.Profiles)
	if err != nil {
		return fmt.Errorf("reading the end of %s: %w", topic.Profiles, err)
	}
	sink := only(e1, topic.GroupSink)
	sink[topic.Profiles] = e2[topic.Profiles]
	return passed(ctx, c, topic.GroupSink, sink, report)
}

// Sunk waits until ClickHouse holds what these topics held when it was called.
func Sunk(ctx context.Context, c *kafka.Cluster, report func(string), names ...topic.Name) error {
	m, err := c.HighWatermarks(ctx, names...)
	if err != nil {
		return fmt.Errorf("reading the ends of the topics: %w", err)
	}
	return passed(ctx, c, topic.GroupSink, m, report)
}

// only keeps what a group reads: it never passes the others.
func only(m kafka.Mark, g topic.Group) kafka.Mark {
	out := kafka.Mark{}
	for _, name := range topic.ReadBy(g) {
		if at, ok := m[name]; ok {
			out[name] = at
		}
	}
	return out
}

func passed(ctx context.Context, c *kafka.Cluster, g topic.Group, m kafka.Mark, report func(string)) error {
	const first, longest = 20 * time.Millisecond, time.Second
	for pause := first; ; pause = min(2*pause, longest) {
		behind, err := c.Passed(ctx, g, m)
		if err != nil {
			return fmt.Errorf("reading the offsets of group %s: %w", g, err)
		}
		if len(behind) == 0 {
			return nil
		}
		report(inWords(behind))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

func inWords(behind []kafka.Behind) string {
	parts := make([]string, len(behind))
	for i, b := range behind {
		parts[i] = fmt.Sprintf("group %s lacks %d records of %s", b.Group, b.Records, b.Topic)
	}
	return strings.Join(parts, "; ")
}
