// Command provision makes a namespace: topics, group offsets, schemas and
// ClickHouse tables. Run it before the services; run it again after an upgrade.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/sethvargo/go-envconfig"

	migrations "github.com/hikyaku/hikyaku/schemas/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/clickhouse"
	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/kafka"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/provision"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

type settings struct {
	telemetry.Config
	Kafka      kafka.Config
	ClickHouse clickhouse.Config
	Provision  provision.Config
}

const teaching = `provision makes what the services rely on and never make themselves, under one
namespace (NAMESPACE), and leaves alone what is there already:

  topics      those of the catalogue, with their partition counts and retention
  offsets     offset 0 for every group on every partition it will read, because
              a group without an offset refuses to start
  schemas     of every topic's records, in the Schema Registry
  tables      in ClickHouse, by numbered migrations

Run it before the services, and again after an upgrade: doing it twice changes
nothing. If it refuses because partition counts differ, nothing was changed. If
an upgrade lets a group read another topic, it asks you to stop that group's
services first.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], envconfig.OsLookuper(), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, env envconfig.Lookuper, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("provision", flag.ContinueOnError)
	flags.SetOutput(stderr)
	check := flags.Bool("check", false, "check the settings and stop before anything is opened")
	flags.Usage = func() {
		fmt.Fprint(stdout, "usage: provision [-check] [-help]\n\n", teaching)
		config.Help(stdout, "provision", settings{})
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return lifecycle.ExitDone
	case err != nil:
		return lifecycle.ExitUsage
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "provision: unexpected argument %q; see provision -help\n", flags.Arg(0))
		return lifecycle.ExitUsage
	}
	cfg, err := config.Load[settings](ctx, env)
	if err != nil {
		fmt.Fprintf(stderr, "provision: %v\n", err)
		return lifecycle.ExitUsage
	}
	db, err := clickhouse.Open(cfg.ClickHouse, cfg.Kafka.Namespace)
	if err != nil {
		fmt.Fprintf(stderr, "provision: %v\n", err)
		return lifecycle.ExitUsage
	}
	defer db.Close()
	if *check {
		return lifecycle.ExitDone
	}
	report, err := provision.Run(ctx, provision.Options{
		Config: cfg.Provision,
		Kafka:  cfg.Kafka,
		Migrate: func(ctx context.Context) ([]string, error) {
			return db.Migrate(ctx, migrations.FS)
		},
		Log: telemetry.New("provision", cfg.Config, stderr).Log,
	})
	if err != nil {
		fmt.Fprintf(stderr, "provision: %v\n", err)
		if fault.ClassOf(err) == fault.ClassTransient {
			return lifecycle.ExitMissing
		}
		return lifecycle.ExitFailed
	}
	fmt.Fprintln(stderr, "provision:", report)
	return lifecycle.ExitDone
}
