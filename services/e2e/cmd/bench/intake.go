package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
)

// A benchmark of intake: batches, single events and clicks over HTTP to acknowledged records. The
// collector is one process, the broker (the embedded stack's) another, and this one sends: bytes
// that were made before over connections that stay open, since a real client would need more of the
// machine than what is measured. Its ceiling is made of the two halves of intake, each
// alone: 1 / (1/parse + 1/publish).
func intakeBench(ctx context.Context, root string, args []string) (*result, error) {
	flags := flag.NewFlagSet("intake", flag.ContinueOnError)
	connections := flags.Int("connections", 32, "connections that send batches")
	singles := flags.Int("singles", 64, "connections that send single events, and clicks")
	seconds := flags.Duration("time", 8*time.Second, "how long each step takes")
	rounds := flags.Int("rounds", 1, "how often everything is measured; the best of each counts")
	steps := flags.String("steps", "", "only steps whose names match, a regular expression: parse, publish, batches, single events, clicks, clicks by wrk, batches half, single half")
	profiles := flags.String("profile", "", "directory for a CPU profile of the collector and of the embedded stack in each step")
	if err := flags.Parse(args); err != nil {
		return nil, flag.ErrHelp
	}
	wanted, err := regexp.Compile(*steps)
	if err != nil {
		return nil, err
	}
	if *connections < 1 || *singles < 1 || *rounds < 1 || *seconds < 2*time.Second {
		return nil, errors.New("connections and rounds are at least 1, a step takes 2s or more")
	}
	b := &intakeRun{ctx: ctx, seconds: *seconds, wanted: wanted, best: map[string]taken{}}
	if b.profiles, err = profilesIn(*profiles); err != nil {
		return nil, err
	}
	// The halves are the collector's own: tests of it measure them.
	if b.place, err = newPlace(ctx, root, map[string]string{"intake.test": "./services/event-collector/internal/intake", "collector.test": "./services/event-collector"}); err != nil {
		return nil, err
	}
	defer b.leave(false)
	return b.run(*connections, *singles, *rounds)
}

type intakeRun struct {
	ctx context.Context
	*place
	seconds   time.Duration
	profiles  string
	wanted    *regexp.Regexp
	collector *child
	addr      map[string]string
	address   string // of the collector
	telemetry string
	admin     *kadm.Client
	best      map[string]taken
	order     []string
}

// taken is one step.
type taken struct {
	rate                float64 // events or requests a second
	p50, p99            time.Duration
	collector, embedded float64 // CPU, µs for each event or request
	peak, begin, ended  float64 // MiB, of the collector
}

const benchBatch = 100

func (b *intakeRun) run(connections, singles, rounds int) (*result, error) {
	var err error
	if b.addr, err = b.children.startStack(b.ctx, b.bin, filepath.Join(b.dir, "data"), map[string]string{"SMTP_ADDR": "127.0.0.1:1", "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1"}); err != nil {
		return nil, err
	}
	batches := filepath.Join(b.dir, "batches.jsonl")
	b.children.env = map[string]string{
		"KAFKA_BROKERS": b.addr["kafka"], "SCHEMA_REGISTRY_URL": "http://" + b.addr["registry"], "CLICKHOUSE_URL": "http://" + b.addr["clickhouse"],
		"ALLOW_INSECURE_DEFAULTS": "true", "BENCH_BATCHES": batches, "NAMESPACE": "bench",
	}
	if out, err := b.command("provision"); err != nil {
		return nil, fmt.Errorf("provisioning: %w\n%s", err, out)
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(b.addr["kafka"]))
	if err != nil {
		return nil, err
	}
	defer client.Close()
	b.admin = kadm.NewClient(client)

	bodies := benchBatches()
	if err := os.WriteFile(batches, []byte(strings.Join(bodies, "\n")), 0o644); err != nil {
		return nil, err
	}
	var batchRequests, singleRequests, clicks [][]byte
	for _, body := range bodies {
		batchRequests = append(batchRequests, post("/v1/batch", body))
	}
	for i := range 1000 {
		singleRequests = append(singleRequests, post("/v1/track", intakeEvent(i)))
	}
	if clicks, err = clickRequests(); err != nil {
		return nil, err
	}
	for range rounds {
		for half, program := range map[string]string{"parse": "intake.test", "publish": "collector.test"} {
			if err := b.half(half, program); err != nil {
				return nil, err
			}
		}
		for _, s := range []struct {
			name     string
			conns    int
			requests [][]byte
			each     int // events of a request
			status   int
			topic    topic.Name
		}{
			{"batches", connections, batchRequests, benchBatch, http.StatusOK, topic.Events},
			{"single events", singles, singleRequests, 1, http.StatusOK, topic.Events},
			{"clicks", singles, clicks, 1, http.StatusFound, topic.Engagements},
		} {
			if err := b.step(s.name, s.conns, s.requests, s.each, s.status, s.topic, 0); err != nil {
				return nil, err
			}
		}
		if err := b.wrk(singles, clicks[0]); err != nil {
			return nil, err
		}
		// At half of the highest rate, each timed from when it was due, more connections
		// than are needed: nothing waits for its sender.
		if err := b.step("batches half", 128, batchRequests, benchBatch, http.StatusOK, topic.Events, b.best["batches"].rate/2/benchBatch); err != nil {
			return nil, err
		}
		if err := b.step("single half", 256, singleRequests, 1, http.StatusOK, topic.Events, b.best["single events"].rate/2); err != nil {
			return nil, err
		}
	}
	ceiling := 0.0
	if parse, publish := b.best["parse"].rate, b.best["publish"].rate; parse > 0 && publish > 0 {
		ceiling = 1 / (1/parse + 1/publish)
	}
	r := &result{Rate: b.best["batches"].rate, Unit: "events/s", Singles: b.best["single events"].rate, Clicks: b.best["clicks"].rate,
		P99Ms: float64(b.best["single half"].p99.Microseconds()) / 1000, BatchP99Ms: float64(b.best["batches half"].p99.Microseconds()) / 1000}
	r.Clicks = max(r.Clicks, b.best[byWRK].rate)
	for _, t := range b.best {
		r.PeakRSSMiB = max(r.PeakRSSMiB, t.peak)
	}
	r.against(ceiling, "1 / (1/parse + 1/publish), each alone")
	b.table(ceiling)
	return r, nil
}

// intakeEvent is an event of 300 bytes with five properties.
func intakeEvent(i int) string {
	const size = 300
	text := fmt.Sprintf(`{"type":"track","messageId":"node-next-%013d-%08x","userId":"user-%06d","event":"Product Viewed","timestamp":"%s","properties":{"sku":"SKU-%05d","price":%d.5,"quantity":%d,"currency":"JPY","category":"%%s"}}`,
		i, i*2654435761, i%50_000, time.Now().Add(-time.Second).UTC().Format("2006-01-02T15:04:05.000Z"), i%10_000, i%1000, i%7)
	return fmt.Sprintf(text, strings.Repeat("tea and what goes with it, ", 10)[:size-len(text)+len("%s")])
}

func benchBatches() []string {
	var bodies []string
	for i := range 64 {
		events := make([]string, benchBatch)
		for j := range events {
			events[j] = intakeEvent(i*benchBatch + j)
		}
		bodies = append(bodies, `{"batch":[`+strings.Join(events, ",")+`],"writeKey":"dev","sentAt":"`+time.Now().UTC().Format("2006-01-02T15:04:05.000Z")+`"}`)
	}
	return bodies
}

func post(path, body string) []byte {
	return fmt.Appendf(nil, "POST %s HTTP/1.1\r\nHost: collector\r\nAuthorization: Basic %s\r\nContent-Type: application/json\r\nUser-Agent: bench\r\nContent-Length: %d\r\n\r\n%s",
		path, base64.StdEncoding.EncodeToString([]byte("dev:")), len(body), body)
}

func clickRequests() ([][]byte, error) {
	// The secret of a stack that nobody has configured.
	keys, err := token.NewKeys("1", map[string][]byte{"1": []byte("insecure-development-secret")})
	if err != nil {
		return nil, err
	}
	var out [][]byte
	for i := range 1000 {
		t, err := keys.Append(nil, "1", &token.Token{Purpose: token.Click, MessageID: identity.Hash("m", strconv.Itoa(i)), RunID: identity.Hash("r"), CampaignID: "bench",
			UserID: fmt.Sprintf("user-%06d", i), Channel: "email", Target: "https://shop.example/products/tea"})
		if err != nil {
			return nil, err
		}
		out = append(out, fmt.Appendf(nil, "GET /c/%s HTTP/1.1\r\nHost: collector\r\nUser-Agent: Mozilla/5.0 (bench)\r\n\r\n", t))
	}
	return out, nil
}

func (b *intakeRun) command(name string, args ...string) ([]byte, error) {
	return b.children.run(b.ctx, filepath.Join(b.bin, name), args...)
}

func (b *intakeRun) keep(name string, t taken) {
	if !slices.Contains(b.order, name) {
		b.order = append(b.order, name)
	}
	fmt.Fprintf(os.Stderr, "%-14s %10.0f/s  p50 %6.2f ms  p99 %6.2f ms  CPU of the collector %6.2f µs\n", name, t.rate, ms(t.p50), ms(t.p99), t.collector)
	before, known := b.best[name]
	t.peak = max(t.peak, before.peak)
	if known && (strings.HasSuffix(name, "half") && before.p99 < t.p99 || !strings.HasSuffix(name, "half") && before.rate > t.rate) {
		before.peak = t.peak
		t = before
	}
	b.best[name] = t
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// half measures one half of intake alone.
func (b *intakeRun) half(name, program string) error {
	if !b.wanted.MatchString(name) {
		return nil
	}
	args := []string{"-test.run=^$", "-test.benchtime=3s", "-test.bench=^BenchmarkCeiling" + strings.ToUpper(name[:1]) + name[1:] + "$"}
	if name == "publish" {
		args[1] = "-test.benchtime=1x"
	}
	if b.profiles != "" {
		args = append(args, "-test.cpuprofile="+filepath.Join(b.profiles, name+".pprof"))
	}
	out, err := b.command(program, args...)
	if err != nil {
		return fmt.Errorf("measuring %s: %w\n%s", name, err, out)
	}
	fields := strings.Fields(string(out))
	at := slices.Index(fields, "events/s")
	if at < 1 {
		return fmt.Errorf("measuring %s: no events/s in\n%s", name, out)
	}
	rate, err := strconv.ParseFloat(fields[at-1], 64)
	if err != nil {
		return fmt.Errorf("measuring %s: %w", name, err)
	}
	b.keep(name, taken{rate: rate})
	return nil
}

// start starts a collector that has nothing but its intake.
func (b *intakeRun) start() error {
	var err error
	if b.address, err = freeAddr(); err != nil {
		return err
	}
	if b.telemetry, err = freeAddr(); err != nil {
		return err
	}
	b.collector, err = b.children.start("event-collector", filepath.Join(b.bin, "event-collector"), map[string]string{"ROLES": "intake", "SPOOL_DIR": filepath.Join(b.dir, "spool-"+b.address[strings.LastIndexByte(b.address, ':')+1:]), "COLLECTOR_ADDR": b.address, "TELEMETRY_ADDR": b.telemetry})
	if err != nil {
		return err
	}
	// It takes in before it has found Kafka, but into its spool.
	return b.children.await(b.ctx, "the collector", time.Minute, func() bool { return b.metrics()[`intake_state{state="direct"}`] == 1 })
}

func (b *intakeRun) metrics() map[string]float64 {
	_, text := get("http://" + b.telemetry + "/metrics")
	return samples(text)
}

// step sends for a while: as fast as answers come, or so many a second if perSecond is not 0.
func (b *intakeRun) step(name string, conns int, requests [][]byte, each, status int, to topic.Name, perSecond float64) error {
	if base, _, half := strings.Cut(name, " half"); !b.wanted.MatchString(name) || half && perSecond == 0 {
		return nil // of what was not measured there is no half
	} else if half {
		fmt.Fprintf(os.Stderr, "%s at %.0f requests/s\n", base, perSecond)
	}
	if err := b.start(); err != nil {
		return err
	}
	defer b.children.end(b.collector)
	stack := b.children.list[0]
	pid := b.collector.cmd.Process.Pid
	// The first seconds find connections, buffers and the heap's size.
	if _, err := b.send(conns, requests, status, perSecond, time.Second); err != nil {
		return err
	}
	had, err := b.records(to)
	if err != nil {
		return err
	}
	t := taken{begin: rssMiB(pid)}
	before, stackBefore := cpuTime(pid), cpuTime(stack.cmd.Process.Pid)
	var profiled sync.WaitGroup
	if b.profiles != "" {
		for what, a := range map[string]string{"collector": b.telemetry, "embedded": b.addr["embedded"]} {
			profiled.Go(func() {
				_, body := get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", a, int(b.seconds.Seconds())-1))
				if err := os.WriteFile(filepath.Join(b.profiles, what+"-"+strings.ReplaceAll(name, " ", "-")+".pprof"), body, 0o644); err != nil {
					fmt.Fprintln(os.Stderr, "profile:", err)
				}
			})
		}
	}
	sent, err := b.send(conns, requests, status, perSecond, b.seconds)
	if err != nil {
		return err
	}
	used, stackUsed := cpuTime(pid).since(before), cpuTime(stack.cmd.Process.Pid).since(stackBefore)
	profiled.Wait()
	events, has := sent.answered*int64(each), int64(0)
	if err := b.children.await(b.ctx, "what was acknowledged to be in Kafka", time.Minute, func() bool {
		has, err = b.records(to)
		return err != nil || has-had >= events
	}); err != nil || b.ctx.Err() != nil {
		return fmt.Errorf("%s: %d events were acknowledged, and %s has %d more records: %w", name, events, to, has-had, err)
	}
	if err != nil {
		return err
	}
	if n := b.metrics()["intake_spooled_total"]; n > 0 {
		fmt.Fprintf(os.Stderr, "%s: Kafka was so slow that %.0f records went into the spool\n", name, n)
	}
	t.rate, t.p50, t.p99 = float64(events)/sent.took.Seconds(), sent.percentile(0.5), sent.percentile(0.99)
	t.collector, t.embedded = perRow(used, events), perRow(stackUsed, events)
	t.ended, t.peak = rssMiB(pid), peakMiB(pid)
	b.keep(name, t)
	return nil
}

// byWRK is the step in which wrk clicks, where that is installed.
const byWRK = "clicks by wrk"

// wrk clicks on one link with another's generator of load.
func (b *intakeRun) wrk(conns int, click []byte) error {
	program, err := exec.LookPath("wrk")
	if !b.wanted.MatchString(byWRK) || err != nil {
		return nil
	}
	if err := b.start(); err != nil {
		return err
	}
	defer b.children.end(b.collector)
	pid := b.collector.cmd.Process.Pid
	had, err := b.records(topic.Engagements)
	if err != nil {
		return err
	}
	t, before := taken{begin: rssMiB(pid)}, cpuTime(pid)
	path := strings.Fields(string(click))[1]
	out, err := exec.CommandContext(b.ctx, program, "-t2", fmt.Sprintf("-c%d", conns), fmt.Sprintf("-d%ds", int(b.seconds.Seconds())), "--latency", "http://"+b.address+path).CombinedOutput()
	if err != nil {
		return fmt.Errorf("running wrk: %w\n%s", err, out)
	}
	used := cpuTime(pid).since(before)
	fields := strings.Fields(string(out))
	after := func(name string) string {
		if at := slices.Index(fields, name); at >= 0 && at+1 < len(fields) {
			return fields[at+1]
		}
		return ""
	}
	if t.rate, err = strconv.ParseFloat(after("Requests/sec:"), 64); err != nil || strings.Contains(string(out), "Non-2xx") {
		return fmt.Errorf("reading what wrk says: %w\n%s", err, out)
	}
	t.p50, _ = time.ParseDuration(after("50%"))
	t.p99, _ = time.ParseDuration(after("99%"))
	clicks := int64(t.rate * b.seconds.Seconds())
	has := int64(0)
	if err := b.children.await(b.ctx, "the clicks to be in Kafka", time.Minute, func() bool {
		has, err = b.records(topic.Engagements)
		return err != nil || has-had >= clicks*9/10 // wrk stops in the middle, and counts what it has read
	}); err != nil {
		return fmt.Errorf("%d clicks, and %d records: %w", clicks, has-had, err)
	}
	t.collector, t.ended, t.peak = perRow(used, clicks), rssMiB(pid), peakMiB(pid)
	b.keep(byWRK, t)
	return err
}

// records is how many records a topic has.
func (b *intakeRun) records(name topic.Name) (n int64, err error) {
	ends, err := b.admin.ListEndOffsets(b.ctx, name.In("bench"))
	if err == nil {
		err = ends.Error()
	}
	ends.Each(func(o kadm.ListedOffset) { n += o.Offset })
	return n, err
}

// load is what was sent and answered.
type load struct {
	answered  int64
	took      time.Duration
	latencies []time.Duration
}

func (l *load) percentile(p float64) time.Duration {
	if len(l.latencies) == 0 {
		return 0
	}
	slices.Sort(l.latencies)
	return l.latencies[min(len(l.latencies)-1, int(p*float64(len(l.latencies))))]
}

// send sends requests over so many connections. With perSecond each has a moment at which it
// is due, whatever became of those before it, and its time counts from then.
func (b *intakeRun) send(conns int, requests [][]byte, status int, perSecond float64, long time.Duration) (*load, error) {
	var (
		next  atomic.Int64
		mu    sync.Mutex
		total load
		fail  error
		all   sync.WaitGroup
	)
	began := time.Now()
	until := began.Add(long)
	for range conns {
		all.Go(func() {
			own, err := connection(b.address, requests, status, func() (int64, time.Time, bool) {
				i := next.Add(1) - 1
				due := time.Now()
				if perSecond > 0 {
					due = began.Add(time.Duration(float64(i) / perSecond * float64(time.Second)))
					if due.Before(until) {
						time.Sleep(time.Until(due))
					}
				}
				return i, due, due.Before(until) && b.ctx.Err() == nil
			})
			mu.Lock()
			defer mu.Unlock()
			total.answered += int64(len(own))
			total.latencies = append(total.latencies, own...)
			if err != nil && fail == nil {
				fail = err
			}
		})
	}
	all.Wait()
	total.took = time.Since(began)
	if fail == nil {
		fail = b.children.dead()
	}
	return &total, fail
}

// connection sends one request after the other, each when next says so, and returns how long
// each took.
func connection(address string, requests [][]byte, status int, next func() (int64, time.Time, bool)) (took []time.Duration, err error) {
	conn, err := net.Dial("tcp", address) //nolint:noctx // loopback, bounded by the benchmark itself
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	in := bufio.NewReaderSize(conn, 4<<10)
	want := []byte("HTTP/1.1 " + strconv.Itoa(status) + " ")
	for {
		i, due, ok := next()
		if !ok {
			return took, nil
		}
		if _, err := conn.Write(requests[i%int64(len(requests))]); err != nil {
			return took, err
		}
		if err := answered(in, want); err != nil {
			return took, err
		}
		took = append(took, time.Since(due))
	}
}

// answered reads an answer and requires its status.
func answered(in *bufio.Reader, want []byte) error {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(line, want) {
		rest := make([]byte, in.Buffered())
		_, _ = io.ReadFull(in, rest)
		return fmt.Errorf("answered with %s%s", line, rest)
	}
	length := 0
	for {
		if line, err = in.ReadSlice('\n'); err != nil {
			return err
		}
		if len(line) <= 2 {
			_, err = in.Discard(length)
			return err
		}
		const field = "Content-Length: "
		if len(line) > len(field) && string(line[:len(field)]) == field {
			for _, c := range line[len(field) : len(line)-2] {
				length = length*10 + int(c-'0')
			}
		}
	}
}

func (b *intakeRun) table(ceiling float64) {
	w := os.Stderr
	fmt.Fprintf(w, "\nevents of 300 bytes with five properties, %d in a batch; %s each\n\n", benchBatch, b.seconds)
	fmt.Fprintf(w, "%-14s %10s %8s %9s %9s %18s %18s %22s\n", "", "per second", "ratio", "p50 ms", "p99 ms", "collector µs each", "embedded µs each", "collector MiB")
	for _, name := range b.order {
		t := b.best[name]
		ratio := ""
		if name == "batches" && ceiling > 0 {
			ratio = fmt.Sprintf("%.2f", t.rate/ceiling)
		}
		fmt.Fprintf(w, "%-14s %10.0f %8s %9.2f %9.2f %18.2f %18.2f %6.0f, then %4.0f\n", name, t.rate, ratio, ms(t.p50), ms(t.p99), t.collector, t.embedded, t.begin, t.ended)
	}
	fmt.Fprintf(w, "%-14s %10.0f\n", "ceiling", ceiling)
}
