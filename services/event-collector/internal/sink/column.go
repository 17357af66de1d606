package sink

import (
	"time"

	chcolumn "github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// column is one column of a table and how it is read off a record. A batch is
// appended column by column: row by row the driver would box every value.
type column[T any] struct {
	name string
	fill func(into driver.BatchColumn, rows []row[T]) error
	// moment returns a time that the database must be able to hold; nil for
	// columns of other types.
	moment func(*T) time.Time
}

// whole is a column whose values the driver takes as one slice of V.
func whole[T, V any](name string, get func(*row[T]) V) column[T] {
	return column[T]{name: name, fill: func(into driver.BatchColumn, rows []row[T]) error {
		values := make([]V, len(rows))
		for i := range rows {
			values[i] = get(&rows[i])
		}
		return into.Append(values)
	}}
}

func text[T any](name string, get func(*T) string) column[T] {
	return whole(name, func(r *row[T]) string { return get(&r.rec) })
}

func integer[T any, I int32 | int64 | uint32](name string, get func(*T) I) column[T] {
	return whole(name, func(r *row[T]) I { return get(&r.rec) })
}

func boolean[T any](name string, get func(*T) bool) column[T] {
	return whole(name, func(r *row[T]) bool { return get(&r.rec) })
}

func id[T any](name string, get func(*T) identity.ID) column[T] {
	return whole(name, func(r *row[T]) uuid.UUID { return uuid.UUID(get(&r.rec)) })
}

func maybeID[T any](name string, get func(*T) *identity.ID) column[T] {
	return whole(name, func(r *row[T]) *uuid.UUID { return (*uuid.UUID)(get(&r.rec)) })
}

func moment[T any](name string, get func(*T) time.Time) column[T] {
	c := whole(name, func(r *row[T]) time.Time { return get(&r.rec) })
	c.moment = get
	return c
}

func maybeMoment[T any](name string, get func(*T) *time.Time) column[T] {
	c := whole(name, func(r *row[T]) *time.Time { return get(&r.rec) })
	c.moment = func(rec *T) time.Time {
		if t := get(rec); t != nil {
			return *t
		}
		return time.Time{}
	}
	return c
}

// word is a LowCardinality column: few values, many rows. Each value is boxed
// once.
func word[T any](name string, get func(*T) string) column[T] {
	return column[T]{name: name, fill: func(into driver.BatchColumn, rows []row[T]) error {
		words := boxes{}
		for i := range rows {
			if err := into.AppendRow(words.of(get(&rows[i].rec))); err != nil {
				return err
			}
		}
		return nil
	}}
}

// mapping is a Map column for which get makes a Go map: for the tables of runs,
// which have few rows.
func mapping[T, V any](name string, get func(*T) map[string]V) column[T] {
	return column[T]{name: name, fill: func(into driver.BatchColumn, rows []row[T]) error {
		for i := range rows {
			if err := into.AppendRow(get(&rows[i].rec)); err != nil {
				return err
			}
		}
		return nil
	}}
}

// typed are six Map columns, one for each kind of value: a person's own values,
// each in the map of its type and null in none.
func typed[T any](prefix string, get func(*T, *entries)) []column[T] {
	var out []column[T]
	for _, k := range []struct {
		suffix string
		kind   event.Kind
	}{{"_string", event.KindString}, {"_int", event.KindInt}, {"_float", event.KindFloat}, {"_bool", event.KindBool}, {"_time", event.KindTime}, {"_json", event.KindJSON}} {
		out = append(out, listed(prefix+k.suffix, func(rec *T, e *entries) {
			e.kind = k.kind
			get(rec, e)
		}))
	}
	return out
}

// listed is a Map column whose entries are given one after another. Get hands
// them out without making a map: that is most of the time of an insert.
func listed[T any](name string, get func(*T, *entries)) column[T] {
	return column[T]{name: name, fill: func(into driver.BatchColumn, rows []row[T]) error {
		e := &entries{names: boxes{}}
		for i := range rows {
			e.keys, e.values, e.next = e.keys[:0], e.values[:0], 0
			get(&rows[i].rec, e)
			if err := into.AppendRow(e); err != nil {
				return err
			}
		}
		return nil
	}}
}

// boxes hold strings as the driver takes them, each allocated once.
type boxes map[string]any

func (b boxes) of(s string) any {
	v, ok := b[s]
	if !ok {
		v = s
		b[s] = v
	}
	return v
}

// entries is one row of a Map column; it implements the driver's
// IterableOrderedMap.
type entries struct {
	names        boxes
	kind         event.Kind
	keys, values []any
	next         int
}

// add puts the value into the row if it is of the column's kind.
func (e *entries) add(name string, v event.Value) {
	if v.Kind() != e.kind {
		return
	}
	var x any
	switch e.kind {
	case event.KindString, event.KindJSON:
		x = v.Text()
	case event.KindInt:
		x = v.Int()
	case event.KindFloat:
		x = v.Float()
	case event.KindBool:
		x = v.Bool()
	case event.KindTime:
		// Microseconds: an author may write any year, the database's own type ends
		// in 2299.
		x = v.Time().UnixMicro()
	default:
		return
	}
	e.Put(e.names.of(name), x)
}

// Put implements the driver's interface.
func (e *entries) Put(key, value any) {
	e.keys, e.values = append(e.keys, key), append(e.values, value)
}

// Iterator implements the driver's interface.
func (e *entries) Iterator() chcolumn.MapIterator { return e }

// Next implements the driver's interface.
func (e *entries) Next() bool {
	e.next++
	return e.next <= len(e.keys)
}

// Key implements the driver's interface.
func (e *entries) Key() any { return e.keys[e.next-1] }

// Value implements the driver's interface.
func (e *entries) Value() any { return e.values[e.next-1] }
