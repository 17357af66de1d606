package audience_test

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/audience"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
)

var asOf = time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)

// Names that a careless compiler would trip over.
var names = []string{"plan", "a.b", "it's", `back\slash`, "tab\there", "`tick`", "日本", "{x:String}", "?", ""}

var texts = []string{"gold", "", "a", "B", "it's", `\n`, "\n", "日本", "?", "10", "true", "%", "\x00"}

var numbers = []event.Value{event.Int(0), event.Int(1), event.Int(-1), event.Int(25), event.Int(math.MaxInt64), event.Int(math.MinInt64), event.Int(9007199254740993),
	event.Float(1), event.Float(0.1), event.Float(-2.5), event.Float(9007199254740992), event.Float(1e300), event.Float(-1e-300), event.Float(9.223372036854775807e18)}

func instants() []time.Time {
	var out []time.Time
	for _, d := range []time.Duration{0, time.Microsecond, -time.Microsecond, -72 * time.Hour, -72*time.Hour + time.Microsecond, -72*time.Hour - time.Microsecond, -time.Hour, 25 * time.Hour} {
		out = append(out, asOf.Add(d))
	}
	return append(out, time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(1969, 7, 20, 20, 17, 40, 0, time.UTC))
}

func value(t *rapid.T) event.Value {
	switch rapid.IntRange(0, 6).Draw(t, "type") {
	case 0:
		return event.Null()
	case 1:
		return event.String(rapid.SampledFrom(texts).Draw(t, "text"))
	case 2, 3:
		return rapid.SampledFrom(numbers).Draw(t, "number")
	case 4:
		return event.Bool(rapid.Bool().Draw(t, "bool"))
	case 5:
		return event.Time(rapid.SampledFrom(instants()).Draw(t, "instant"))
	}
	return event.JSON(`["gold",1]`)
}

func values(t *rapid.T) []event.NamedValue {
	var out []event.NamedValue
	for _, n := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 4, rapid.ID).Draw(t, "names") {
		out = append(out, event.NamedValue{Name: n, Value: value(t)})
	}
	return event.Sorted(out)
}

var imports = []identity.ID{identity.Hash("1"), identity.Hash("2"), identity.Hash("3"), identity.Hash("4"), identity.Hash("5"), identity.Hash("6")}

// segments draws which imports make up the segments; anything may remove.
func segments(t *rapid.T) []event.SegmentPin {
	var pins []event.SegmentPin
	for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"vip", "other"}), 0, 2, rapid.ID).Draw(t, "segments") {
		pin := event.SegmentPin{SegmentID: id}
		for _, i := range rapid.SliceOfNDistinct(rapid.SampledFrom(imports), 0, len(imports), rapid.ID).Draw(t, "made up of") {
			pin.ImportIDs = append(pin.ImportIDs, i)
			if rapid.IntRange(0, 2).Draw(t, "removes") == 0 {
				pin.Removes = append(pin.Removes, i)
			}
		}
		pins = append(pins, pin)
	}
	return pins
}

func facts(t *rapid.T) audience.Facts {
	f := audience.Facts{Attributes: values(t)}
	for i := range rapid.IntRange(0, 5).Draw(t, "events") {
		f.Events = append(f.Events, audience.Happening{ID: fmt.Sprint(i), Name: rapid.SampledFrom([]string{"purchase", "it's?"}).Draw(t, "event"),
			OccurredAt: rapid.SampledFrom(instants()[:9]).Draw(t, "at"), Properties: values(t)})
	}
	for _, id := range rapid.SliceOfNDistinct(rapid.SampledFrom(imports), 0, 4, rapid.ID).Draw(t, "imports") {
		f.Imports = append(f.Imports, audience.Membership{SegmentID: rapid.SampledFrom([]string{"vip", "other"}).Draw(t, "segment"), ImportID: id})
	}
	return f
}

// operations draws comparisons that an author may write.
func operations(t *rapid.T) filter.Ops {
	var o filter.Ops
	if rapid.IntRange(0, 4).Draw(t, "exists") == 0 {
		b := rapid.Bool().Draw(t, "there")
		return filter.Ops{Exists: &b}
	}
	var pool []filter.Value
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		for _, s := range texts {
			pool = append(pool, filter.StringValue(s))
		}
	case 1:
		for _, n := range numbers {
			if n.Kind() == event.KindInt {
				pool = append(pool, filter.IntValue(n.Int()))
			} else {
				pool = append(pool, filter.FloatValue(n.Float()))
			}
		}
	case 2:
		for _, at := range instants() {
			pool = append(pool, filter.TimeValue(at))
		}
	default:
		return filter.Ops{In: []filter.Value{filter.BoolValue(rapid.Bool().Draw(t, "literal"))}}
	}
	one := func(label string) *filter.Value { v := rapid.SampledFrom(pool).Draw(t, label); return &v }
	switch rapid.IntRange(0, 4).Draw(t, "form") {
	case 0:
		o.In = rapid.SliceOfN(rapid.SampledFrom(pool), 1, 3).Draw(t, "in")
	case 1:
		o.Gte = one("gte")
	case 2:
		o.Gt, o.Lt = one("gt"), one("lt")
	case 3:
		o.Lte = one("lte")
	default:
		o.Gte, o.Lte = one("gte"), one("lte")
	}
	return o
}

func condition(t *rapid.T, depth int) *filter.Node {
	max := 5
	if depth == 0 {
		max = 2
	}
	switch rapid.IntRange(0, max).Draw(t, "node") {
	case 0:
		return &filter.Node{Attribute: &filter.Attribute{Name: rapid.SampledFrom(names).Draw(t, "attribute"), Ops: operations(t)}}
	case 1:
		e := &filter.Event{Name: rapid.SampledFrom([]string{"purchase", "it's?"}).Draw(t, "name"), Count: filter.Count{Gte: rapid.Int64Range(0, 3).Draw(t, "at least")}}
		if e.Count.Gte == 0 || rapid.Bool().Draw(t, "bounded") {
			most := e.Count.Gte + rapid.Int64Range(0, 2).Draw(t, "more")
			e.Count.Lte = &most
		}
		switch rapid.IntRange(0, 3).Draw(t, "window") {
		case 0:
			e.Within = filter.Duration(72 * time.Hour)
		case 1:
			since := rapid.SampledFrom(instants()).Draw(t, "since")
			e.Since = &since
		case 2:
			until := rapid.SampledFrom(instants()).Draw(t, "until")
			e.Until = &until
		}
		for range rapid.IntRange(0, 2).Draw(t, "where") {
			e.Where = append(e.Where, filter.Property{Property: rapid.SampledFrom(names).Draw(t, "property"), Ops: operations(t)})
		}
		return &filter.Node{Event: e}
	case 2:
		return &filter.Node{Segment: rapid.SampledFrom([]string{"vip", "other", "unknown"}).Draw(t, "segment")}
	case 3:
		return &filter.Node{Not: condition(t, depth-1)}
	case 4:
		return &filter.Node{All: conditions(t, depth)}
	}
	return &filter.Node{Any: conditions(t, depth)}
}

func conditions(t *rapid.T, depth int) []*filter.Node {
	out := make([]*filter.Node, rapid.IntRange(1, 3).Draw(t, "conditions"))
	for i := range out {
		out[i] = condition(t, depth-1)
	}
	return out
}

// The compiler and the evaluator agree on everybody. People are drawn once and
// stored; then many filters are asked of all of them.
func TestSQLAndEvaluatorAgree(t *testing.T) {
	t.Parallel()
	conn := clickhousetest.Open(t)
	people := map[string]audience.Facts{}
	gen := rapid.Custom(facts)
	for i := range 300 {
		people[fmt.Sprintf("u%d", i)] = gen.Example(i)
	}
	store(t, conn, people)

	inside, outside := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		n := condition(t, 2)
		at := audience.Moment{AsOf: asOf, Segments: segments(t)}
		q := audience.Members(n, at)
		rows, err := conn.Query(context.Background(), q.SQL, q.Args...)
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		got := map[string]bool{}
		for rows.Next() {
			var id string
			if err := rows.Scan(&id); err != nil {
				t.Fatal(err)
			}
			got[id] = true
		}
		if err := rows.Err(); err != nil {
			t.Fatalf("%s: %v\n%s", n, err, q.SQL)
		}
		for id, f := range people {
			want := audience.Evaluate(n, &f, at)
			if got[id] != want {
				t.Fatalf("%s\nis %v of %+v, ClickHouse says %v\n%s %v", n, want, f, got[id], q.SQL, q.Args)
			}
			if want {
				inside++
			} else {
				outside++
			}
			if _, failed := audience.Why(n, &f, at); failed == want {
				t.Fatalf("%s: Why disagrees with Evaluate", n)
			}
		}
	})
	require.Greater(t, inside, 1000, "a test in which nobody is ever inside proves little")
	require.Greater(t, outside, 1000)
}

func store(t *testing.T, conn *clickhouse.Conn, people map[string]audience.Facts) {
	t.Helper()
	ctx := context.Background()
	stored := time.Now() // retention goes by record time
	ids := slices.Sorted(func(yield func(string) bool) {
		for id := range people {
			if !yield(id) {
				return
			}
		}
	})
	maps := func(prefix string) []string {
		var out []string
		for _, kind := range []string{"string", "int", "float", "bool", "time", "json"} {
			out = append(out, prefix+"_"+kind)
		}
		return out
	}
	require.NoError(t, conn.Insert(ctx, "profile_rows", append([]string{"user_id", "ingested_at", "revision"}, maps("attr")...), len(ids), func(b driver.Batch) error {
		for _, id := range ids {
			if err := b.Append(append([]any{id, stored, int64(1)}, typed(people[id].Attributes)...)...); err != nil {
				return err
			}
		}
		return nil
	}))
	n := 0
	for _, f := range people {
		n += 2 * len(f.Events)
	}
	require.NoError(t, conn.Insert(ctx, "event_rows", append([]string{"user_id", "ingested_at", "event_id", "name", "occurred_at"}, maps("prop")...), n, func(b driver.Batch) error {
		for range 2 { // every event twice: an id counts once
			for _, id := range ids {
				for _, e := range people[id].Events {
					if err := b.Append(append([]any{id, stored, e.ID, e.Name, e.OccurredAt}, typed(e.Properties)...)...); err != nil {
						return err
					}
				}
			}
		}
		return nil
	}))
	n = 0
	for _, f := range people {
		n += len(f.Imports)
	}
	require.NoError(t, conn.Insert(ctx, "segment_member_rows", []string{"segment_id", "import_id", "user_id", "ingested_at", "attributes"}, n, func(b driver.Batch) error {
		for _, id := range ids {
			for _, m := range people[id].Imports {
				if err := b.Append(m.SegmentID, m.ImportID.UUID(), id, stored, "{}"); err != nil {
					return err
				}
			}
		}
		return nil
	}))
}

func typed(values []event.NamedValue) []any {
	strs, ints, floats, bools, times, json := map[string]string{}, map[string]int64{}, map[string]float64{}, map[string]bool{}, map[string]int64{}, map[string]string{}
	for _, v := range values {
		switch v.Value.Kind() {
		case event.KindString:
			strs[v.Name] = v.Value.Text()
		case event.KindInt:
			ints[v.Name] = v.Value.Int()
		case event.KindFloat:
			floats[v.Name] = v.Value.Float()
		case event.KindBool:
			bools[v.Name] = v.Value.Bool()
		case event.KindTime:
			times[v.Name] = v.Value.Time().UnixMicro()
		case event.KindJSON:
			json[v.Name] = v.Value.Text()
		}
	}
	return []any{strs, ints, floats, bools, times, json}
}

// Shards partition the audience: everybody is in exactly one.
func TestShardsPartitionTheAudience(t *testing.T) {
	t.Parallel()
	conn := clickhousetest.Open(t)
	people := map[string]audience.Facts{}
	for i := range 500 {
		people[fmt.Sprintf("u%d", i)] = audience.Facts{Attributes: []event.NamedValue{{Name: "n", Value: event.Int(int64(i))}}}
	}
	store(t, conn, people)
	low := filter.IntValue(100)
	n := &filter.Node{Attribute: &filter.Attribute{Name: "n", Ops: filter.Ops{Gte: &low}}}
	at := audience.Moment{AsOf: asOf}
	seen := map[string]int{}
	for shard := range int32(7) {
		q := audience.Shard(n, at, shard, 7, 1000)
		rows, err := conn.Query(context.Background(), q.SQL, q.Args...)
		require.NoError(t, err)
		for rows.Next() {
			var id string
			require.NoError(t, rows.Scan(&id))
			seen[id]++
		}
		require.NoError(t, rows.Err())
	}
	require.Len(t, seen, 400)
	for id, times := range seen {
		require.Equal(t, 1, times, id)
	}
	q := audience.Count(n, at)
	var count uint64
	require.NoError(t, conn.QueryRow(context.Background(), q.SQL, q.Args...).Scan(&count))
	require.EqualValues(t, 400, count)
}

func TestWhySaysWhatItSaw(t *testing.T) {
	t.Parallel()
	low := filter.IntValue(25)
	n := &filter.Node{All: []*filter.Node{
		{Attribute: &filter.Attribute{Name: "country", Ops: filter.Ops{In: []filter.Value{filter.StringValue("France")}}}},
		{Attribute: &filter.Attribute{Name: "age", Ops: filter.Ops{Gte: &low}}},
		{Not: &filter.Node{Event: &filter.Event{Name: "purchase", Count: filter.Count{Gte: 1}}}},
	}}
	f := audience.Facts{Attributes: event.Sorted([]event.NamedValue{{Name: "country", Value: event.String("France")}, {Name: "age", Value: event.String("30")}})}
	why, out := audience.Why(n, &f, audience.Moment{AsOf: asOf})
	require.True(t, out)
	require.Contains(t, why.Condition, "age")
	require.Equal(t, `age is "30"`, why.Saw, "a string is not a number")

	f.Attributes[0].Value = event.Int(30)
	f.Events = []audience.Happening{{ID: "1", Name: "purchase", OccurredAt: asOf}}
	why, out = audience.Why(n, &f, audience.Moment{AsOf: asOf})
	require.True(t, out)
	require.True(t, strings.HasPrefix(why.Condition, "not"), why.Condition)
	require.Equal(t, "1 events purchase that count", why.Saw)

	f.Events = nil
	_, out = audience.Why(n, &f, audience.Moment{AsOf: asOf})
	require.False(t, out)
}

// Of a person whom several imports list, the last says whether she is a member; the
// query is as it ever was while none removes.
func TestTheLastImportThatListsAPersonSaysWhetherSheIsAMember(t *testing.T) {
	t.Parallel()
	conn := clickhousetest.Open(t)
	whole, removed, back := imports[0], imports[1], imports[2]
	lists := map[string][]identity.ID{"stays": {whole}, "goes": {whole, removed}, "returns": {whole, removed, back}, "unknown": {removed}, "joins": {back}, "elsewhere": {imports[3]}}
	people := map[string]audience.Facts{}
	for id, in := range lists {
		f := audience.Facts{}
		for _, i := range in {
			f.Imports = append(f.Imports, audience.Membership{SegmentID: "vip", ImportID: i})
		}
		people[id] = f
	}
	store(t, conn, people)
	for _, c := range []struct {
		pin  event.SegmentPin
		want []string
	}{
		{event.SegmentPin{ImportIDs: []identity.ID{whole, removed, back}}, []string{"goes", "joins", "returns", "stays", "unknown"}},
		{event.SegmentPin{ImportIDs: []identity.ID{whole, removed, back}, Removes: []identity.ID{removed}}, []string{"joins", "returns", "stays"}},
		{event.SegmentPin{ImportIDs: []identity.ID{whole, removed}, Removes: []identity.ID{removed}}, []string{"stays"}},
		{event.SegmentPin{ImportIDs: []identity.ID{removed, whole}, Removes: []identity.ID{removed}}, []string{"goes", "returns", "stays"}},
		{event.SegmentPin{ImportIDs: []identity.ID{removed}, Removes: []identity.ID{removed}}, nil},
	} {
		c.pin.SegmentID = "vip"
		require.Equal(t, c.want, userIDs(t, conn, audience.Segment(&c.pin, nil)))
		among := slices.DeleteFunc(slices.Clone(c.want), func(id string) bool { return id != "stays" && id != "goes" })
		require.ElementsMatch(t, among, userIDs(t, conn, audience.Segment(&c.pin, []string{"stays", "goes"})))
	}
	// The most there can be, in the worst order, named twice.
	most := event.SegmentPin{SegmentID: "vip"}
	for n := range 1000 {
		id := identity.Hash("import", fmt.Sprint(n))
		if n >= 997 {
			id = imports[n-997]
		}
		most.ImportIDs = append(most.ImportIDs, id)
		if n%2 == 0 {
			most.Removes = append(most.Removes, id)
		}
	}
	both := audience.Members(&filter.Node{All: []*filter.Node{{Segment: "vip"}, {Segment: "vip"}}}, audience.Moment{Segments: []event.SegmentPin{most}})
	require.Equal(t, []string{"joins", "returns", "stays"}, userIDs(t, conn, both))

	q := audience.Members(&filter.Node{Segment: "vip"}, audience.Moment{Segments: []event.SegmentPin{{SegmentID: "vip", ImportIDs: imports[:2]}}})
	require.Equal(t, "SELECT user_id FROM profiles WHERE (user_id IN (SELECT user_id FROM segment_member_rows WHERE segment_id = ? AND import_id IN (toUUID(?), toUUID(?))))", q.SQL)
}

func userIDs(t *testing.T, conn *clickhouse.Conn, q audience.Query) (ids []string) {
	rows, err := conn.Query(t.Context(), "SELECT DISTINCT user_id FROM ("+q.SQL+") ORDER BY user_id", q.Args...)
	require.NoError(t, err)
	defer rows.Close()
	for rows.Next() {
		var id string
		require.NoError(t, rows.Scan(&id))
		ids = append(ids, id)
	}
	require.NoError(t, rows.Err())
	return ids
}
