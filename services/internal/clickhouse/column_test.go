package clickhouse_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// By the bytes themselves, and by a batch of the driver, as the native protocol and compression need it.
func TestColumnsArriveAsTheyWereAppendedBothWays(t *testing.T) {
	t.Parallel()
	plain := clickhousetest.Open(t)
	cfg := clickhousetest.Config(t)
	cfg.Compression = "lz4"
	packed, err := clickhouse.Open(cfg, plain.Database())
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	const kinds = "n Int32, text String, word LowCardinality(String), few Nullable(UUID), id UUID, at DateTime64(6, 'UTC'), ms SimpleAggregateFunction(max, DateTime64(3, 'UTC')), u UInt32, f Float64, b Bool," +
		" m Map(String, Int64), w Map(LowCardinality(String), String), lists Map(String, Array(UUID)), maybe Nullable(DateTime64(6, 'UTC'))"
	const rows = 70_000
	n, text, word, few, id, at, ms := clickhouse.NewInt32(), clickhouse.NewText(), clickhouse.NewWord(), clickhouse.NewNullable(clickhouse.NewUUID()), clickhouse.NewUUID(), clickhouse.NewMicros(), clickhouse.NewMillis()
	u, f, b, m, w := clickhouse.NewUInt32(), clickhouse.NewFloat64(), clickhouse.NewBool(), clickhouse.NewMap(clickhouse.NewText(), clickhouse.NewInt64()), clickhouse.NewMap(clickhouse.NewWord(), clickhouse.NewText())
	lists, maybe := clickhouse.NewMap(clickhouse.NewText(), clickhouse.NewArray(clickhouse.NewUUID())), clickhouse.NewNullable(clickhouse.NewMicros())
	names := strings.Split("n text word few id at ms u f b m w lists maybe", " ")
	columns := []clickhouse.Column{n, text, word, few, id, at, ms, u, f, b, m, w, lists, maybe}
	noon := time.Date(2026, 5, 17, 12, 0, 0, 123456000, time.UTC)
	fill := func(rows, words int) {
		for i := range rows {
			key := [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, byte(i >> 8), byte(i)}
			n.Append(int32(i))
			text.Append(strings.Repeat("飛", i%60)) // of one byte of length, and of two
			word.Append(fmt.Sprint("w", i%words))
			few.Null(i%3 == 0)
			few.Values.Append(key)
			id.Append(key)
			at.Append(noon.Add(time.Duration(i) * time.Microsecond))
			ms.Append(time.UnixMilli(int64(i - 3)).Add(time.Microsecond)) // before 1970, too, it is cut and not rounded up
			u.Append(uint32(i) << 16)
			f.Append(float64(i) / 3)
			b.Append(i%2 == 1)
			for k := range i % 3 {
				m.Keys.Append(fmt.Sprint("k", k))
				m.Values.Append(int64(i) - 5)
				w.Keys.Append([]string{"email", "sms"}[k])
				w.Values.Append("x")
				lists.Keys.Append(fmt.Sprint("s", k))
				for range k {
					lists.Values.Items.Append(key)
				}
				lists.Values.End()
			}
			m.End()
			w.End()
			lists.End()
			maybe.Null(i%2 == 0)
			maybe.Values.Append(time.Time{})
		}
	}
	// As many words as have keys of one byte, of two and of four.
	for words, rows := range map[int]int{3: 300, 300: 900, rows: rows} {
		for _, c := range columns {
			c.Reset()
		}
		fill(rows, words)
		for name, conn := range map[string]*clickhouse.Conn{"plain": plain, "packed": packed} {
			if err := plain.Exec(t.Context(), "CREATE OR REPLACE TABLE "+name+" ("+kinds+") ENGINE = MergeTree ORDER BY n"); err != nil {
				t.Fatal(err)
			}
			if err := conn.Send(t.Context(), name, names, columns); err != nil {
				t.Fatalf("%s, %d rows: %v", name, rows, err)
			}
			wrong := one[uint64](t, plain, fmt.Sprintf(`SELECT countIf(NOT ok) + abs(%d - count()) FROM (SELECT toUUID('01020304-0506-0708-090a-0b0c0d0e0000') AS base,
				concat(substring(toString(base), 1, 32), lower(leftPad(hex(toUInt16(n %% 65536)), 4, '0'))) AS key,
				text = repeat('飛', n %% 60) AND word = concat('w', toString(n %% %d)) AND toString(id) = key AND (few IS NULL) = (n %% 3 = 0) AND ifNull(few, id) = id
				AND at = addMicroseconds(toDateTime64('2026-05-17 12:00:00.123456', 6, 'UTC'), n) AND toUnixTimestamp64Milli(ms) = n - 3
				AND u = bitShiftLeft(toUInt64(n), 16) %% 4294967296 AND f = n / 3 AND b = (n %% 2 = 1) AND length(m) = n %% 3 AND (n %% 3 = 0 OR m['k0'] = n - 5) AND (n %% 3 < 2 OR w['sms'] = 'x') AND length(w) = n %% 3
				AND (n %% 3 < 2 OR toString(lists['s1']) = concat('[\'', key, '\']')) AND (maybe IS NULL) = (n %% 2 = 0) AND ifNull(maybe, toDateTime64(0, 6, 'UTC')) = toDateTime64(0, 6, 'UTC') AS ok FROM %s)`, rows, words, name))
			if wrong != 0 {
				t.Errorf("%s: %d of %d rows are not what was appended", name, wrong, rows)
			}
		}
	}
}

func TestATableThatIsOlderThanItsColumnsIsWaitedForAndOneOfOtherTypesIsNot(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	ctx := t.Context()
	if err := c.Exec(ctx, "CREATE TABLE t (a Int64) ENGINE = MergeTree ORDER BY a"); err != nil {
		t.Fatal(err)
	}
	a, b := clickhouse.NewInt64(), clickhouse.NewText()
	a.Append(1)
	b.Append("x")
	send := func() error { return c.Send(ctx, "t", []string{"a", "b"}, []clickhouse.Column{a, b}) }
	for range 2 {
		if err := send(); fault.ClassOf(err) != fault.ClassTransient || !strings.Contains(err.Error(), "has no column b") {
			t.Errorf("got %v, %v", fault.ClassOf(err), err)
		}
	}
	for _, change := range []string{"ALTER TABLE t ADD COLUMN b Int64", "ALTER TABLE t MODIFY COLUMN b String"} {
		if err := c.Exec(ctx, change); err != nil {
			t.Fatal(err)
		}
		err := send()
		if mended := strings.Contains(change, "String"); mended && err != nil || !mended && (fault.ClassOf(err) != fault.ClassFatal || !strings.Contains(err.Error(), "of type Int64, not String")) {
			t.Errorf("%s: %v", change, err)
		}
	}
	b.Append("y")
	if err := send(); err == nil || fault.ClassOf(err) != fault.ClassFatal {
		t.Errorf("columns of different lengths were sent: %v", err)
	}
	for _, bad := range []string{"nothing_here", "t; DROP TABLE t"} {
		if err := c.Send(ctx, bad, []string{"a"}, []clickhouse.Column{a}); err == nil || fault.ClassOf(err) != fault.ClassFatal {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if n := one[uint64](t, c, "SELECT count() FROM t"); n != 1 {
		t.Errorf("%d rows", n)
	}
}
