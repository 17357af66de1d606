package console

import (
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"time"

	"github.com/spf13/cobra"

	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/fault"
)

func (a *app) sqlCommand() *cobra.Command {
	return &cobra.Command{
		Use: "sql QUERY", Short: "Ask ClickHouse; as a table, or with --json as JSON Lines",
		Long:    "The namespace's database is the default one. Views for people: events, profiles, outcomes, engagements, messages, funnel, conversions, links,\ntime_to_open, campaign_daily, cohorts, account_activity, run_balance, imports, freshness; DESCRIBE TABLE names and explains their columns.",
		Example: "  hikyaku sql 'SELECT * FROM run_balance' --json", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.query(cmd.Context(), args[0]) },
	}
}

func (a *app) query(ctx context.Context, query string) error {
	conn, err := a.clickhouse(ctx)
	if err != nil {
		return err
	}
	rows, err := conn.Query(ctx, query)
	if err != nil {
		return refusedQuery(err)
	}
	defer rows.Close()
	types := rows.ColumnTypes()
	names := rows.Columns()
	var table *longTable
	if !a.asJSON && len(names) > 0 {
		table = a.longTable(names...)
	}
	n := 0
	for ; rows.Next(); n++ {
		values := make([]any, len(types))
		for i, t := range types {
			values[i] = reflect.New(t.ScanType()).Interface()
		}
		if err := rows.Scan(values...); err != nil {
			return fmt.Errorf("reading a row: %w", err)
		}
		if a.asJSON {
			if err := a.printJSONRow(names, values); err != nil {
				return err
			}
			continue
		}
		row := make([]string, len(values))
		for i := range values {
			row[i] = cell(values[i])
		}
		table.row(row...)
	}
	if table != nil {
		table.flush()
	}
	if err := rows.Err(); err != nil {
		return refusedQuery(err)
	}
	if n == 0 && !a.asJSON {
		fmt.Fprintln(a.err, "no rows")
	}
	return nil
}

// refusedQuery tells a query that ClickHouse does not like from ClickHouse being
// away or full.
func refusedQuery(err error) error {
	if _, answered := clickhouse.Code(err); answered && fault.ClassOf(err) != fault.ClassTransient {
		return usage("%w", err)
	}
	return err
}

// printJSONRow prints one object, its columns in the order of the query.
func (a *app) printJSONRow(names []string, values []any) error {
	b := []byte{'{'}
	for i, name := range names {
		if i > 0 {
			b = append(b, ',')
		}
		key, err := json.Marshal(name)
		if err != nil {
			return err
		}
		value, err := json.Marshal(values[i])
		if err != nil {
			return fmt.Errorf("writing column %s: %w", name, err)
		}
		b = append(append(append(b, key...), ':'), value...)
	}
	_, err := fmt.Fprintf(a.out, "%s}\n", b)
	return err
}

// cell writes a value for people.
func cell(v any) string {
	e := reflect.ValueOf(v).Elem()
	if e.Kind() == reflect.Pointer {
		if e.IsNil() {
			return ""
		}
		e = e.Elem()
	}
	switch x := e.Interface().(type) {
	case time.Time:
		return moment(x)
	case string, bool, fmt.Stringer:
		return fmt.Sprint(x)
	}
	switch e.Kind() {
	case reflect.Map, reflect.Slice, reflect.Struct:
		// By its address: some of the driver's types write JSON only so.
		if b, err := json.Marshal(e.Addr().Interface()); err == nil {
			return string(b)
		}
	}
	return fmt.Sprint(e.Interface())
}
