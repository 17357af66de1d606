// Package intakedrill shows that an event that was acknowledged is never lost and counted once, while
// the broker is stopped and the collector is killed. Like the other drill it has no code in
// common with the services: it starts them and believes what ClickHouse and the broker tell.
package intakedrill

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
)

const help = `drill intake posts numbered events to an event-collector at a steady rate, kills the broker and leaves it away for a while, kills the
collector (SIGKILL), and compares what was acknowledged with ClickHouse.

  scripts/drill intake                                           100,000 events, a minute without a broker, five kills
  scripts/drill intake --events 5000 --outage 8s --kills 2       half a minute
  scripts/drill intake --seed 42                                 the same moments again

The client is as Segment's are: an event has a messageId, what is not answered with 200 is sent again with the same one, and a person's
events are sent one after the other. The broker and the Schema Registry are one process here, killed and gone together; some kills
of the collector fall into the outage, so that it starts without both; one falls into the draining of its spool.

What must hold, or the exit code is 1:
  acknowledged every event is, in the end
  missing      no acknowledged event is missing in ClickHouse
  twice        none is there twice, and nothing that was not sent is
  order        in Kafka the events of a person come in the order in which they were sent, but for copies of earlier ones
copies are records in Kafka beyond the first of an event: a client's repetition, or a spool drained again after a kill.

What happens is told on stderr; stdout carries one line of JSON when everything has stopped. Exit codes: 0 it held, 1 it did not,
2 usage, 3 something needed is missing, 130 stopped before there was a result.

`

type options struct {
	events, kills int
	outage        time.Duration
	rate          float64 // events a second
	seed          uint64
	keep          bool
}

// Result is the one line on stdout.
type Result struct {
	Drill         string   `json:"drill"`
	Events        int      `json:"events"`
	Kills         int      `json:"kills"` // of the collector
	OutageSeconds float64  `json:"outage_seconds"`
	Acknowledged  int      `json:"acknowledged"`
	Missing       *int     `json:"missing"`
	Twice         *int     `json:"twice"`
	Strangers     *int     `json:"strangers"`            // in ClickHouse and never sent
	OutOfOrder    *int     `json:"out_of_order"`         // in Kafka
	Copies        *int     `json:"copies"`               // in Kafka
	Repeated      int64    `json:"repeated"`             // requests that were sent again
	Refused       int64    `json:"refused"`              // of them: answered, and not with 200
	WaitMax       float64  `json:"longest_wait_seconds"` // from when an event was due to its acknowledgement
	StartMax      float64  `json:"start_seconds_max"`    // from the collector's restart to its first answer
	DrainSeconds  float64  `json:"drain_seconds"`        // from the broker's return to an empty spool
	SpoolMax      int64    `json:"spool_records_max"`
	Rate          float64  `json:"rate_per_second"`
	Seed          uint64   `json:"seed"`
	Seconds       float64  `json:"seconds"`
	Broken        []string `json:"broken"`
	Error         string   `json:"error,omitempty"`
	Commit        string   `json:"commit"`
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("drill intake", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, help)
		flags.PrintDefaults()
	}
	seed := flags.Int64("seed", -1, "repeat the drill of this `number`; a random one if not given")
	flags.IntVar(&o.events, "events", 100_000, "`number` of events")
	flags.IntVar(&o.kills, "kills", 5, "`number` of times the collector is killed")
	flags.DurationVar(&o.outage, "outage", time.Minute, "how long the broker is away")
	flags.Float64Var(&o.rate, "rate", 0, "events a `second`; so that the load lasts twice as long as the outage if not given, at least 10 s")
	flags.BoolVar(&o.keep, "keep", false, "keep the working directory and say where it is")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	o.seed = uint64(*seed)
	if *seed < 0 {
		o.seed = uint64(rand.Uint32())
	}
	switch {
	case flags.NArg() > 0:
		return o, fmt.Errorf("unexpected %q; -h teaches", flags.Arg(0))
	case o.events < 100 || o.kills < 0 || o.outage < 0 || o.rate < 0:
		return o, errors.New("--events from 100; --kills, --outage and --rate from 0")
	}
	if o.rate == 0 {
		o.rate = float64(o.events) / max(2*o.outage, 10*time.Second).Seconds()
	}
	if load := o.load(); load < o.outage+2*time.Second {
		return o, fmt.Errorf("at %.0f a second %d events last %s, which is no longer than the outage", o.rate, o.events, load)
	}
	return o, nil
}

// load is how long events are posted.
func (o options) load() time.Duration {
	return time.Duration(float64(o.events) / o.rate * float64(time.Second))
}

// moments are when the broker goes and comes back, and when the collector is killed.
func (o options) moments() (gone, back time.Duration, kills []time.Duration) {
	rng := rand.New(rand.NewPCG(o.seed, 5))
	load := o.load()
	within := func(from, to time.Duration) time.Duration {
		return from + time.Duration(rng.Float64()*float64(to-from))
	}
	gone = (load - o.outage) / 3
	back = gone + o.outage
	for i := range o.kills {
		switch i % 5 {
		case 0, 3: // it starts without a broker
			kills = append(kills, within(gone+o.outage/10, back-o.outage/10))
		case 1: // while it drains, or shortly after
			kills = append(kills, back+within(200*time.Millisecond, time.Second))
		case 2: // with requests in hand
			kills = append(kills, within(gone/4, gone))
		case 4:
			kills = append(kills, within(back+time.Second, load))
		}
	}
	return gone, back, kills
}

// Main runs the command and returns its exit code.
func Main(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return command.Done
	case err != nil:
		fmt.Fprintln(stderr, "drill intake:", err)
		return command.Usage
	}
	ctx, stop := command.Stoppable()
	defer stop(nil)
	d := &drill{options: o, out: stderr, ctx: ctx, fail: stop, procs: process.NewStarter(), began: time.Now(),
		http: &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	d.result = Result{Drill: "intake", Events: o.events, OutageSeconds: o.outage.Seconds(), Rate: o.rate, Seed: o.seed, Broken: []string{}}
	err = d.run()
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	d.halt()
	code := command.ExitCode(err)
	if err == nil && len(d.result.Broken) > 0 {
		code = command.Broken
	}
	if err != nil {
		d.result.Error = err.Error()
		fmt.Fprintln(stderr, "\ndrill intake:", err)
	}
	for _, bar := range d.result.Broken {
		fmt.Fprintln(stderr, "BROKEN:", bar)
	}
	if d.keep || code == command.Broken {
		fmt.Fprintf(stderr, "\nLogs and data are kept in %s\n", d.dir)
	} else if d.dir != "" {
		os.RemoveAll(d.dir)
	}
	d.result.Seconds = float64(time.Since(d.began).Milliseconds()) / 1000
	if err := command.WriteLine(stdout, d.result); err != nil {
		return command.Broken
	}
	return code
}

type drill struct {
	options
	out    io.Writer
	ctx    context.Context
	fail   context.CancelCauseFunc
	procs  *process.Starter
	http   *http.Client
	began  time.Time
	result Result

	root, dir string
	env       []string
	kafka     string
	engine    string // URL of ClickHouse
	api       string
	telemetry string
	namespace string

	broker, clickhouse, collector *program

	mu      sync.Mutex
	stopped bool
}

func (d *drill) say(format string, a ...any) {
	fmt.Fprintf(d.out, "%7.1fs  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, a...))
}

// program is a process that can be killed and started again.
type program struct {
	d      *drill
	name   string
	path   string
	args   []string
	env    []string
	cmd    *exec.Cmd
	exited chan struct{}
	asked  bool // it ends because we want it to
}

func (p *program) start() error {
	p.d.mu.Lock()
	defer p.d.mu.Unlock()
	if p.d.stopped {
		return command.ErrStopped
	}
	cmd := exec.Command(p.path, p.args...)
	cmd.Env, cmd.Dir = p.env, p.d.root
	exited, _, err := p.d.procs.StartLogged(cmd, p.log())
	if err != nil {
		return command.Missingf("starting %s: %w", p.name, err)
	}
	p.cmd, p.exited, p.asked = cmd, exited, false
	go func() {
		<-exited
		p.d.mu.Lock()
		defer p.d.mu.Unlock()
		if p.cmd == cmd && !p.asked && !p.d.stopped {
			text, _ := os.ReadFile(p.log())
			p.d.fail(fmt.Errorf("%s ended of itself, %s: %s", p.name, cmd.ProcessState, process.LastLines(string(text), 3)))
		}
	}()
	return nil
}

func (p *program) log() string { return filepath.Join(p.d.dir, p.name+".log") }

// kill ends it as a power cut would.
func (p *program) kill() {
	p.d.mu.Lock()
	p.asked = true
	cmd, exited := p.cmd, p.exited
	p.d.mu.Unlock()
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	<-exited
}

func (d *drill) halt() {
	d.mu.Lock()
	d.stopped = true
	d.mu.Unlock()
	for _, p := range []*program{d.collector, d.clickhouse, d.broker} {
		if p != nil && p.cmd != nil {
			process.StopGroup(p.cmd.Process.Pid, p.exited, 15*time.Second)
		}
	}
}

// build builds what is needed and keeps it aside.
func (d *drill) build() error {
	var err error
	if d.root, err = command.AboveBin("scripts/drill intake"); err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "hikyaku-drill-intake-"); err != nil {
		return err
	}
	args := []string{"build", "-o", filepath.Join(d.dir, "bin") + string(filepath.Separator)}
	e, err := d.procs.Run(d.ctx, process.Tool{Path: "go", Dir: d.root, Env: os.Environ(), Args: append(args,
		"./deploy/embedded/cmd/embedded", "./services/internal/cmd/provision", "./services/event-collector/cmd/event-collector")})
	if err != nil {
		return command.Missingf("building: %w", err)
	}
	if e.Code != 0 {
		return fmt.Errorf("the programs do not build: %s", e.Stderr)
	}
	d.result.Commit = command.Commit(d.root)
	return nil
}

func (d *drill) bin(name string) string { return filepath.Join(d.dir, "bin", name) }

// prepare starts everything.
func (d *drill) prepare() error {
	addr, err := process.FreeAddrs(5)
	if err != nil {
		return command.Missingf("%w", err)
	}
	d.kafka, d.engine, d.api, d.telemetry = addr[0], "http://"+addr[2], "http://"+addr[3], addr[4]
	d.namespace = fmt.Sprintf("drill%08x", rand.Uint32())
	with := func(settings ...string) []string { return append(os.Environ(), settings...) } // the last of two counts
	const elsewhere = "elsewhere"
	d.broker = &program{d: d, name: "broker", path: d.bin("embedded"), args: []string{"-data", filepath.Join(d.dir, "broker"), "-kafka", addr[0], "-registry", addr[1]},
		env: with("KAFKA_BROKERS=", "SCHEMA_REGISTRY_URL=", "CLICKHOUSE_URL="+elsewhere, "AWS_ENDPOINT_URL_S3="+elsewhere, "SMTP_ADDR="+elsewhere)}
	d.clickhouse = &program{d: d, name: "clickhouse", path: d.bin("embedded"), args: []string{"-data", filepath.Join(d.dir, "clickhouse"), "-clickhouse", addr[2]},
		env: with("KAFKA_BROKERS="+elsewhere, "SCHEMA_REGISTRY_URL="+elsewhere, "CLICKHOUSE_URL=", "AWS_ENDPOINT_URL_S3="+elsewhere, "SMTP_ADDR="+elsewhere)}
	d.env = with("KAFKA_BROKERS="+addr[0], "SCHEMA_REGISTRY_URL=http://"+addr[1], "CLICKHOUSE_URL="+d.engine, "NAMESPACE="+d.namespace, "INSTANCE=0",
		"HIKYAKU_DATA="+filepath.Join(d.dir, "data"), "ALLOW_INSECURE_DEFAULTS=true", "TRACKING_SECRET=", "WRITE_KEYS=", "ROLES=", "SPOOL_DIR=",
		"COLLECTOR_ADDR="+addr[3], "TELEMETRY_ADDR="+addr[4], "CRASH_AT=", "SABOTAGE=")
	d.collector = &program{d: d, name: "event-collector", path: d.bin("event-collector"), env: d.env}
	for _, p := range []*program{d.broker, d.clickhouse} {
		if err := p.start(); err != nil {
			return err
		}
	}
	for _, p := range []*program{d.broker, d.clickhouse} {
		if err := d.await(p.name+" to be ready", 90*time.Second, p.ready); err != nil {
			return err
		}
	}
	e, err := d.procs.Run(d.ctx, process.Tool{Path: d.bin("provision"), Env: with(append(d.env[len(os.Environ()):], "TELEMETRY_ADDR=")...), Dir: d.dir})
	if err != nil {
		return err
	}
	if e.Code != 0 {
		return command.Exit(e.Code, errors.New(e.LastLine()))
	}
	if err := d.collector.start(); err != nil {
		return err
	}
	return d.await("the collector to write to Kafka", 90*time.Second, func() bool { return d.metric(`intake_state{state="direct"}`) == 1 })
}

// ready tells whether a stack has said so since its last start.
func (p *program) ready() bool {
	text, err := os.ReadFile(p.log())
	return err == nil && strings.HasSuffix(strings.TrimSpace(string(text)), "ready")
}

// run does the drill. What it started is left running.
func (d *drill) run() error {
	gone, back, kills := d.moments()
	d.say("drill of %d events at %.0f a second, seed %d: the broker is away for %s, the collector is killed %d times", d.events, d.rate, d.seed, d.outage, d.kills)
	if err := d.build(); err != nil {
		return err
	}
	if err := d.prepare(); err != nil {
		return err
	}
	d.say("everything is up")
	c := d.newClient()
	began := time.Now()
	var acts sync.WaitGroup
	at := func(moment time.Duration, do func()) {
		acts.Go(func() {
			if command.Wait(d.ctx, time.Until(began.Add(moment))) {
				do()
			}
		})
	}
	var returned atomic.Pointer[time.Time]
	if d.outage > 0 {
		at(gone, func() {
			d.broker.kill()
			d.say("the broker is killed")
		})
		at(back, func() {
			if err := d.broker.start(); err != nil {
				d.fail(err)
			}
			now := time.Now()
			returned.Store(&now)
			d.say("the broker is started again")
		})
	}
	var killing sync.Mutex
	for _, moment := range kills {
		at(moment, func() {
			killing.Lock()
			defer killing.Unlock()
			d.collector.kill()
			restart := time.Now()
			if err := d.collector.start(); err != nil {
				d.fail(err)
				return
			}
			up := d.until(30*time.Second, func() bool { return d.get(d.api+"/healthz") == http.StatusOK })
			took := time.Since(restart)
			d.result.Kills++
			d.result.StartMax = max(d.result.StartMax, took.Seconds())
			if up {
				d.say("the collector is killed; it answers again %.2f s after its restart", took.Seconds())
			}
		})
	}
	watching, stopWatching := context.WithCancel(d.ctx)
	acts.Go(func() {
		for command.Wait(watching, 250*time.Millisecond) {
			d.result.SpoolMax = max(d.result.SpoolMax, int64(d.metric("intake_spool_records")))
			if back := returned.Load(); back != nil && d.result.DrainSeconds == 0 && d.metric(`intake_state{state="direct"}`) == 1 {
				d.result.DrainSeconds = time.Since(*back).Seconds()
			}
		}
	})
	c.post(began)
	stopWatching()
	acts.Wait()
	if err := context.Cause(d.ctx); err != nil {
		return err
	}
	d.result.Repeated, d.result.Refused = c.repeated.Load(), c.refused.Load()
	d.result.WaitMax = c.longest.Seconds()
	d.say("%d events are acknowledged; %d requests were repeated", c.acknowledgedCount(), d.result.Repeated)
	if err := d.await("the spool to be drained", 2*time.Minute, func() bool { return d.metric(`intake_state{state="direct"}`) == 1 }); err != nil {
		return err
	}
	return d.judge(c)
}

// await waits for a condition.
func (d *drill) await(what string, limit time.Duration, done func() bool) error {
	if d.until(limit, done) {
		return nil
	}
	if d.ctx.Err() != nil {
		return context.Cause(d.ctx)
	}
	return fmt.Errorf("waited %s for %s", limit, what)
}

func (d *drill) until(limit time.Duration, done func() bool) bool {
	for end := time.Now().Add(limit); !done(); {
		if time.Now().After(end) || !command.Wait(d.ctx, 20*time.Millisecond) {
			return false
		}
	}
	return true
}
