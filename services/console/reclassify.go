package console

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/services/internal/classify"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
)

func (a *app) reclassifyCommand() *cobra.Command {
	var use uint32
	cmd := &cobra.Command{
		Use: "reclassify", Short: "Judge all opens and clicks anew, by another version of the rules",
		Long: `reclassify labels every hit there has ever been by the newest version of the classifier that this hikyaku knows, human, machine or
unknown, and then puts that version in force: from that moment funnels and everything else go by it. Until then they go by the version
before. Labels of other versions stay, so --use N goes back as quickly.

Bring all event-collectors up to date first: they label what comes in by every version that they know. Killed, or asked twice, it goes
on where labels are missing.`,
		Example: "  hikyaku reclassify\n  hikyaku reclassify --use 1",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := classify.All()
			if err != nil {
				return err
			}
			return a.reclassify(cmd.Context(), all, use)
		},
	}
	cmd.Flags().Uint32Var(&use, "use", 0, "put this version in force, not the newest")
	return cmd
}

// restated is what reclassify has done.
type restated struct {
	Version  uint32       `json:"version"`
	Before   uint32       `json:"before"` // the version that was in force; 0 if none was
	Hits     uint64       `json:"hits"`
	Labelled uint64       `json:"labelled"` // hits that had no label of this version yet
	Counts   []labelCount `json:"counts"`
}

// labelCount is how many hits had a label before, and have it now.
type labelCount struct {
	Kind   string `ch:"kind" json:"kind"`
	Label  string `ch:"label" json:"label"`
	Before uint64 `ch:"before" json:"before"`
	Now    uint64 `ch:"now" json:"now"`
}

const inForceQuery = "SELECT argMax(version, (put_at, version)), max(put_at), count() FROM classifier_rows"

const labelCountsQuery = `SELECT kind, label, countIf(classifier_version = ?) AS before, countIf(classifier_version = ?) AS now
FROM engagement_label_rows FINAL WHERE classifier_version IN (?, ?) GROUP BY kind, label ORDER BY kind, label`

func (a *app) reclassify(ctx context.Context, all []*classify.Classifier, use uint32) error {
	if use == 0 {
		use = all[len(all)-1].Version()
	}
	i := slices.IndexFunc(all, func(c *classify.Classifier) bool { return c.Version() == use })
	if i < 0 {
		known := make([]string, len(all))
		for i, c := range all {
			known[i] = strconv.FormatUint(uint64(c.Version()), 10)
		}
		return usage("this hikyaku does not know version %d of the classifier, only %s", use, strings.Join(known, ", "))
	}
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	done := restated{Version: use}
	r := relabelling{app: a, conn: conn, by: all[i]}
	if done.Hits, done.Labelled, err = r.pass(ctx); err != nil {
		return err
	}
	if done.Before, err = a.putInForce(ctx, conn, all[i]); err != nil {
		return err
	}
	// What a collector that does not know the version took in during the first pass.
	hits, more, err := r.pass(ctx)
	if err != nil {
		return err
	}
	done.Hits, done.Labelled = hits, done.Labelled+more
	a.sql(labelCountsQuery, done.Before, use, done.Before, use)
	if err := conn.Select(ctx, &done.Counts, labelCountsQuery, done.Before, use, done.Before, use); err != nil {
		return fmt.Errorf("counting the labels: %w", err)
	}
	if a.asJSON {
		return a.printJSON(done)
	}
	fmt.Fprintf(a.out, "version %d of the classifier is in force (before: %d); %s of %s hits had no label of it yet\n", use, done.Before, thousands(int64(done.Labelled)), thousands(int64(done.Hits)))
	if len(done.Counts) > 0 {
		t := a.longTable("KIND", "LABEL", "BEFORE", "NOW")
		for _, c := range done.Counts {
			t.row(c.Kind, c.Label, thousands(int64(c.Before)), thousands(int64(c.Now)))
		}
		t.flush()
	}
	return nil
}

// putInForce lets everything that people read go by a version, and returns the one
// before.
func (a *app) putInForce(ctx context.Context, conn *clickhouse.Conn, c *classify.Classifier) (before uint32, err error) {
	var last time.Time
	var versions uint64
	a.sql(inForceQuery)
	if err := conn.QueryRow(ctx, inForceQuery).Scan(&before, &last, &versions); err != nil {
		return 0, fmt.Errorf("reading which version of the classifier is in force: %w", err)
	}
	if versions > 0 && before == c.Version() {
		return before, nil
	}
	// Later than the one before, whatever the clocks say.
	at := time.Now().UTC().Truncate(time.Microsecond)
	if !at.After(last) {
		at = last.Add(time.Microsecond)
	}
	return before, conn.Insert(ctx, "classifier_rows", []string{"version", "put_at", "rules_sha256"}, 1, func(b driver.Batch) error {
		return b.Append(c.Version(), at, c.SHA256())
	})
}

// relabelling labels what has no label of a version.
type relabelling struct {
	*app
	conn *clickhouse.Conn
	by   *classify.Classifier
}

// chunk is the hits of one run that came in within one month: the parts of a table
// are of a month, and ordered by run.
type chunk struct {
	Month  uint32    `ch:"month"`
	RunID  uuid.UUID `ch:"run_id"`
	Hits   uint64    `ch:"hits"`
	Labels uint64    `ch:"labels"`
}

const chunksQuery = `SELECT month, run_id, hits, labels FROM
(
    SELECT toYYYYMM(ingested_at) AS month, run_id, count() AS hits FROM engagement_rows FINAL GROUP BY month, run_id
) AS h
LEFT JOIN
(
    SELECT toYYYYMM(ingested_at) AS month, run_id, count() AS labels FROM engagement_label_rows FINAL WHERE classifier_version = ? GROUP BY month, run_id
) AS l USING (month, run_id)
ORDER BY month, run_id`

const chunkQuery = `SELECT run_id, message_id, engagement_id, kind, method, purpose, user_agent, network, latency_ms, occurred_at, ingested_at, kafka_offset
FROM engagement_rows WHERE toYYYYMM(ingested_at) = ? AND run_id IN (?)`

// What is read by one query, and what is inserted at once. A label takes some 200
// bytes of memory.
const (
	relabelRuns = 500
	relabelHits = 200_000
	relabelRows = 50_000
)

// pass goes through history once and returns how many hits there are and how many of
// them it has labelled. A part that has all its labels is left alone.
func (r *relabelling) pass(ctx context.Context) (hits, labelled uint64, err error) {
	var chunks []chunk
	r.sql(chunksQuery, r.by.Version())
	if err := r.conn.Select(ctx, &chunks, chunksQuery, r.by.Version()); err != nil {
		return 0, 0, fmt.Errorf("looking which hits have no label: %w", err)
	}
	var missing uint64
	for _, c := range chunks {
		hits += c.Hits
		missing += c.Hits - min(c.Labels, c.Hits)
	}
	chunks = slices.DeleteFunc(chunks, func(c chunk) bool { return c.Labels >= c.Hits })
	for len(chunks) > 0 {
		n, of := 0, uint64(0)
		var runs []uuid.UUID
		for ; n < len(chunks) && n < relabelRuns && (n == 0 || of+chunks[n].Hits <= relabelHits) && chunks[n].Month == chunks[0].Month; n++ {
			runs, of = append(runs, chunks[n].RunID), of+chunks[n].Hits
		}
		if err := r.relabel(ctx, chunks[0].Month, runs); err != nil {
			return 0, 0, err
		}
		for _, c := range chunks[:n] {
			labelled += c.Hits - c.Labels
		}
		chunks = chunks[n:]
		fmt.Fprintf(r.err, "%s of %s hits labelled\n", thousands(int64(labelled)), thousands(int64(missing)))
	}
	if labelled > 0 {
		// Funnels that are kept go by when hits came in, and these came long ago.
		if err := r.forgetFunnels(ctx); err != nil {
			return 0, 0, err
		}
	}
	return hits, labelled, nil
}

// relabelled is a row of engagement_label_rows.
type relabelled struct {
	run, message, engagement uuid.UUID
	kind, label, rule        string
	occurredAt, ingestedAt   time.Time
	offset                   int64
}

func (r *relabelling) relabel(ctx context.Context, month uint32, runs []uuid.UUID) (err error) {
	rows, err := r.conn.Query(ctx, chunkQuery, month, runs)
	if err != nil {
		return fmt.Errorf("reading hits: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	var labels []relabelled
	for rows.Next() {
		var l relabelled
		var h classify.Hit
		if err := rows.Scan(&l.run, &l.message, &l.engagement, &l.kind, &h.Method, &h.Purpose, &h.UserAgent, &h.Network, &h.LatencyMs, &l.occurredAt, &l.ingestedAt, &l.offset); err != nil {
			return fmt.Errorf("reading hits: %w", err)
		}
		h.Kind = l.kind
		l.label, l.rule = r.by.Classify(h)
		if labels = append(labels, l); len(labels) == relabelRows {
			if err := r.insert(ctx, labels); err != nil {
				return err
			}
			labels = labels[:0]
		}
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("reading hits: %w", err)
	}
	return r.insert(ctx, labels)
}

func (r *relabelling) insert(ctx context.Context, labels []relabelled) error {
	columns := []string{"classifier_version", "run_id", "message_id", "engagement_id", "kind", "label", "rule", "occurred_at", "ingested_at", "kafka_offset"}
	return r.conn.Insert(ctx, "engagement_label_rows", columns, len(labels), func(b driver.Batch) error {
		for i := range labels {
			l := &labels[i]
			if err := b.Append(r.by.Version(), l.run, l.message, l.engagement, l.kind, l.label, l.rule, l.occurredAt, l.ingestedAt, l.offset); err != nil {
				return err
			}
		}
		return nil
	})
}
