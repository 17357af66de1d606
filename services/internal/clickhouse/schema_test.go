package clickhouse_test

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"pgregory.net/rapid"

	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
)

// The migrations are tested here, on the real engine, because their module
// imports nothing of ours.

// row is one row of a table, by column; what is missing gets the type's zero.
type row map[string]any

type tableRow struct {
	table string
	row   row
}

// day0 is near today: rows that retention has given up are not even inserted.
var day0 = time.Now().UTC().Truncate(24 * time.Hour)

func id(parts ...any) uuid.UUID {
	fields := make([]string, len(parts))
	for i, p := range parts {
		fields[i] = fmt.Sprint(p)
	}
	return uuid.UUID(identity.Hash(fields...))
}

// insert sends the rows in the given order, those of one table that stand side
// by side as one batch.
func insert(t testing.TB, c *clickhouse.Conn, rows []tableRow) {
	t.Helper()
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && rows[n].table == rows[0].table && slices.Equal(columnsOf(rows[n].row), columnsOf(rows[0].row)) {
			n++
		}
		columns := columnsOf(rows[0].row)
		err := c.Insert(t.Context(), rows[0].table, columns, n, func(b driver.Batch) error {
			for _, r := range rows[:n] {
				values := make([]any, len(columns))
				for i, name := range columns {
					values[i] = r.row[name]
				}
				if err := b.Append(values...); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		rows = rows[n:]
	}
}

func columnsOf(r row) []string { return slices.Sorted(maps.Keys(r)) }

// one scans a single value.
func one[T any](t testing.TB, c *clickhouse.Conn, query string, args ...any) T {
	t.Helper()
	var v T
	if err := c.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

// views are those that take no parameters: the others have no columns.
func views(t testing.TB, c *clickhouse.Conn) (names []string) {
	t.Helper()
	return one[[]string](t, c, "SELECT groupArray(name) FROM (SELECT name FROM system.tables WHERE database = {d:String} AND engine = 'View' AND name IN (SELECT table FROM system.columns WHERE database = {d:String}) ORDER BY name)",
		ch.Named("d", c.Database()))
}

// dump is everything a view says, as text, in an order that does not depend on
// how it is stored.
func dump(t testing.TB, c *clickhouse.Conn, view string) []string {
	t.Helper()
	// A map's pairs come in the order they were sent in, which means nothing.
	columns := one[[]string](t, c, "SELECT groupArray(if(startsWith(type, 'Map('), 'mapSort(' || name || ')', name)) FROM (SELECT name, type FROM system.columns WHERE database = {d:String} AND table = {t:String} ORDER BY position)",
		ch.Named("d", c.Database()), ch.Named("t", view))
	texts := make([]string, len(columns))
	for i, name := range columns {
		texts[i] = "'" + strings.NewReplacer("mapSort(", "", ")", "").Replace(name) + "=' || ifNull(toString(" + name + "), 'NULL')"
	}
	return one[[]string](t, c, "SELECT arraySort(groupArray(concatWithSeparator(' ', "+strings.Join(texts, ", ")+"))) FROM "+view)
}

func TestEveryTableViewAndColumnIsExplained(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	database := ch.Named("d", c.Database())
	if n := one[uint64](t, c, "SELECT count() FROM system.columns WHERE database = {d:String}", database); n < 200 {
		t.Fatalf("only %d columns: the question is wrong", n)
	}
	for _, where := range one[[]string](t, c, "SELECT groupArray(table || '.' || name) FROM system.columns WHERE database = {d:String} AND comment = '' AND NOT match(table, '_rows_from_')", database) {
		t.Errorf("column %s has no comment", where)
	}
	for _, where := range one[[]string](t, c, "SELECT groupArray(name) FROM system.tables WHERE database = {d:String} AND comment = '' AND engine != 'MaterializedView'", database) {
		t.Errorf("%s has no comment", where)
	}
	// The dictionary reads the migrations' text; this is what they made.
	relations, err := migrations.Relations()
	if err != nil {
		t.Fatal(err)
	}
	var written []string
	for _, r := range relations {
		written = append(written, fmt.Sprintf("%s %s", r.Name, r.Comment))
		for i, column := range r.Columns {
			written = append(written, fmt.Sprintf("%s.%d %s %s", r.Name, i+1, column.Name, column.Comment))
		}
	}
	slices.Sort(written)
	made := one[[]string](t, c, `SELECT arraySort(arrayConcat(
		(SELECT groupArray(concat(name, ' ', comment)) FROM system.tables WHERE database = {d:String} AND engine != 'MaterializedView' AND name != 'schema_migrations'),
		(SELECT groupArray(concat(table, '.', toString(position), ' ', name, ' ', comment)) FROM system.columns WHERE database = {d:String} AND table != 'schema_migrations'
			AND table NOT IN (SELECT name FROM system.tables WHERE database = {d:String} AND engine = 'MaterializedView'))))`, database)
	if !slices.Equal(written, made) {
		t.Errorf("docs/data-dictionary.md: %s", firstDifference(made, written))
	}
}

// What people read numbers from says up to when it has everything.
func TestEveryViewOfNumbersSaysUpToWhichMomentItIsComplete(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	for _, view := range []string{"funnel", "run_balance", "campaign_daily", "links", "conversions", "time_to_open", "cohorts", "account_activity"} {
		if at := one[time.Time](t, c, "SELECT any(complete_until) FROM "+view); !at.Equal(time.Unix(0, 0)) {
			t.Errorf("%s, of nothing: complete until %s", view, at)
		}
	}
}

// The embedded engine has no users, but it reads what makes them; and of a limit that may be
// lowered to 0, which is none, nothing is left.
func TestTheAnalystsUserIsWrittenAsTheEngineReadsItAndItsLimitsHold(t *testing.T) {
	t.Parallel()
	c, err := clickhouse.Open(clickhousetest.Config(t), "default")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	text, err := os.ReadFile("../../../deploy/clickhouse/analyst.sql")
	if err != nil {
		t.Fatal(err)
	}
	read := 0
	for statement := range strings.SplitSeq(regexp.MustCompile(`--.*`).ReplaceAllString(string(text), ""), ";") {
		if strings.TrimSpace(statement) == "" {
			continue
		}
		read++
		as := one[string](t, c, "SELECT formatQuery({s:String})", ch.Named("s", statement))
		for _, limit := range regexp.MustCompile(`max_\w+ = \d+[^,]*`).FindAllString(as, -1) {
			if !strings.Contains(limit, " MIN ") && !strings.Contains(limit, " CONST") {
				t.Errorf("%s: 0 would lift it", limit)
			}
		}
	}
	if read < 8 {
		t.Errorf("%d statements", read)
	}
}

func TestEveryTableHasAViewThatDropsCopies(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	for _, table := range one[[]string](t, c, "SELECT groupArray(name) FROM system.tables WHERE database = {d:String} AND name LIKE '%\\_rows'", ch.Named("d", c.Database())) {
		if n := one[uint64](t, c, "SELECT count() FROM system.tables WHERE database = {d:String} AND engine = 'View' AND match(as_select, {t:String} || '( AS [a-z]+)? FINAL')",
			ch.Named("d", c.Database()), ch.Named("t", c.Database()+"."+table)); n < 1 {
			t.Errorf("no view reads %s FINAL", table)
		}
	}
}

// history is a random tale of one run: what was requested, what came of it, what
// people did, and copies of records that differ where copies can.
func history(rng *rand.Rand, run uuid.UUID, people int) (rows []tableRow) {
	outcomes := []string{"rendered", "rejected", "accepted", "deferred", "failed", "uncertain", "expired", "cancelled", "parked"}
	reasons := []string{"", "5.1.1", "timeout", "template_error"}
	offset := int64(0)
	// A record's place in Kafka and its time are its own; a copy of it made by a
	// repeated request is another record.
	record := func(r row) row {
		offset++
		r["kafka_topic"], r["kafka_partition"], r["kafka_offset"] = "t", int32(rng.IntN(4)), offset
		r["ingested_at"] = day0.Add(time.Duration(rng.IntN(200*24)) * time.Hour)
		return r
	}
	at := func() time.Time { return day0.Add(time.Duration(rng.IntN(1e9)) * time.Microsecond) }
	add := func(table string, r row) { rows = append(rows, tableRow{table, record(r)}) }
	for p := range people {
		user, message := fmt.Sprintf("u%d", p), id(run, p)
		about := func(r row) row {
			r["message_id"], r["run_id"], r["campaign_id"], r["user_id"], r["channel"] = message, run, "autumn", user, "email"
			return r
		}
		for range 1 + rng.IntN(2) {
			add("event_rows", row{"event_id": fmt.Sprint(run, rng.IntN(3)), "user_id": user, "name": "purchase", "occurred_at": at(),
				"prop_int": map[string]int64{"price": rng.Int64()}, "prop_string": map[string]string{"a.b": "x"}, "prop_json": map[string]string{"a": `{"b":1}`}})
		}
		for revision := range 1 + rng.IntN(3) {
			add("profile_rows", row{"user_id": user, "revision": int64(revision), "attr_string": map[string]string{"plan": fmt.Sprint("gold", revision)},
				"addresses": map[string]string{"email": "a@example.test"}})
		}
		add("segment_member_rows", row{"segment_id": "s", "import_id": run, "user_id": user, "attributes": fmt.Sprintf(`{"line":%d}`, rng.IntN(9)), "line": int64(rng.IntN(9))})
		if rng.IntN(5) == 0 {
			add("outcome_rows", about(row{"outcome_id": id(message, "excluded"), "outcome": "excluded", "reason": "no_address", "occurred_at": at()}))
			continue
		}
		add("message_input_rows", about(row{"requested_at": at(), "attributes": `{"plan":"gold"}`, "segments": `{}`, "record": "bytes"}))
		for range rng.IntN(5) {
			outcome, attempt := outcomes[rng.IntN(len(outcomes))], int32(rng.IntN(3))
			r := about(row{"outcome_id": id(message, outcome, attempt), "outcome": outcome, "attempt": attempt, "reason": reasons[rng.IntN(len(reasons))], "occurred_at": at()})
			if outcome == "parked" && rng.IntN(2) == 0 {
				r["campaign_id"], r["channel"] = "", "" // known from headers only
			}
			add("outcome_rows", r)
		}
		for range rng.IntN(3) {
			kind := []string{"opened", "clicked", "unsubscribed"}[rng.IntN(3)]
			hit, when := id(message, offset), at()
			add("engagement_rows", about(row{"engagement_id": hit, "kind": kind, "occurred_at": when}))
			label := []string{"human", "machine", "unknown"}[rng.IntN(3)]
			rows = append(rows, tableRow{"engagement_label_rows", row{"classifier_version": uint32(1), "run_id": run, "message_id": message, "engagement_id": hit,
				"kind": kind, "label": label, "occurred_at": when, "ingested_at": rows[len(rows)-1].row["ingested_at"], "kafka_offset": offset}})
		}
	}
	rows = append(rows, tableRow{"classifier_rows", row{"version": uint32(1), "put_at": day0, "rules_sha256": "ab"}})
	for p := range 2 {
		rows = append(rows, tableRow{"sink_progress_rows", row{"topic": "outcomes", "partition": int32(p), "passed_offset": rng.Int64N(9), "end_offset": rng.Int64N(20),
			"complete_until": day0.Add(time.Duration(rng.IntN(1e6)) * time.Millisecond), "looked_at": day0.Add(time.Duration(rng.IntN(1e6)) * time.Millisecond)}})
	}
	for range 3 {
		add("run_rows", row{"run_id": run, "campaign_id": "autumn", "state": "sending", "goal_event": "purchase", "goal_within_ms": int64(1e6), "goal_revenue": "price", "note": fmt.Sprint(rng.IntN(100)), "segments": map[string][]uuid.UUID{"s": {run}}})
		add("import_rows", row{"import_id": run, "state": "reading", "rows": rng.Int64N(100)})
		add("run_counter_rows", row{"run_id": run, "partition": int32(rng.IntN(2)), "requested": rng.Int64N(9), "excluded": map[string]int64{"no_address": rng.Int64N(3), "unsubscribed": rng.Int64N(3)}})
		add("run_shard_rows", row{"run_id": run, "shard": int32(rng.IntN(2)), "shard_count": int32(2), "candidates": rng.Int64N(9)})
	}
	return rows
}

// I1 lets the sink insert again whatever it is not sure of; this is why it may.
func TestRepetitionOrderAndCutOfInsertsChangeNoView(t *testing.T) {
	t.Parallel()
	once, again := clickhousetest.Open(t), clickhousetest.Open(t)
	// What is kept of funnels, and of which runs, is a matter of time; what funnel says is not.
	all := slices.DeleteFunc(views(t, once), func(view string) bool { return view == "funnel_kept" || view == "funnel_stale" })
	if len(all) < 13 {
		t.Fatalf("only the views %v", all)
	}
	for seed := range uint64(6) {
		rng := rand.New(rand.NewPCG(seed, 1))
		rows := history(rng, id("run", t.Name(), seed), 1+rng.IntN(30))
		inOrder := slices.Clone(rows)
		slices.SortStableFunc(inOrder, func(a, b tableRow) int { return cmp.Compare(a.table, b.table) })
		insert(t, once, inOrder)

		// Twice, shuffled, so that batches are cut anywhere, and a part a third time.
		// Many tiny batches cost time and some prove it: the tail goes by table.
		mixed := append(slices.Clone(rows), rows...)
		rng.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
		tail := mixed[min(30, len(mixed)):]
		slices.SortStableFunc(tail, func(a, b tableRow) int { return cmp.Compare(a.table, b.table) })
		insert(t, again, append(mixed, inOrder[:rng.IntN(len(inOrder))]...))
	}
	// Merges must not change anything either.
	before := map[string][]string{}
	for _, view := range all {
		a, b := dump(t, once, view), dump(t, again, view)
		if len(a) == 0 {
			t.Fatalf("%s is empty: nothing was compared", view)
		}
		if !slices.Equal(a, b) {
			t.Fatalf("%s differs: %s", view, firstDifference(a, b))
		}
		before[view] = b
	}
	for _, table := range one[[]string](t, again, "SELECT groupArray(name) FROM system.tables WHERE database = {d:String} AND name LIKE '%\\_rows'", ch.Named("d", again.Database())) {
		if err := again.Exec(t.Context(), "OPTIMIZE TABLE "+table+" FINAL"); err != nil {
			t.Fatal(err)
		}
	}
	for _, view := range all {
		if after := dump(t, again, view); !slices.Equal(before[view], after) {
			t.Errorf("a merge changed %s: %s", view, firstDifference(before[view], after))
		}
	}
	t.Run("and whatever is set where they are read", func(t *testing.T) { sameWhateverIsSet(t, once) })
}

func firstDifference(a, b []string) string {
	for i := range max(len(a), len(b)) {
		switch {
		case i >= len(a):
			return fmt.Sprintf("%d rows, then also\n%s", len(a), b[i])
		case i >= len(b):
			return fmt.Sprintf("%d rows, then no longer\n%s", len(b), a[i])
		case a[i] != b[i]:
			return fmt.Sprintf("row %d:\n%s\n%s", i, a[i], b[i])
		}
	}
	return "nothing"
}

// Tools ask with settings of their own: dbt lets joins make NULLs, and whoever works in
// Tokyo may have set that. A view says the same to everybody.
func sameWhateverIsSet(t *testing.T, c *clickhouse.Conn) {
	// Somebody of no run, no profile and no label, so that every join misses something.
	insert(t, c, []tableRow{{"engagement_rows", row{"engagement_id": id("e"), "message_id": id("m"), "user_id": "nobody", "kind": "clicked", "ingested_at": day0}},
		{"event_rows", row{"event_id": "e", "user_id": "nobody", "name": "visit", "occurred_at": day0, "ingested_at": day0}},
		{"run_rows", row{"run_id": id("run", "nothing came of"), "campaign_id": "winter", "ingested_at": day0}}})
	var each []string
	for _, view := range append(views(t, c), "message_funnel(steps = ['accepted', 'clicked', 'purchase'], within_ms = 3600000, campaign = '')", "event_funnel(steps = ['visit', 'purchase'], within_ms = 3600000)") {
		each = append(each, "SELECT concatWithSeparator(' ', '"+strings.ReplaceAll(view, "'", "")+"', count(), groupBitXor(sipHash64(formatRow('JSONEachRow', *)))) AS line FROM "+view)
	}
	answers := func(settings string) []string {
		return one[[]string](t, c, "SELECT arraySort(groupArray(line)) FROM ("+strings.Join(each, " UNION ALL ")+") SETTINGS "+settings)
	}
	want := answers("join_use_nulls = 0")
	if got := answers("join_use_nulls = 1, session_timezone = 'Asia/Tokyo', transform_null_in = 1"); len(want) < 25 || !slices.Equal(got, want) {
		t.Error(firstDifference(want, got))
	}
}

type outcome struct {
	name    string
	attempt int32
	reason  string
}

// classOf is the rule of docs/architecture.md, "The class of a message", read
// from the page and from nowhere else.
func classOf(outcomes []outcome) (class, reason string) {
	rank := map[string]int{"uncertain": 0, "deferred": 1, "expired": 2, "cancelled": 2, "failed": 3, "rejected": 3, "parked": 4, "replayed": 5}
	var last *outcome
	for _, o := range outcomes {
		switch o.name {
		case "excluded":
			return "excluded", o.reason
		case "accepted", "delivered", "bounced", "complained":
			return "accepted", ""
		}
		r, ends := rank[o.name]
		if !ends {
			continue
		}
		if last == nil || cmp.Or(cmp.Compare(o.attempt, last.attempt), cmp.Compare(r, rank[last.name]), cmp.Compare(o.name, last.name), cmp.Compare(o.reason, last.reason)) > 0 {
			last = &o
		}
	}
	switch {
	case last == nil:
		return "waiting", ""
	case last.name == "deferred", last.name == "replayed":
		return "waiting", last.reason
	}
	return last.name, last.reason
}

func TestTheClassOfAMessageIsTheRuleWhateverOrderItsOutcomesComeIn(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	anOutcome := rapid.Custom(func(r *rapid.T) outcome {
		return outcome{
			name: rapid.SampledFrom([]string{"rendered", "rejected", "accepted", "deferred", "deferred", "failed", "uncertain", "uncertain", "expired", "cancelled", "parked", "replayed", "delivered", "bounced", "complained", "delayed"}).Draw(r, "outcome"),
			// Attempts of two digits, and what comes before the first: text must compare as numbers do.
			attempt: rapid.SampledFrom([]int32{-1, 0, 1, 2, 9, 10, 11}).Draw(r, "attempt"),
			reason:  rapid.SampledFrom([]string{"", "a", "b"}).Draw(r, "reason"),
		}
	})
	seen := map[string]int{}
	round := 0
	rapid.Check(t, func(r *rapid.T) {
		round++
		run := id("run", t.Name(), round)
		sets := rapid.SliceOfN(rapid.SliceOfN(anOutcome, 0, 6), 1, 50).Draw(r, "messages")
		var rows []tableRow
		for m, set := range sets {
			about := func(more row) tableRow {
				more["message_id"], more["run_id"], more["user_id"], more["ingested_at"] = id(run, m), run, "u", day0
				return tableRow{"outcome_rows", more}
			}
			for i, o := range set {
				rows = append(rows, about(row{"outcome_id": id(run, m, i), "outcome": o.name, "attempt": o.attempt, "reason": o.reason, "occurred_at": day0.Add(time.Duration(i) * time.Second)}))
			}
			request := about(row{"requested_at": day0, "attributes": "{}", "segments": "{}"})
			request.table = "message_input_rows"
			rows = append(rows, request)
		}
		rows = rapid.Permutation(rows).Draw(r, "order")
		slices.SortStableFunc(rows, func(a, b tableRow) int { return cmp.Compare(a.table, b.table) })
		insert(t, c, rows)
		answer, err := c.Query(t.Context(), "SELECT message_id, class, reason FROM messages WHERE run_id = {run:UUID}", ch.Named("run", run.String()))
		if err != nil {
			r.Fatal(err)
		}
		got := map[uuid.UUID][2]string{}
		for answer.Next() {
			var m uuid.UUID
			var class, reason string
			if err := answer.Scan(&m, &class, &reason); err != nil {
				r.Fatal(err)
			}
			got[m] = [2]string{class, reason}
		}
		if err := answer.Err(); err != nil {
			r.Fatal(err)
		}
		for m, set := range sets {
			class, reason := classOf(set)
			seen[class]++
			if want := [2]string{class, reason}; got[id(run, m)] != want {
				r.Fatalf("outcomes %v: ClickHouse says %q, the rule %q", set, got[id(run, m)], want)
			}
		}
	})
	for _, class := range []string{"waiting", "rejected", "accepted", "failed", "uncertain", "expired", "cancelled", "parked"} {
		if seen[class] == 0 {
			t.Errorf("no message was %s: it was not tried", class)
		}
	}
}

func TestLateAcceptanceOverrulesWhateverWasBelieved(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	run := id("run", t.Name())
	step := func(name string, attempt int32) {
		t.Helper()
		insert(t, c, []tableRow{{"outcome_rows", row{"outcome_id": id(name, attempt), "message_id": id("m"), "run_id": run, "user_id": "u", "outcome": name, "attempt": attempt, "ingested_at": day0, "occurred_at": day0}}})
	}
	is := func(want string) {
		t.Helper()
		if got := one[string](t, c, "SELECT class FROM messages WHERE run_id = {run:UUID}", ch.Named("run", run.String())); got != want {
			t.Errorf("class %s, want %s", got, want)
		}
	}
	step("rendered", 0)
	is("waiting")
	step("uncertain", 1)
	is("uncertain")
	step("deferred", 1)
	is("waiting")
	step("failed", 2)
	is("failed")
	step("uncertain", 2)
	is("failed") // an ending is not overruled by absence
	step("accepted", 1)
	is("accepted")
	step("parked", 3)
	is("accepted")
}

// aRun inserts a run of 10 people that balances: 2 excluded, 1 repeat, of the
// rest 4 accepted, 1 rejected, 1 failed, 1 uncertain, 1 waits if asked.
func aRun(run uuid.UUID, state string) []tableRow {
	rows := []tableRow{
		{"run_rows", row{"run_id": run, "campaign_id": "autumn", "channel": "email", "state": state, "ingested_at": day0}},
		{"run_shard_rows", row{"run_id": run, "shard": int32(0), "shard_count": int32(2), "candidates": int64(6), "ingested_at": day0}},
		// A shard that was too large: its own count does not count, its children's do.
		{"run_shard_rows", row{"run_id": run, "shard": int32(1), "shard_count": int32(2), "candidates": int64(5), "children": int32(2), "ingested_at": day0}},
		{"run_shard_rows", row{"run_id": run, "shard": int32(1), "shard_count": int32(4), "candidates": int64(3), "ingested_at": day0}},
		{"run_shard_rows", row{"run_id": run, "shard": int32(3), "shard_count": int32(4), "candidates": int64(1), "ingested_at": day0}},
		{"run_counter_rows", row{"run_id": run, "partition": int32(0), "excluded": map[string]int64{"no_address": 1}, "requested": int64(4), "accepted": int64(3), "rejected": int64(1), "ingested_at": day0}},
		{"run_counter_rows", row{"run_id": run, "partition": int32(1), "repeats": int64(1), "excluded": map[string]int64{"unsubscribed": 1}, "requested": int64(3), "accepted": int64(1), "failed": int64(1), "uncertain": int64(1), "ingested_at": day0}},
	}
	outcomes := []string{"accepted", "accepted", "accepted", "accepted", "rejected", "failed", "uncertain", "excluded", "excluded"}
	reasons := []string{"", "", "", "", "template_error", "5.1.1", "", "no_address", "unsubscribed"}
	for i, name := range outcomes {
		about := row{"message_id": id(run, i), "run_id": run, "campaign_id": "autumn", "user_id": fmt.Sprint("u", i), "channel": "email", "ingested_at": day0}
		if name != "excluded" {
			request := maps.Clone(about)
			request["requested_at"] = day0
			rows = append(rows, tableRow{"message_input_rows", request})
		}
		if name != "excluded" && name != "rejected" {
			rendered := maps.Clone(about)
			rendered["outcome_id"], rendered["outcome"], rendered["occurred_at"] = id(run, i, "rendered"), "rendered", day0
			rows = append(rows, tableRow{"outcome_rows", rendered})
		}
		about["outcome_id"], about["outcome"], about["reason"], about["occurred_at"] = id(run, i, name), name, reasons[i], day0
		rows = append(rows, tableRow{"outcome_rows", about})
	}
	return rows
}

type balance struct {
	Audience   int64            `ch:"audience"`
	Excluded   map[string]int64 `ch:"excluded_reasons"`
	Accepted   int64            `ch:"accepted"`
	Stored     int64            `ch:"accepted_stored"`
	Difference map[string]int64 `ch:"difference"`
	Balanced   bool             `ch:"balanced"`
}

func balanceOf(t testing.TB, c *clickhouse.Conn, run uuid.UUID) balance {
	t.Helper()
	var b []balance
	if err := c.Select(t.Context(), &b, "SELECT audience, excluded_reasons, accepted, accepted_stored, difference, balanced FROM run_balance WHERE run_id = {run:UUID}", ch.Named("run", run.String())); err != nil {
		t.Fatal(err)
	}
	if len(b) != 1 {
		t.Fatalf("%d rows for one run", len(b))
	}
	return b[0]
}

func TestRunBalanceIsTrueOnlyWhenBothCountingsAgree(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	good := id("run", "good")
	insert(t, c, aRun(good, "balancing"))
	insert(t, c, aRun(good, "balancing"))
	insert(t, c, []tableRow{{"sink_progress_rows", row{"topic": "t", "complete_until": day0}}})
	b := balanceOf(t, c, good)
	if until := one[time.Time](t, c, "SELECT any(complete_until) FROM run_balance"); !until.Equal(day0) {
		t.Errorf("complete until %s", until)
	}
	if !b.Balanced || b.Audience != 9 || b.Accepted != 4 || b.Stored != 4 || len(b.Difference) != 0 || !maps.Equal(b.Excluded, map[string]int64{"no_address": 1, "unsubscribed": 1}) {
		t.Errorf("a run that adds up: %+v", b)
	}

	without := func(rows []tableRow, drop func(tableRow) bool) []tableRow { return slices.DeleteFunc(rows, drop) }
	change := func(rows []tableRow, table, column string, value any) []tableRow {
		for _, r := range rows {
			if r.table == table {
				r.row[column] = value
				break
			}
		}
		return rows
	}
	is := func(table, column string, value any) func(tableRow) bool {
		done := false
		return func(r tableRow) bool {
			if done || r.table != table || r.row[column] != value {
				return false
			}
			done = true
			return true
		}
	}
	for _, bad := range []struct {
		name string
		rows func(run uuid.UUID) []tableRow
		want map[string]int64
	}{
		{"an outcome is missing", func(run uuid.UUID) []tableRow {
			return without(aRun(run, "balancing"), is("outcome_rows", "outcome", "accepted"))
		}, map[string]int64{"accepted": -1, "waiting": 1}},
		{"an exclusion is missing", func(run uuid.UUID) []tableRow {
			return without(aRun(run, "balancing"), is("outcome_rows", "reason", "no_address"))
		}, map[string]int64{"excluded.no_address": -1}},
		{"an exclusion has another reason", func(run uuid.UUID) []tableRow {
			rows := aRun(run, "balancing")
			rows[len(rows)-1].row["reason"] = "no_address"
			return rows
		}, map[string]int64{"excluded.no_address": 1, "excluded.unsubscribed": -1}},
		{"a request is missing", func(run uuid.UUID) []tableRow {
			return without(aRun(run, "balancing"), is("message_input_rows", "user_id", "u0"))
		}, map[string]int64{"requested": -1}},
		{"the resolver counted one more", func(run uuid.UUID) []tableRow {
			return change(aRun(run, "balancing"), "run_counter_rows", "accepted", int64(4))
		}, map[string]int64{"accepted": -1}},
		{"a candidate was lost", func(run uuid.UUID) []tableRow {
			return change(aRun(run, "balancing"), "run_shard_rows", "candidates", int64(7))
		}, map[string]int64{}},
		{"people are still being resolved", func(run uuid.UUID) []tableRow { return aRun(run, "resolving") }, map[string]int64{}},
		{"one waits on both sides", func(run uuid.UUID) []tableRow {
			rows := without(aRun(run, "balancing"), is("outcome_rows", "outcome", "accepted"))
			for _, r := range rows {
				if r.table == "run_counter_rows" && r.row["partition"] == int32(0) {
					r.row["accepted"], r.row["waiting"] = int64(2), int64(1)
				}
			}
			return padCounters(rows)
		}, map[string]int64{}},
	} {
		run := id("run", bad.name)
		insert(t, c, bad.rows(run))
		if b := balanceOf(t, c, run); b.Balanced || !maps.Equal(b.Difference, bad.want) {
			t.Errorf("%s: balanced %v, difference %v, want %v", bad.name, b.Balanced, b.Difference, bad.want)
		}
	}
	if b := balanceOf(t, c, good); !b.Balanced {
		t.Errorf("other runs disturb it: %+v", b)
	}
}

// padCounters gives every counter row the same columns, as one batch needs.
func padCounters(rows []tableRow) []tableRow {
	for _, r := range rows {
		if _, ok := r.row["waiting"]; !ok && r.table == "run_counter_rows" {
			r.row["waiting"] = int64(0)
		}
	}
	return rows
}

func TestTheFunnelCountsMessages(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	run := id("run", t.Name())
	rows := aRun(run, "finished")
	hit := func(message int, kind, label string, n int) {
		for i := range n {
			hit := id(run, message, kind, label, i)
			rows = append(rows, tableRow{"engagement_rows", row{"engagement_id": hit, "message_id": id(run, message), "run_id": run, "campaign_id": "autumn",
				"user_id": fmt.Sprint("u", message), "channel": "email", "kind": kind, "occurred_at": day0, "ingested_at": day0}})
			rows = append(rows, tableRow{"engagement_label_rows", row{"classifier_version": uint32(1), "engagement_id": hit, "message_id": id(run, message), "run_id": run,
				"kind": kind, "label": label, "occurred_at": day0, "ingested_at": day0}})
		}
	}
	hit(0, "opened", "human", 5)
	hit(1, "opened", "human", 1)
	hit(1, "opened", "machine", 1)
	hit(2, "clicked", "human", 2) // images were off
	hit(0, "clicked", "human", 1)
	hit(3, "clicked", "machine", 3)
	hit(1, "unsubscribed", "human", 2)
	// Somebody tries a test mail: it belongs to no run.
	tried := row{"engagement_id": id("tried"), "message_id": id("test mail"), "run_id": uuid.UUID{}, "campaign_id": "autumn", "user_id": "u0", "channel": "email", "kind": "clicked",
		"occurred_at": day0.Add(-24 * time.Hour), "ingested_at": day0}
	rows = append(rows, tableRow{"engagement_rows", tried}, tableRow{"engagement_label_rows", row{"classifier_version": uint32(1), "engagement_id": tried["engagement_id"],
		"message_id": tried["message_id"], "run_id": tried["run_id"], "kind": "clicked", "label": "human", "occurred_at": tried["occurred_at"], "ingested_at": day0}})
	rows = append(rows, tableRow{"classifier_rows", row{"version": uint32(1), "put_at": day0}})
	insert(t, c, append(rows, rows...))
	for question, want := range map[string]uint64{
		"SELECT sum(clicked) FROM funnel":                              2,
		"SELECT count() FROM messages":                                 9,
		"SELECT sum(clicked) FROM campaign_daily":                      2,
		"SELECT sum(clicks) FROM links":                                3,
		"SELECT countIf(name = 'clicked') FROM activity":               3,
		"SELECT sum(clicks) FROM account_activity":                     3,
		"SELECT count() FROM engagements WHERE campaign_id = 'autumn'": 16,
	} {
		if got := one[uint64](t, c, question); got != want {
			t.Errorf("%s: %d, not %d: a test mail is counted, or something else is not", question, got, want)
		}
	}
	got := one[string](t, c, "SELECT toString((campaign_id, variant, channel, requested, rendered, accepted, opened, clicked, unsubscribed, opened_machine, clicked_machine)) FROM funnel WHERE run_id = {run:UUID}", ch.Named("run", run.String()))
	if want := "('autumn','','email',7,6,4,2,2,1,1,1)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestABatchOverManyMonthsDoesNotStopAnInsert(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	var rows []tableRow
	for month := range 150 {
		rows = append(rows, tableRow{"event_rows", row{"event_id": fmt.Sprint(month), "user_id": "u", "name": "n", "occurred_at": day0.AddDate(0, -month, 0), "ingested_at": day0.AddDate(0, month, 0)}})
	}
	insert(t, c, rows)
	if n := one[uint64](t, c, "SELECT count() FROM events"); n != 150 {
		t.Errorf("%d of 150", n)
	}
}

func TestCopiesInDifferentMonthsAreOneRow(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	copies := func(month int, offset int64, name string) tableRow {
		return tableRow{"event_rows", row{"event_id": "e", "user_id": "u", "name": name, "ingested_at": day0.AddDate(0, month, 0), "kafka_offset": offset}}
	}
	insert(t, c, []tableRow{copies(1, 7, "second")})
	insert(t, c, []tableRow{copies(0, 5, "first")})
	insert(t, c, []tableRow{copies(2, 9, "third")})
	if got := one[[]string](t, c, "SELECT groupArray(name) FROM events"); !slices.Equal(got, []string{"first"}) {
		t.Errorf("got %v: the first of the copies counts, once", got)
	}
}

// A name is whatever a customer wrote; a value has the type it came with.
func TestAttributesOfAnyNameAreReadExactlyByABoundName(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	names := []string{"plan", "a.b", "a", "a%2Eb", "", " ", "'; DROP TABLE x; --", `q"uote`, "back`tick", `back\slash`, "tab\there", "line\nbreak", "飛脚", "x.:`String`", "{p:String}", "null"}
	values := map[string]string{}
	for i, n := range names {
		values[n] = fmt.Sprint("value ", i)
	}
	const year9999 = 253402300799000000
	insert(t, c, []tableRow{{"profile_rows", row{"user_id": "u", "revision": int64(1), "attr_string": values,
		"attr_int": map[string]int64{"big": 9007199254740993}, "attr_float": map[string]float64{"half": 0.5}, "attr_bool": map[string]bool{"yes": true},
		"attr_time": map[string]int64{"never": year9999}, "attr_json": map[string]string{"list": `[1,2]`, "broken": `{`}}}})
	for n, want := range values {
		if got := one[string](t, c, "SELECT attr_string[{n:String}] FROM profiles WHERE mapContains(attr_string, {n:String})", ch.Named("n", n)); got != want {
			t.Errorf("%q: got %q, want %q", n, got, want)
		}
	}
	if n := one[uint64](t, c, "SELECT count() FROM profiles WHERE attr_int[{n:String}] = 9007199254740992 OR attr_time[{n:String}] > {t:Int64} OR attr_int[{n:String}] >= 9007199254740993.5",
		ch.Named("n", "big"), ch.Named("t", int64(0))); n != 0 {
		t.Error("numbers that differ by one are the same")
	}
	if n := one[uint64](t, c, "SELECT count() FROM profiles WHERE attr_time['never'] = {t:Int64}", ch.Named("t", int64(year9999))); n != 1 {
		t.Error("an instant of the year 9999 was changed")
	}
	// For people: one JSON, that no name can break.
	var got map[string]any
	text := one[string](t, c, "SELECT toJSONString(attributes) FROM profiles")
	if err := json.Unmarshal([]byte(text), &got); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	if got["plan"] != "value 0" || got["half"] != 0.5 || got["yes"] != true || got["飛脚"] != "value 12" || fmt.Sprint(got["list"]) == "" {
		t.Errorf("got %s", text)
	}
	if s := one[string](t, c, "SELECT toString(attributes.plan) FROM profiles"); s != "value 0" {
		t.Errorf("attributes.plan is %q", s)
	}
}

func TestQueriesAboutOneRunOrPersonReadOnlyTheirPart(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	insert(t, c, aRun(id("run", t.Name()), "sending"))
	insert(t, c, []tableRow{{"event_rows", row{"event_id": "e", "user_id": "u", "ingested_at": day0}}, {"profile_rows", row{"user_id": "u", "revision": int64(1)}},
		{"engagement_rows", row{"engagement_id": id("e"), "run_id": id("run", t.Name()), "ingested_at": day0}}})
	for view, key := range map[string]string{"messages": "run_id", "outcomes": "run_id", "engagements": "run_id", "message_inputs": "run_id", "message_steps": "run_id",
		"run_balance": "run_id", "run_counts": "run_id", "runs": "run_id", "events": "user_id", "profiles": "user_id"} {
		value := "'u'"
		if key == "run_id" {
			value = "'" + id("run", t.Name()).String() + "'"
		}
		// Columns that make no JSON, so that the plan stays short.
		plan := one[string](t, c, "SELECT arrayStringConcat(groupArray(explain), '\\n') FROM (EXPLAIN indexes = 1 SELECT count() FROM "+view+" WHERE "+key+" = "+value+")")
		reads, keyed := strings.Count(plan, "ReadFromMergeTree"), strings.Count(plan, "Condition: ("+key+" in [")
		if reads == 0 || keyed != reads {
			t.Errorf("%s: %d of %d reads go by %s:\n%s", view, keyed, reads, key, plan)
		}
	}
}
