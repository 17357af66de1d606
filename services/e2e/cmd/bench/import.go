package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A benchmark of imports: files on S3 to committed records, a profile patch of eight
// attributes and a segment member for each row. The broker is the embedded stack's, the
// files are made by this process while they are read. Its ceiling is made of the
// two halves of an import, each alone: 1 / (1/parse + 1/publish).
func imports(ctx context.Context, root string, args []string) (*result, error) {
	flags := flag.NewFlagSet("import", flag.ContinueOnError)
	rows := flags.Int64("rows", 2_000_000, "rows of all files of a step together")
	format := flags.String("format", "csv", "csv, jsonl, avro or parquet")
	width := flags.Int("row-bytes", 0, "bytes of a row, if that is more than its columns need")
	atOnce := flags.String("imports", "1,2,4", "imports at once, one step for each number")
	rounds := flags.Int("rounds", 2, "how often everything is measured; the best of each counts")
	profiles := flags.String("profile", "", "directory for a CPU profile of the importer and of the embedded stack in each step")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp
	}
	b := &importBench{ctx: ctx, total: *rows, format: *format, best: map[string]measured{}}
	for _, text := range strings.Split(*atOnce, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > 16 {
			return nil, fmt.Errorf("%s imports at once: numbers from 1 to 16, with commas between them", text)
		}
		b.steps = append(b.steps, n)
	}
	if *width < 0 || *width > 100_000 {
		return nil, fmt.Errorf("rows of %d bytes: up to 100000", *width)
	}
	if *rows < 1 || *rows > 999_999_999 || *rounds < 1 {
		return nil, fmt.Errorf("%d rows, %d rounds: 1 to 999999999 rows, at least one round", *rows, *rounds)
	}
	var err error
	// The halves of an import are its package's own: a test of it measures them.
	if b.place, err = newPlace(ctx, root, map[string]string{"importer.test": "./services/importer"}); err != nil {
		return nil, err
	}
	defer b.leave(false)
	switch *format {
	case "avro", "parquet":
		b.objects.of = &binaryFiles{format: *format, dir: b.dir, made: map[int64]*io.SectionReader{}}
	default:
		if b.objects.of, err = rowsIn(*format, *width); err != nil {
			return nil, err
		}
	}
	if b.profiles, err = profilesIn(*profiles); err != nil {
		return nil, err
	}
	server := httptest.NewServer(&b.objects)
	defer server.Close()
	b.objects.modified = time.Now().Truncate(time.Second).Add(-time.Minute)
	b.objects.keys, b.objects.asked = b.keys, b.asked
	return b.run(server.URL, *rounds)
}

type importBench struct {
	ctx context.Context
	*place
	total    int64 // rows of a step
	format   string
	profiles string
	steps    []int // imports at once
	objects  objects
	embedded string // where the stack's profiles are
	spaces   int    // namespaces made so far, one for each measurement

	mu     sync.Mutex
	listed []string
	began  time.Time // when the first byte of a file was asked for

	best map[string]measured
}

// measured is one part of the benchmark.
type measured struct {
	rate               float64 // rows/s
	importer, embedded float64 // CPU, µs for each row
	peak               float64 // MiB, of the importer
}

func (b *importBench) keys() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.listed)
}

func (b *importBench) asked(string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.began.IsZero() {
		b.began = time.Now()
	}
}

func (b *importBench) run(endpoint string, rounds int) (*result, error) {
	elsewhere := map[string]string{"SMTP_ADDR": "127.0.0.1:1", "AWS_ENDPOINT_URL_S3": endpoint}
	addr, err := b.children.startStack(b.ctx, b.bin, filepath.Join(b.dir, "data"), elsewhere)
	if err != nil {
		return nil, err
	}
	b.embedded = addr["embedded"]
	b.children.env = map[string]string{
		"KAFKA_BROKERS": addr["kafka"], "SCHEMA_REGISTRY_URL": "http://" + addr["registry"], "CLICKHOUSE_URL": "http://" + addr["clickhouse"],
		"AWS_ENDPOINT_URL_S3": endpoint, "AWS_ACCESS_KEY_ID": "hikyaku", "AWS_SECRET_ACCESS_KEY": "hikyaku-embedded", "AWS_REGION": "us-east-1", "S3_BUCKET": benchBucket,
		"ALLOW_INSECURE_DEFAULTS": "true", "POLL_INTERVAL": "100ms", "BENCH_SPEC": filepath.Join(b.dir, "spec.yaml"), "BENCH_ROWS": strconv.FormatInt(b.total, 10),
	}
	if err := os.WriteFile(filepath.Join(b.dir, "spec.yaml"), []byte(fmt.Sprintf(importSpec, b.format)), 0o644); err != nil {
		return nil, err
	}
	for range rounds {
		for _, half := range []string{"parse", "publish"} {
			if err := b.half(half); err != nil {
				return nil, err
			}
		}
		for _, n := range b.steps {
			if err := b.step(n); err != nil {
				return nil, err
			}
		}
	}
	parse, publish := b.best["parse"].rate, b.best["publish"].rate
	ceiling := 1 / (1/parse + 1/publish)
	first := b.best[stepName(b.steps[0])]
	r := &result{Rate: first.rate, Unit: "rows/s", PeakRSSMiB: first.peak}
	r.against(ceiling, "1 / (1/parse + 1/publish), each alone")
	return r, b.table(ceiling, rounds)
}

func stepName(n int) string { return strconv.Itoa(n) + " at once" }

// keep notes the best of all rounds, and the worst of memory.
func (b *importBench) keep(name string, m measured) {
	fmt.Fprintf(os.Stderr, "%-12s %10.0f rows/s, CPU of the importer %5.2f µs/row\n", name, m.rate, m.importer)
	before := b.best[name]
	m.peak = max(m.peak, before.peak)
	if before.rate > m.rate {
		before.peak = m.peak
		m = before
	}
	b.best[name] = m
}

// fresh makes a namespace in which nothing was ever imported, and lists so many files.
func (b *importBench) fresh(files int) error {
	b.spaces++
	b.children.env["NAMESPACE"] = fmt.Sprintf("bench%d", b.spaces)
	if out, err := b.command("provision"); err != nil {
		return fmt.Errorf("provisioning: %w\n%s", err, out)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.listed, b.began = nil, time.Time{}
	for i := range files {
		b.listed = append(b.listed, fmt.Sprintf("imports/%d/%d.%s", i, b.total/int64(files), b.format))
	}
	return nil
}

// half measures one half of an import alone.
func (b *importBench) half(name string) error {
	if err := b.fresh(1); err != nil {
		return err
	}
	args := []string{"-test.run=^$", "-test.benchtime=1x", "-test.bench=^BenchmarkCeiling" + strings.ToUpper(name[:1]) + name[1:] + "$"}
	if b.profiles != "" {
		args = append(args, "-test.cpuprofile="+filepath.Join(b.profiles, name+".pprof"))
	}
	out, err := b.command("importer.test", args...)
	if err != nil {
		return fmt.Errorf("measuring %s: %w\n%s", name, err, out)
	}
	var m measured
	fields := strings.Fields(string(out))
	for unit, value := range map[string]*float64{"rows/s": &m.rate, "cpu-µs/row": &m.importer} {
		at := slices.Index(fields, unit)
		if at < 1 {
			return fmt.Errorf("measuring %s: no %s in\n%s", name, unit, out)
		}
		if *value, err = strconv.ParseFloat(fields[at-1], 64); err != nil {
			return fmt.Errorf("measuring %s: %w", name, err)
		}
	}
	b.keep(name, m)
	return nil
}

// step measures imports at once in one importer: from the first byte asked for until
// the last row is committed.
func (b *importBench) step(n int) error {
	if err := b.fresh(n); err != nil {
		return err
	}
	if out, err := b.command("hikyaku", "apply", "-f", b.children.env["BENCH_SPEC"]); err != nil {
		return fmt.Errorf("applying: %w\n%s", err, out)
	}
	telemetry, err := freeAddr()
	if err != nil {
		return err
	}
	stack := b.children.list[0]
	p, err := b.children.start("importer", filepath.Join(b.bin, "importer"), map[string]string{"TELEMETRY_ADDR": telemetry, "IMPORTS_AT_ONCE": strconv.Itoa(max(2, n)), "MAX_AHEAD": "0s"})
	if err != nil {
		return err
	}
	defer b.children.end(p)
	if err := b.children.await(b.ctx, "the first byte", time.Minute, func() bool { b.mu.Lock(); defer b.mu.Unlock(); return !b.began.IsZero() }); err != nil {
		return err
	}
	before, stackBefore := cpuTime(p.cmd.Process.Pid), cpuTime(stack.cmd.Process.Pid)
	if b.profiles != "" {
		var done sync.WaitGroup
		defer done.Wait()
		for name, a := range map[string]string{"importer": telemetry, "embedded": b.embedded} {
			done.Go(func() {
				_, body := get("http://" + a + "/debug/pprof/profile?seconds=4")
				if err := os.WriteFile(filepath.Join(b.profiles, fmt.Sprintf("%s-%d.pprof", name, n)), body, 0o644); err != nil {
					fmt.Fprintln(os.Stderr, "profile:", err)
				}
			})
		}
	}
	rows := b.total / int64(n) * int64(n)
	var counts map[string]float64
	if err := b.children.await(b.ctx, "the imports", time.Hour, func() bool {
		_, text := get("http://" + telemetry + "/metrics")
		counts = samples(text)
		return counts["importer_rows_total"] >= float64(rows)
	}); err != nil {
		return err
	}
	seconds := time.Since(b.began).Seconds()
	for _, name := range []string{"importer_rows_total", `importer_records_total{topic="profile-updates"}`, `importer_records_total{topic="segment-members"}`} {
		if counts[name] != float64(rows) {
			return fmt.Errorf("%s is %.0f after %d rows", name, counts[name], rows)
		}
	}
	b.keep(stepName(n), measured{
		rate: float64(rows) / seconds, peak: peakMiB(p.cmd.Process.Pid),
		importer: perRow(cpuTime(p.cmd.Process.Pid).since(before), rows), embedded: perRow(cpuTime(stack.cmd.Process.Pid).since(stackBefore), rows),
	})
	return nil
}

// samples are the values of a page of metrics, by name and labels.
func samples(page []byte) map[string]float64 {
	values := map[string]float64{}
	for line := range bytes.Lines(page) {
		name, text, found := strings.Cut(strings.TrimSpace(string(line)), " ")
		if v, err := strconv.ParseFloat(text, 64); found && err == nil {
			values[name] = v
		}
	}
	return values
}

func (b *importBench) command(name string, args ...string) ([]byte, error) {
	return b.children.run(b.ctx, filepath.Join(b.bin, name), args...)
}

const importSpec = `
kind: ImportSpec
id: bench
source: {prefix: imports/, format: %s}
user_id: {column: id}
profile:
  attributes: {city: {column: city}, plan: {column: plan}, points: {column: points}, likes: {column: likes}, since: {column: since}, language: {column: language}, visits: {column: visits}, news: {column: news}}
segment: {id: everybody}
`

func (b *importBench) table(ceiling float64, rounds int) error {
	w := os.Stderr
	all, err := b.objects.of.object(b.total)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "\n%d %s, %s, %.2f GB; the best of %d rounds\n\n", b.total, b.objects.of.describe(), b.format, float64(all.Size())/1e9, rounds)
	fmt.Fprintf(w, "%-12s %10s %8s %8s %18s %18s %14s\n", "", "rows/s", "ratio", "of one", "importer µs/row", "embedded µs/row", "importer MiB")
	for _, half := range []string{"parse", "publish"} {
		fmt.Fprintf(w, "%-12s %10.0f %8s %8s %18.2f\n", half, b.best[half].rate, "", "", b.best[half].importer)
	}
	fmt.Fprintf(w, "%-12s %10.0f\n", "ceiling", ceiling)
	one := b.best[stepName(b.steps[0])].rate
	for _, n := range b.steps {
		m := b.best[stepName(n)]
		fmt.Fprintf(w, "%-12s %10.0f %8.2f %8.2f %18.2f %18.2f %14.0f\n", stepName(n), m.rate, m.rate/ceiling, m.rate/one, m.importer, m.embedded, m.peak)
	}
	return nil
}
