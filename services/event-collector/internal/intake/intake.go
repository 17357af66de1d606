// Package intake takes in events and profiles over HTTP, in the bodies that
// Segment's libraries send. What is answered with 200 has been acknowledged by
// Kafka; of a batch the good events are kept and the others are named.
package intake

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/services/internal/crash"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Options are what the handler needs.
type Options struct {
	Keys Keys
	// Write returns when all entries are acknowledged.
	Write func(context.Context, ...output.Entry) error
	// AckTimeout is how long a request waits for Kafka, and half of it for its turn.
	AckTimeout time.Duration
	// Concurrency is how many requests are worked on at once.
	Concurrency int
	Registry    prometheus.Registerer
}

// Handler serves /v1/track, /v1/identify and /v1/batch.
type Handler struct {
	Options
	slots    chan struct{}
	now      func() time.Time
	requests *prometheus.CounterVec
	records  *prometheus.CounterVec
	rejected *prometheus.CounterVec
	seconds  prometheus.Histogram
}

// New returns a handler whose metrics are registered.
func New(o Options) *Handler {
	h := &Handler{Options: o, slots: make(chan struct{}, o.Concurrency), now: time.Now,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "intake_requests_total", Help: "Requests to /v1, by status answered."}, []string{"status"}),
		records:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "intake_records_total", Help: "Records acknowledged by Kafka and answered with 200, by topic."}, []string{"topic"}),
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "intake_rejected_total", Help: "Events that could not be used, by code."}, []string{"code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "intake_seconds", Help: "Time from the first byte of a request's body to its answer, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
	o.Registry.MustRegister(h.requests, h.records, h.rejected, h.seconds)
	return h
}

// Register adds the routes.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.Handle("POST /v1/track", h.route("track", MaxEventBytes))
	mux.Handle("POST /v1/identify", h.route("identify", MaxEventBytes))
	mux.Handle("POST /v1/batch", h.route("", MaxBatchBytes))
}

// answer is the body of every answer.
type answer struct {
	Success  bool       `json:"success"`
	Accepted int        `json:"accepted"`
	Errors   []*Problem `json:"errors,omitempty"`
}

func (h *Handler) route(kind string, limit int64) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := h.now()
		a, err := h.serve(w, r, kind, limit, start.UTC().Truncate(time.Microsecond))
		status := http.StatusOK
		var no *refusal
		if errors.As(err, &no) {
			status, a = no.status, answer{Errors: append(a.Errors, &no.Problem)}
		} else if a.Accepted == 0 {
			status = http.StatusBadRequest
		} else {
			a.Success = true
		}
		for _, p := range a.Errors {
			h.rejected.WithLabelValues(p.Code).Inc()
		}
		switch status {
		case http.StatusServiceUnavailable:
			w.Header().Set("Retry-After", "5")
		case http.StatusUnauthorized:
			w.Header().Set("WWW-Authenticate", `Basic realm="write key", charset="UTF-8"`)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(a) // a client that is gone has no use for an answer
		h.requests.WithLabelValues(strconv.Itoa(status)).Inc()
		h.seconds.Observe(time.Since(start).Seconds())
	}
}

var errUnauthorized = refuse(http.StatusUnauthorized, "write_key", "the write key is missing or not known; it is the user name of Basic authentication, or writeKey in the body")

// serve takes in one request. Its error is a *refusal.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, kind string, limit int64, received time.Time) (answer, error) {
	name, known := "", false
	if user, _, ok := r.BasicAuth(); ok {
		// Before anything is read: strangers cost nothing.
		if name, known = h.Keys.Name(user); !known {
			return answer{}, errUnauthorized
		}
	}
	ctx, cancel := context.WithTimeout(r.Context(), h.AckTimeout/2)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-ctx.Done():
		return answer{}, refuse(http.StatusServiceUnavailable, "busy", "too many requests at once; try again")
	}
	body, err := readBody(w, r, limit)
	if err != nil {
		return answer{}, err
	}
	b := batch{Batch: []json.RawMessage{body}}
	if kind == "" {
		b.Batch = nil
		if p := parse(body, &b); p != nil {
			return answer{}, &refusal{http.StatusBadRequest, *p}
		}
		if len(b.Batch) == 0 {
			return answer{}, &refusal{http.StatusBadRequest, Problem{Field: "batch", Code: "missing", Reason: "the batch has no events"}}
		}
	} else if !known {
		// What else is wrong with it is for decide to say, once it is known whose it is.
		_ = json.Unmarshal(body, &struct {
			WriteKey *string `json:"writeKey"`
		}{&b.WriteKey})
	}
	if !known {
		if name, known = h.Keys.Name(b.WriteKey); !known {
			return answer{}, errUnauthorized
		}
	}

	got := receipt{at: received, source: "api:" + name, sentAt: b.SentAt, newID: newID}
	var a answer
	entries := make([]output.Entry, 0, len(b.Batch))
	for i, raw := range b.Batch {
		e, p := decide(raw, kind, got)
		if p != nil {
			p.Index = i
			a.Errors = append(a.Errors, p)
			continue
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		return a, nil
	}
	// The client may hang up: what it gave is taken in all the same.
	ctx, cancel = context.WithTimeout(context.WithoutCancel(r.Context()), h.AckTimeout)
	defer cancel()
	crash.At(crash.IntakeDecided)
	if err := h.Write(ctx, entries...); err != nil {
		return answer{}, refuse(http.StatusServiceUnavailable, "unavailable", "the events could not be stored; send them again")
	}
	crash.At(crash.IntakeAcknowledged)
	for _, e := range entries {
		h.records.WithLabelValues(string(e.Topic)).Inc()
	}
	a.Accepted = len(entries)
	return a, nil
}

// newID makes the id of an event that has none. Nothing about such an event
// tells its repetition from another like it, so nothing could be derived.
func newID() string {
	var id identity.ID
	rand.Read(id[:]) // never fails
	return id.String()
}
