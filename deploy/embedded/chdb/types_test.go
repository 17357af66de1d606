package chdb_test

import (
	"context"
	"fmt"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/hikyaku/hikyaku/deploy/embedded/chdb/chdbtest"
)

// connect is what a service does.
func connect(t testing.TB, base, database string, change ...func(*clickhouse.Options)) driver.Conn {
	t.Helper()
	u, err := url.Parse(base)
	require.NoError(t, err)
	o := &clickhouse.Options{
		Addr:        []string{u.Host},
		Protocol:    clickhouse.HTTP,
		Auth:        clickhouse.Auth{Database: database, Username: "default"},
		Compression: &clickhouse.Compression{Method: clickhouse.CompressionLZ4},
		Settings:    clickhouse.Settings{"async_insert": 0},
	}
	for _, c := range change {
		c(o)
	}
	conn, err := clickhouse.Open(o)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

func ptr[T any](v T) *T { return &v }

func TestEveryTypeComesBackAsItWasInserted(t *testing.T) {
	t.Parallel()
	base, database := chdbtest.Database(t)
	moment := time.Date(2011, 12, 9, 12, 50, 0, 123456000, time.UTC)
	id := uuid.MustParse("0f0e0d0c-0b0a-0908-0706-050403020100")
	for _, c := range []struct {
		typ    string
		values []any // of the Go type that is scanned into
	}{
		{"String", []any{"", "飛脚", "a\x00b\xff"}},
		{"LowCardinality(String)", []any{"email", "email", "sms"}},
		{"Nullable(String)", []any{ptr("x"), (*string)(nil), ptr("")}},
		{"LowCardinality(Nullable(String))", []any{ptr("x"), (*string)(nil), ptr("x")}},
		{"UUID", []any{id, uuid.UUID{}}},
		{"Nullable(UUID)", []any{ptr(id), (*uuid.UUID)(nil)}},
		{"FixedString(16)", []any{string(id[:]), strings.Repeat("\x00", 16)}},
		{"Int8", []any{int8(-128), int8(127)}},
		{"Int16", []any{int16(-32768), int16(1)}},
		{"Int32", []any{int32(-1 << 31), int32(1)}},
		{"Int64", []any{int64(-1 << 63), int64(9007199254740993)}},
		{"UInt8", []any{uint8(255)}},
		{"UInt16", []any{uint16(65535)}},
		{"UInt32", []any{uint32(1<<32 - 1)}},
		{"UInt64", []any{uint64(1<<64 - 1), uint64(0)}},
		{"Nullable(Int64)", []any{ptr(int64(1)), (*int64)(nil)}},
		{"Float64", []any{1.5, -0.1}},
		{"Nullable(Float64)", []any{ptr(1.5), (*float64)(nil)}},
		{"Bool", []any{true, false}},
		{"Nullable(Bool)", []any{ptr(true), (*bool)(nil)}},
		{"Date", []any{time.Date(2011, 1, 1, 0, 0, 0, 0, time.UTC)}},
		{"DateTime('UTC')", []any{moment.Truncate(time.Second)}},
		{"DateTime64(3,'UTC')", []any{moment.Truncate(time.Millisecond)}},
		{"DateTime64(6,'UTC')", []any{moment}},
		{"Nullable(DateTime64(3,'UTC'))", []any{ptr(moment.Truncate(time.Millisecond)), (*time.Time)(nil)}},
		{"Array(String)", []any{[]string{"a", "b"}, []string{}}},
		{"Array(LowCardinality(String))", []any{[]string{"a", "b", "a"}, []string{}}},
		{"Array(Nullable(Int64))", []any{[]*int64{ptr(int64(1)), nil}}},
		{"Map(String,String)", []any{map[string]string{"a.b": "x", "": "`"}, map[string]string{}}},
		{"Map(String,Float64)", []any{map[string]float64{"age": 25}, map[string]float64{}}},
		{"Map(LowCardinality(String),Int64)", []any{map[string]int64{"age": 25}}},
		{"Map(String,Bool)", []any{map[string]bool{"vip": true}}},
		{"Map(String,Array(String))", []any{map[string][]string{"list": {"a", "1"}}}},
		{"Tuple(String,Int64)", []any{[]any{"a", int64(1)}}},
		{"Tuple(name String,value Int64)", []any{map[string]any{"name": "a", "value": int64(1)}}},
		{"Array(Tuple(String,Float64))", []any{[][]any{{"a", 1.5}, {"b", 2.5}}}},
		{"Array(Tuple(name String,value Nullable(Float64)))", []any{[]map[string]any{{"name": "a", "value": ptr(1.5)}}}},
		{"Enum8('human'=1,'machine'=2)", []any{"human", "machine"}},
		{"Enum16('human'=1,'machine'=2000)", []any{"machine"}},
		{"SimpleAggregateFunction(max,UInt64)", []any{uint64(7)}},
		{"SimpleAggregateFunction(anyLast,Nullable(DateTime64(3,'UTC')))", []any{ptr(moment.Truncate(time.Millisecond)), (*time.Time)(nil)}},
		{"SimpleAggregateFunction(groupUniqArrayArray,Array(String))", []any{[]string{"a"}}},
	} {
		for _, compression := range []clickhouse.CompressionMethod{clickhouse.CompressionNone, clickhouse.CompressionLZ4, clickhouse.CompressionZSTD} {
			t.Run(fmt.Sprintf("%s/%s", c.typ, compression), func(t *testing.T) {
				ctx := context.Background()
				conn := connect(t, base, database, func(o *clickhouse.Options) { o.Compression = &clickhouse.Compression{Method: compression} })
				table := "t_" + strings.ToLower(strings.NewReplacer("-", "").Replace(uuid.NewString()))
				require.NoError(t, conn.Exec(ctx, "CREATE TABLE "+table+" (n UInt32, v "+c.typ+") ENGINE = MergeTree ORDER BY n"))
				batch, err := conn.PrepareBatch(ctx, "INSERT INTO "+table+" (n, v)")
				require.NoError(t, err)
				for i, v := range c.values {
					require.NoError(t, batch.Append(uint32(i), v))
				}
				require.NoError(t, batch.Send())
				rows, err := conn.Query(ctx, "SELECT v FROM "+table+" ORDER BY n")
				require.NoError(t, err)
				defer rows.Close()
				var got []any
				for rows.Next() {
					into := reflect.New(reflect.TypeOf(c.values[0]))
					require.NoError(t, rows.Scan(into.Interface()))
					v := into.Elem().Interface()
					if at, ok := v.(time.Time); ok {
						v = at.UTC() // dates come in the server's zone, which is UTC by another name
					}
					got = append(got, v)
				}
				require.NoError(t, rows.Err())
				require.Equal(t, c.values, got)
			})
		}
	}
}

func TestJSONComesBackAsTextAndAsObject(t *testing.T) {
	t.Parallel()
	base, database := chdbtest.Database(t)
	ctx := context.Background()
	conn := connect(t, base, database)
	require.NoError(t, conn.Exec(ctx, "CREATE TABLE t (n UInt32, v JSON) ENGINE = MergeTree ORDER BY n"))

	texts := []string{`{"age":25,"country":"United Kingdom","list":["a","b"],"score":1.5,"vip":true}`, `{}`}
	batch, err := conn.PrepareBatch(ctx, "INSERT INTO t (n, v)")
	require.NoError(t, err)
	for i, v := range texts {
		require.NoError(t, batch.Append(uint32(i), v))
	}
	require.NoError(t, batch.Send())

	object := clickhouse.NewJSON()
	object.SetValueAtPath("country", "Japan")
	object.SetValueAtPath("age", int64(30))
	batch, err = conn.PrepareBatch(ctx, "INSERT INTO t (n, v)")
	require.NoError(t, err)
	require.NoError(t, batch.Append(uint32(2), object))
	require.NoError(t, batch.Send())

	asText := clickhouse.Context(ctx, clickhouse.WithSettings(clickhouse.Settings{"output_format_native_write_json_as_string": 1, "output_format_json_quote_64bit_integers": 0}))
	for n, want := range append(texts, `{"age":30,"country":"Japan"}`) {
		var got string
		require.NoError(t, conn.QueryRow(asText, "SELECT v FROM t WHERE n = ?", n).Scan(&got))
		require.JSONEq(t, want, got)
	}
	var got clickhouse.JSON
	require.NoError(t, conn.QueryRow(ctx, "SELECT v FROM t WHERE n = 0").Scan(&got))
	country, ok := clickhouse.ExtractJSONPathAs[string](&got, "country")
	require.True(t, ok)
	require.Equal(t, "United Kingdom", country)
	age, ok := clickhouse.ExtractJSONPathAs[int64](&got, "age")
	require.True(t, ok)
	require.EqualValues(t, 25, age)
}

func TestATypeThatCannotBeReencodedIsAnErrorAndNoEmptyAnswer(t *testing.T) {
	t.Parallel()
	base, database := chdbtest.Database(t)
	conn := connect(t, base, database)
	for _, query := range []string{"SELECT sumState(number) FROM numbers(3)", "SELECT toTypeName(1), INTERVAL 1 DAY", "SELECT NULL", "SELECT []"} {
		rows, err := conn.Query(context.Background(), query)
		n := 0
		if err == nil {
			for rows.Next() {
				n++
			}
			err = rows.Err()
			rows.Close()
		}
		t.Logf("%s: %d rows, %v", query, n, err)
		require.True(t, n == 1 || err != nil, query)
	}
}
