package importer

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"time"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
)

// pace keeps a large import from running far ahead of the resolver and the sink. They
// read what small objects and people themselves bring from the same partitions, behind
// what lies there already: the less that is, the sooner it is their turn. The import is loaded no
// later for it, as long as they never wait for more.
type pace struct {
	speeds map[topic.Group]*speed
	atOnce atomic.Int64 // records in one transaction
	free   bool         // nobody is waited for
}

// speed is how fast a group passes what is published.
type speed struct {
	passed    int64 // records, at the last look
	at        time.Time
	perSecond float64
}

// What is published at once before a speed is known, and at least.
const (
	firstRecords  = 20_000
	leastRecords  = 5_000
	mostPerSecond = 1e7
)

func (s *Service) newPace(sizeBytes int64) *pace {
	p := &pace{speeds: map[topic.Group]*speed{}, free: s.cfg.MaxAhead == 0 || s.small(sizeBytes)}
	p.atOnce.Store(firstRecords)
	if p.free {
		p.atOnce.Store(math.MaxInt64)
	}
	for _, g := range []topic.Group{topic.GroupPersonLoop, topic.GroupSink} {
		p.speeds[g] = &speed{perSecond: firstRecords}
	}
	return p
}

// keep waits while a group is further behind what the import has committed than it
// passes in MAX_AHEAD. On a signal it does not wait.
func (p *pace) keep(ctx, work context.Context, i *importing) error {
	if p.free {
		return nil
	}
	began := time.Now()
	published := markOf(i.at.Published)
	err := i.await(ctx, work, func() (behind bool, err error) {
		slowest := math.MaxFloat64
		for group, s := range p.speeds {
			left, err := i.cluster.Passed(ctx, group, published)
			if err != nil {
				return true, err
			}
			records := s.look(time.Now(), group, published, left)
			behind = behind || float64(records) > max(leastRecords, s.perSecond*i.cfg.MaxAhead.Seconds())
			slowest = min(slowest, s.perSecond)
		}
		p.atOnce.Store(max(leastRecords, int64(slowest*i.cfg.MaxAhead.Seconds()/4)))
		return behind, nil
	})
	i.metrics.paced.Add(time.Since(began).Seconds())
	if errors.Is(err, errStopped) {
		return nil
	}
	return err
}

// look takes into account what a group has still to pass of what is published, and
// returns how many records that are.
func (s *speed) look(now time.Time, group topic.Group, published kafka.Mark, left []kafka.Behind) (records int64) {
	for _, l := range left {
		records += l.Records
	}
	passed := -records
	for _, name := range topic.ReadBy(group) {
		for _, offset := range published[name] {
			passed += offset
		}
	}
	took := now.Sub(s.at).Seconds()
	switch {
	case s.at.IsZero():
	case records == 0:
		s.perSecond = min(1.5*s.perSecond, mostPerSecond) // it waits for more: how fast it is will show
	case took < 0.05:
		return records
	default:
		const weight = 0.3
		s.perSecond += weight * (float64(passed-s.passed)/took - s.perSecond)
	}
	s.passed, s.at = passed, now
	return records
}
