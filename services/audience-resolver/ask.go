package resolver

import (
	"context"
	"fmt"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
)

// asker asks ClickHouse: who is in an audience, and what became of a run's
// messages.
type asker struct {
	conn      *clickhouse.Conn
	audiences *definitions.Exact[*definition.Audience]
}

func (a *asker) moment(ctx context.Context, s *event.RunState) (*definition.Audience, audience.Moment, error) {
	def, err := a.audiences.Get(ctx, s.AudienceID, s.AudienceVersion)
	return def, audience.Moment{AsOf: s.AsOf, Segments: s.Segments}, err
}

// Expected counts the people of a run's audience at its as_of.
func (a *asker) Expected(ctx context.Context, run identity.ID, s *event.RunState) (int64, error) {
	def, at, err := a.moment(ctx, s)
	if err != nil {
		return 0, err
	}
	q := audience.Count(def.Filter, at)
	var n uint64
	if err := a.conn.QueryRow(ctx, q.SQL, q.Args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("counting the audience of run %s: %w", run, err)
	}
	return int64(n), nil
}

// People streams the people of a shard, at most limit of them.
func (a *asker) People(ctx context.Context, s *event.RunState, shard, of int32, limit int, each func(userID string) error) error {
	def, at, err := a.moment(ctx, s)
	if err != nil {
		return err
	}
	q := audience.Shard(def.Filter, at, shard, of, limit)
	rows, err := a.conn.Query(ctx, q.SQL, q.Args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var userID string
		if err := rows.Scan(&userID); err != nil {
			return fmt.Errorf("reading a person: %w", err)
		}
		if err := each(userID); err != nil {
			return err
		}
	}
	return rows.Err()
}

// Classes counts a run's distinct messages by class, excluded included.
func (a *asker) Classes(ctx context.Context, run identity.ID) (map[string]int64, error) {
	rows, err := a.conn.Query(ctx, "SELECT class, count() FROM message_steps WHERE run_id = toUUID(?) GROUP BY class", run.UUID())
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	counts := map[string]int64{}
	for rows.Next() {
		var class string
		var n uint64
		if err := rows.Scan(&class, &n); err != nil {
			return nil, fmt.Errorf("counting the messages of run %s: %w", run, err)
		}
		counts[class] += int64(n)
	}
	return counts, rows.Err()
}
