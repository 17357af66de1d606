// Package resolve reads shards of a run out of ClickHouse. A shard's candidates
// and its done mark are one transaction, and a shard that is done is not read
// again.
package resolve

import (
	"context"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"

	"github.com/hikyaku/hikyaku/services/audience-resolver/internal/runs"
)

// Reader streams the people of a shard, at most limit of them.
type Reader interface {
	People(ctx context.Context, s *event.RunState, shard, of int32, limit int, each func(userID string) error) error
}

// Shards is the transformer of the shard loop.
type Shards struct {
	Cluster *kafka.Cluster
	// State returns the state of a shard's run, and whether the shard is done
	// already, as of everything that was written before the call.
	State func(ctx context.Context, shard *event.RunShard) (s event.RunState, done bool, err error)
	// Campaign returns the campaign of a run, as of everything that was written before the call.
	Campaign func(ctx context.Context, run identity.ID) (campaign string, ok bool, err error)
	Reader   Reader
	Max      int              // people in a shard
	Now      func() time.Time // stamps done marks for people to read; decides nothing
}

// Resolve turns one run-shard into candidates and a done mark, or, if it holds
// more than Max people, into two shards of half its size.
func (s *Shards) Resolve(ctx context.Context, r *kgo.Record) ([]*kgo.Record, error) {
	var shard event.RunShard
	if err := s.Cluster.Decode(r, &shard); err != nil {
		return s.byKey(ctx, r, err)
	}
	return s.resolve(ctx, &shard)
}

// byKey resolves a shard whose record does not decode by what its key says, which
// is all that there is to it: nobody in it is lost, and the run does not wait for
// ever. The record is parked all the same, because somebody writes what nobody
// can read.
func (s *Shards) byKey(ctx context.Context, r *kgo.Record, poison error) ([]*kgo.Record, error) {
	if fault.ClassOf(poison) != fault.ClassPoison {
		return nil, poison
	}
	run, shard, of, ok := runs.ParseShardKey(string(r.Key))
	if !ok {
		return nil, poison
	}
	campaign, ok, err := s.Campaign(ctx, run)
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, poison
	}
	out, err := s.resolve(ctx, &event.RunShard{RunID: run, CampaignID: campaign, Shard: shard, Of: of})
	if err != nil {
		return nil, err
	}
	return append(out, s.Cluster.DeadLetter(r, fmt.Errorf("%w (its shard was read by its key)", poison))), nil
}

func (s *Shards) resolve(ctx context.Context, shard *event.RunShard) ([]*kgo.Record, error) {
	state, already, err := s.State(ctx, shard)
	if err != nil {
		return nil, err
	}
	if already {
		// I9: asked for twice, counted once. The candidates are there, and the done
		// mark could not say how many both readings came to.
		return nil, nil
	}
	done := event.ShardDone{Shard: shard.Shard, Of: shard.Of, DoneAt: s.Now()}
	var out []*kgo.Record
	if !state.CancelRequested {
		err = s.Reader.People(ctx, &state, shard.Shard, shard.Of, s.Max+1, func(userID string) error {
			rec, err := s.Cluster.Record(topic.Candidates, userID, &event.Candidate{RunID: shard.RunID, CampaignID: shard.CampaignID, UserID: userID, Shard: shard.Shard, Of: shard.Of})
			if err != nil {
				return err
			}
			out = append(out, rec)
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("reading shard %d of %d of run %s: %w", shard.Shard, shard.Of, shard.RunID, err)
		}
		done.Candidates = int64(len(out))
	}
	if len(out) > s.Max {
		out, done.Candidates, done.Children = nil, 0, 2
		// hash mod of = shard splits into the two residues of twice as many.
		for _, child := range []int32{shard.Shard, shard.Shard + shard.Of} {
			rec, err := ShardRecord(s.Cluster, &event.RunShard{RunID: shard.RunID, CampaignID: shard.CampaignID, Shard: child, Of: 2 * shard.Of})
			if err != nil {
				return nil, err
			}
			out = append(out, rec)
		}
	}
	rec, err := s.Cluster.Record(topic.Runs, runs.ShardKey(shard.RunID, shard.Shard, shard.Of), &event.Run{RunID: shard.RunID, CampaignID: shard.CampaignID, Shard: &done})
	if err != nil {
		return nil, err
	}
	return append(out, rec), nil
}

// ShardRecord is the record that asks for a shard. Shards are dealt out evenly
// over the partitions, so that all instances take part.
func ShardRecord(c *kafka.Cluster, s *event.RunShard) (*kgo.Record, error) {
	return c.RecordAt(topic.RunShards, s.Shard%int32(c.P()), runs.ShardKey(s.RunID, s.Shard, s.Of), s)
}
