// Package telemetry is what a service tells about itself: structured logs,
// Prometheus metrics and health, served on one port of its own. State changes
// are logged; what happens per record is counted. Nothing here may carry
// personal data.
package telemetry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/hikyaku/hikyaku/services/internal/config"
)

// Config is where telemetry goes.
type Config struct {
	Addr      string     `env:"TELEMETRY_ADDR" unit:"host:port" help:"where /healthz, /readyz, /statusz, /metrics and /debug/pprof are served; not served when unset"`
	LogLevel  slog.Level `env:"LOG_LEVEL, default=info" unit:"debug, info, warn or error" help:"what is logged"`
	LogFormat string     `env:"LOG_FORMAT, default=text" unit:"text or json" help:"how it is logged, on stderr"`
}

// Validate refuses an unknown log format.
func (c Config) Validate() error {
	if c.LogFormat != "" && c.LogFormat != "text" && c.LogFormat != "json" {
		return config.Invalid("LOG_FORMAT", c.LogFormat, "text or json")
	}
	return nil
}

// Telemetry is handed to every part of a service.
type Telemetry struct {
	Log      *slog.Logger
	Registry *prometheus.Registry
	Health   *Health

	service    string
	member     atomic.Pointer[string]
	startedAt  time.Time
	configured string
	mu         sync.Mutex
	listener   net.Listener
}

// New opens nothing. Logs go to logTo, each with the service's name.
func New(service string, cfg Config, logTo io.Writer) *Telemetry {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	var handler slog.Handler = slog.NewTextHandler(logTo, options)
	if cfg.LogFormat == "json" {
		handler = slog.NewJSONHandler(logTo, options)
	}
	t := &Telemetry{
		Log:        slog.New(handler).With("service", service),
		Registry:   prometheus.NewRegistry(),
		service:    service,
		startedAt:  time.Now().UTC(),
		configured: cfg.Addr,
	}
	t.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	t.Health = newHealth(t.Log, t.Registry)
	return t
}

// Listen takes the port, so that a taken one is known before any work begins.
// Without an address it does nothing.
func (t *Telemetry) Listen() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.configured == "" || t.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", t.configured)
	if err != nil {
		return fmt.Errorf("serving telemetry on TELEMETRY_ADDR %s: %w", t.configured, err)
	}
	t.listener = l
	return nil
}

// Addr is the address that Listen took (port 0 became a real one), or "".
func (t *Telemetry) Addr() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.listener == nil {
		return ""
	}
	return t.listener.Addr().String()
}

// Handler answers /healthz (503 names the loops that stand still), /readyz (503
// names what is missing), /statusz (all of it as JSON, a Status), /metrics and
// /debug/pprof.
func (t *Telemetry) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", answer(t.Health.Stuck))
	mux.HandleFunc("GET /readyz", answer(t.Health.NotReady))
	mux.HandleFunc("GET /statusz", t.serveStatus)
	mux.Handle("GET /metrics", promhttp.HandlerFor(t.Registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// Serve listens, unless Listen has, and answers until ctx is done. Without an
// address it only waits. It returns nil when it was told to stop.
func (t *Telemetry) Serve(ctx context.Context) error {
	if err := t.Listen(); err != nil {
		return err
	}
	t.mu.Lock()
	l := t.listener
	t.mu.Unlock()
	if l == nil {
		<-ctx.Done()
		return nil
	}
	// A client that sends its header slowly must not hold a connection for ever.
	server := &http.Server{Handler: t.Handler(), ReadHeaderTimeout: 5 * time.Second}
	// Close, not Shutdown: a profile being taken would hold up the end of the
	// process, and a scrape is repeated anyway.
	defer context.AfterFunc(ctx, func() { server.Close() })()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving telemetry on %s: %w", l.Addr(), err)
	}
	return nil
}
