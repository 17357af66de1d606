package sink

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/classify"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
)

// engagementRows is the table of hits, and what follows from each: who made it.
type engagementRows struct {
	*table[event.Engagement, *event.Engagement]
	labels *labelRows
}

func (t *engagementRows) read(source Source, name topic.Name, r *kgo.Record) error {
	if err := t.table.read(source, name, r); err != nil {
		return err
	}
	return t.labels.label(&t.rec, name, r)
}

// label is an Engagement as one version of the classifier judges it. It is a
// function of the record and of rules that are never edited (I5).
type label struct {
	event.Engagement
	version     uint32
	label, rule string
}

// labelRows is the table of labels: a row for each version of the classifier that
// this binary knows, so that every hit has a label whichever of them is in force.
type labelRows struct {
	*table[label, *label]
	classifiers []*classify.Classifier
	begun       bool // some version is in force
}

func newLabelRows(classifiers []*classify.Classifier) *labelRows {
	type T = label
	t := newTable[T]("engagement_label_rows", nil, []column[T]{
		whole("classifier_version", clickhouse.NewUInt32(), func(r *row[T]) uint32 { return r.rec.version }),
		id("run_id", func(l *T) identity.ID { return l.RunID }),
		id("message_id", func(l *T) identity.ID { return l.MessageID }),
		id("engagement_id", func(l *T) identity.ID { return l.EngagementID }),
		word("kind", func(l *T) string { return l.Kind }),
		word("label", func(l *T) string { return l.label }),
		word("rule", func(l *T) string { return l.rule }),
		moment("occurred_at", func(l *T) time.Time { return l.OccurredAt }),
	})
	// The hit says where it lay; of its label only the order matters.
	elsewhere := func(name string) bool { return name == "kafka_topic" || name == "kafka_partition" }
	t.columns = slices.DeleteFunc(t.columns, func(c column[T]) bool { return elsewhere(c.name) })
	t.names, t.values = nil, nil
	for _, c := range t.columns {
		t.names, t.values = append(t.names, c.name), append(t.values, c.values)
	}
	return &labelRows{table: t, classifiers: classifiers}
}

func (t *labelRows) label(e *event.Engagement, name topic.Name, r *kgo.Record) error {
	for _, c := range t.classifiers {
		l := label{Engagement: *e, version: c.Version()}
		l.label, l.rule = c.Classify(classify.Hit{Kind: e.Kind, Method: e.Method, Purpose: e.Purpose, UserAgent: e.UserAgent, Network: e.Network, LatencyMs: e.LatencyMs})
		if err := t.add(&l, name, r); err != nil {
			return err
		}
	}
	return nil
}

// flush inserts the labels. The first of all puts the newest version in force, if
// none is; from then on that is hikyaku reclassify's to do.
func (t *labelRows) flush(ctx context.Context, into Database) (int, error) {
	if t.values[0].Rows() > 0 && !t.begun {
		newest := t.classifiers[len(t.classifiers)-1]
		if err := into.Exec(ctx, "INSERT INTO classifier_rows (version, put_at, rules_sha256) SELECT ?, toDateTime64(?, 6, 'UTC'), ? WHERE (SELECT count() FROM classifier_rows) = 0",
			newest.Version(), time.Now().UTC().Format("2006-01-02 15:04:05.000000"), newest.SHA256()); err != nil {
			return 0, fmt.Errorf("putting version %d of the classifier in force: %w", newest.Version(), err)
		}
		t.begun = true
	}
	return t.table.flush(ctx, into)
}
