package audience

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
)

// Moment is what a filter is evaluated against: a point in time, and the
// imports that make up each segment then.
type Moment struct {
	AsOf     time.Time
	Segments []event.SegmentPin
}

// Query is SQL with its bound arguments, one for each question mark.
type Query struct {
	SQL  string
	Args []any
}

// Members selects the user_id of everybody in the audience.
func Members(n *filter.Node, at Moment) Query {
	c := compiler{at: at}
	c.sql.WriteString("SELECT user_id FROM profiles WHERE ")
	c.node(n)
	return Query{c.sql.String(), c.args}
}

// Count counts them.
func Count(n *filter.Node, at Moment) Query {
	q := Members(n, at)
	q.SQL = strings.Replace(q.SQL, "SELECT user_id", "SELECT count()", 1)
	return q
}

// Shard selects at most limit members whose hash modulo of is shard.
func Shard(n *filter.Node, at Moment, shard, of int32, limit int) Query {
	c := compiler{at: at}
	c.sql.WriteString("SELECT user_id FROM profiles WHERE ")
	c.bind("cityHash64(user_id) % ? = ? AND ", of, shard)
	c.node(n)
	c.bind(" LIMIT ?", limit)
	return Query{c.sql.String(), c.args}
}

type compiler struct {
	sql  strings.Builder
	args []any
	at   Moment
}

func (c *compiler) bind(sql string, args ...any) {
	c.sql.WriteString(sql)
	c.args = append(c.args, args...)
}

func (c *compiler) list(nodes []*filter.Node, op string) {
	for i, n := range nodes {
		if i > 0 {
			c.sql.WriteString(op)
		}
		c.node(n)
	}
}

func (c *compiler) node(n *filter.Node) {
	c.sql.WriteByte('(')
	defer c.sql.WriteByte(')')
	switch {
	case n.All != nil:
		c.list(n.All, " AND ")
	case n.Any != nil:
		c.list(n.Any, " OR ")
	case n.Not != nil:
		c.sql.WriteString("NOT ")
		c.node(n.Not)
	case n.Attribute != nil:
		c.ops("attr", n.Attribute.Name, n.Attribute.Ops)
	case n.Event != nil:
		c.event(n.Event)
	case n.Segment != "":
		c.segment(n.Segment)
	default:
		c.sql.WriteString("false")
	}
}

// ops compares the value named name in the typed maps with a prefix. A value
// is in exactly one of them, so that a comparison with another type finds
// nothing.
func (c *compiler) ops(prefix, name string, o filter.Ops) {
	if o.Exists != nil {
		if !*o.Exists {
			c.sql.WriteString("NOT ")
		}
		c.sql.WriteByte('(')
		for i, m := range []string{"string", "int", "float", "bool", "time", "json"} {
			if i > 0 {
				c.sql.WriteString(" OR ")
			}
			c.bind(fmt.Sprintf("mapContains(%s_%s, ?)", prefix, m), name)
		}
		c.sql.WriteByte(')')
		return
	}
	for i, column := range columns(kindOf(o)) {
		if i > 0 {
			c.sql.WriteString(" OR ")
		}
		c.compare(prefix+"_"+column, name, o)
	}
}

// kindOf returns the kind of the literals of a comparison: all have one.
func kindOf(o filter.Ops) filter.Kind {
	if len(o.In) > 0 {
		return o.In[0].Kind
	}
	for _, v := range []*filter.Value{o.Gte, o.Gt, o.Lte, o.Lt} {
		if v != nil {
			return v.Kind
		}
	}
	return 0
}

// columns are the maps that hold values of a kind. ClickHouse compares whole
// numbers with floats exactly.
func columns(k filter.Kind) []string {
	switch k {
	case filter.String:
		return []string{"string"}
	case filter.Int, filter.Float:
		return []string{"int", "float"}
	case filter.Bool:
		return []string{"bool"}
	case filter.Time:
		return []string{"time"}
	}
	return nil
}

func (c *compiler) compare(column, name string, o filter.Ops) {
	// m[k] of a key that is not there is the type's default: ask first.
	c.bind("mapContains("+column+", ?)", name)
	if len(o.In) > 0 {
		c.sql.WriteString(" AND (")
		for i, v := range o.In {
			if i > 0 {
				c.sql.WriteString(" OR ")
			}
			// Not IN: it would convert the literals to the column's type.
			c.bind(column+"[?] = "+literal(v), name, argument(v))
		}
		c.sql.WriteByte(')')
	}
	for _, b := range []struct {
		op string
		v  *filter.Value
	}{{">=", o.Gte}, {">", o.Gt}, {"<=", o.Lte}, {"<", o.Lt}} {
		if b.v != nil {
			c.bind(" AND "+column+"[?] "+b.op+" "+literal(*b.v), name, argument(*b.v))
		}
	}
}

// literal is the placeholder of a value, with the type that the driver's text
// does not carry: a whole float is written without a point.
func literal(v filter.Value) string {
	switch v.Kind {
	case filter.Float:
		return "toFloat64(?)"
	case filter.Int, filter.Time:
		return "toInt64(?)"
	}
	return "?"
}

func argument(v filter.Value) any {
	switch v.Kind {
	case filter.Float:
		// As text: ClickHouse reads it to the nearest double, the driver's own
		// form of very large and very small numbers is not for us to rely on.
		return fmt.Sprintf("%.17g", v.Float)
	case filter.Time:
		return v.Time.UnixMicro()
	}
	return v.Any()
}

// event finds people by how many distinct events of theirs satisfy it. A count
// that zero satisfies is true of people without any, so it is asked the other
// way round.
func (c *compiler) event(e *filter.Event) {
	zero := e.Count.Has(0)
	if zero && e.Count.Lte == nil {
		c.sql.WriteString("true")
		return
	}
	if zero {
		c.sql.WriteString("user_id NOT IN (")
	} else {
		c.sql.WriteString("user_id IN (")
	}
	c.bind("SELECT user_id FROM events WHERE name = ?", e.Name)
	const instant = "fromUnixTimestamp64Micro(toInt64(?), 'UTC')"
	if e.Within > 0 {
		c.bind(" AND occurred_at > "+instant+" AND occurred_at <= "+instant, c.at.AsOf.Add(-e.Within.Duration()).UnixMicro(), c.at.AsOf.UnixMicro())
	}
	if e.Since != nil {
		c.bind(" AND occurred_at >= "+instant, e.Since.UnixMicro())
	}
	if e.Until != nil {
		c.bind(" AND occurred_at < "+instant, e.Until.UnixMicro())
	}
	for _, w := range e.Where {
		c.sql.WriteString(" AND (")
		c.ops("prop", w.Property, w.Ops)
		c.sql.WriteByte(')')
	}
	c.sql.WriteString(" GROUP BY user_id HAVING ")
	switch {
	case zero:
		c.bind("uniqExact(event_id) > ?", *e.Count.Lte)
	case e.Count.Lte != nil:
		c.bind("uniqExact(event_id) >= ? AND uniqExact(event_id) <= ?", e.Count.Gte, *e.Count.Lte)
	default:
		c.bind("uniqExact(event_id) >= ?", e.Count.Gte)
	}
	c.sql.WriteByte(')')
}

// segment is membership in the imports that made up the segment at the moment.
func (c *compiler) segment(id string) {
	for i := range c.at.Segments {
		if pin := &c.at.Segments[i]; pin.SegmentID == id && len(pin.ImportIDs) > 0 {
			c.sql.WriteString("user_id IN (")
			c.members(pin, nil)
			c.sql.WriteByte(')')
			return
		}
	}
	c.sql.WriteString("false")
}

// Segment selects the user_id of the segment's members, once or more often each:
// all of them, or those among some people.
func Segment(pin *event.SegmentPin, among []string) Query {
	var c compiler
	c.members(pin, among)
	return Query{c.sql.String(), c.args}
}

// members reads rows without FINAL: being in the list does not depend on which of two
// copies of a row wins. Only where an import removes does it matter which is the last
// that lists a person; and only its place among spans of imports that do the same.
func (c *compiler) members(pin *event.SegmentPin, among []string) {
	c.bind("SELECT user_id FROM segment_member_rows WHERE segment_id = ? AND import_id IN (", pin.SegmentID)
	c.imports(pin.ImportIDs)
	c.sql.WriteByte(')')
	if among != nil {
		c.bind(" AND user_id IN (?)", among)
	}
	if len(pin.Removes) == 0 {
		return
	}
	spans, largest := spansOf(pin), 0
	for i := range spans {
		if len(spans[i]) > len(spans[largest]) {
			largest = i
		}
	}
	// Spans that remove have even numbers. The largest is whatever is in no other.
	c.sql.WriteString(" GROUP BY user_id HAVING max(multiIf(")
	for i, span := range spans {
		if i != largest && len(span) > 0 {
			c.sql.WriteString("import_id IN (")
			c.imports(span)
			c.bind("), ?, ", i+1)
		}
	}
	// A condition that never holds: multiIf wants one.
	c.bind("false, 0, ?)) % 2 = 1", largest+1)
}

// spansOf cuts the imports of a segment where they turn from making members to
// removing and back; the first makes members, and may be empty.
func spansOf(pin *event.SegmentPin) [][]identity.ID {
	spans := [][]identity.ID{nil}
	for _, id := range pin.ImportIDs {
		if removes := len(spans)%2 == 0; removes != slices.Contains(pin.Removes, id) {
			spans = append(spans, nil)
		}
		last := len(spans) - 1
		spans[last] = append(spans[last], id)
	}
	return spans
}

func (c *compiler) imports(ids []identity.ID) {
	for i, id := range ids {
		if i > 0 {
			c.sql.WriteString(", ")
		}
		c.bind("toUUID(?)", id.UUID())
	}
}
