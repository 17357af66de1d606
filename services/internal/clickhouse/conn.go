// Package clickhouse is the way to ClickHouse: one connection pool per process
// that inserts whole batches, asks with bound parameters, applies migrations,
// and says of every failure whether waiting helps (package fault).
//
// What is inserted twice stays one row by the tables' own design, so nothing
// here tries to recognise a repeated insert.
package clickhouse

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Config is where ClickHouse is and how long it may take.
type Config struct {
	URL          string        `env:"CLICKHOUSE_URL, default=http://127.0.0.1:8123" unit:"URL" help:"http, https, clickhouse or clickhouses (native), with user and password if there are any"`
	QueryTimeout time.Duration `env:"CLICKHOUSE_QUERY_TIMEOUT, default=5m" help:"the longest any one statement may run"`
	DialTimeout  time.Duration `env:"CLICKHOUSE_DIAL_TIMEOUT, default=5s" help:"how long connecting may take"`
	MaxConns     int           `env:"CLICKHOUSE_MAX_CONNECTIONS, default=8" unit:"connections" help:"at most this many at once"`
	Compression  string        `env:"CLICKHOUSE_COMPRESSION, default=none" unit:"none, lz4 or zstd" help:"of what travels; worth it only over a network"`
}

// Validate refuses what Open could not use.
func (c Config) Validate() error {
	_, err := c.options("x")
	return err
}

// DefaultConfig is what an empty environment gives, for the engine at address.
func DefaultConfig(address string) Config {
	return Config{URL: address, QueryTimeout: 5 * time.Minute, DialTimeout: 5 * time.Second, MaxConns: 8, Compression: "none"}
}

func (c Config) options(database string) (*clickhouse.Options, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		// Neither the value nor url.Parse's error is shown: both hold the password.
		return nil, config.Invalid("CLICKHOUSE_URL", "…", "a URL such as http://127.0.0.1:8123")
	}
	native, secure := false, false
	switch u.Scheme {
	case "http":
	case "https":
		secure = true
	case "clickhouse":
		native = true
	case "clickhouses":
		native, secure = true, true
	default:
		return nil, config.Invalid("CLICKHOUSE_URL", u.Redacted(), "a URL that begins with http, https, clickhouse or clickhouses")
	}
	switch {
	case u.Host == "":
		return nil, config.Invalid("CLICKHOUSE_URL", u.Redacted(), "a URL with a host")
	case u.Path != "" && u.Path != "/":
		return nil, config.Invalid("CLICKHOUSE_URL", u.Redacted(), "a URL without a path: the database is the namespace")
	case c.QueryTimeout < time.Second:
		return nil, config.Invalid("CLICKHOUSE_QUERY_TIMEOUT", c.QueryTimeout, "at least 1s")
	case c.MaxConns < 1:
		return nil, config.Invalid("CLICKHOUSE_MAX_CONNECTIONS", c.MaxConns, "at least 1")
	}
	o := &clickhouse.Options{
		Addr:         []string{u.Host},
		Auth:         clickhouse.Auth{Database: database},
		DialTimeout:  c.DialTimeout,
		MaxOpenConns: c.MaxConns,
		MaxIdleConns: c.MaxConns,
		// The server ends a query at its time; the client waits a little longer,
		// so that it hears of it.
		ReadTimeout: c.QueryTimeout + 10*time.Second,
		Settings: clickhouse.Settings{
			// 26.5 turned it on by default: an insert would be answered before its rows
			// can be read, and the freshness barrier would lie.
			"async_insert": 0,
			// Nothing stops a query whose client has gone away but its time.
			"max_execution_time": int(c.QueryTimeout.Seconds()),
			// A batch read after a long pause spans many months of record time, and
			// must not stop the sink.
			"max_partitions_per_insert_block": 0,
			// Copies of one row may lie in different partitions.
			"do_not_merge_across_partitions_select_final": 0,
			// Copies of one row are found when parts are merged or read, with FINAL.
			// To look for them in each block that comes in as well took the sink's
			// benchmark 28 % more CPU with outcomes and 7 % more with events, of which
			// no two were copies (engine included, means of 11 runs in turns).
			"optimize_on_insert": 0,
			// What was inserted must be seen by the count that follows.
			"select_sequential_consistency": 1,
		},
	}
	if u.User != nil {
		o.Auth.Username = u.User.Username()
		o.Auth.Password, _ = u.User.Password()
	}
	// ParseDSN sets the scheme and TLS that Options keeps to itself.
	if !native {
		o.Protocol = clickhouse.HTTP
	}
	if secure {
		parsed, err := clickhouse.ParseDSN("clickhouse://" + u.Host + "?secure=true")
		if err != nil {
			return nil, config.Invalid("CLICKHOUSE_URL", u.Redacted(), "a URL such as https://host:8443")
		}
		o.TLS = parsed.TLS
	}
	switch c.Compression {
	case "", "none":
	case "lz4":
		o.Compression = &clickhouse.Compression{Method: clickhouse.CompressionLZ4}
	case "zstd":
		o.Compression = &clickhouse.Compression{Method: clickhouse.CompressionZSTD, Level: 1}
	default:
		return nil, config.Invalid("CLICKHOUSE_COMPRESSION", c.Compression, "none, lz4 or zstd")
	}
	return o, nil
}

// Database is the database of a namespace: the same name, as an identifier.
func Database(namespace string) string {
	return strings.NewReplacer("-", "_", ".", "_").Replace(namespace)
}

// Conn is a pool of connections to one namespace's database. It is safe for use
// by several goroutines.
type Conn struct {
	conn     driver.Conn
	options  *clickhouse.Options
	database string
	// tables remembers the columns of each insert, so that a batch costs one
	// round trip and not two.
	tables columnsOfTables
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// Open checks the settings and connects to nothing.
func Open(cfg Config, namespace string) (*Conn, error) {
	database := Database(namespace)
	if !identifier.MatchString(database) {
		return nil, config.Invalid("NAMESPACE", namespace, "letters, digits, - and .; it names the ClickHouse database")
	}
	options, err := cfg.options(database)
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(options)
	if err != nil {
		return nil, fmt.Errorf("opening ClickHouse: %w", err)
	}
	return &Conn{conn: conn, options: options, database: database}, nil
}

// Database is the name of the database that statements run in.
func (c *Conn) Database() string { return c.database }

// Close lets go of the connections.
func (c *Conn) Close() error { return c.conn.Close() }

// Ping asks whether ClickHouse answers. Away is transient.
func (c *Conn) Ping(ctx context.Context) error {
	if err := c.conn.Ping(ctx); err != nil {
		return classify(ctx, "reaching ClickHouse", err)
	}
	return nil
}

// Await waits until ClickHouse answers, as long as it takes, and says in health
// that it is waiting. It returns early with ctx's error or a fatal one (a wrong
// password).
func (c *Conn) Await(ctx context.Context, health *telemetry.Health) error {
	for pause := 100 * time.Millisecond; ; pause = min(2*pause, 5*time.Second) {
		// Ping answers even where the database is missing or the password is wrong.
		var one uint8
		err := c.QueryRow(ctx, "SELECT 1").Scan(&one)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		health.Set("clickhouse", err)
		if err == nil || fault.ClassOf(err) != fault.ClassTransient {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}

// Exec runs a statement that answers nothing.
func (c *Conn) Exec(ctx context.Context, query string, args ...any) error {
	if err := c.conn.Exec(ctx, query, args...); err != nil {
		return classify(ctx, "running "+abbreviate(query), err)
	}
	return nil
}

// Query asks with parameters bound by clickhouse.Named to {name:Type} in the
// query. Close the rows; their Err is classified too.
func (c *Conn) Query(ctx context.Context, query string, args ...any) (driver.Rows, error) {
	r, err := c.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, classify(ctx, "asking "+abbreviate(query), err)
	}
	return &rows{r, ctx, query}, nil
}

// QueryRow asks for one row. Its Scan fails with sql.ErrNoRows when there is
// none; other errors are classified.
func (c *Conn) QueryRow(ctx context.Context, query string, args ...any) driver.Row {
	return &row{c.conn.QueryRow(ctx, query, args...), ctx, query}
}

// Select scans all rows into dest, a pointer to a slice of structs with ch tags.
func (c *Conn) Select(ctx context.Context, dest any, query string, args ...any) error {
	if err := c.conn.Select(ctx, dest, query, args...); err != nil {
		return classify(ctx, "asking "+abbreviate(query), err)
	}
	return nil
}

type rows struct {
	driver.Rows
	ctx   context.Context
	query string
}

func (r *rows) Err() error {
	if err := r.Rows.Err(); err != nil {
		return classify(r.ctx, "reading the answer to "+abbreviate(r.query), err)
	}
	return nil
}

func (r *rows) Close() error {
	if err := r.Rows.Close(); err != nil {
		return classify(r.ctx, "reading the answer to "+abbreviate(r.query), err)
	}
	return nil
}

type row struct {
	driver.Row
	ctx   context.Context
	query string
}

func (r *row) wrap(err error) error {
	if err == nil {
		return nil
	}
	return classify(r.ctx, "asking "+abbreviate(r.query), err)
}

func (r *row) Err() error                { return r.wrap(r.Row.Err()) }
func (r *row) Scan(dest ...any) error    { return r.wrap(r.Row.Scan(dest...)) }
func (r *row) ScanStruct(dest any) error { return r.wrap(r.Row.ScanStruct(dest)) }

// abbreviate is the beginning of a query, enough to find it in the code.
func abbreviate(query string) string {
	query = strings.Join(strings.Fields(query), " ")
	if len(query) > 80 {
		cut := 80
		for cut > 0 && query[cut]&0xC0 == 0x80 { // not inside a character
			cut--
		}
		query = query[:cut] + "…"
	}
	return query
}

var errRowCount = errors.New("the batch was filled with another number of rows")
