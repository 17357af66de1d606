package console

import (
	"strings"
	"testing"
	"time"

	"github.com/sethvargo/go-envconfig"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/kafka/kafkatest"
)

// books are those of a run in which all that can happen has happened once.
func (s *stage) books(run identity.ID) {
	s.run(run, "finished", row{"balanced": true, "finished_at": time.Now()})
	s.shard(run, 6)
	s.counters(run, row{"excluded": map[string]int64{"no_address": 1, "unsubscribed": 1}, "requested": int64(4), "accepted": int64(1), "rejected": int64(1), "failed": int64(1), "uncertain": int64(1)})
	s.outcome(run, "none", "excluded", 0, row{"reason": "no_address"})
	s.outcome(run, "no", "excluded", 0, row{"reason": "unsubscribed"})
	for _, u := range []string{"got", "rejected", "failed", "uncertain"} {
		s.requested(run, u)
	}
	s.outcome(run, "got", "rendered", 0, nil)
	s.outcome(run, "got", "accepted", 1, nil)
	s.outcome(run, "rejected", "rejected", 0, row{"reason": "template_error"})
	s.outcome(run, "failed", "failed", 1, row{"reason": "5.1.1"})
	s.outcome(run, "uncertain", "uncertain", 1, row{"reason": "no_answer"})
}

func TestBalanceIsATableAndASentence(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	run := identity.Run(s.namespace, "hello-all", "one")
	s.books(run)
	a := s.ok("balance", run.String())
	for _, want := range []string{
		`(?m)^audience +6 +6`, `(?m)^- excluded +2 +2`, `(?m)^    no_address +1 +1`, `(?m)^= requested +4 +4`, `(?m)^    accepted +1 +1`, `(?m)^    waiting +0 +0`,
		`Of 6 people, 2 were excluded \(1 no_address, 1 unsubscribed\) and 4 messages were requested; of these 1 rejected, 1 accepted, 1 failed, 1 uncertain\. Balanced`,
		`1 uncertain: the provider was asked and never answered.*hikyaku sql "SELECT`,
	} {
		require.Regexp(t, want, a.out)
	}
	sheet := s.ok("balance", run.String(), "--json").one(t)
	for name, want := range map[string]any{"run_id": run.String(), "campaign_id": "hello-all", "state": "finished", "note": "", "audience": 6.0, "repeats": 0.0, "requested": 4.0,
		"rejected": 1.0, "accepted": 1.0, "failed": 1.0, "uncertain": 1.0, "expired": 0.0, "cancelled": 0.0, "parked": 0.0, "waiting": 0.0, "balanced": true,
		"excluded": map[string]any{"no_address": 1.0, "unsubscribed": 1.0}, "difference": map[string]any{}} {
		require.Contains(t, sheet, name)
		require.Equal(t, want, sheet[name], name)
	}
	require.Equal(t, 2.0, sheet["stored"].(map[string]any)["excluded"])
	require.Contains(t, s.ok("balance", run.String(), "--sql").err, "FROM run_balance")

	// The listing that is offered works.
	list := s.ok("sql", "SELECT user_id FROM messages WHERE run_id = toUUID('"+run.UUID()+"') AND class = 'uncertain'", "--json").lines(t)
	require.Equal(t, []map[string]any{{"user_id": "uncertain"}}, list)
}

func TestAnEndedRunThatDoesNotBalanceIsExitOne(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	ended := identity.Run(s.namespace, "hello-all", "one")
	s.books(ended)
	s.outcome(ended, "somebody", "excluded", 0, row{"reason": "run_cancelled"}) // which the resolver never counted
	// An imbalance is looked at again for as long as an answer of ClickHouse is waited for.
	// That is short here, and for an engine with other tests to serve it may be too short.
	soon := func(args ...string) (a answer) {
		kafkatest.Eventually(t, func() bool {
			a = s.hikyaku(append(args, "--timeout", "1s")...)
			return a.code != exitMissing
		}, "ClickHouse does not answer")
		return a
	}
	a := soon("balance", ended.String())
	require.Equal(t, exitBroken, a.code)
	require.Regexp(t, `(?m)^    run_cancelled +0 +1 +1`, a.out)
	require.Contains(t, a.out, "NOT balanced")
	require.Contains(t, a.err, "has ended and is not balanced")
	asJSON := soon("balance", ended.String(), "--json")
	require.Equal(t, exitBroken, asJSON.code)
	require.Equal(t, map[string]any{"excluded.run_cancelled": 1.0}, asJSON.one(t)["difference"])

	// One count is seen a moment before the other: that is no imbalance.
	late := identity.Run(s.namespace, "hello-all", "late")
	s.books(late)
	s.shard(late, 5)
	var out, errs locked
	done := make(chan int, 1)
	go func() {
		done <- run(t.Context(), []string{"balance", late.String(), "--timeout", kafkatest.Patience.String(), "--sql"}, envconfig.MapLookuper(s.env), strings.NewReader(""), &out, &errs)
	}()
	kafkatest.Eventually(t, func() bool { return strings.Count(errs.String(), "FROM run_balance") > 1 }, "it does not look again")
	s.shard(late, 6)
	require.Equal(t, exitDone, <-done, &out)

	going := identity.Run(s.namespace, "hello-all", "two")
	s.run(going, "sending", nil)
	require.Contains(t, s.ok("balance", going.String()).out, "Nobody was in it. The counts agree so far; the run is sending.")
	s.requested(going, "on-its-way")
	require.Contains(t, s.ok("balance", going.String()).out, "Not balanced yet: the run is sending.")
	require.Equal(t, exitUsage, s.hikyaku("balance", identity.Hash("none").String()).code)
}

func TestFunnelCountsMessagesOfRunsOnly(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	run := identity.Run(s.namespace, "hello-all", "one")
	s.books(run)
	began := time.Now()
	hit := func(n string, run identity.ID, user, kind, label string) {
		message := identity.Message(s.namespace, "hello-all", run.String(), user, "")
		s.insert("engagement_rows", row{"engagement_id": identity.Hash(n), "message_id": message, "run_id": run,
			"campaign_id": "hello-all", "user_id": user, "kind": kind, "occurred_at": began.Add(time.Minute)})
		s.insert("engagement_label_rows", row{"classifier_version": uint32(1), "engagement_id": identity.Hash(n), "message_id": message, "run_id": run,
			"kind": kind, "label": label, "occurred_at": began.Add(time.Minute)})
	}
	require.NoError(t, s.conn.Exec(t.Context(), "INSERT INTO classifier_rows (version, put_at) SELECT 1, '2026-01-01 00:00:00'"))
	hit("1", run, "got", "opened", "human")
	hit("2", run, "got", "opened", "human")
	hit("3", run, "got", "clicked", "human")
	hit("5", run, "got", "clicked", "machine")
	hit("4", identity.ID{}, "tester", "clicked", "human") // a test mail's

	a := s.ok("funnel", "hello-all", "--json").one(t)
	require.Equal(t, "hello-all", a["campaign_id"])
	steps := map[string]any{}
	var order []any
	for _, x := range a["steps"].([]any) {
		step := x.(map[string]any)
		steps[step["step"].(string)] = step["messages"]
		require.NotContains(t, step, "people")
		order = append(order, step["step"])
	}
	require.Equal(t, map[string]any{"requested": 4.0, "rendered": 1.0, "accepted": 1.0, "delivered": 0.0, "opened": 1.0, "clicked": 1.0, "converted": 0.0, "unsubscribed": 0.0,
		"bounced": 0.0, "complained": 0.0}, steps)
	require.Equal(t, []any{"requested", "rendered", "accepted", "delivered", "opened", "clicked", "converted", "unsubscribed", "bounced", "complained"}, order)
	require.Regexp(t, `(?m)^requested +█{40} +4  100.0 %$`, s.ok("funnel", "hello-all").out)
	require.Regexp(t, `(?m)^clicked +█{10} +1   25.0 %  and 1 by machines, 0 by who knows whom$`, s.ok("funnel", "hello-all").out)
	require.Equal(t, exitUsage, s.hikyaku("funnel", "nothing").code)
	require.Contains(t, s.hikyaku("funnel", "hello-al").err, `did you mean "hello-all"?`)
	require.Equal(t, "", s.ok("funnel", "hello-all", "--by", "variant", "--json").one(t)["variant"])

	// A funnel of one's own steps.
	for i, name := range []string{"add_to_cart", "purchase"} {
		s.insert("event_rows", row{"event_id": name, "user_id": "got", "name": name, "occurred_at": began.Add(time.Duration(2+i) * time.Minute)})
	}
	own := func(of string, args ...string) (counts []any) {
		t.Helper()
		for _, x := range s.ok(append([]string{"funnel", "--json", "--steps"}, args...)...).one(t)["steps"].([]any) {
			step := x.(map[string]any)
			require.Len(t, step, 2, "a step and what is counted")
			counts = append(counts, step[of])
		}
		return counts
	}
	require.Equal(t, []any{1.0, 1.0, 1.0, 1.0}, own("messages", "accepted,clicked, add_to_cart,purchase", "hello-all"))
	require.Equal(t, []any{1.0, 1.0, 1.0, 0.0}, own("messages", "accepted,clicked,purchase,add_to_cart", "--by", "variant"))
	require.Equal(t, []any{1.0, 1.0}, own("people", "add_to_cart,purchase"))
	require.Equal(t, []any{1.0, 0.0}, own("people", "add_to_cart,purchase", "--within", "59s"))
	require.Regexp(t, `(?m)^purchase +█{40} +1  100.0 %$`, s.ok("funnel", "--steps", "add_to_cart,purchase").out)
	for want, args := range map[string][]string{
		`there is no event "purchased", and it is no step of messages; did you mean "purchase"?`: {"--steps", "accepted,purchased"},
		`did you mean "clicked"?`:        {"--steps", "clickd,opened"},
		`did you mean "variant"?`:        {"hello-all", "--by", "varient"},
		"--within is a whole number":     {"--steps", "accepted,purchase", "--within", "soon"},
		"2 to 20 steps":                  {"--steps", "accepted"},
		"an empty step":                  {"--steps", "accepted,,clicked"},
		"begins with a step of messages": {"hello-all", "--steps", "add_to_cart,purchase"},
		"this funnel is of people":       {"--steps", "add_to_cart,purchase", "--by", "variant"},
		"--within belongs to --steps":    {"hello-all", "--within", "7d"},
		"which campaign?":                {},
	} {
		wrong := s.hikyaku(append([]string{"funnel"}, args...)...)
		require.Equal(t, exitUsage, wrong.code, args)
		require.Contains(t, wrong.err, want)
	}
}

func TestSQLAnswersAsTableAndJSONLines(t *testing.T) {
	t.Parallel()
	s := newStage(t)
	s.visitor("u1", "Ann\nExtra", 30)
	a := s.ok("sql", "SELECT user_id, attr_int, attributes, addresses['none'] AS none, now64(3, 'UTC') > updated_at AS older, NULL AS nothing, toUUID('00000000-0000-0000-0000-000000000001') AS id FROM profiles")
	require.Contains(t, a.out, "user_id  attr_int    attributes")
	require.Contains(t, a.out, `{"age":30}`)
	require.Contains(t, a.out, `{"age":30,"name":"Ann\nExtra"}`)
	require.Contains(t, a.out, "00000000-0000-0000-0000-000000000001")
	lines := s.ok("sql", "--json", "SELECT number, toString(number) AS text, [number, 7] AS list, toDateTime64('2026-01-02 03:04:05.678', 3, 'UTC') AS at, attributes FROM profiles, numbers(2) AS n ORDER BY number").lines(t)
	require.Len(t, lines, 2)
	require.Equal(t, map[string]any{"number": 1.0, "text": "1", "list": []any{1.0, 7.0}, "at": "2026-01-02T03:04:05.678Z", "attributes": map[string]any{"name": "Ann\nExtra", "age": 30.0}}, lines[1])
	for _, bad := range []string{"SELEKT 1", "SELECT * FROM nowhere", "SELECT toUInt8('x')"} {
		a := s.hikyaku("sql", bad)
		require.NotEqual(t, exitDone, a.code, bad)
		require.NotEmpty(t, a.err)
	}
	require.Equal(t, exitUsage, s.hikyaku("sql", "SELEKT 1").code)
	require.Len(t, s.ok("sql", "--json", "SELECT number FROM numbers(2500)").lines(t), 2500)
}
