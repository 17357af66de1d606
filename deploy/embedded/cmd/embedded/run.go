package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/hikyaku/hikyaku/deploy/embedded"
	"github.com/hikyaku/hikyaku/deploy/embedded/chdb"
	"github.com/hikyaku/hikyaku/deploy/embedded/kafka"
	"github.com/hikyaku/hikyaku/deploy/embedded/outbox"
	"github.com/hikyaku/hikyaku/deploy/embedded/registry"
	"github.com/hikyaku/hikyaku/deploy/embedded/s3"
)

// Exit codes, the same for every command of the project.
const (
	exitDone    = 0
	exitFailed  = 1 // something broke
	exitUsage   = 2
	exitMissing = 3 // something needed is missing: a port, the data directory, libchdb.so
)

// stopTimeout is how long a stop may take before the process just ends, which
// is safe: every part survives kill -9.
const stopTimeout = 8 * time.Second

const usage = `embedded runs everything Hikyaku talks to in one process, with the real protocols:

  part               default address          not started if this is set
  Kafka              127.0.0.1:9092           KAFKA_BROKERS
  Schema Registry    http://127.0.0.1:8081    SCHEMA_REGISTRY_URL
  ClickHouse (HTTP)  http://127.0.0.1:8123    CLICKHOUSE_URL
  S3                 http://127.0.0.1:7070    AWS_ENDPOINT_URL_S3
  mail outbox        127.0.0.1:1025           SMTP_ADDR
    and its page     http://127.0.0.1:8025

Data is kept in HIKYAKU_DATA (default .hikyaku): kafka/, registry/, clickhouse/,
s3/ (drop a file into s3/hikyaku/ and it is uploaded) and outbox/ (mail-NNNN.mbox
and index.tsv). Remove the directory to begin anew.

S3 credentials are AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY if both are set,
else hikyaku and hikyaku-embedded; AWS_REGION (us-east-1), S3_BUCKET (hikyaku).

A line is printed for each part that serves, then "ready". SIGINT or SIGTERM
stops it within seconds; kill -9 loses nothing that was acknowledged.
Exit codes: 0 stopped, 1 a part failed, 2 usage, 3 a port is taken, the data
directory is in use, or libchdb.so is missing.

Usage:
  embedded [flags]
  embedded outbox [--count] [--listen ADDR] [--page ADDR] [--dir DIR]
                                     only the mail outbox; "embedded outbox -h" tells more

Flags:
`

const outboxUsage = `embedded outbox runs the mail outbox alone. Local parts that end in +550 are
refused for good, +451 once, +hang are accepted without an answer.

With --count no message is kept, only the index with one line for each: the
sink of the benchmarks.

Flags:
`

type lookup func(string) (string, bool)

func (l lookup) or(name, fallback string) string {
	if v, ok := l(name); ok && v != "" {
		return v
	}
	return fallback
}

// run is the command without the process around it.
func run(ctx context.Context, args []string, env lookup, stdout, stderr io.Writer) int {
	stopped, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	// The first signal asks; with the handler gone the second one kills.
	context.AfterFunc(stopped, stop)
	if len(args) > 0 && args[0] == "outbox" {
		return runOutbox(stopped, args[1:], env, stdout, stderr, log)
	}
	return runStack(stopped, args, env, stdout, stderr, log)
}

func newFlags(name, text string, stderr io.Writer) *flag.FlagSet {
	flags := flag.NewFlagSet(name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, text)
		flags.PrintDefaults()
	}
	return flags
}

// parse returns an exit code, or -1 to go on.
func parse(flags *flag.FlagSet, args []string, stderr io.Writer) int {
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitDone
	case err != nil:
		return exitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "embedded: unexpected %q; see -h\n", flags.Arg(0))
		return exitUsage
	}
	return -1
}

func runStack(ctx context.Context, args []string, env lookup, stdout, stderr io.Writer, log *slog.Logger) int {
	o := embedded.Options{Logger: log, Parts: []embedded.Part{}}
	flags := newFlags("embedded", usage, stderr)
	flags.StringVar(&o.DataDir, "data", env.or("HIKYAKU_DATA", embedded.DefaultDataDir), "data `directory`, HIKYAKU_DATA if not given")
	flags.StringVar(&o.KafkaAddr, "kafka", kafka.DefaultAddr, "`address` to listen on; port 0 takes a free one")
	flags.StringVar(&o.RegistryAddr, "registry", registry.DefaultAddr, "`address` of the Schema Registry")
	flags.StringVar(&o.ClickHouseAddr, "clickhouse", embedded.DefaultClickHouseAddr, "`address` of ClickHouse's HTTP interface")
	flags.StringVar(&o.S3Addr, "s3", s3.DefaultAddr, "`address` of S3")
	flags.StringVar(&o.SMTPAddr, "smtp", outbox.DefaultSMTPAddr, "`address` of the mail outbox")
	flags.StringVar(&o.OutboxAddr, "outbox", outbox.DefaultPageAddr, "`address` of the outbox's page")
	flags.BoolVar(&o.Sync, "sync", false, "fsync before acknowledging, to survive power cuts (slow)")
	flags.BoolVar(&o.CountOnly, "count", false, "the outbox keeps its index only")
	profiles := profilesFlag(flags)
	if code := parse(flags, args, stderr); code >= 0 {
		return code
	}
	if err := serveProfiles(*profiles); err != nil {
		return complain(stderr, err)
	}
	for _, p := range embedded.Parts() {
		if where := env.or(p.Variable(), ""); where != "" {
			fmt.Fprintf(stdout, "%-16s elsewhere: %s=%s\n", p, p.Variable(), where)
		} else {
			o.Parts = append(o.Parts, p)
		}
	}
	// One half of a pair of credentials would be refused by nobody and work for nobody.
	if id, secret := env.or("AWS_ACCESS_KEY_ID", ""), env.or("AWS_SECRET_ACCESS_KEY", ""); id != "" && secret != "" {
		o.S3AccessKeyID, o.S3SecretAccessKey = id, secret
	}
	o.S3Region, o.S3Bucket = env.or("AWS_REGION", ""), env.or("S3_BUCKET", "")

	s, err := embedded.Start(ctx, o)
	if err != nil {
		if ctx.Err() != nil {
			return exitDone // told to stop while starting
		}
		return complain(stderr, err)
	}
	for _, p := range s.Started() {
		fmt.Fprintf(stdout, "%-16s %s\n", p, where(s, p))
	}
	fmt.Fprintln(stdout, "ready")
	return until(ctx, s.Failed(), s.Close, stderr)
}

func where(s *embedded.Stack, p embedded.Part) string {
	switch p {
	case embedded.Outbox:
		return fmt.Sprintf("%s, page %s, files %s", s.SMTPAddr, s.OutboxURL, s.OutboxDir)
	case embedded.Registry:
		return s.RegistryURL
	case embedded.Kafka:
		return s.KafkaAddr
	case embedded.ClickHouse:
		return s.ClickHouseURL
	case embedded.S3:
		return fmt.Sprintf("%s, folder %s", s.S3Endpoint, s.S3Folder)
	}
	return ""
}

func runOutbox(ctx context.Context, args []string, env lookup, stdout, stderr io.Writer, log *slog.Logger) int {
	o := outbox.Options{Logger: log}
	var listen, page string
	flags := newFlags("embedded outbox", outboxUsage, stderr)
	flags.StringVar(&listen, "listen", outbox.DefaultSMTPAddr, "`address` to take mail on; port 0 takes a free one")
	flags.StringVar(&page, "page", "", "`address` of the page; none if not given")
	flags.StringVar(&o.Dir, "dir", env.or("HIKYAKU_DATA", embedded.DefaultDataDir)+"/outbox", "`directory` of the mail")
	flags.BoolVar(&o.CountOnly, "count", false, "keep the index only")
	flags.BoolVar(&o.Sync, "sync", false, "fsync before answering")
	profiles := profilesFlag(flags)
	if code := parse(flags, args, stderr); code >= 0 {
		return code
	}
	if err := serveProfiles(*profiles); err != nil {
		return complain(stderr, err)
	}
	unlock, err := embedded.Lock(o.Dir)
	if err != nil {
		return complain(stderr, err)
	}
	defer unlock()
	mail, err := net.Listen("tcp", listen)
	if err != nil {
		return complain(stderr, portError(listen, "--listen", err))
	}
	box, err := outbox.Open(o)
	if err != nil {
		return complain(stderr, err)
	}
	failed := make(chan error, 2)
	go func() {
		if err := box.ServeSMTP(mail); err != nil {
			failed <- err
		}
	}()
	at := fmt.Sprintf("%s, files %s", mail.Addr(), o.Dir)
	if page != "" {
		l, err := net.Listen("tcp", page)
		if err != nil {
			return complain(stderr, portError(page, "--page", err))
		}
		at += ", page http://" + l.Addr().String()
		go func() {
			failed <- (&http.Server{Handler: box.Handler(), ReadHeaderTimeout: 10 * time.Second}).Serve(l)
		}()
	}
	fmt.Fprintf(stdout, "%-16s %s\nready\n", embedded.Outbox, at)
	return until(ctx, failed, box.Close, stderr)
}

func profilesFlag(flags *flag.FlagSet) *string {
	return flags.String("profiles", "", "`address` where /debug/pprof/ is served, for benchmarks; none if not given")
}

// serveProfiles serves Go's profiles of this process, for as long as it lives.
func serveProfiles(addr string) error {
	if addr == "" {
		return nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return portError(addr, "--profiles", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	go func() { _ = (&http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}).Serve(l) }()
	return nil
}

func portError(addr, flag string, err error) error {
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("port %s is taken; stop what holds it, or choose another with %s: %w", addr, flag, err)
	}
	return err
}

// until waits for a signal or a failure, and closes.
func until(ctx context.Context, failed <-chan error, stop func() error, stderr io.Writer) int {
	code := exitDone
	select {
	case <-ctx.Done():
	case err := <-failed:
		fmt.Fprintln(stderr, "embedded:", err)
		code = exitFailed
	}
	closed := make(chan error, 1)
	go func() { closed <- stop() }()
	select {
	case err := <-closed:
		if err != nil {
			fmt.Fprintln(stderr, "embedded:", err)
			code = exitFailed
		}
	case <-time.After(stopTimeout):
		fmt.Fprintf(stderr, "embedded: not stopped after %v; ending hard, which loses nothing acknowledged\n", stopTimeout)
		code = exitFailed
	}
	return code
}

// complain prints an error and says how to exit with it.
func complain(stderr io.Writer, err error) int {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	fmt.Fprintln(stderr, "embedded:", strings.Join(slices.Compact(lines), "\n"))
	var port *embedded.PortTakenError
	var locked *embedded.LockedError
	if errors.As(err, &port) || errors.As(err, &locked) || errors.Is(err, chdb.ErrNoLibrary) || errors.Is(err, syscall.EADDRINUSE) {
		return exitMissing
	}
	return exitFailed
}
