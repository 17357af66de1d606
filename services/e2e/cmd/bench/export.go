package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A benchmark of exports: profiles of eight attributes in ClickHouse to files on the embedded stack's
// S3. Beside it, in the same run, the same query alone: to FORMAT Null, and as the importer
// reads it, thrown away.
func exportsBench(ctx context.Context, root string, args []string) (*result, error) {
	flags := flag.NewFlagSet("export", flag.ContinueOnError)
	rows := flags.Int64("rows", 2_000_000, "profiles")
	formats := flags.String("formats", "parquet", "formats, one step for each: csv, jsonl, avro, parquet; with compression as parquet/none")
	rounds := flags.Int("rounds", 2, "how often everything is measured; the best of each counts")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp
	}
	if *rows < 1000 || *rows > 100_000_000 || *rounds < 1 {
		return nil, fmt.Errorf("%d rows, %d rounds: 1000 to 100000000 rows, at least one round", *rows, *rounds)
	}
	b := &exportBench{ctx: ctx, rows: *rows, best: map[string]measured{}}
	var err error
	if b.place, err = newPlace(ctx, root, nil); err != nil {
		return nil, err
	}
	defer b.leave(false)
	if err := b.prepare(); err != nil {
		return nil, err
	}
	steps := strings.Split(*formats, ",")
	for range *rounds {
		for _, name := range alone {
			if err := b.query(name); err != nil {
				return nil, err
			}
		}
		for _, step := range steps {
			if err := b.export(step); err != nil {
				return nil, err
			}
		}
	}
	first := b.best[steps[0]]
	r := &result{Rate: first.rate, Unit: "rows/s", PeakRSSMiB: first.peak}
	r.against(b.best["Null"].rate, "the same query to FORMAT Null, alone")
	w := os.Stderr
	fmt.Fprintf(w, "\n%d profiles; the best of %d rounds\n\n%-16s %10s %8s %18s %18s %14s %8s\n", b.rows, *rounds, "", "rows/s", "of Null", "importer µs/row", "embedded µs/row", "importer MiB", "MB")
	for _, name := range append(alone, steps...) {
		m := b.best[name]
		fmt.Fprintf(w, "%-16s %10.0f %8.2f %18.2f %18.2f %14.0f %8.0f\n", name, m.rate, m.rate/b.best["Null"].rate, m.importer, m.embedded, m.peak, b.sizes[name])
	}
	return r, nil
}

type exportBench struct {
	ctx context.Context
	*place
	rows       int64
	clickhouse string
	importer   *child
	best       map[string]measured
	sizes      map[string]float64 // MB
}

// What the importer asks for (services/importer/internal/export), so that its time alone can be told.
const exportQuery = `SELECT user_id, user_id, attr_string, attr_int, attr_float, attr_bool, attr_time, attr_json,
 CAST(addresses, 'Map(String, String)'), CAST(consents, 'Map(String, String)'), nullIf(CAST(locale, 'String'), ''), nullIf(CAST(time_zone, 'String'), ''), nullIf(CAST(account_id, 'String'), '')
FROM profiles LIMIT %d FORMAT %s`

// parquetRows are as many as fit into the memory of the embedded engine, which makes an answer in Parquet whole.
const parquetRows = 1_000_000

// alone are the formats in which ClickHouse writes its answer to that query, which is thrown away.
var alone = []string{"Null", "Native", "Parquet"}

const exportProfiles = `INSERT INTO profile_rows (user_id, revision, attr_string, attr_int, attr_float, attr_bool, attr_time, addresses, consents, locale, time_zone, created_at, updated_at, ingested_at)
SELECT concat('user-', leftPad(toString(number * 100000007 %% 999999999989), 12, '0')), 1,
 map('city', concat('city-', toString(number %% 300)), 'plan', 'gold', 'likes', 'tea and cake', 'language', 'en'), map('points', toInt64(number %% 1000)), map('score', number / 7),
 map('news', number %% 2 = 0), map('since', toInt64(1500000000000000 + number * 1000000)), map('email', concat('user-', toString(number), '@example.test')), map('email', 'subscribed'),
 'en-GB', 'Europe/London', now64(6), now64(6), now64(3) FROM numbers(%d, %d)`

func (b *exportBench) prepare() error {
	b.sizes = map[string]float64{}
	addr, err := b.children.startStack(b.ctx, b.bin, filepath.Join(b.dir, "data"), map[string]string{"SMTP_ADDR": "127.0.0.1:1"})
	if err != nil {
		return err
	}
	b.clickhouse = "http://" + addr["clickhouse"]
	b.children.env = map[string]string{
		"KAFKA_BROKERS": addr["kafka"], "SCHEMA_REGISTRY_URL": "http://" + addr["registry"], "CLICKHOUSE_URL": b.clickhouse,
		"AWS_ENDPOINT_URL_S3": "http://" + addr["s3"], "AWS_ACCESS_KEY_ID": "hikyaku", "AWS_SECRET_ACCESS_KEY": "hikyaku-embedded", "AWS_REGION": "us-east-1", "S3_BUCKET": "hikyaku",
		"ALLOW_INSECURE_DEFAULTS": "true", "NAMESPACE": "bench", "POLL_INTERVAL": "500ms",
	}
	if out, err := b.command("provision"); err != nil {
		return fmt.Errorf("provisioning: %w\n%s", err, out)
	}
	// In several parts, which FINAL has to merge, as it is after an import.
	const part = 250_000
	for from := int64(0); from < b.rows; from += part {
		if _, err := b.ask(fmt.Sprintf(exportProfiles, from, min(part, b.rows-from))); err != nil {
			return err
		}
	}
	telemetry, err := freeAddr()
	if err != nil {
		return err
	}
	b.importer, err = b.children.start("importer", filepath.Join(b.bin, "importer"), map[string]string{"TELEMETRY_ADDR": telemetry})
	return err
}

// ask runs a statement, throws its answer away and returns how long that was.
func (b *exportBench) ask(sql string) (bytes int64, err error) {
	resp, err := http.Post(b.clickhouse+"/?"+url.Values{"database": {"bench"}}.Encode(), "text/plain", strings.NewReader(sql))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return 0, fmt.Errorf("ClickHouse: %s", text)
	}
	return io.Copy(io.Discard, resp.Body)
}

func (b *exportBench) keep(name string, m measured) {
	fmt.Fprintf(os.Stderr, "%-16s %10.0f rows/s\n", name, m.rate)
	before := b.best[name]
	m.peak = max(m.peak, before.peak)
	if before.rate > m.rate {
		before.peak = m.peak
		m = before
	}
	b.best[name] = m
}

func (b *exportBench) query(format string) error {
	stack := b.children.list[0].cmd.Process.Pid
	rows := b.rows
	if format == "Parquet" {
		rows = min(rows, parquetRows)
	}
	began, before := time.Now(), cpuTime(stack)
	size, err := b.ask(fmt.Sprintf(exportQuery, rows, format))
	if err != nil {
		return err
	}
	b.sizes[format] = float64(size) / 1e6
	b.keep(format, measured{rate: float64(rows) / time.Since(began).Seconds(), embedded: perRow(cpuTime(stack).since(before), rows)})
	return nil
}

func perRow(c cpu, rows int64) float64 {
	return float64((c.user + c.system).Microseconds()) / float64(rows)
}

// export measures one, from the query until it is on record as done.
func (b *exportBench) export(step string) error {
	format, compression, _ := strings.Cut(step, "/")
	stack, importer := b.children.list[0].cmd.Process.Pid, b.importer.cmd.Process.Pid
	stackBefore, before := cpuTime(stack), cpuTime(importer)
	args := []string{"export", "--json", "--what", "profiles", "--to", "exports/", "--format", format}
	if compression != "" {
		args = append(args, "--compression", compression)
	}
	out, err := b.command("hikyaku", args...)
	if err != nil {
		return fmt.Errorf("exporting: %w\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	var e struct {
		State string    `json:"state"`
		AsOf  time.Time `json:"as_of"`
		At    time.Time `json:"updated_at"`
		Rows  int64     `json:"rows"`
		Bytes int64     `json:"bytes"`
		Tries int64     `json:"attempts"`
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &e); err != nil {
		return fmt.Errorf("reading %s: %w", lines[len(lines)-1], err)
	}
	if e.State != "done" || e.Rows != b.rows || e.Tries != 1 {
		return fmt.Errorf("exporting %s rows: %s", strconv.FormatInt(b.rows, 10), lines[len(lines)-1])
	}
	b.sizes[step] = float64(e.Bytes) / 1e6
	b.keep(step, measured{
		rate: float64(b.rows) / e.At.Sub(e.AsOf).Seconds(), peak: peakMiB(importer),
		importer: perRow(cpuTime(importer).since(before), b.rows), embedded: perRow(cpuTime(stack).since(stackBefore), b.rows),
	})
	return nil
}

func (b *exportBench) command(name string, args ...string) ([]byte, error) {
	return b.children.run(b.ctx, filepath.Join(b.bin, name), args...)
}
