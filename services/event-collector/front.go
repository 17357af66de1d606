package collector

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/services/internal/fault"
	"github.com/hikyaku/hikyaku/services/internal/lifecycle"
	"github.com/hikyaku/hikyaku/services/internal/telemetry"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/intake"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/tracking"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/webhook"
)

// front is the collector's HTTP server.
type front struct {
	addr     string
	drain    time.Duration
	log      *slog.Logger
	hooks    *webhook.Handler
	server   *http.Server
	listener net.Listener
}

// patience is how long a request waits until it is stored: longer than Kafka may take and a disk
// that works does, however busy.
func (c IntakeConfig) patience() time.Duration { return c.AckTimeout + 5*time.Second }

func newFront(cfg Config, tel *telemetry.Telemetry, out *output.Writer) (*front, error) {
	links, err := cfg.Tracking.Keys()
	if err != nil {
		return nil, err
	}
	keys, err := intake.ParseKeys(string(cfg.Intake.WriteKeys), cfg.Intake.WriteKeyRate)
	if err != nil {
		return nil, err
	}
	proxies, err := tracking.ParseProxies(cfg.Hits.Proxies)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	intake.New(intake.Options{Keys: keys, Origins: cfg.Intake.Origins, Write: out.Write, AckTimeout: cfg.Intake.patience(), Concurrency: cfg.Intake.Concurrency,
		MemoryBytes: int64(cfg.Intake.MemoryMiB) << 20, Registry: tel.Registry}).Register(mux)
	tracking.New(tracking.Options{Keys: links, Write: out.Write, HitTimeout: cfg.Intake.HitTimeout, AckTimeout: cfg.Intake.patience(),
		Address: cfg.Hits.Address, Proxies: proxies, Log: tel.Log, Registry: tel.Registry}).Register(mux)
	hooks, err := newHooks(cfg, tel, links, out)
	if err != nil {
		return nil, err
	}
	hooks.Register(mux)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if stuck := tel.Health.Stuck(); len(stuck) > 0 {
			http.Error(w, strings.Join(stuck, "\n"), http.StatusServiceUnavailable)
			return
		}
		_, _ = io.WriteString(w, "ok\n")
	})
	mux.Handle("/", intake.NotFound(mux))
	return &front{addr: cfg.Intake.Addr, drain: cfg.Lifecycle.Drain, log: tel.Log, hooks: hooks, server: &http.Server{
		Handler:   mux,
		ConnState: newConns(cfg.Intake.Connections).changed,
		// Whoever sends slowly must not hold a connection, or a request's turn, for
		// long. A full batch over a slow mobile line takes seconds.
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		// Above what reading and Kafka may take together.
		WriteTimeout: 60 * time.Second,
		IdleTimeout:  75 * time.Second,
		// A link holds its target, which may be long.
		MaxHeaderBytes: 32 << 10,
		// What clients do wrong is in the metrics, not in the log.
		ErrorLog: slog.NewLogLogger(tel.Log.Handler(), slog.LevelDebug),
	}}, nil
}

func newHooks(cfg Config, tel *telemetry.Telemetry, keys *token.Keys, out *output.Writer) (*webhook.Handler, error) {
	line, err := webhook.ParseLINE(string(cfg.Webhooks.LINE))
	if err != nil {
		return nil, err
	}
	sources, err := webhook.ParseSources(string(cfg.Webhooks.Sources))
	if err != nil {
		return nil, err
	}
	queue, err := cfg.Webhooks.queue()
	if err != nil {
		return nil, err
	}
	return webhook.New(webhook.Options{Keys: keys, Write: out.Write, AckTimeout: cfg.Intake.patience(), Topics: cfg.Webhooks.SESTopics, Queue: queue,
		LINE: line, Sources: sources, Log: tel.Log, Registry: tel.Registry}), nil
}

// listen takes the port, once. A taken one is Transient, which ends a start with
// exit 3.
func (f *front) listen() error {
	if f.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", f.addr)
	if err != nil {
		return fault.Transient(fmt.Errorf("serving on COLLECTOR_ADDR %s: %w", f.addr, err))
	}
	f.listener = l
	return nil
}

// run answers until ctx ends. Then it takes no more requests, answers those it
// has, and waits until Kafka has acknowledged everything.
func (f *front) run(ctx context.Context, out *output.Writer) error {
	work, stop := lifecycle.Drain(ctx)
	defer stop()
	served := make(chan error, 1)
	go func() { served <- f.server.Serve(f.listener) }()
	queued := make(chan struct{})
	go func() {
		defer close(queued)
		f.hooks.Receive(ctx)
	}()
	select {
	case err := <-served:
		return fmt.Errorf("serving on COLLECTOR_ADDR %s: %w", f.addr, err)
	case <-ctx.Done():
	}
	// No signal may have come, but another part of the service have failed: the
	// drain time counts from here too.
	work, stop = context.WithTimeout(work, f.drain)
	defer stop()
	if err := f.server.Shutdown(work); err != nil {
		f.server.Close()
		f.log.Warn("requests were cut off", "reason", err.Error())
	}
	select {
	case <-queued:
	case <-work.Done(): // what it holds comes again
	}
	if err := out.Stop(work); err != nil {
		// What was answered as stored is.
		f.log.Warn("intake did not end in good order", "reason", err.Error())
	}
	return nil
}
