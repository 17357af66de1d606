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
	log     *slog.Logger
	ready   *prometheus.GaugeVec
	outages *prometheus.CounterVec
	now     func() time.Time

	mu         sync.Mutex
	components map[string]component
	tolerated  map[string]bool
	beats      map[string]beat
	stopping   bool
}

// component is how a part fares: nil is fine.
type component struct {
	err     error
	since   time.Time // of the last change between fine and not
	waiting bool      // for the first time, which is no news
}

type beat struct {
	last time.Time
	max  time.Duration
}

func newHealth(log *slog.Logger, reg prometheus.Registerer) *Health {
	h := &Health{
		log:        log,
		now:        time.Now,
		components: map[string]component{},
		beats:      map[string]beat{},
		ready: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "component_ready", Help: "1 while the component has what it needs, else 0.",
		}, []string{"component"}),
		outages: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "component_outages_total", Help: "How often the component has ceased to have what it needs, its start included if it had to wait.",
		}, []string{"component"}),
	}
	reg.MustRegister(h.ready, h.outages)
	return h
}

// Set says how a component fares; nil is fine. A change between fine and not is
// logged once; while it is not fine the newest reason is kept for /readyz and
// /statusz and not logged again, however often it is reported.
func (h *Health) Set(name string, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before, known := h.components[name]
	now := component{err: err, since: before.since}
	if !known || before.waiting || (err == nil) != (before.err == nil) {
		now.since = h.now()
	}
	h.components[name] = now
	switch {
	case err != nil && (before.err == nil || before.waiting):
		h.ready.WithLabelValues(name).Set(0)
		h.outages.WithLabelValues(name).Inc()
		h.log.Warn("component is not ready", "component", name, "reason", err.Error())
	case err == nil && before.waiting:
		h.ready.WithLabelValues(name).Set(1)
	case err == nil && before.err != nil:
		h.ready.WithLabelValues(name).Set(1)
		h.log.Info("component is ready again", "component", name, "seconds_not_ready", now.since.Sub(before.since).Seconds())
	case !known:
		h.ready.WithLabelValues(name).Set(1)
		h.outages.WithLabelValues(name) // shown from the start, as 0
	}
}

// Expect says that a component is on its way: not ready, which is no news unless
// it has been ready before.
func (h *Health) Expect(name string, what error) {
	h.mu.Lock()
	before, known := h.components[name]
	if !known || before.waiting {
		if !known {
			before.since = h.now()
		}
		h.components[name] = component{err: what, since: before.since, waiting: true}
		h.ready.WithLabelValues(name).Set(0)
		h.outages.WithLabelValues(name)
		h.mu.Unlock()
		return
	}
	h.mu.Unlock()
	h.Set(name, what)
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

// Tolerate says that the process does what it is there for without these components: that one of
// them is not fine is shown in Status and does not turn readiness red. One that is on its
// way for the first time still does.
func (h *Health) Tolerate(names ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.tolerated == nil {
		h.tolerated = map[string]bool{}
	}
	for _, name := range names {
		h.tolerated[name] = true
	}
}

// missing reports whether a component keeps the process from being ready. h.mu is held.
func (h *Health) missing(name string, c component) bool {
	return c.err != nil && (c.waiting || !h.tolerated[name])
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
	for name, c := range h.components {
		if h.missing(name, c) {
			not = append(not, fmt.Sprintf("%s: %v", name, c.err))
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
