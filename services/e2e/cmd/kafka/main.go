// Command kafka runs one broker of Apache Kafka; start it with scripts/kafka.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/hikyaku/hikyaku/services/e2e/internal/command"
	"github.com/hikyaku/hikyaku/services/e2e/internal/realkafka"
)

const help = `kafka runs one broker of Apache Kafka on loopback until Ctrl-C. The first time it is fetched with Maven (130 MB into .kafka/
in the checkout); it needs Java 17 or later. When the broker serves, its address is printed as a line KAFKA_BROKERS=host:port.

  scripts/kafka                             a broker at 127.0.0.1:19092 that keeps its data in .kafka/data
  scripts/kafka --port 0 --data DIR         at a free port, with its data elsewhere
  scripts/kafka --fetch                     fetch it and stop

In another terminal:

  KAFKA_BROKERS=127.0.0.1:19092 scripts/test -run 'Pipeline|Killed' ./services/e2e
  KAFKA_BROKERS=127.0.0.1:19092 scripts/quickstart

Exit codes: 0 stopped, 1 the broker ended by itself, 2 usage, 3 something needed is missing or away.

`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	// The broker dies with the thread that started it.
	runtime.LockOSThread()
	flags := flag.NewFlagSet("kafka", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() {
		fmt.Fprint(stderr, help)
		flags.PrintDefaults()
	}
	port := flags.String("port", value("KAFKA_PORT", "19092"), "`port` on loopback, 0 for a free one (default: KAFKA_PORT, else 19092)")
	data := flags.String("data", "", "data `directory`, kept (default: .kafka/data in the checkout)")
	fetch := flags.Bool("fetch", false, "fetch Apache Kafka if it is not there, and stop")
	fresh := flags.Bool("fresh", false, "wipe the data directory first")
	if err := flags.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	number, err := strconv.ParseUint(*port, 10, 16)
	if err != nil || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "kafka: --port takes a number from 0 to 65535, and there are no arguments; scripts/kafka --help teaches")
		return 2
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := serve(ctx, int(number), *data, *fetch, *fresh, stdout, stderr); err != nil {
		fmt.Fprintln(stderr, "kafka:", err)
		var missing *realkafka.MissingError
		if errors.As(err, &missing) {
			return 3
		}
		return 1
	}
	return 0
}

func value(variable, fallback string) string {
	if v := os.Getenv(variable); v != "" {
		return v
	}
	return fallback
}

// serve runs the broker until ctx ends, which is no error.
func serve(ctx context.Context, port int, data string, fetch, fresh bool, stdout, stderr io.Writer) error {
	root, err := command.AboveBin("scripts/kafka")
	if err != nil {
		return err
	}
	libs, err := realkafka.Libraries(root)
	if err != nil {
		fmt.Fprintln(stderr, "Fetching Apache Kafka with Maven")
		if libs, err = realkafka.Fetch(ctx, root, stderr); ctx.Err() != nil {
			return nil
		}
	}
	if err != nil || fetch {
		return err
	}
	if data == "" {
		data = filepath.Join(realkafka.Folder(root), "data")
	}
	if fresh {
		if err := realkafka.Wipe(data); err != nil {
			return err
		}
	}
	broker, err := realkafka.Start(ctx, realkafka.Options{Libraries: libs, Dir: data, Port: port})
	if ctx.Err() != nil {
		if broker != nil {
			broker.Stop()
		}
		return nil
	}
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "KAFKA_BROKERS=%s\n", broker.Addr())
	fmt.Fprintf(stderr, "Apache Kafka serves at %s until Ctrl-C; its data and its log are in %s\n", broker.Addr(), data)
	select {
	case <-broker.Ended():
		return fmt.Errorf("the broker ended by itself; its log is %s", broker.Log())
	case <-ctx.Done():
	}
	fmt.Fprintln(stderr, "stopping")
	broker.Stop()
	return nil
}
