package clickhouse_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"
	"time"

	ch "github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"

	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse/clickhousetest"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

func TestTheURLIsChecked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ url, namespace, want string }{
		{"ftp://h", "ns", "CLICKHOUSE_URL"},
		{"http://", "ns", "host"},
		{"http://h/db", "ns", "the database is the namespace"},
		{"http://user:hunter2@h/db", "ns", "CLICKHOUSE_URL"},
		{"http://user:hunter2@h:port", "ns", "CLICKHOUSE_URL"},
		{"http://h", "a b", "NAMESPACE"},
	} {
		_, err := clickhouse.Open(clickhouse.DefaultConfig(c.url), c.namespace)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: got %v", c.url, err)
		}
	}
	for _, url := range []string{"http://h:8123", "https://u:p@h:8443/", "clickhouse://h:9000", "clickhouses://h:9440"} {
		c, err := clickhouse.Open(clickhouse.DefaultConfig(url), "my-name.space")
		if err != nil || c.Database() != "my_name_space" {
			t.Errorf("%s: got %v", url, err)
		}
	}
}

func TestAwayIsTransient(t *testing.T) {
	t.Parallel()
	const refused = "127.0.0.1:1" // where nobody listens, nor gets to by asking for any port
	gateway := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }))
	defer gateway.Close()
	hangup := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }))
	defer hangup.Close()
	for name, url := range map[string]string{
		"refused": "http://" + refused, "refused native": "clickhouse://" + refused, "a gateway's answer": gateway.URL, "hung up": hangup.URL,
	} {
		c, err := clickhouse.Open(clickhouse.DefaultConfig(url), "ns")
		if err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		_, queryErr := c.Query(ctx, "SELECT 1")
		_, migrateErr := c.Migrate(ctx, migrations.FS)
		for what, err := range map[string]error{
			"ping": c.Ping(ctx), "exec": c.Exec(ctx, "SELECT 1"), "query": queryErr, "query row": c.QueryRow(ctx, "SELECT 1").Scan(new(uint8)), "migrate": migrateErr,
			"insert": c.Insert(ctx, "t", []string{"x"}, 1, func(driver.Batch) error { return nil }),
		} {
			if err == nil || fault.ClassOf(err) != fault.ClassTransient {
				t.Errorf("%s, %s: %v is %v", name, what, err, fault.ClassOf(err))
			}
		}
	}
}

func TestOurOwnCancellationIsNotTheServersFault(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Exec(ctx, "SELECT 1"); !errors.Is(err, context.Canceled) || fault.ClassOf(err) == fault.ClassTransient {
		t.Errorf("got %v, %v", err, fault.ClassOf(err))
	}
}

func TestAwaitSaysThatItWaitsAndRecoversByItself(t *testing.T) {
	t.Parallel()
	// It comes up later: what listens here forwards to the engine then.
	engine := strings.TrimPrefix(clickhousetest.Config(t).URL, "http://")
	var up atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !up.Load() {
			panic(http.ErrAbortHandler)
		}
		forward(w, r, engine)
	}))
	defer server.Close()
	c, err := clickhouse.Open(clickhouse.DefaultConfig(server.URL), "default")
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	tel := telemetry.New("sink", telemetry.Config{}, &log)
	ready := make(chan error, 1)
	go func() { ready <- c.Await(t.Context(), tel.Health) }()
	for len(tel.Health.NotReady()) == 0 {
		select {
		case err := <-ready:
			t.Fatalf("did not wait: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
	up.Store(true)
	select {
	case err := <-ready:
		if err != nil || len(tel.Health.NotReady()) != 0 {
			t.Errorf("got %v, not ready %v", err, tel.Health.NotReady())
		}
	case <-time.After(30 * time.Second):
		t.Fatal("does not recover")
	}
	if strings.Count(log.String(), "component is not ready") != 1 || strings.Count(log.String(), "component is ready again") != 1 {
		t.Errorf("changes are logged once:\n%s", &log)
	}
}

func TestWhatTheServerRefusesKeepsItsCode(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	ctx := t.Context()
	_, err := c.Query(ctx, "SELECT 1 FROM nothing_here")
	if code, ok := clickhouse.Code(err); !ok || code != 60 || fault.ClassOf(err) != fault.ClassFatal {
		t.Errorf("got code %d, class %v of %v", code, fault.ClassOf(err), err)
	}
	err = c.QueryRow(ctx, "SELECT throwIf(1)").Scan(new(uint8))
	if code, _ := clickhouse.Code(err); code != 395 {
		t.Errorf("got code %d of %v", code, err)
	}
	// In the middle of an answer, after rows have been handed out.
	r, err := c.Query(ctx, "SELECT throwIf(number = 3000000) FROM numbers(4000000) SETTINGS max_block_size = 1000, max_threads = 1")
	if err == nil {
		for r.Next() {
		}
		err = r.Err()
	}
	if code, _ := clickhouse.Code(err); code != 395 {
		t.Errorf("an answer that broke off looks whole: %v", err)
	}
	for _, busy := range []string{"SELECT sleepEachRow(1) FROM numbers(3) SETTINGS max_execution_time = 0.1, max_block_size = 1", "SELECT groupArray(number) FROM numbers(10000000) SETTINGS max_memory_usage = 1000000"} {
		if err := c.QueryRow(ctx, busy).Scan(new([]uint64)); fault.ClassOf(err) != fault.ClassTransient {
			t.Errorf("%s: %v is %v", busy, err, fault.ClassOf(err))
		}
	}
}

func TestInsertSendsExactlyWhatItWasToldTo(t *testing.T) {
	t.Parallel()
	c := clickhousetest.Open(t)
	ctx := t.Context()
	if err := c.Exec(ctx, "CREATE TABLE t (a UInt8, b String MATERIALIZED toString(a), m Map(String, Int64)) ENGINE = MergeTree ORDER BY a"); err != nil {
		t.Fatal(err)
	}
	count := func() (n uint64) {
		t.Helper()
		if err := c.QueryRow(ctx, "SELECT count() FROM t").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	two := func(b driver.Batch) error {
		return errors.Join(b.Append(uint8(1), map[string]int64{"x": 1}), b.Append(uint8(2), map[string]int64{}))
	}
	columns := []string{"a", "m"}
	if err := c.Insert(ctx, "t", columns, 2, two); err != nil || count() != 2 {
		t.Errorf("got %v, %d rows", err, count())
	}
	if err := c.Insert(ctx, "t", columns, 3, two); err == nil || count() != 2 {
		t.Errorf("a short batch was sent: %v, %d rows", err, count())
	}
	reason := errors.New("this row is no row")
	if err := c.Insert(ctx, "t", columns, 2, func(b driver.Batch) error { two(b); return reason }); err != reason || count() != 2 {
		t.Errorf("got %v, %d rows", err, count())
	}
	if err := c.Insert(ctx, "t", columns, 0, func(driver.Batch) error { t.Error("asked to fill nothing"); return nil }); err != nil {
		t.Error(err)
	}
	for _, bad := range []struct{ table, column, want string }{
		{"nothing_here", "a", "has provision run"}, {"t", "c", "no column c"}, {"t", "b", "no column b"}, {"t; DROP TABLE t", "a", "not an identifier"}, {"t", "a)--", "not an identifier"},
	} {
		err := c.Insert(ctx, bad.table, []string{bad.column}, 1, func(b driver.Batch) error { return b.Append(uint8(1)) })
		if err == nil || !strings.Contains(err.Error(), bad.want) || fault.ClassOf(err) != fault.ClassFatal {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	// A migration changes a column under a running sink: a batch fails, and the next one finds the new type.
	for _, change := range []string{"ALTER TABLE t DROP COLUMN m", "ALTER TABLE t ADD COLUMN m UInt8"} {
		if err := c.Exec(ctx, change); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Insert(ctx, "t", columns, 2, two); err == nil {
		t.Error("a map went into a number")
	}
	if err := c.Insert(ctx, "t", columns, 1, func(b driver.Batch) error { return b.Append(uint8(3), uint8(4)) }); err != nil {
		t.Error(err)
	}
}

func TestMigrateTwiceChangesNothing(t *testing.T) {
	t.Parallel()
	c, err := clickhouse.Open(clickhousetest.Config(t), clickhousetest.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Exec(context.Background(), "DROP DATABASE "+c.Database()+" SYNC") })
	ctx := t.Context()
	first, err := c.Migrate(ctx, migrations.FS)
	if err != nil || len(first) == 0 || !slices.IsSorted(first) {
		t.Fatalf("got %v, %v", first, err)
	}
	described := func() (tables []string) {
		t.Helper()
		r, err := c.Query(ctx, "SELECT create_table_query FROM system.tables WHERE database = {d:String} ORDER BY name", ch.Named("d", c.Database()))
		if err != nil {
			t.Fatal(err)
		}
		for r.Next() {
			var s string
			if err := r.Scan(&s); err != nil {
				t.Fatal(err)
			}
			tables = append(tables, s)
		}
		return tables
	}
	before := described()
	if again, err := c.Migrate(ctx, migrations.FS); err != nil || len(again) != 0 {
		t.Errorf("the second time applied %v, %v", again, err)
	}
	// A process that died before it could note what it had done repeats all of it.
	if err := c.Exec(ctx, "TRUNCATE TABLE schema_migrations"); err != nil {
		t.Fatal(err)
	}
	if again, err := c.Migrate(ctx, migrations.FS); err != nil || !slices.Equal(again, first) {
		t.Errorf("the repetition applied %v, %v", again, err)
	}
	if after := described(); !slices.Equal(before, after) {
		t.Errorf("a repetition changed the tables:\n%s\n%s", before, after)
	}
}

func TestMigrateRefusesAnEditedMigrationAndSaysWhichStatementFailed(t *testing.T) {
	t.Parallel()
	c, err := clickhouse.Open(clickhousetest.Config(t), clickhousetest.Namespace())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Exec(context.Background(), "DROP DATABASE "+c.Database()+" SYNC") })
	ctx := t.Context()
	files := func(pairs ...string) fstest.MapFS {
		f := fstest.MapFS{}
		for i := 0; i < len(pairs); i += 2 {
			f[pairs[i]] = &fstest.MapFile{Data: []byte(pairs[i+1])}
		}
		return f
	}
	one := "CREATE TABLE IF NOT EXISTS a (x UInt8 COMMENT 'one; two') ENGINE = MergeTree ORDER BY x;"
	if _, err := c.Migrate(ctx, files("0001_a.sql", one)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Migrate(ctx, files("0001_a.sql", one+" ", "0002_b.sql", "SELECT 1")); err == nil || !strings.Contains(err.Error(), "0001_a.sql") || fault.ClassOf(err) != fault.ClassFatal {
		t.Errorf("got %v", err)
	}
	applied, err := c.Migrate(ctx, files("0001_a.sql", one, "0002_b.sql", "SELECT 1", "0003_c.sql", "SELECT 1; SELEKT 2", "0004_d.sql", "SELECT 1"))
	if err == nil || !strings.Contains(err.Error(), "0003_c.sql, statement 2") || !slices.Equal(applied, []string{"0002_b.sql"}) {
		t.Errorf("got %v, %v", applied, err)
	}
	if applied, err := c.Migrate(ctx, files("0001_a.sql", one, "0002_b.sql", "SELECT 1", "0003_c.sql", "SELECT 1; SELECT 2")); err != nil || !slices.Equal(applied, []string{"0003_c.sql"}) {
		t.Errorf("got %v, %v", applied, err)
	}
	if _, err := c.Migrate(ctx, files("first.sql", "SELECT 1")); err == nil {
		t.Error("a migration without a number has no place in the order")
	}
	if _, err := c.Migrate(ctx, files()); err == nil {
		t.Error("no migrations at all is a mistake of the build")
	}
}

func TestStatementsAreCutAtTheSemicolonsThatEndThem(t *testing.T) {
	t.Parallel()
	got := clickhouse.Statements("-- a; b\nSELECT 'it''s; \\'one', `a;b`, \"c;d\" /* e; f */ ;;\n\nSELECT 2 -- g\n; SELECT '--'")
	want := []string{"SELECT 'it''s; \\'one', `a;b`, \"c;d\"", "SELECT 2", "SELECT '--'"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func forward(w http.ResponseWriter, r *http.Request, engine string) {
	r.URL.Scheme, r.URL.Host, r.RequestURI = "http", engine, ""
	answer, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		w.WriteHeader(http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	for k, v := range answer.Header {
		w.Header()[k] = v
	}
	w.WriteHeader(answer.StatusCode)
	for buf := make([]byte, 4096); ; {
		n, err := answer.Body.Read(buf)
		w.Write(buf[:n])
		if err != nil {
			return
		}
	}
}
