package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/classify"
)

// rules are a version by which whoever is named is a machine, and all others people.
func rules(t testing.TB, version int, machine string) *classify.Classifier {
	t.Helper()
	c, err := classify.Parse(fmt.Appendf(nil, "version: %d\nrules:\n  - {name: m%d, label: machine, agents: ['%s'], why: w, source: s}\n  - {name: p, label: human, methods: [GET], why: w, source: s}\n",
		version, version, machine), nil)
	require.NoError(t, err)
	return c
}

// hit is a hit as the sink stores it, with its labels.
func (s *stage) hit(run identity.ID, userID, kind, agent string, months int, by ...*classify.Classifier) {
	s.t.Helper()
	at := time.Date(2026, 5, 17, 12, 0, 0, 0, time.UTC)
	r := row{"run_id": run, "message_id": identity.Message(s.namespace, "hello-all", run.String(), userID, ""), "engagement_id": identity.Hash(userID, kind, agent),
		"kind": kind, "occurred_at": at, "ingested_at": time.Now().AddDate(0, -months, 0), "kafka_offset": int64(7)}
	labels := func(more row) row {
		for k, v := range r {
			more[k] = v
		}
		return more
	}
	s.insert("engagement_rows", labels(row{"campaign_id": "hello-all", "user_id": userID, "channel": "email", "method": "GET", "user_agent": agent, "latency_ms": int64(-1)}))
	for _, c := range by {
		label, rule := c.Classify(classify.Hit{Kind: kind, Method: "GET", UserAgent: agent, LatencyMs: -1})
		s.insert("engagement_label_rows", labels(row{"classifier_version": c.Version(), "label": label, "rule": rule}))
	}
}

func (s *stage) reclassify(all []*classify.Classifier, use uint32) restated {
	s.t.Helper()
	var out, errs bytes.Buffer
	a := &app{env: envconfig.MapLookuper(s.env), out: &out, err: &errs, asJSON: true, patience: 10 * time.Second}
	defer a.close()
	require.NoError(s.t, a.reclassify(s.t.Context(), all, use), errs.String())
	var done restated
	require.NoError(s.t, json.Unmarshal(out.Bytes(), &done), out.String())
	return done
}

// whatPeopleRead is every number that depends on labels.
func (s *stage) whatPeopleRead() (out []string) {
	s.t.Helper()
	for _, query := range []string{
		"SELECT formatRow('JSONEachRow', * EXCEPT classifier_version) AS line FROM message_engagement ORDER BY line",
		"SELECT formatRow('JSONEachRow', engagement_id, user_id, kind, label, replaceRegexpOne(rule, '[0-9]', '')) AS line FROM engagements ORDER BY line",
	} {
		rows, err := s.conn.Query(s.t.Context(), query)
		require.NoError(s.t, err)
		for rows.Next() {
			var line string
			require.NoError(s.t, rows.Scan(&line))
			out = append(out, line)
		}
		require.NoError(s.t, rows.Err())
		require.NoError(s.t, rows.Close())
	}
	return out
}

func (s *stage) people(condition string) (n uint64) {
	s.t.Helper()
	require.NoError(s.t, s.conn.QueryRow(s.t.Context(), "SELECT count() FROM message_engagement WHERE "+condition).Scan(&n))
	return n
}

func TestReclassifyingRestatesHistoryThereAndBack(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	v1, v2 := rules(t, 1, "scanner"), rules(t, 2, "scanner|preview")
	first, second := identity.Hash("first"), identity.Hash("second")
	for i := range 6 { // before there was a classifier, or by a sink that knew only the first
		user := fmt.Sprint("u", i)
		s.hit(first, user, "opened", "browser", i%3)
		s.hit(first, user, "clicked", []string{"browser", "scanner", "preview"}[i%3], i%3, v1)
		s.hit(second, user, "clicked", []string{"preview", "browser"}[i%2], 0, v1)
	}
	require.Empty(t, s.people("clicked_at IS NOT NULL"), "no version is in force")

	done := s.reclassify([]*classify.Classifier{v1}, 0)
	require.EqualValues(t, []uint64{1, 0, 18, 6}, []uint64{uint64(done.Version), uint64(done.Before), done.Hits, done.Labelled}, "the others had labels")
	byFirst := s.whatPeopleRead()
	require.EqualValues(t, 6+4, s.people("clicked_at IS NOT NULL"))
	require.EqualValues(t, 2, s.people("clicked_machine_at IS NOT NULL"))
	require.EqualValues(t, 6, s.people("opened_at IS NOT NULL"))

	both := []*classify.Classifier{v1, v2}
	done = s.reclassify(both, 0)
	require.EqualValues(t, []uint64{2, 1, 18, 18}, []uint64{uint64(done.Version), uint64(done.Before), done.Hits, done.Labelled})
	bySecond := s.whatPeopleRead()
	require.EqualValues(t, 3+2, s.people("clicked_at IS NOT NULL"))
	require.EqualValues(t, 3+4, s.people("clicked_machine_at IS NOT NULL"))

	kept := func() (n uint64) { // funnels that were counted while a version was in force
		require.NoError(t, s.conn.QueryRow(t.Context(), "SELECT count() FROM funnel_rows WHERE classifier_version = 2").Scan(&n))
		return n
	}
	require.NoError(t, s.conn.Exec(t.Context(), "INSERT INTO funnel_rows (run_id, classifier_version, complete_until) VALUES (?, 2, now64(3))", second.UUID()))
	done = s.reclassify(both, 1)
	require.Zero(t, done.Labelled, "its labels are all there")
	require.Equal(t, byFirst, s.whatPeopleRead())
	require.Zero(t, s.reclassify(both, 2).Labelled)
	require.Equal(t, bySecond, s.whatPeopleRead())
	require.Zero(t, s.reclassify(both, 2).Labelled, "twice is once")
	require.Equal(t, bySecond, s.whatPeopleRead())

	// Hits that come in meanwhile: by a sink that knows both, and by one of before.
	s.hit(second, "late", "opened", "preview", 0, v1, v2)
	s.hit(second, "later", "opened", "preview", 0, v1)
	require.EqualValues(t, 1, s.people("opened_machine_at IS NOT NULL"), "at once")
	require.EqualValues(t, 1, kept())
	require.EqualValues(t, 1, s.reclassify(both, 1).Labelled+s.reclassify(both, 2).Labelled, "the one of before")
	require.Zero(t, kept(), "a funnel without the hit is not kept")
	require.EqualValues(t, 2, s.people("opened_machine_at IS NOT NULL"))
	require.Zero(t, s.reclassify(both, 1).Labelled)
	require.EqualValues(t, 8, s.people("opened_at IS NOT NULL"), "none is lost whichever is in force")

	require.NoError(t, s.conn.Exec(t.Context(), "OPTIMIZE TABLE message_engagement_rows FINAL"))
	require.EqualValues(t, 8, s.people("opened_at IS NOT NULL"), "merging changes nothing")

	// Whoever put the last one in force had a clock that was ahead.
	require.NoError(t, s.conn.Exec(t.Context(), "INSERT INTO classifier_rows (version, put_at, rules_sha256) SELECT 2, now64(6) + toIntervalHour(1), ''"))
	require.EqualValues(t, 2, s.people("opened_machine_at IS NOT NULL"))
	require.EqualValues(t, 2, s.reclassify(both, 1).Before)
	require.Zero(t, s.people("opened_machine_at IS NOT NULL"))

	bad := s.hikyaku("reclassify", "--use", "999")
	require.Equal(t, exitUsage, bad.code)
	require.Contains(t, bad.err, "does not know version 999")
	released, err := classify.All()
	require.NoError(t, err)
	require.EqualValues(t, released[len(released)-1].Version(), s.ok("reclassify", "--json").one(t)["version"])
}
