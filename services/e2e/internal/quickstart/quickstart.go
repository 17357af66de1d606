// Package quickstart is the one command with which Hikyaku is tried: it builds
// the programs, starts the embedded stack and the services, imports a file,
// runs a campaign, lets readers read, and says what came of it.
//
// It plays the user: it has no code in common with the services, starts them as
// processes, and believes what the command hikyaku and the outbox tell. What it
// started it stops, however it ends.
package quickstart

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hikyaku/hikyaku/services/e2e/internal/bucket"
	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/process"
	"github.com/hikyaku/hikyaku/services/e2e/internal/quickstart/sample"
)

const help = `quickstart builds Hikyaku, starts it with everything it needs, imports a sample of people from S3, sends them a campaign
(to an outbox: nothing leaves this machine), lets demo readers open, click and unsubscribe, and shows where everybody went.
Then it stays up until Ctrl-C, for you to try things.

  scripts/quickstart                         the sample
  scripts/quickstart --once                  the same, then stop: exit code 0 if every promise held
  scripts/quickstart --input FILE --spec DIR your own file and definitions (see examples/online-retail)
  scripts/quickstart --fresh                 wipe the data directory first

A part of the stack whose variable is set is not started: KAFKA_BROKERS, SCHEMA_REGISTRY_URL, CLICKHOUSE_URL,
AWS_ENDPOINT_URL_S3, SMTP_ADDR. Steps are told on stderr; stdout carries one line of JSON, written when everything has
stopped. Exit codes: 0 balanced, 1 a promise did not hold, 2 usage or a bad definition, 3 something needed is missing or
away, 130 stopped before there was a result.

`

// options are what the user asks for.
type options struct {
	once, fresh bool
	people      int
	seed        uint64
	input, spec string
	data        string
}

func parse(args []string, getenv func(string) string, root string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, help)
		flags.PrintDefaults()
	}
	flags.BoolVar(&o.once, "once", false, "stop when there is a result")
	flags.BoolVar(&o.fresh, "fresh", false, "wipe the data directory first")
	flags.IntVar(&o.people, "people", 5000, "`number` of people in the sample")
	flags.Uint64Var(&o.seed, "seed", 1, "the sample and its readers are made from this `number`")
	flags.StringVar(&o.input, "input", "", "your own `file` instead of the sample; with --spec")
	flags.StringVar(&o.spec, "spec", "", "`path` of the definitions for --input: an import spec and a campaign")
	flags.StringVar(&o.data, "data", "", "data `directory` (default: HIKYAKU_DATA, else .hikyaku in the checkout)")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	switch {
	case flags.NArg() > 0:
		return o, command.Usagef("unexpected %q; quickstart -h teaches", flags.Arg(0))
	case (o.input == "") != (o.spec == ""):
		return o, command.Usagef("--input and --spec go together: the file, and the definitions that say what its columns mean")
	case o.people < sample.MinPeople:
		return o, command.Usagef("--people %d: at least %d, so that one of everything is among them", o.people, sample.MinPeople)
	}
	for _, p := range []string{o.input, o.spec} {
		if p == "" {
			continue
		}
		if _, err := os.Stat(p); err != nil {
			return o, command.Usagef("%w", err)
		}
	}
	if o.data == "" {
		o.data = getenv("HIKYAKU_DATA")
	}
	if o.data == "" {
		o.data = filepath.Join(root, ".hikyaku")
	}
	for _, p := range []*string{&o.data, &o.input, &o.spec} {
		if *p == "" {
			continue
		}
		abs, err := filepath.Abs(*p)
		if err != nil {
			return o, err
		}
		*p = abs
	}
	return o, nil
}

// Main runs the command and returns its exit code.
func Main(args []string, getenv func(string) string, stdout, stderr io.Writer) int {
	began := time.Now()
	root, err := command.AboveBin("scripts/quickstart")
	var o options
	if err == nil {
		o, err = parse(args, getenv, root, stderr)
	}
	switch {
	case errors.Is(err, flag.ErrHelp):
		return command.Done
	case err != nil:
		fmt.Fprintln(stderr, "quickstart:", err)
		return command.Usage
	}
	ctx, stopNow := context.WithCancelCause(context.Background())
	defer stopNow(nil)
	hurry := make(chan struct{})
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		<-signals
		stopNow(command.ErrStopped)
		<-signals
		close(hurry)
	}()

	q := &quickstart{options: o, root: root, getenv: getenv, screen: newScreen(stderr, 11), procs: process.NewStarter(), hurry: hurry, fail: stopNow, began: began}
	err = q.run(ctx)
	q.result.Seconds = float64(time.Since(began).Milliseconds()) / 1000
	if err == nil && !o.once {
		err = q.stayUp(ctx)
	}
	q.halt()
	q.result.Restarts = q.restarts.Load()
	if err != nil {
		q.result.Error = err.Error()
		fmt.Fprintln(stderr, "\nquickstart:", err)
	}
	if werr := q.result.write(stdout); werr != nil {
		return command.Broken
	}
	return command.ExitCode(err)
}

// quickstart is one call of the command.
type quickstart struct {
	options
	root   string
	getenv func(string) string
	screen *screen
	procs  *process.Starter
	hurry  chan struct{}
	fail   func(error) // ends everything
	began  time.Time

	env      []string // of every child
	hikyaku  *hikyaku
	bucket   bucket.Bucket
	restarts atomic.Int64
	stack    *supervised
	services []*supervised
	result   Result

	importSpec  string // id
	campaign    string
	atMostOnce  bool
	outboxBegan int64   // size of the outbox's index before the run
	complaints  []error // promises that did not hold
}

func (q *quickstart) set(variable string) bool { return q.getenv(variable) != "" }

func (q *quickstart) value(variable, fallback string) string {
	if v := q.getenv(variable); v != "" {
		return v
	}
	return fallback
}

func (q *quickstart) tracking() string {
	return strings.TrimRight(q.value("TRACKING_URL", "http://127.0.0.1:8080"), "/")
}
func (q *quickstart) outbox() string        { return filepath.Join(q.data, "outbox") }
func (q *quickstart) logs() string          { return filepath.Join(q.data, "logs") }
func (q *quickstart) bin(who string) string { return filepath.Join(q.root, "bin", who) }
func (q *quickstart) dropFolder() string {
	return filepath.Join(q.data, "s3", q.value("S3_BUCKET", "hikyaku"))
}

// run does the steps. What it started is left running.
func (q *quickstart) run(ctx context.Context) error {
	q.result.Seed = q.seed
	if err := q.portsFree(); err != nil {
		return err
	}
	if q.fresh {
		if err := wipe(q.data); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(q.logs(), 0o755); err != nil {
		return command.Missingf("making the data directory: %w", err)
	}
	q.env = q.environment()
	q.hikyaku = &hikyaku{q.procs, filepath.Join(q.root, "bin"), q.env}
	for _, step := range []func(context.Context) error{
		q.fetch, q.build, q.startStack, q.provision, q.startServices, q.define, q.load, q.start, q.follow, q.read, q.show,
	} {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx) // rather than what it did to the step
			}
			return err
		}
	}
	return nil
}

// environment is ours with what a stack on one machine wants where nothing else is said.
func (q *quickstart) environment() []string {
	env := os.Environ()
	add := func(name, value string) {
		if !q.set(name) {
			env = append(env, name+"="+value)
		}
	}
	env = append(env, "HIKYAKU_DATA="+q.data)
	add("ALLOW_INSECURE_DEFAULTS", "true") // everything listens on loopback
	add("TRACKING_URL", q.tracking())
	add("RETRY_BACKOFF", "2s")    // the outbox's temporary refusals are over at once
	add("POLL_INTERVAL", "500ms") // nobody pays for listing a folder
	if !q.set("AWS_ENDPOINT_URL_S3") {
		if !q.set("AWS_ACCESS_KEY_ID") || !q.set("AWS_SECRET_ACCESS_KEY") { // else the embedded S3 takes these
			env = append(env, "AWS_ACCESS_KEY_ID=hikyaku", "AWS_SECRET_ACCESS_KEY=hikyaku-embedded")
		}
	}
	if !q.set("KAFKA_BROKERS") {
		add("BOUNDED_RETENTION_BYTES", fmt.Sprint(64<<20)) // the embedded broker reads its log into memory after a kill
	}
	return env
}

// pipeline lists the services in the order of the pipeline, which is that of their telemetry ports.
func pipeline() []string {
	return []string{"importer", "audience-resolver", "renderer", "sender", "event-collector"}
}

// telemetry is the address of a service's health and metrics.
func (q *quickstart) telemetry(i int) string { return fmt.Sprintf("127.0.0.1:%d", 9101+i) }

// portsFree finds a stack that runs already before anything is built or wiped.
func (q *quickstart) portsFree() error {
	ports := []struct{ addr, variable string }{{q.value("COLLECTOR_ADDR", "127.0.0.1:8080"), "COLLECTOR_ADDR and TRACKING_URL"}}
	for i := range pipeline() {
		ports = append(ports, struct{ addr, variable string }{q.telemetry(i), "TELEMETRY_ADDR of the " + pipeline()[i]})
	}
	for _, p := range ports {
		l, err := net.Listen("tcp", p.addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return command.Missingf("port %s is taken (%s); is another quickstart running? Stop what holds it", p.addr, p.variable)
		}
		if err != nil {
			return command.Missingf("%s: %w", p.variable, err)
		}
		l.Close()
	}
	return nil
}

// wipe removes a data directory. It removes nothing that it does not know as
// one, and none that is in use.
func wipe(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(entries) == 0 {
		return nil
	}
	if err != nil {
		return command.Missingf("wiping the data directory: %w", err)
	}
	lock, err := os.Open(filepath.Join(dir, "embedded.lock"))
	if err != nil {
		if _, logs := os.Stat(filepath.Join(dir, "logs")); len(entries) == 1 && logs == nil {
			return os.RemoveAll(dir) // a quickstart that did not come far
		}
		return command.Usagef("--fresh does not wipe %s: it is not empty and has never been a data directory of the embedded stack", dir)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return command.Missingf("--fresh does not wipe %s: a running stack uses it; stop that first", dir)
	}
	if err := os.RemoveAll(dir); err != nil {
		return command.Missingf("wiping the data directory: %w", err)
	}
	return nil
}

// halt stops everything that runs: the services first, so that they can finish
// what they have in hand, then the stack.
func (q *quickstart) halt() {
	if q.stack == nil && len(q.services) == 0 {
		return
	}
	began := time.Now()
	q.screen.line("stopping")
	var wg sync.WaitGroup
	for _, s := range q.services {
		wg.Go(s.halt)
	}
	wg.Wait()
	if q.stack != nil {
		q.stack.halt()
	}
	q.screen.line("everything has stopped (%s); the data is kept in %s", seconds(time.Since(began)), q.shown(q.data))
}

// shown is a path as people would type it.
func (q *quickstart) shown(path string) string {
	if here, err := os.Getwd(); err == nil {
		if short, err := filepath.Rel(here, path); err == nil && !strings.HasPrefix(short, "..") {
			return short
		}
	}
	return path
}

// stayUp waits for Ctrl-C, or for something that cannot go on.
func (q *quickstart) stayUp(ctx context.Context) error {
	q.screen.line("Running until Ctrl-C.")
	<-ctx.Done()
	if err := context.Cause(ctx); !errors.Is(err, command.ErrStopped) {
		return err
	}
	return nil
}
