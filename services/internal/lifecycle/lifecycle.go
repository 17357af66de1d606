package lifecycle

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/sethvargo/go-envconfig"

	"github.com/hikyaku/hikyaku/services/internal/config"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"
)

// Config is part of every service's settings.
type Config struct {
	Drain time.Duration `env:"DRAIN_TIMEOUT, default=10s" help:"how long the work in hand may take after a signal"`
}

// Validate refuses a drain time that would end every batch at once.
func (c Config) Validate() error {
	if c.Drain < 0 {
		return config.Invalid("DRAIN_TIMEOUT", c.Drain, "a duration of 0 or more")
	}
	return nil
}

// Service runs until ctx is cancelled, then stops taking input, drains and
// returns nil. Any other return is the end of the process: a transient error
// means that something stayed away beyond the service's patience.
type Service interface {
	Run(ctx context.Context) error
}

// The exit codes of every program of the pipeline.
const (
	ExitDone    = 0
	ExitFailed  = 1
	ExitUsage   = 2
	ExitMissing = 3
)

// hardEndAfter is the grace between the drain deadline, which cancels the work
// in hand, and the hard end.
const hardEndAfter = time.Second

// Main runs a service and ends the process. C embeds telemetry.Config and
// lifecycle.Config anywhere; build checks and wires, and opens no socket.
func Main[C any](service string, build func(C, *telemetry.Telemetry) (Service, error)) {
	// Two places: the second signal must not be dropped while the first is handled.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	letGarbageGather()
	os.Exit(run(service, build, os.Args[1:], envconfig.OsLookuper(), signals, os.Stdout, os.Stderr))
}

func run[C any](service string, build func(C, *telemetry.Telemetry) (Service, error), args []string,
	env envconfig.Lookuper, signals <-chan os.Signal, stdout, stderr io.Writer) int {
	say := func(code int, err error) int {
		fmt.Fprintf(stderr, "%s: %v\n", service, err)
		return code
	}

	flags := flag.NewFlagSet(service, flag.ContinueOnError)
	flags.SetOutput(stderr)
	check := flags.Bool("check", false, "check the settings and stop before anything is opened")
	var zero C
	flags.Usage = func() {
		fmt.Fprintf(stdout, "usage: %s [-check] [-help]\n\n", service)
		config.Help(stdout, service, zero)
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return ExitDone
	case err != nil:
		return ExitUsage
	case flags.NArg() > 0:
		return say(ExitUsage, fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}

	cfg, err := config.Load[C](context.Background(), env)
	if err != nil {
		return say(ExitUsage, fmt.Errorf("reading settings: %w", err))
	}
	telemetryConfig, _ := config.Find[telemetry.Config](cfg)
	own, ok := config.Find[Config](cfg)
	if !ok {
		own.Drain = DefaultDrain
	}
	tel := telemetry.New(service, telemetryConfig, stderr)
	svc, err := build(cfg, tel)
	if err != nil {
		if fault.ClassOf(err) == fault.ClassTransient {
			return say(ExitMissing, err)
		}
		return say(ExitUsage, err)
	}
	if *check {
		return ExitDone
	}
	if err := tel.Listen(); err != nil {
		return say(ExitMissing, err)
	}
	return supervise(svc, own.Drain, tel, signals)
}

// supervise runs the service beside its telemetry until it ends or is ended.
func supervise(svc Service, drain time.Duration, tel *telemetry.Telemetry, signals <-chan os.Signal) int {
	serveCtx, endServe := context.WithCancel(context.Background())
	defer endServe()
	served := make(chan error, 1)
	go func() { served <- tel.Serve(serveCtx) }()

	cancellable, stopInput := context.WithCancel(context.Background())
	defer stopInput()
	ctx := WithDrain(cancellable, drain)
	ran := make(chan error, 1)
	go func() { ran <- runRecovered(ctx, svc, tel.Log) }()
	tel.Log.Info("started", "telemetry", tel.Addr())

	var deadline <-chan time.Time
	for {
		select {
		case s := <-signals:
			if deadline != nil {
				tel.Log.Error("second signal, ending at once", "signal", s.String())
				return ExitFailed
			}
			tel.Log.Info("stopping", "signal", s.String(), "drain_timeout", drain)
			tel.Health.Stop()
			stopInput()
			deadline = time.After(drain + hardEndAfter)
		case <-deadline:
			tel.Log.Error("still busy after the drain time, ending at once", "drain_timeout", drain)
			return ExitFailed
		case err := <-served:
			// Without metrics and health nobody would notice the rest.
			tel.Log.Error("telemetry ended", "error", err)
			return ExitFailed
		case err := <-ran:
			code := exitCode(err, cancellable)
			if code == ExitDone {
				tel.Log.Info("stopped")
			} else {
				tel.Log.Error("ended", "error", err, "class", fault.ClassOf(err).String(), "exit_code", code)
			}
			endServe()
			<-served
			return code
		}
	}
}

func exitCode(err error, cancelled context.Context) int {
	switch {
	case err == nil:
		return ExitDone
	case cancelled.Err() != nil && errors.Is(err, context.Canceled) && !errors.Is(err, ErrDrainTimeout):
		// A service that hands up the cancellation it was given has stopped as told.
		return ExitDone
	case fault.ClassOf(err) == fault.ClassTransient:
		return ExitMissing
	}
	return ExitFailed
}

// runRecovered turns a panic into exit code 1: the runtime's own, 2, would tell
// a supervisor that the settings are wrong and a restart is useless.
func runRecovered(ctx context.Context, svc Service, log *slog.Logger) (err error) {
	defer func() {
		if p := recover(); p != nil {
			log.Error("panic", "value", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = fault.Fatal(fmt.Errorf("panic: %v", p))
		}
	}()
	return svc.Run(ctx)
}
