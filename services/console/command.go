// Package console is the face of Hikyaku; for now the command hikyaku. It
// writes definitions and requests to Kafka and reads results from ClickHouse.
//
// Tables are for people and --json is for machines; --sql shows the query
// behind a number. People's lines about what is going on go to stderr.
package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/sethvargo/go-envconfig"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/definitions"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// The exit codes of the command.
const (
	exitDone      = 0
	exitBroken    = 1 // a promise did not hold
	exitUsage     = 2 // usage, or a bad definition
	exitMissing   = 3 // something needed is missing or away
	exitCancelled = 130
)

// failure is an error with the exit code it ends the command with.
type failure struct {
	code int
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

func usage(format string, a ...any) error   { return &failure{exitUsage, fmt.Errorf(format, a...)} }
func missing(format string, a ...any) error { return &failure{exitMissing, fmt.Errorf(format, a...)} }
func broken(format string, a ...any) error  { return &failure{exitBroken, fmt.Errorf(format, a...)} }

// Main runs the command and returns its exit code.
func Main(args []string, env envconfig.Lookuper, stdin io.Reader, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second Ctrl-C ends the process at once, whatever hangs.
	context.AfterFunc(ctx, stop)
	return run(ctx, args, env, stdin, stdout, stderr)
}

func run(ctx context.Context, args []string, env envconfig.Lookuper, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{env: env, stdin: stdin, out: stdout, err: stderr}
	defer a.close()
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var f *failure
	switch {
	case err == nil:
		return exitDone
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "hikyaku: stopped; what was asked for goes on")
		return exitCancelled
	case errors.As(err, &f):
		fmt.Fprintf(stderr, "hikyaku: %v\n", f.err)
		return f.code
	case isUsage(err):
		fmt.Fprintf(stderr, "hikyaku: %v\nhikyaku --help teaches\n", err)
		return exitUsage
	case unprovisioned(err):
		fmt.Fprintf(stderr, "hikyaku: ClickHouse has no tables for this namespace; has provision run, and is NAMESPACE right? %v\n", err)
		return exitMissing
	}
	fmt.Fprintf(stderr, "hikyaku: %v\n", err)
	if fault.ClassOf(err) == fault.ClassTransient {
		return exitMissing
	}
	return exitBroken
}

// unprovisioned recognises ClickHouse's UNKNOWN_TABLE and UNKNOWN_DATABASE.
func unprovisioned(err error) bool {
	code, ok := clickhouse.Code(err)
	return ok && (code == 60 || code == 81)
}

// isUsage recognises cobra's own complaints about words and flags.
func isUsage(err error) bool {
	for _, start := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "requires ", "invalid argument", "required flag", "flag needs"} {
		if strings.HasPrefix(err.Error(), start) {
			return true
		}
	}
	return false
}

// app is one call of the command: what it was told, and what it has opened.
type app struct {
	env      envconfig.Lookuper
	stdin    io.Reader
	out, err io.Writer
	asJSON   bool
	showSQL  bool
	patience time.Duration

	cfg     *Config
	cluster *kafka.Cluster
	conn    *clickhouse.Conn
	store   *definitions.Store
	closers []func()
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "hikyaku",
		Short:         "Write definitions, start and follow campaigns, ask what happened",
		SilenceErrors: true, SilenceUsage: true,
		Long: `hikyaku is the command for a running Hikyaku.

  hikyaku apply -f examples/online-retail        write definitions (audiences, templates, campaigns, import specs)
  hikyaku import plan people.csv --spec people   what importing a file would do, without doing it
  hikyaku audience loyal                         how many people an audience has; --members lists them
  hikyaku preview thanks-2011 12347              the mail one person would get
  hikyaku imports --follow                       what is being imported, how fast and until when
  hikyaku export loyal-nightly                   write people to files on S3
  hikyaku start thanks-2011                      send it; prints the run
  hikyaku status RUN                             follow it
  hikyaku status                                 what is wrong now, if anything
  hikyaku balance RUN                            where everybody went, and that it adds up
  hikyaku reclassify                             judge who opened and clicked, people or machines, by newer rules
  hikyaku explain thanks-2011 12347              why one person did (not) get it
  hikyaku topic read outcomes --limit 5          what lies in Kafka, decoded
  hikyaku dead-letters                           what could not be processed, and why
  hikyaku spool drain DIR                        what a collector had taken in while Kafka was away, and did not come back

It finds Kafka, the Schema Registry and ClickHouse through KAFKA_BROKERS, SCHEMA_REGISTRY_URL and CLICKHOUSE_URL;
without them it talks to the stack that scripts/quickstart starts; hikyaku help settings lists all. Exit codes: 0 done, 1 a promise did not hold,
2 usage or a bad definition, 3 something needed is missing or away.`,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().BoolVar(&a.asJSON, "json", false, "print JSON instead of tables")
	root.PersistentFlags().BoolVar(&a.showSQL, "sql", false, "show the queries behind the numbers on stderr")
	root.PersistentFlags().DurationVar(&a.patience, "timeout", 10*time.Second, "how long to wait for Kafka, the registry or ClickHouse to answer")
	root.AddCommand(a.applyCommand(), a.getCommand(), a.audienceCommand(), a.previewCommand(), a.importCommand(), a.importsCommand(), a.exportCommand(), a.exportsCommand(), a.sendTestCommand(), a.startCommand(),
		a.statusCommand(), a.cancelCommand(), a.balanceCommand(), a.funnelCommand(), a.reclassifyCommand(), a.explainCommand(), a.unsuppressCommand(), a.eraseCommand(), a.topicCommand(), a.deadLettersCommand(), a.spoolCommand(), a.sqlCommand(), settings())
	return root
}

// settings is a page of help: hikyaku help settings.
func settings() *cobra.Command {
	var page strings.Builder
	config.Help(&page, "hikyaku", Config{})
	return &cobra.Command{Use: "settings", Short: "The environment variables that hikyaku reads", Long: page.String()}
}

func (a *app) close() {
	for i := len(a.closers) - 1; i >= 0; i-- {
		a.closers[i]()
	}
}

func (a *app) config(ctx context.Context) (*Config, error) {
	if a.cfg == nil {
		cfg, err := config.Load[Config](ctx, a.env)
		if err != nil {
			return nil, &failure{exitUsage, fmt.Errorf("reading settings: %w", err)}
		}
		a.cfg = &cfg
	}
	return a.cfg, nil
}

// kafka connects to the cluster, or says that it is away and what to do.
func (a *app) kafka(ctx context.Context) (*kafka.Cluster, error) {
	if a.cluster != nil {
		return a.cluster, nil
	}
	cfg, err := a.config(ctx)
	if err != nil {
		return nil, err
	}
	// Quiet: waiting is reported below, in one sentence.
	tel := telemetry.New(topic.Console, telemetry.Config{}, io.Discard)
	c, err := kafka.New(cfg.Kafka, topic.Console, tel)
	if err != nil {
		return nil, &failure{exitUsage, err}
	}
	started, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if err := c.Start(started); err != nil {
		c.Close()
		if started.Err() != nil && ctx.Err() == nil {
			return nil, missing("Kafka at %s or the Schema Registry at %s does not answer as it should; is the stack running (scripts/quickstart)? KAFKA_BROKERS and SCHEMA_REGISTRY_URL name others (%s)",
				strings.Join(cfg.Kafka.Brokers, ","), cfg.Kafka.RegistryURL, strings.Join(append(tel.Health.NotReady(), "waited "+a.patience.String()), "; "))
		}
		return nil, &failure{exitMissing, err}
	}
	a.cluster = c
	a.closers = append(a.closers, c.Close)
	return c, nil
}

// clickhouse connects, or says that it is away and what to do.
func (a *app) clickhouse(ctx context.Context) (*clickhouse.Conn, error) {
	if a.conn != nil {
		return a.conn, nil
	}
	cfg, err := a.config(ctx)
	if err != nil {
		return nil, err
	}
	conn, err := clickhouse.Open(cfg.ClickHouse, cfg.Kafka.Namespace)
	if err != nil {
		return nil, &failure{exitUsage, err}
	}
	ping, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if err := conn.Ping(ping); err != nil {
		conn.Close()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if unprovisioned(err) {
			return nil, err
		}
		return nil, missing("ClickHouse does not answer; is the stack running (scripts/quickstart)? CLICKHOUSE_URL names another: %w", err)
	}
	a.conn = conn
	a.closers = append(a.closers, func() { conn.Close() })
	return conn, nil
}

// definitions reads all definitions as they are now.
func (a *app) definitions(ctx context.Context) (*definitions.Store, error) {
	if a.store != nil {
		return a.store, nil
	}
	c, err := a.kafka(ctx)
	if err != nil {
		return nil, err
	}
	store := definitions.NewStore(c)
	running, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	var failed error
	go func() {
		defer close(ended)
		failed = store.Run(running)
	}()
	a.closers = append(a.closers, func() { stop(); <-ended })
	patient, cancel := context.WithTimeout(ctx, a.patience)
	defer cancel()
	if err := store.CaughtUp(patient); err != nil {
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case patient.Err() != nil:
			return nil, missing("the definitions could not be read within %s", a.patience)
		}
		<-ended // CaughtUp fails otherwise only because Run has ended
		return nil, fmt.Errorf("reading the definitions: %w", errors.Join(failed, err))
	}
	a.store = store
	return store, nil
}

// sql shows a query when asked to.
func (a *app) sql(query string, args ...any) {
	if a.showSQL {
		fmt.Fprintf(a.err, "-- %s\n", query)
		if len(args) > 0 {
			fmt.Fprintf(a.err, "-- with %v\n", args)
		}
	}
}

func (a *app) printJSON(v any) error {
	enc := json.NewEncoder(a.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// table prints rows under headings.
func (a *app) table(headings []string, rows [][]string) {
	t := a.longTable(headings...)
	for _, r := range rows {
		t.row(r...)
	}
	t.flush()
}

// longTable prints rows as they come, a thousand at a time, so that a table of
// any length needs no memory; columns are as wide as that part of it needs.
type longTable struct {
	w    *tabwriter.Writer
	rows int
}

func (a *app) longTable(headings ...string) *longTable {
	t := &longTable{w: tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)}
	fmt.Fprintln(t.w, strings.Join(headings, "\t"))
	return t
}

func (t *longTable) row(cells ...string) {
	for i, c := range cells {
		if i > 0 {
			fmt.Fprint(t.w, "\t")
		}
		fmt.Fprint(t.w, printable(c))
	}
	fmt.Fprintln(t.w)
	if t.rows++; t.rows%1000 == 0 {
		t.w.Flush()
	}
}

func (t *longTable) flush() { t.w.Flush() }

// printable keeps what people wrote from breaking a line or commanding the
// terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// moment is a time for people.
func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") }

// terminal reports whether people watch stderr, and how wide it is.
func (a *app) terminal() (width int, ok bool) {
	f, isFile := a.err.(*os.File)
	if !isFile || !term.IsTerminal(int(f.Fd())) {
		return 80, false
	}
	if w, _, err := term.GetSize(int(f.Fd())); err == nil && w > 0 {
		return w, true
	}
	return 80, true
}
