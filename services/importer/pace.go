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
// what lies there already: the less that is, the sooner it is their turn. And as long as something
// does lie there, the large import is loaded no later for it.
//
// How much may lie there is found as a network connection finds how much may be on its
// way: more while it is passed within MAX_AHEAD, less when it is not.
type pace struct {
	free   bool // nobody is waited for
	target time.Duration
	atOnce atomic.Int64 // records in one transaction

	window float64 // records that may be ahead of a group
	sent   []sent  // and not yet passed
}

// sent is a commit: until when it is passed by a group tells how long others would wait.
type sent struct {
	at    time.Time
	until [len(paced)]int64 // sum of the offsets that each group has then passed
}

var paced = [...]topic.Group{topic.GroupPersonLoop, topic.GroupSink}

const (
	firstWindow = 40_000
	leastWindow = 10_000
	mostWindow  = 10_000_000
	windowParts = 4 // transactions that a window is cut into, at least
)

func (s *Service) newPace(sizeBytes int64) *pace {
	p := &pace{free: s.cfg.MaxAhead == 0 || s.small(sizeBytes), target: s.cfg.MaxAhead}
	p.resize(firstWindow)
	return p
}

func (p *pace) resize(window float64) {
	p.window = min(max(window, leastWindow), mostWindow)
	p.atOnce.Store(int64(p.window / windowParts))
	if p.free {
		p.atOnce.Store(math.MaxInt64)
	}
}

// keep waits while a group is further behind what the import has committed than the
// window. On a signal it does not wait.
func (p *pace) keep(ctx, work context.Context, i *importing) error {
	if p.free {
		return nil
	}
	began := time.Now()
	published := markOf(i.at.Published)
	if len(published) > 0 {
		p.commit(i.at.UpdatedAt, published)
	}
	err := i.await(ctx, work, func() (behind bool, err error) {
		var left [len(paced)]int64
		for n, group := range paced {
			topics, err := i.cluster.Passed(ctx, group, published)
			if err != nil {
				return true, err
			}
			for _, t := range topics {
				left[n] += t.Records
			}
		}
		return p.look(time.Now(), left), nil
	})
	i.metrics.paced.Add(time.Since(began).Seconds())
	if errors.Is(err, errStopped) {
		return nil
	}
	return err
}

// commit takes down what has been published by now.
func (p *pace) commit(now time.Time, published kafka.Mark) {
	s := sent{at: now}
	for n, group := range paced {
		for _, name := range topic.ReadBy(group) {
			for _, offset := range published[name] {
				s.until[n] += offset
			}
		}
	}
	p.sent = append(p.sent, s)
}

// look takes into account how many records each group has still to pass of the last
// commit, and says whether that is too much for another.
func (p *pace) look(now time.Time, left [len(paced)]int64) (behind bool) {
	for len(p.sent) > 0 {
		first, last, passed := p.sent[0], p.sent[len(p.sent)-1], true
		for n := range paced {
			passed = passed && last.until[n]-left[n] >= first.until[n]
		}
		late := now.Sub(first.at) > p.target
		if !passed && !late {
			break
		}
		p.sent = p.sent[1:]
		if late {
			p.resize(p.window * 0.85)
		} else {
			p.resize(p.window * 1.15)
		}
	}
	for n := range paced {
		behind = behind || float64(left[n]) > p.window
	}
	return behind
}
