package telemetry

import (
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Health collects what the components of a service say about themselves.
// Readiness is whether everything it needs is there; liveness is whether its
// loops still turn.
type Health struct {
	log   *slog.Logger
	ready *prometheus.GaugeVec

	mu         sync.Mutex
	components map[string]error
	beats      map[string]beat
	stopping   bool
}

type beat struct {
	last time.Time
	max  time.Duration
}

func newHealth(log *slog.Logger, reg prometheus.Registerer) *Health {
	h := &Health{
		log:        log,
		components: map[string]error{},
		beats:      map[string]beat{},
		ready: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "component_ready", Help: "1 while the component has what it needs, else 0.",
		}, []string{"component"}),
	}
	reg.MustRegister(h.ready)
	return h
}

// Set says how a component fares; nil is fine. A change between fine and not is
// logged once; while it is not fine the newest reason is kept for /readyz and
// not logged again, however often it is reported.
func (h *Health) Set(component string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before, known := h.components[component]
	h.components[component] = err
	switch {
	case err != nil && before == nil:
		h.ready.WithLabelValues(component).Set(0)
		h.log.Warn("component is not ready", "component", component, "reason", err.Error())
	case err == nil && before != nil:
		h.ready.WithLabelValues(component).Set(1)
		h.log.Info("component is ready again", "component", component)
	case !known:
		h.ready.WithLabelValues(component).Set(1)
	}
}

// Beat says that a loop has turned and will again within max; when it does not,
// /healthz answers 503, so that whoever supervises the process restarts it.
func (h *Health) Beat(component string, max time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.beats[component] = beat{time.Now(), max}
}

// Rest says that a loop has ended on purpose and no beat is to be expected.
func (h *Health) Rest(component string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.beats, component)
}

// Stop turns readiness red for good: the process has been told to end.
func (h *Health) Stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopping = true
}

// NotReady lists what is not fine as "component: reason", sorted; empty is ready.
func (h *Health) NotReady() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var not []string
	for c, err := range h.components {
		if err != nil {
			not = append(not, fmt.Sprintf("%s: %v", c, err))
		}
	}
	slices.Sort(not)
	if h.stopping {
		not = append(not, "stopping")
	}
	return not
}

// Stuck lists the loops whose beat is overdue, sorted; empty is alive.
func (h *Health) Stuck() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var stuck []string
	for c, b := range h.beats {
		if silent := time.Since(b.last); silent > b.max {
			stuck = append(stuck, fmt.Sprintf("%s: no turn for %s, at most %s expected", c, silent.Round(time.Millisecond), b.max))
		}
	}
	slices.Sort(stuck)
	return stuck
}

// answer writes 200 and "ok", or 503 and a line per problem.
func answer(problems func() []string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		if p := problems(); len(p) > 0 {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, strings.Join(p, "\n"))
			return
		}
		fmt.Fprintln(w, "ok")
	}
}
