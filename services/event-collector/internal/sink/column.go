package sink

import (
	"time"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
)

// column is one column of a table and how it is read off a record. Values go straight
// into the bytes that are sent: what is kept of a record is what its columns say.
type column[T any] struct {
	name   string
	values clickhouse.Column
	// add appends the row's value; nil where another column of the table does that.
	add func(r *row[T])
	// moment returns a time that the database must be able to hold; nil for
	// columns of other types.
	moment func(*T) time.Time
}

// whole is a column of values of type V.
func whole[T, V any, C interface {
	clickhouse.Column
	Append(v V)
}](name string, values C, get func(*row[T]) V) column[T] {
	return column[T]{name: name, values: values, add: func(r *row[T]) { values.Append(get(r)) }}
}

func text[T any](name string, get func(*T) string) column[T] {
	return whole(name, clickhouse.NewText(), func(r *row[T]) string { return get(r.rec) })
}

// word is a column of few values in many rows.
func word[T any](name string, get func(*T) string) column[T] {
	return whole(name, clickhouse.NewWord(), func(r *row[T]) string { return get(r.rec) })
}

func integer[T any](name string, get func(*T) int64) column[T] {
	return whole(name, clickhouse.NewInt64(), func(r *row[T]) int64 { return get(r.rec) })
}

func integer32[T any](name string, get func(*T) int32) column[T] {
	return whole(name, clickhouse.NewInt32(), func(r *row[T]) int32 { return get(r.rec) })
}

func boolean[T any](name string, get func(*T) bool) column[T] {
	return whole(name, clickhouse.NewBool(), func(r *row[T]) bool { return get(r.rec) })
}

func id[T any](name string, get func(*T) identity.ID) column[T] {
	return whole(name, clickhouse.NewUUID(), func(r *row[T]) [16]byte { return get(r.rec) })
}

func maybeID[T any](name string, get func(*T) *identity.ID) column[T] {
	values := clickhouse.NewNullable(clickhouse.NewUUID())
	return column[T]{name: name, values: values, add: func(r *row[T]) {
		var v identity.ID
		at := get(r.rec)
		if at != nil {
			v = *at
		}
		values.Null(at == nil)
		values.Values.Append(v)
	}}
}

func moment[T any](name string, get func(*T) time.Time) column[T] {
	c := whole(name, clickhouse.NewMicros(), func(r *row[T]) time.Time { return get(r.rec) })
	c.moment = get
	return c
}

func maybeMoment[T any](name string, get func(*T) *time.Time) column[T] {
	values := clickhouse.NewNullable(clickhouse.NewMicros())
	of := func(rec *T) time.Time {
		if t := get(rec); t != nil {
			return *t
		}
		return time.Time{}
	}
	return column[T]{name: name, values: values, moment: of, add: func(r *row[T]) {
		values.Null(get(r.rec) == nil)
		values.Values.Append(of(r.rec))
	}}
}

// pairs is a Map column whose pairs get appends one after another.
func pairs[T any, K, V clickhouse.Column](name string, values *clickhouse.Map[K, V], get func(rec *T, keys K, values V)) column[T] {
	return column[T]{name: name, values: values, add: func(r *row[T]) {
		get(r.rec, values.Keys, values.Values)
		values.End()
	}}
}

// kinds are six Map columns, one for each kind of value: a person's own values,
// each in the map of its type and null in none.
type kinds struct {
	texts, jsons *clickhouse.Map[*clickhouse.Text, *clickhouse.Text]
	ints, times  *clickhouse.Map[*clickhouse.Text, *clickhouse.Int64]
	floats       *clickhouse.Map[*clickhouse.Text, *clickhouse.Float64]
	bools        *clickhouse.Map[*clickhouse.Text, *clickhouse.Bool]
}

// add puts a value into the row.
func (k *kinds) add(name string, v *event.Value) {
	switch v.Kind() {
	case event.KindString:
		k.texts.Keys.Append(name)
		k.texts.Values.Append(v.Text())
	case event.KindJSON:
		k.jsons.Keys.Append(name)
		k.jsons.Values.Append(v.Text())
	case event.KindInt:
		k.ints.Keys.Append(name)
		k.ints.Values.Append(v.Int())
	case event.KindTime:
		// Microseconds: an author may write any year, the database's own type ends
		// in 2299.
		k.times.Keys.Append(name)
		k.times.Values.Append(v.Time().UnixMicro())
	case event.KindFloat:
		k.floats.Keys.Append(name)
		k.floats.Values.Append(v.Float())
	case event.KindBool:
		k.bools.Keys.Append(name)
		k.bools.Values.Append(v.Bool())
	}
}

func (k *kinds) end() {
	k.texts.End()
	k.jsons.End()
	k.ints.End()
	k.times.End()
	k.floats.End()
	k.bools.End()
}

// typed are the six columns of values that get adds.
func typed[T any](prefix string, get func(*T, *kinds)) []column[T] {
	key := clickhouse.NewText
	k := &kinds{
		texts: clickhouse.NewMap(key(), clickhouse.NewText()), jsons: clickhouse.NewMap(key(), clickhouse.NewText()),
		ints: clickhouse.NewMap(key(), clickhouse.NewInt64()), times: clickhouse.NewMap(key(), clickhouse.NewInt64()),
		floats: clickhouse.NewMap(key(), clickhouse.NewFloat64()), bools: clickhouse.NewMap(key(), clickhouse.NewBool()),
	}
	return []column[T]{
		{name: prefix + "_string", values: k.texts, add: func(r *row[T]) {
			get(r.rec, k)
			k.end()
		}},
		{name: prefix + "_int", values: k.ints}, {name: prefix + "_float", values: k.floats}, {name: prefix + "_bool", values: k.bools},
		{name: prefix + "_time", values: k.times}, {name: prefix + "_json", values: k.jsons},
	}
}
