package main

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	chcolumn "github.com/ClickHouse/clickhouse-go/v2/lib/column"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// A benchmark of the sink: topics that are full, and a collector with nothing but its sink that
// empties them into the embedded ClickHouse, from its first poll until every row can be read. Its
// ceiling is clickhouse-go with the same rows in memory, inserting them into the same tables, views included,
// in blocks as large, by one connection and by two; the better counts.
func sinkBench(ctx context.Context, root string, args []string) (*result, error) {
	flags := flag.NewFlagSet("sink", flag.ContinueOnError)
	rows := flags.Int("rows", 3_000_000, "rows of each kind; the sink waits 0.2 s for more at the end, which is no throughput")
	batch := flags.Int("batch", 0, "records of one insert; 0 is what the sink does by itself")
	kinds := flags.String("kinds", "events,outcomes", "what is sunk; the first makes the closing line's rate")
	rounds := flags.Int("rounds", 2, "how often everything is measured; the best of each counts")
	profiles := flags.String("profile", "", "directory for CPU profiles of the collector and of the embedded stack")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp
	}
	if *rows < 1000 || *rows > 20_000_000 || *rounds < 1 {
		return nil, fmt.Errorf("%d rows, %d rounds: 1000 to 20000000 rows, at least one round", *rows, *rounds)
	}
	b := &sinking{ctx: ctx, rows: *rows, batch: *batch, best: map[string]sunk{}}
	var err error
	if b.profiles, err = profilesIn(*profiles); err != nil {
		return nil, err
	}
	if b.place, err = newPlace(ctx, root, nil); err != nil {
		return nil, err
	}
	defer b.leave(false)
	names := strings.Split(*kinds, ",")
	for range *rounds {
		for _, name := range names {
			kind, ok := sinkKinds[name]
			if !ok {
				return nil, fmt.Errorf("no kind %q: events, outcomes", name)
			}
			if err := b.round(name, kind); err != nil {
				return nil, err
			}
		}
	}
	return b.results(names, *rounds)
}

type sinking struct {
	ctx context.Context
	*place
	rows, batch int
	profiles    string
	addr        map[string]string
	stack       *child
	best        map[string]sunk
}

// sunk is one measurement.
type sunk struct {
	rate            float64 // rows/s
	cpu             float64 // of who inserts, µs for each row
	embedded        float64
	peak, stackPeak float64 // MiB
}

// sinkKind is a kind of record with its table.
type sinkKind struct {
	topic topic.Name
	table string
	view  string // of which one row is made by every ...
	each  int    // ... so many records
	make  func(i int) (key string, rec event.Record)
	of    func(from, n int, partition func(i int) (int32, int64)) []insertColumn
}

// insertColumn is a column of one insert, ready in memory.
type insertColumn struct {
	name, kind string
	whole      any             // a slice that the driver takes at once; or
	each       func(i int) any // what it takes for row i
}

var sinkKinds = map[string]sinkKind{
	"events":   {topic.Events, "event_rows", "events", 1, sinkEvent, eventColumns},
	"outcomes": {topic.Outcomes, "outcome_rows", "messages", 2, sinkOutcome, outcomeColumns},
}

var sinkNoon = time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)

func benchUser(i int) string { return "user-" + strconv.Itoa(i*7919%1_000_003) }

func sinkEvent(i int) (string, event.Record) {
	at := sinkNoon.Add(time.Duration(i) * time.Millisecond)
	return benchUser(i), &event.Event{
		EventID: "event-" + strconv.Itoa(i), UserID: benchUser(i), Name: benchNames[i%len(benchNames)], OccurredAt: at, ReceivedAt: at.Add(time.Second), Source: "api:web",
		Properties: []event.NamedValue{
			{Name: "currency", Value: event.String("JPY")}, {Name: "gift", Value: event.Bool(i%3 == 0)}, {Name: "price", Value: event.Float(float64(i%10_000) / 100)},
			{Name: "quantity", Value: event.Int(int64(i % 7))}, {Name: "sku", Value: event.String("sku-" + strconv.Itoa(i%500))},
		},
	}
}

var (
	benchNames = []string{"page_viewed", "product_viewed", "add_to_cart", "purchase"}
	benchRun   = identity.Run("bench", "autumn", "once")
	benchHash  = bytes.Repeat([]byte{7}, 32)
)

// sinkOutcome is what a renderer says of a message, and then a sender.
func sinkOutcome(i int) (string, event.Record) {
	user := "user-" + strconv.Itoa(i/2)
	message := identity.Message("bench", "autumn", benchRun.String(), user, "")
	o := &event.Outcome{MessageID: message, RunID: benchRun, CampaignID: "autumn", Lane: "bulk", UserID: user, Channel: "email", Outcome: "rendered", OccurredAt: sinkNoon.Add(time.Duration(i) * time.Millisecond)}
	if i%2 == 0 {
		o.ContentHash, o.RendererVersion = benchHash, "1"
	} else {
		o.Outcome, o.Attempt, o.Detail, o.Provider, o.ProviderID = "accepted", 1, "250 2.0.0 OK", "smtp", "queued as "+strconv.Itoa(i)
		o.Source = &event.Source{Topic: "messages.email.bulk", Partition: int32(i % 16), Offset: int64(i)}
	}
	o.OutcomeID = identity.Outcome(message, o.Outcome, o.Attempt, "")
	return user, o
}

// pairs is a row of a Map column, as the driver takes it without looking at types.
type pairs struct{ keys, values []any }

// Put implements the driver's interface.
func (p *pairs) Put(key, value any) { p.keys, p.values = append(p.keys, key), append(p.values, value) }

// Iterator implements the driver's interface.
func (p *pairs) Iterator() chcolumn.MapIterator { return &pairsIterator{p, -1} }

type pairsIterator struct {
	*pairs
	at int
}

func (p *pairsIterator) Next() bool { p.at++; return p.at < len(p.keys) }
func (p *pairsIterator) Key() any   { return p.keys[p.at] }
func (p *pairsIterator) Value() any { return p.values[p.at] }

// maps are the rows of a Map column, of which few differ.
func maps(differ int, of func(i int) *pairs) func(i int) any {
	all := make([]any, differ)
	for i := range all {
		all[i] = of(i)
	}
	return func(i int) any { return all[i%differ] }
}

// words are the rows of a LowCardinality column, of which few differ.
func words(values ...string) func(i int) any {
	all := make([]any, len(values))
	for i, v := range values {
		all[i] = v
	}
	return func(i int) any { return all[i%len(all)] }
}

var sinkMaps = sync.OnceValue(func() map[string]func(i int) any {
	none := maps(1, func(int) *pairs { return &pairs{} })
	return map[string]func(i int) any{
		"string": maps(500, func(i int) *pairs {
			return &pairs{[]any{"currency", "sku"}, []any{"JPY", "sku-" + strconv.Itoa(i)}}
		}),
		"int":   maps(7, func(i int) *pairs { return &pairs{[]any{"quantity"}, []any{int64(i)}} }),
		"float": maps(10_000, func(i int) *pairs { return &pairs{[]any{"price"}, []any{float64(i) / 100}} }),
		"bool":  maps(3, func(i int) *pairs { return &pairs{[]any{"gift"}, []any{i == 0}} }),
		"none":  none,
	}
})

// column is a column of values that differ, from record from on.
func column[V any](name, kind string, from, n int, of func(i int) V) insertColumn {
	values := make([]V, n)
	for i := range values {
		values[i] = of(from + i)
	}
	return insertColumn{name: name, kind: kind, whole: values}
}

func placeColumns(t topic.Name, from, n int, place func(i int) (int32, int64)) []insertColumn {
	return []insertColumn{
		column("ingested_at", "DateTime64(3, 'UTC')", from, n, func(int) time.Time { return sinkNoon }),
		{name: "kafka_topic", kind: "LowCardinality(String)", each: words(string(t))},
		column("kafka_partition", "Int32", from, n, func(i int) int32 { p, _ := place(i); return p }),
		column("kafka_offset", "Int64", from, n, func(i int) int64 { _, o := place(i); return o }),
	}
}

func eventColumns(from, n int, place func(i int) (int32, int64)) []insertColumn {
	at := func(i int) time.Time { return sinkNoon.Add(time.Duration(i) * time.Millisecond) }
	name, m := words(benchNames...), sinkMaps()
	shift := func(each func(i int) any) func(i int) any { return func(i int) any { return each(from + i) } }
	return append([]insertColumn{
		column("event_id", "String", from, n, func(i int) string { return "event-" + strconv.Itoa(i) }),
		column("user_id", "String", from, n, benchUser),
		column("anonymous_id", "String", from, n, func(int) string { return "" }),
		{name: "name", kind: "LowCardinality(String)", each: shift(name)},
		column("occurred_at", "DateTime64(6, 'UTC')", from, n, at),
		column("received_at", "DateTime64(6, 'UTC')", from, n, func(i int) time.Time { return at(i).Add(time.Second) }),
		{name: "source", kind: "LowCardinality(String)", each: words("api:web")},
		{name: "prop_string", kind: "Map(String, String)", each: shift(m["string"])},
		{name: "prop_int", kind: "Map(String, Int64)", each: shift(m["int"])},
		{name: "prop_float", kind: "Map(String, Float64)", each: shift(m["float"])},
		{name: "prop_bool", kind: "Map(String, Bool)", each: shift(m["bool"])},
		{name: "prop_time", kind: "Map(String, Int64)", each: m["none"]},
		{name: "prop_json", kind: "Map(String, String)", each: m["none"]},
	}, placeColumns(topic.Events, from, n, place)...)
}

func outcomeColumns(from, n int, place func(i int) (int32, int64)) []insertColumn {
	recs := make([]*event.Outcome, n)
	for i := range recs {
		_, rec := sinkOutcome(from + i)
		recs[i] = rec.(*event.Outcome)
	}
	text := func(name string, of func(o *event.Outcome) string) insertColumn {
		return column(name, "String", 0, n, func(i int) string { return of(recs[i]) })
	}
	id := func(name string, of func(o *event.Outcome) identity.ID) insertColumn {
		return column(name, "UUID", 0, n, func(i int) uuid.UUID { return uuid.UUID(of(recs[i])) })
	}
	word := func(name string, values ...string) insertColumn {
		each := words(values...)
		return insertColumn{name: name, kind: "LowCardinality(String)", each: func(i int) any { return each(from + i) }}
	}
	source := func(o *event.Outcome) event.Source {
		if o.Source == nil {
			return event.Source{Partition: -1, Offset: -1}
		}
		return *o.Source
	}
	return append([]insertColumn{
		id("outcome_id", func(o *event.Outcome) identity.ID { return o.OutcomeID }),
		id("message_id", func(o *event.Outcome) identity.ID { return o.MessageID }),
		id("run_id", func(o *event.Outcome) identity.ID { return o.RunID }),
		word("campaign_id", "autumn"), word("variant", ""), word("step", ""), word("lane", "bulk"),
		text("user_id", func(o *event.Outcome) string { return o.UserID }),
		word("channel", "email"), word("outcome", "rendered", "accepted"),
		column("attempt", "Int32", 0, n, func(i int) int32 { return recs[i].Attempt }),
		word("reason", ""),
		text("detail", func(o *event.Outcome) string { return o.Detail }),
		column("occurred_at", "DateTime64(6, 'UTC')", 0, n, func(i int) time.Time { return recs[i].OccurredAt }),
		word("source_topic", "", "messages.email.bulk"),
		column("source_partition", "Int32", 0, n, func(i int) int32 { return source(recs[i]).Partition }),
		column("source_offset", "Int64", 0, n, func(i int) int64 { return source(recs[i]).Offset }),
		word("provider", "", "smtp"),
		text("provider_id", func(o *event.Outcome) string { return o.ProviderID }),
		text("provider_event_id", func(o *event.Outcome) string { return o.ProviderEventID }),
		text("content_hash", func(o *event.Outcome) string { return string(o.ContentHash) }),
		word("renderer_version", "1", ""),
	}, placeColumns(topic.Outcomes, from, n, place)...)
}

// round measures one kind: a stack of its own, so that nobody merges or keeps in memory what was measured before.
func (b *sinking) round(name string, kind sinkKind) (err error) {
	os.RemoveAll(filepath.Join(b.dir, "data"))
	clear(b.children.env) // a part whose address is set is not started
	if b.addr, err = b.children.startStack(b.ctx, b.bin, filepath.Join(b.dir, "data"), map[string]string{"SMTP_ADDR": "127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}); err != nil {
		return err
	}
	b.stack = b.children.list[0]
	defer b.children.end(b.stack)
	for _, connections := range []int{1, 2} {
		if err := b.ceiling(name, kind, connections); err != nil {
			return fmt.Errorf("measuring the ceiling: %w", err)
		}
	}
	return b.sink(name, kind)
}

// provision makes a namespace of its own.
func (b *sinking) provision(namespace string) error {
	b.children.env = map[string]string{
		"KAFKA_BROKERS": b.addr["kafka"], "SCHEMA_REGISTRY_URL": "http://" + b.addr["registry"], "CLICKHOUSE_URL": "http://" + b.addr["clickhouse"],
		"ALLOW_INSECURE_DEFAULTS": "true", "NAMESPACE": namespace,
	}
	if out, err := b.children.run(b.ctx, filepath.Join(b.bin, "provision")); err != nil {
		return fmt.Errorf("provisioning: %w\n%s", err, out)
	}
	return nil
}

func (b *sinking) open(namespace string) (driver.Conn, error) {
	// What the sink itself asks for: see services/internal/clickhouse.
	return clickhouse.Open(&clickhouse.Options{Addr: []string{b.addr["clickhouse"]}, Protocol: clickhouse.HTTP, Auth: clickhouse.Auth{Database: namespace}, Settings: clickhouse.Settings{
		"async_insert": 0, "max_partitions_per_insert_block": 0, "do_not_merge_across_partitions_select_final": 0, "optimize_on_insert": 0,
	}})
}

// ceilingBatch is the rows of an insert, as many as the sink's fullest has.
func (b *sinking) ceilingBatch() int { return cmp.Or(b.batch, 50_000) }

// ceiling inserts the rows, which are in memory in columns, by so many connections.
func (b *sinking) ceiling(name string, kind sinkKind, connections int) error {
	namespace := fmt.Sprintf("ceiling%d", connections)
	if err := b.provision(namespace); err != nil {
		return err
	}
	conn, err := b.open(namespace)
	if err != nil {
		return err
	}
	defer conn.Close()
	var inserts [][]insertColumn
	var sizes []int
	for from := 0; from < b.rows; from += b.ceilingBatch() {
		n := min(b.ceilingBatch(), b.rows-from)
		inserts = append(inserts, kind.of(from, n, func(i int) (int32, int64) { return int32(i % 16), int64(i / 16) }))
		sizes = append(sizes, n)
	}
	var next atomic.Int64
	failed := make([]error, connections)
	before, stackBefore, start := cpuTime(os.Getpid()), cpuTime(b.stack.cmd.Process.Pid), time.Now()
	var done sync.WaitGroup
	for c := range connections {
		done.Go(func() {
			for n := int(next.Add(1)) - 1; n < len(inserts) && failed[c] == nil; n = int(next.Add(1)) - 1 {
				failed[c] = insertColumns(b.ctx, conn, kind.table, inserts[n], sizes[n])
			}
		})
	}
	done.Wait()
	seconds := time.Since(start).Seconds()
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	b.keep(fmt.Sprintf("%s, clickhouse-go, %d at once", name, connections), sunk{
		rate: float64(b.rows) / seconds, cpu: perRow(cpuTime(os.Getpid()).since(before), int64(b.rows)), embedded: perRow(cpuTime(b.stack.cmd.Process.Pid).since(stackBefore), int64(b.rows)),
	})
	if err := b.count(conn, kind); err != nil {
		return err
	}
	// Its merges must not go on beside what is measured next.
	return conn.Exec(b.ctx, "DROP DATABASE "+namespace)
}

func insertColumns(ctx context.Context, conn driver.Conn, table string, columns []insertColumn, n int) error {
	var types []clickhouse.ColumnNameAndType
	var names []string
	for _, c := range columns {
		names, types = append(names, c.name), append(types, clickhouse.ColumnNameAndType{Name: c.name, Type: c.kind})
	}
	batch, err := conn.PrepareBatch(clickhouse.Context(ctx, clickhouse.WithColumnNamesAndTypes(types)), "INSERT INTO "+table+" ("+strings.Join(names, ", ")+")")
	if err != nil {
		return err
	}
	defer batch.Close()
	for i, c := range columns {
		into := batch.Column(i)
		if c.whole != nil {
			if err := into.Append(c.whole); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			continue
		}
		for row := range n {
			if err := into.AppendRow(c.each(row)); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
		}
	}
	return batch.Send()
}

// count makes sure that every row is there, once.
func (b *sinking) count(conn driver.Conn, kind sinkKind) error {
	for _, q := range []struct {
		table string
		want  int
	}{{kind.table, b.rows}, {kind.view, b.rows / kind.each}} {
		var n uint64
		if err := conn.QueryRow(b.ctx, "SELECT count() FROM "+q.table).Scan(&n); err != nil {
			return err
		}
		if n != uint64(q.want) {
			return fmt.Errorf("%d rows in %s, not %d", n, q.table, q.want)
		}
	}
	return nil
}

// fill writes the records into their topic.
func (b *sinking) fill(namespace string, kind sinkKind) error {
	tel := telemetry.New("importer", telemetry.Config{}, os.Stderr)
	cluster, err := kafka.New(kafka.Config{Brokers: []string{b.addr["kafka"]}, RegistryURL: "http://" + b.addr["registry"], RegisterSchemas: true,
		Namespace: namespace, Instance: "bench", SessionTimeout: 15 * time.Second, Compression: "lz4", DeadLettersPerMinute: 100}, topic.Importer, tel)
	if err != nil {
		return err
	}
	defer cluster.Close()
	if err := cluster.Start(b.ctx); err != nil {
		return err
	}
	producer, err := cluster.Producer()
	if err != nil {
		return err
	}
	defer producer.Close()
	var failed atomic.Pointer[error]
	memory := &kafka.Memory{}
	for i := range b.rows {
		key, rec := kind.make(i)
		r, err := cluster.RecordIn(memory, kind.topic, key, rec)
		if err != nil {
			return err
		}
		producer.Produce(b.ctx, r, func(_ *kgo.Record, err error) {
			if err != nil {
				failed.Store(&err)
			}
		})
	}
	if err := producer.Flush(b.ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

var assignedAt = regexp.MustCompile(`(?m)^time=(\S+) .*msg="partitions assigned"`)

// sink lets a collector empty the topic.
func (b *sinking) sink(name string, kind sinkKind) error {
	const namespace = "sink"
	if err := b.provision(namespace); err != nil {
		return err
	}
	if err := b.fill(namespace, kind); err != nil {
		return fmt.Errorf("filling %s: %w", kind.topic, err)
	}
	telemetry, err := freeAddr()
	if err != nil {
		return err
	}
	env := map[string]string{"TELEMETRY_ADDR": telemetry, "ROLES": "sink"}
	if b.batch > 0 {
		env["SINK_BATCH_RECORDS"] = strconv.Itoa(b.batch)
	}
	stackBefore := cpuTime(b.stack.cmd.Process.Pid)
	p, err := b.children.start("event-collector", filepath.Join(b.bin, "event-collector"), env)
	if err != nil {
		return err
	}
	defer b.children.end(p)
	var started time.Time
	if err := b.children.await(b.ctx, "the first poll", time.Minute, func() bool {
		log, _ := os.ReadFile(p.log.Name())
		if m := assignedAt.FindSubmatch(log); m != nil {
			started, _ = time.Parse(time.RFC3339, string(m[1]))
		}
		return !started.IsZero()
	}); err != nil {
		return err
	}
	if b.profiles != "" {
		var done sync.WaitGroup
		defer done.Wait()
		for who, a := range map[string]string{"collector": telemetry, "embedded": b.addr["embedded"]} {
			done.Go(func() {
				_, body := get("http://" + a + "/debug/pprof/profile?seconds=3")
				if err := os.WriteFile(filepath.Join(b.profiles, who+"-"+name+".pprof"), body, 0o644); err != nil {
					fmt.Fprintln(os.Stderr, "profile:", err)
				}
			})
		}
	}
	metric := fmt.Sprintf("sink_rows_total{table=%q}", kind.table)
	var ended time.Time
	if err := b.children.await(b.ctx, "the rows", time.Hour, func() bool {
		_, text := get("http://" + telemetry + "/metrics")
		ended = time.Now()
		return samples(text)[metric] >= float64(b.rows)
	}); err != nil {
		return err
	}
	b.keep(name, sunk{
		rate: float64(b.rows) / ended.Sub(started).Seconds(), cpu: perRow(cpuTime(p.cmd.Process.Pid), int64(b.rows)), embedded: perRow(cpuTime(b.stack.cmd.Process.Pid).since(stackBefore), int64(b.rows)),
		peak: peakMiB(p.cmd.Process.Pid), stackPeak: peakMiB(b.stack.cmd.Process.Pid),
	})
	conn, err := b.open(namespace)
	if err != nil {
		return err
	}
	defer conn.Close()
	return b.count(conn, kind)
}

// keep notes the best of all rounds, and the worst of memory.
func (b *sinking) keep(name string, m sunk) {
	fmt.Fprintf(os.Stderr, "%-36s %10.0f rows/s, CPU %5.2f and of the embedded stack %5.2f µs/row\n", name, m.rate, m.cpu, m.embedded)
	before := b.best[name]
	m.peak, m.stackPeak = max(m.peak, before.peak), max(m.stackPeak, before.stackPeak)
	if before.rate > m.rate {
		before.peak, before.stackPeak = m.peak, m.stackPeak
		m = before
	}
	b.best[name] = m
}

func (b *sinking) results(names []string, rounds int) (*result, error) {
	w := os.Stderr
	fmt.Fprintf(w, "\n%d rows of each kind; the best of %d rounds\n\n%-36s %10s %8s %14s %18s %10s %14s\n", b.rows, rounds, "", "rows/s", "ratio", "µs/row", "embedded µs/row", "MiB", "embedded MiB")
	var r *result
	for _, name := range names {
		one := &result{Rate: b.best[name].rate, Unit: "rows/s", PeakRSSMiB: b.best[name].peak}
		ceiling := 0.0
		for _, connections := range []int{1, 2} {
			ceiling = max(ceiling, b.best[fmt.Sprintf("%s, clickhouse-go, %d at once", name, connections)].rate)
		}
		one.against(ceiling, "clickhouse-go with the same rows in memory into the same tables, views included, the better of one and two inserts at once")
		for _, step := range []string{name, name + ", clickhouse-go, 1 at once", name + ", clickhouse-go, 2 at once"} {
			m := b.best[step]
			fmt.Fprintf(w, "%-36s %10.0f %8.2f %14.2f %18.2f %10.0f %14.0f\n", step, m.rate, m.rate/ceiling, m.cpu, m.embedded, m.peak, m.stackPeak)
		}
		if r == nil {
			r = one
			continue
		}
		one.Bench = name
		r.Also = append(r.Also, one)
	}
	return r, nil
}
