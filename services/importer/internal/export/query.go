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
	required bool     // it always has a value
	sql      []string // what is selected for it; several for the maps of one object
	maps     []kind   // what the values of these maps are, if it is a JSON object made of maps
}

// types are what ClickHouse calls what is selected for it.
func (c *column) types() []string {
	of := func(k kind) string {
		switch k {
		case kindInt, kindTime:
			return "Int64"
		case kindFloat:
			return "Float64"
		case kindBool:
			return "Bool"
		}
		return "String"
	}
	if c.maps == nil && c.required {
		return []string{of(c.kind)}
	} else if c.maps == nil {
		return []string{"Nullable(" + of(c.kind) + ")"}
	}
	var all []string
	for _, k := range c.maps {
		all = append(all, "Map(String, "+of(k)+")")
	}
	return all
}

// query is what ClickHouse is asked: for each row a key, by which the rows are sorted, and what the
// columns are made of.
type query struct {
	sql    string
	types  []string
	params map[string]string
	ranges bool // it may be asked for ranges of user_id, one after the other
}

// answered is how an answer comes. Larger blocks are not faster.
const answered = " SETTINGS max_block_size = 8192 FORMAT Native"

// boundaries asks for about one id in 2,048, for some of them more than once. Between some of them lie ranges
// that are read one after the other.
var boundaries = query{sql: "SELECT user_id FROM profile_rows WHERE cityHash64(user_id) % 2048 = 0", types: []string{"String"}}

// between is the query for the ids above lo and up to hi, which is the last range if it is empty.
func (q query) between(lo, hi string) query {
	out := query{sql: q.sql + " WHERE user_id > {lo:String}", types: q.types, params: maps.Clone(q.params)}
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
		return column{name: name, kind: kindString, required: true, sql: []string{"lower(hex(" + name + "))"}}
	}
	text := func(name string) column {
		return column{name: name, kind: kindString, sql: []string{"nullIf(CAST(" + name + ", 'String'), '')"}}
	}
	micros := func(name string) column {
		return column{name: name, kind: kindTime, required: true, sql: []string{"toUnixTimestamp64Micro(" + name + ")"}}
	}
	user := column{name: "user_id", kind: kindString, required: true, sql: []string{"user_id"}}
	switch e.What {
	case definition.WhatOutcomes:
		return []column{
			hex("outcome_id"), hex("message_id"), hex("run_id"), text("campaign_id"), user, text("channel"), text("outcome"),
			{name: "attempt", kind: kindInt, required: true, sql: []string{"toInt64(attempt)"}}, text("reason"), text("detail"), micros("occurred_at"), text("provider"), text("provider_id"),
		}
	case definition.WhatEngagement:
		return []column{
			hex("engagement_id"), hex("message_id"), hex("run_id"), text("campaign_id"), user, text("channel"), text("kind"), text("url"),
			micros("occurred_at"), text("user_agent"), text("network"), text("referer"),
		}
	}
	// Maps with LowCardinality keys take several times as long, to sort and to write.
	object := func(name string) column {
		return column{name: name, kind: kindJSON, required: true, sql: []string{"CAST(" + name + ", 'Map(String, String)')"}, maps: []kind{kindString}}
	}
	columns := []column{user}
	if len(e.Attributes) == 0 {
		columns = append(columns, column{
			name: "attributes", kind: kindJSON, required: true,
			sql:  []string{"attr_string", "attr_int", "attr_float", "attr_bool", "attr_time", "attr_json"},
			maps: []kind{kindString, kindInt, kindFloat, kindBool, kindTime, kindJSON},
		})
	}
	for _, name := range e.AttributeNames() {
		columns = append(columns, attribute(name, e.Attributes[name], b.bind(name)))
	}
	return append(columns, object("addresses"), object("consents"), text("locale"), text("time_zone"), text("account_id"))
}

// attribute is the column of one attribute. A value of another type is left out.
func attribute(name, kind, bound string) column {
	from := func(sources ...string) []string {
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
		return []string{sql.String()}
	}
	switch kind {
	case definition.TypeInt:
		return column{name: name, kind: kindInt, sql: from("attr_int")}
	case definition.TypeDecimal:
		return column{name: name, kind: kindFloat, sql: from("attr_float", "attr_int")}
	case definition.TypeBool:
		return column{name: name, kind: kindBool, sql: from("attr_bool")}
	case definition.TypeTime:
		return column{name: name, kind: kindTime, sql: from("attr_time")}
	case definition.TypeJSON:
		return column{name: name, kind: kindJSON, sql: from("attr_json")}
	}
	return column{name: name, kind: kindString, sql: from("attr_string")}
}

// queryOf makes the query of an export. Filter is that of its audience or segment, else nil.
func queryOf(e *definition.Export, n *filter.Node, at audience.Moment) (query, []column, error) {
	b := &binder{params: map[string]string{}}
	columns := columnsOf(e, b)
	var selected []string
	q := query{types: []string{"String"}, params: b.params}
	for _, c := range columns {
		selected = append(selected, c.sql...)
		q.types = append(q.types, c.types()...)
	}
	from := strings.Join(selected, ", ") + " FROM "
	switch e.What {
	case definition.WhatOutcomes, definition.WhatEngagement:
		table, id := "outcomes", "outcome_id"
		if e.What == definition.WhatEngagement {
			table, id = "engagements", "engagement_id"
		}
		q.sql = "SELECT concat(hex(run_id), hex(message_id), hex(" + id + ")), " + from + table
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
	q.sql = "SELECT user_id, " + from + "profiles"
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
