package clickhouse

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/column"
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

// Send sends columns as one block and returns when its rows can be read. Its errors are
// those of Insert; but where the table has no such column yet it is Transient: an older table
// is waited for, since a row without the value would be one lost.
func (c *Conn) Send(ctx context.Context, table string, names []string, columns []Column) error {
	n := columns[0].Rows()
	if n == 0 {
		return nil
	}
	doing := fmt.Sprintf("inserting %d rows into %s", n, table)
	types, err := c.tables.of(ctx, c, table, names)
	if err != nil {
		if errors.Is(err, errNoColumn) {
			err = fault.Transient(err)
		}
		return fmt.Errorf("%s: %w", doing, err)
	}
	for i, col := range columns {
		switch {
		case col.Rows() != n:
			return fault.Fatal(fmt.Errorf("%s: %w: %s has %d", doing, errRowCount, names[i], col.Rows()))
		case col.Kind() != stored(types[i].Type):
			c.tables.forget(table) // it may be mended under us
			return fault.Fatal(fmt.Errorf("%s: the column %s is of type %s, not %s: is this release of the table?", doing, names[i], types[i].Type, col.Kind()))
		}
	}
	query := "INSERT INTO " + table + " (" + strings.Join(names, ", ") + ")"
	if c.options.Protocol == clickhouse.HTTP && c.options.Compression == nil {
		body := &body{rest: block(names, columns)}
		err = c.conn.InsertFormat(ctx, "Native", query, body)
		// A request that failed may still be on its way out, and the columns are the caller's again.
		body.end()
	} else {
		err = c.sendBatch(ctx, query, types, columns)
	}
	if err != nil {
		// The table may have been changed by a migration since its columns were asked for.
		c.tables.forget(table)
		return classify(ctx, doing, err)
	}
	return nil
}

// stored is the type of a column's values: those of a simple aggregate are what is aggregated.
func stored(kind string) string {
	if inner, ok := strings.CutPrefix(kind, "SimpleAggregateFunction("); ok {
		if _, of, ok := strings.Cut(strings.TrimSuffix(inner, ")"), ", "); ok {
			return of
		}
	}
	return kind
}

// body is what is sent of columns, until end is called: then nothing of them is touched
// any more, whoever still reads.
type body struct {
	mu    sync.Mutex
	rest  net.Buffers
	ended bool
}

var errBodyEnded = errors.New("the insert is over")

// Read implements io.Reader.
func (b *body) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.ended {
		return 0, errBodyEnded
	}
	return b.rest.Read(p)
}

func (b *body) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.rest, b.ended = nil, true
}

// block is columns in the format Native.
func block(names []string, columns []Column) net.Buffers {
	var body net.Buffers
	b := binary.AppendUvarint(nil, uint64(len(columns)))
	b = binary.AppendUvarint(b, uint64(columns[0].Rows()))
	for i, c := range columns {
		for _, s := range []string{names[i], c.Kind()} {
			b = append(binary.AppendUvarint(b, uint64(len(s))), s...)
		}
		body = append(body, c.prefix(b))
		c.parts(func(part []byte) {
			if len(part) > 0 {
				body = append(body, part)
			}
		})
		b = nil
	}
	return body
}

// sendBatch sends columns by a batch of the driver, which can do that by the native protocol
// and compressed too. Its columns read ours as if they came from a server.
func (c *Conn) sendBatch(ctx context.Context, query string, types []clickhouse.ColumnNameAndType, columns []Column) error {
	batch, err := c.conn.PrepareBatch(clickhouse.Context(ctx, clickhouse.WithColumnNamesAndTypes(types)), query)
	if err != nil {
		return err
	}
	defer batch.Close()
	for i, into := range batch.Columns() {
		if err := copyColumn(into, columns[i]); err != nil {
			batch.Abort()
			return fmt.Errorf("copying column %s: %w", types[i].Name, err)
		}
	}
	return batch.Send()
}

func copyColumn(into column.Interface, from Column) error {
	body := net.Buffers{from.prefix(nil)}
	from.parts(func(part []byte) { body = append(body, part) })
	r := proto.NewReader(&body)
	if special, ok := into.(column.CustomSerialization); ok {
		if err := special.ReadStatePrefix(r); err != nil {
			return err
		}
	}
	return into.Decode(r, from.Rows())
}

var errNoColumn = errors.New("has no column")

// columnsOfTables remembers the types of columns by insert. Over HTTP the driver
// would otherwise describe the table before each batch.
type columnsOfTables struct {
	mu    sync.Mutex
	known map[string][]clickhouse.ColumnNameAndType
}

func (t *columnsOfTables) of(ctx context.Context, c *Conn, table string, columns []string) (types []clickhouse.ColumnNameAndType, err error) {
	key := table + "(" + strings.Join(columns, ",") + ")"
	t.mu.Lock()
	known, ok := t.known[key]
	t.mu.Unlock()
	if ok {
		return known, nil
	}
	// Names come from code, never from input; this keeps it so.
	for _, name := range append([]string{table}, columns...) {
		if !identifier.MatchString(name) {
			return nil, fault.Fatal(fmt.Errorf("%q is not an identifier", name))
		}
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
			return nil, fault.Fatal(fmt.Errorf("table %s.%s %w %s to insert into: has provision run since the last release?", c.database, table, errNoColumn, name))
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
