package export

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/hikyaku/hikyaku/schemas/definition"
	"github.com/hikyaku/hikyaku/schemas/definition/filter"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/audience"
)

// column is one of an export's columns.
type column struct {
	name     string
	kind     kind
	required bool   // it always has a value
	sql      string // what is selected for it; one expression or several
	read     func(*reader, *cell)
}

// query is what ClickHouse is asked: for each row a key, by which the rows are sorted, and the row
// itself in the format RowBinary.
type query struct {
	sql    string
	params map[string]string
	ranges bool // it may be asked for ranges of user_id, one after the other
}

// answered is how an answer comes.
const answered = " FORMAT RowBinary"

// boundaries asks for about one id in so many, between which lie ranges that are read one after the other.
const boundaries = "SELECT user_id, '' FROM profiles WHERE cityHash64(user_id) % 65536 = 0"

// between is the query for the ids above lo and up to hi, which is the last range if it is empty.
func (q query) between(lo, hi string) query {
	out := query{sql: q.sql + " WHERE user_id > {lo:String}", params: maps.Clone(q.params)}
	out.params["lo"] = lo
	if hi != "" {
		out.sql += " AND user_id <= {hi:String}"
		out.params["hi"] = hi
	}
	return out
}

// binder gives each argument a name: {a0:String}.
type binder struct{ params map[string]string }

func (b *binder) bind(v any) string {
	name := "a" + strconv.Itoa(len(b.params))
	kind, text := "String", fmt.Sprint(v)
	switch v.(type) {
	case int, int32, int64:
		kind = "Int64"
	case uint64:
		kind = "UInt64"
	case float64:
		kind, text = "Float64", fmt.Sprintf("%.17g", v)
	case bool:
		kind = "Bool"
	}
	b.params[name] = text
	return "{" + name + ":" + kind + "}"
}

// all replaces the question marks of a compiled filter. They stand nowhere but for
// arguments: its texts are arguments too.
func (b *binder) all(q audience.Query) string {
	parts := strings.Split(q.SQL, "?")
	var out strings.Builder
	for i, p := range parts {
		out.WriteString(p)
		if i < len(q.Args) {
			out.WriteString(b.bind(q.Args[i]))
		}
	}
	return out.String()
}

// columnsOf are the columns of an export; its parameters come first.
func columnsOf(e *definition.Export, b *binder) []column {
	hex := func(name string) column {
		return column{name, kindString, true, "lower(hex(" + name + "))", readString}
	}
	text := func(name string) column {
		return column{name, kindString, false, "nullIf(CAST(" + name + ", 'String'), '')", readNullableString}
	}
	micros := func(name string) column {
		return column{name, kindTime, true, "toUnixTimestamp64Micro(" + name + ")", readInt}
	}
	user := column{"user_id", kindString, true, "user_id", readString}
	switch e.What {
	case definition.WhatOutcomes:
		return []column{
			hex("outcome_id"), hex("message_id"), hex("run_id"), text("campaign_id"), user, text("channel"), text("outcome"),
			{"attempt", kindInt, true, "toInt64(attempt)", readInt}, text("reason"), text("detail"), micros("occurred_at"), text("provider"), text("provider_id"),
		}
	case definition.WhatEngagement:
		return []column{
			hex("engagement_id"), hex("message_id"), hex("run_id"), text("campaign_id"), user, text("channel"), text("kind"), text("url"),
			micros("occurred_at"), text("user_agent"), text("network"), text("referer"),
		}
	}
	// Maps with LowCardinality keys take several times as long, to sort and to write.
	object := func(name string) column {
		return column{name, kindJSON, true, "CAST(" + name + ", 'Map(String, String)')", readMap}
	}
	columns := []column{user}
	if len(e.Attributes) == 0 {
		columns = append(columns, column{"attributes", kindJSON, true, "attr_string, attr_int, attr_float, attr_bool, attr_time, attr_json", readAttributes})
	}
	for _, name := range e.AttributeNames() {
		columns = append(columns, attribute(name, e.Attributes[name], b.bind(name)))
	}
	return append(columns, object("addresses"), object("consents"), text("locale"), text("time_zone"), text("account_id"))
}

// attribute is the column of one attribute. A value of another type is left out.
func attribute(name, kind, bound string) column {
	from := func(sources ...string) string {
		var sql strings.Builder
		sql.WriteString("multiIf(")
		for _, m := range sources {
			value := m + "[" + bound + "]"
			if m == "attr_int" && kind == definition.TypeDecimal {
				value = "toFloat64(" + value + ")"
			}
			fmt.Fprintf(&sql, "mapContains(%s, %s), %s, ", m, bound, value)
		}
		sql.WriteString("NULL)")
		return sql.String()
	}
	switch kind {
	case definition.TypeInt:
		return column{name, kindInt, false, from("attr_int"), readNullableInt}
	case definition.TypeDecimal:
		return column{name, kindFloat, false, from("attr_float", "attr_int"), readNullableFloat}
	case definition.TypeBool:
		return column{name, kindBool, false, from("attr_bool"), readNullableBool}
	case definition.TypeTime:
		return column{name, kindTime, false, from("attr_time"), readNullableInt}
	case definition.TypeJSON:
		return column{name, kindJSON, false, from("attr_json"), readNullableString}
	}
	return column{name, kindString, false, from("attr_string"), readNullableString}
}

// queryOf makes the query of an export. Filter is that of its audience or segment, else nil.
func queryOf(e *definition.Export, n *filter.Node, at audience.Moment) (query, []column, error) {
	b := &binder{params: map[string]string{}}
	columns := columnsOf(e, b)
	selected := make([]string, len(columns))
	for i, c := range columns {
		selected[i] = c.sql
	}
	q := query{params: b.params}
	row := "formatRow('RowBinary', " + strings.Join(selected, ", ") + ") FROM "
	switch e.What {
	case definition.WhatOutcomes, definition.WhatEngagement:
		table, id := "outcomes", "outcome_id"
		if e.What == definition.WhatEngagement {
			table, id = "engagements", "engagement_id"
		}
		q.sql = "SELECT concat(hex(run_id), hex(message_id), hex(" + id + ")), " + row + table
		switch {
		case e.Run != "":
			run, err := identity.Parse(e.Run)
			if err != nil {
				return q, nil, err
			}
			q.sql += " WHERE run_id = toUUID(" + b.bind(run.UUID()) + ")"
		case e.Campaign != "":
			q.sql += " WHERE campaign_id = " + b.bind(e.Campaign)
		}
		return q, columns, nil
	}
	q.sql = "SELECT user_id, " + row + "profiles"
	if n == nil {
		q.ranges = true
		return q, columns, nil
	}
	_, where, found := strings.Cut(b.all(audience.Members(n, at)), " FROM profiles WHERE ")
	if !found {
		return q, nil, errors.New("compiling the audience: not the query of profiles that is known")
	}
	q.sql += " WHERE " + where
	return q, columns, nil
}
