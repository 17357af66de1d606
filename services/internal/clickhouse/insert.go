package clickhouse

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/hikyaku/hikyaku/services/internal/fault"
)

// Insert sends n rows as one block and returns when they can be read. Fill
// appends exactly n rows of the columns, in that order; what it returns is
// returned as it is. ClickHouse away or busy is transient; data that the server
// refuses is fatal and carries its Code. An insert that failed may still have
// happened: send the rows again, in any cut.
func (c *Conn) Insert(ctx context.Context, table string, columns []string, n int, fill func(batch driver.Batch) error) error {
	if n == 0 {
		return nil
	}
	// Names come from code, never from input; this keeps it so.
	for _, name := range append([]string{table}, columns...) {
		if !identifier.MatchString(name) {
			return fault.Fatal(fmt.Errorf("inserting into %s: %q is not an identifier", table, name))
		}
	}
	query := "INSERT INTO " + table + " (" + strings.Join(columns, ", ") + ")"
	doing := fmt.Sprintf("inserting %d rows into %s", n, table)
	types, err := c.tables.of(ctx, c, table, columns)
	if err != nil {
		return fmt.Errorf("%s: %w", doing, err)
	}
	batch, err := c.conn.PrepareBatch(clickhouse.Context(ctx, clickhouse.WithColumnNamesAndTypes(types)), query)
	if err != nil {
		return classify(ctx, doing, err)
	}
	defer batch.Close()
	if err := fill(batch); err != nil {
		batch.Abort()
		return err
	}
	if got := batch.Rows(); got != n {
		batch.Abort()
		return fault.Fatal(fmt.Errorf("%s: %w: %d", doing, errRowCount, got))
	}
	if err := batch.Send(); err != nil {
		// The table may have been changed by a migration since its columns were asked for.
		c.tables.forget(table)
		return classify(ctx, doing, err)
	}
	return nil
}

// columnsOfTables remembers the types of columns by insert. Over HTTP the driver
// would otherwise describe the table before each batch.
type columnsOfTables struct {
	mu    sync.Mutex
	known map[string][]clickhouse.ColumnNameAndType
}

func (t *columnsOfTables) of(ctx context.Context, c *Conn, table string, columns []string) ([]clickhouse.ColumnNameAndType, error) {
	key := table + "(" + strings.Join(columns, ",") + ")"
	t.mu.Lock()
	types, ok := t.known[key]
	t.mu.Unlock()
	if ok {
		return types, nil
	}
	r, err := c.Query(ctx, "SELECT name, type FROM system.columns WHERE database = {database:String} AND table = {table:String} AND default_kind NOT IN ('MATERIALIZED', 'ALIAS')",
		clickhouse.Named("database", c.database), clickhouse.Named("table", table))
	if err != nil {
		return nil, err
	}
	defer r.Close()
	typeOf := map[string]string{}
	for r.Next() {
		var name, typ string
		if err := r.Scan(&name, &typ); err != nil {
			return nil, fmt.Errorf("reading the columns of %s: %w", table, err)
		}
		typeOf[name] = typ
	}
	if err := r.Err(); err != nil {
		return nil, err
	}
	if len(typeOf) == 0 {
		return nil, fault.Fatal(fmt.Errorf("table %s.%s does not exist: has provision run?", c.database, table))
	}
	for _, name := range columns {
		typ, ok := typeOf[name]
		if !ok {
			return nil, fault.Fatal(fmt.Errorf("table %s.%s has no column %s to insert into: has provision run since the last release?", c.database, table, name))
		}
		types = append(types, clickhouse.ColumnNameAndType{Name: name, Type: typ})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.known == nil {
		t.known = map[string][]clickhouse.ColumnNameAndType{}
	}
	t.known[key] = types
	return types, nil
}

func (t *columnsOfTables) forget(table string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key := range t.known {
		if strings.HasPrefix(key, table+"(") {
			delete(t.known, key)
		}
	}
}
