// Package intake takes in events and profiles over HTTP, in the bodies that
// Segment's and RudderStack's libraries send. What is answered with 200 has been
// acknowledged by Kafka; of a batch the good events are kept, and the others are named
// and parked.
package intake

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/bodies"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Options are what the handler needs.
type Options struct {
	Keys Keys
	// Origins are the web pages that may send, "*" for all.
	Origins []string
	// Write returns when all entries are acknowledged.
	Write func(context.Context, ...output.Entry) error
	// AckTimeout is how long a request waits for Kafka, and half of it for its turn.
	AckTimeout time.Duration
	// Concurrency is how many requests are worked on at once, when their bodies are there.
	Concurrency int
	// MemoryBytes is how much the bodies that are read or worked on may take together.
	MemoryBytes int64
	Registry    prometheus.Registerer
}

// Handler serves /v1/… and /beacon/v1/batch.
type Handler struct {
	Options
	slots    chan struct{}
	memory   *bodies.Bound
	now      func() time.Time
	requests *prometheus.CounterVec
	records  map[topic.Name]prometheus.Counter
	rejected *prometheus.CounterVec
	seconds  prometheus.Histogram
	done     prometheus.Counter // requests answered with 200
}

// New returns a handler whose metrics are registered.
func New(o Options) *Handler {
	h := &Handler{Options: o, slots: make(chan struct{}, o.Concurrency), memory: bodies.New(max(o.MemoryBytes, 2*MaxBatchBytes)), now: time.Now,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "intake_requests_total", Help: "Requests to /v1, by status answered."}, []string{"status"}),
		records:  map[topic.Name]prometheus.Counter{},
		rejected: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "intake_rejected_total", Help: "Events that could not be used, by code."}, []string{"code"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "intake_seconds", Help: "Time from the first byte of a request's body to its answer, in seconds.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14)}),
	}
	records := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "intake_records_total", Help: "Records that Kafka or the spool has and that were answered with 200, by topic."}, []string{"topic"})
	reading := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "intake_reading", Help: "Requests to /v1 whose body is still on its way."}, func() float64 { return float64(h.memory.Reading()) })
	// Made once: looking one up costs as much as a small request's decoding.
	for _, t := range []topic.Name{topic.Events, topic.ProfileUpdates, topic.DeadLetters(topic.Collector)} {
		h.records[t] = records.WithLabelValues(string(t))
	}
	h.done = h.requests.WithLabelValues("200")
	o.Registry.MustRegister(h.requests, records, h.rejected, h.seconds, reading)
	return h
}

// Register adds the routes: Segment's own, the short ones of its library for browsers, and
// RudderStack's for what a page sends at its end.
func (h *Handler) Register(mux *http.ServeMux) {
	for kind, paths := range map[string][]string{
		kindTrack: {"/v1/track", "/v1/t"}, kindIdentify: {"/v1/identify", "/v1/i"}, kindPage: {"/v1/page", "/v1/p"}, kindScreen: {"/v1/screen", "/v1/s"},
		kindGroup: {"/v1/group", "/v1/g"}, kindAlias: {"/v1/alias", "/v1/a"}, batch: {"/v1/batch", "/v1/b", "/v1/import", "/beacon/v1/batch"},
		metrics: {"/v1/m"},
	} {
		for _, path := range paths {
			mux.HandleFunc(path, h.route(kind))
		}
	}
}

// Paths are the routes for people who took a wrong one.
const Paths = "POST /v1/{track,page,screen,identify,group,batch,import}"

// What a path takes beside the kinds of calls.
const (
	batch   = ""        // several, each of which says what it is
	metrics = "metrics" // Segment's library about itself
)

// answer is the body of every answer.
type answer struct {
	Success  bool       `json:"success"`
	Accepted int        `json:"accepted"`
	Errors   []*Problem `json:"errors,omitempty"`
}

// Headers of every answer; a map entry of one's own is an allocation each.
var (
	isJSON   = []string{"application/json"}
	notKept  = []string{"no-store"}
	anywhere = []string{"*"}
	varies   = []string{"Origin"}
)

func (h *Handler) route(kind string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		start := h.now()
		a, no := answer{}, h.allowed(w, r)
		switch {
		case no != nil:
		case r.Method == http.MethodOptions:
			h.preflight(w, r)
			return
		case r.Method != http.MethodPost:
			w.Header().Set("Allow", "POST, OPTIONS")
			no = refuse(http.StatusMethodNotAllowed, "method", r.Method+" is not taken here; POST is")
		case kind == metrics:
			a.Success = true // nobody here asks how the client's library feels
		case kind == kindAlias:
			no = refuse(http.StatusNotImplemented, "unsupported", "alias is not taken in: people are not merged yet. Send what they do with one userId")
		default:
			a, no = h.serve(w, r, kind, start.UTC().Truncate(time.Microsecond))
		}
		status := http.StatusOK
		if no != nil {
			status, a = no.status, answer{Errors: append(a.Errors, &no.Problem)}
			if no.after > 0 {
				w.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(no.after.Seconds()))))
			}
		} else if !a.Success {
			status = unusable(a.Errors)
		}
		for _, p := range a.Errors {
			h.rejected.WithLabelValues(p.Code).Inc()
		}
		if status == http.StatusUnauthorized {
			w.Header().Set("WWW-Authenticate", `Basic realm="write key", charset="UTF-8"`)
		}
		header := w.Header()
		header["Content-Type"], header["Cache-Control"] = isJSON, notKept
		if status == http.StatusOK && len(a.Errors) == 0 {
			said := strconv.AppendInt(append(make([]byte, 0, 48), `{"success":true,"accepted":`...), int64(a.Accepted), 10)
			_, _ = w.Write(append(said, "}\n"...)) // a client that is gone has no use for an answer
			h.done.Inc()
		} else {
			w.WriteHeader(status)
			_ = json.NewEncoder(w).Encode(a)
			h.requests.WithLabelValues(strconv.Itoa(status)).Inc()
		}
		h.seconds.Observe(time.Since(start).Seconds())
	}
}

// unusable is the status where nothing was taken: 403 if that is for want of a scope.
func unusable(errs []*Problem) int {
	for _, p := range errs {
		if p.Code != "scope" {
			return http.StatusBadRequest
		}
	}
	return http.StatusForbidden
}

// allowed says to a browser whether the page that sends may, and refuses it otherwise.
func (h *Handler) allowed(w http.ResponseWriter, r *http.Request) *refusal {
	origin := r.Header["Origin"]
	if len(origin) == 0 {
		return nil // no browser, or a page of this very host
	}
	for _, o := range h.Origins {
		switch o {
		case "*":
			w.Header()["Access-Control-Allow-Origin"] = anywhere
			return nil
		case origin[0]:
			w.Header()["Access-Control-Allow-Origin"], w.Header()["Vary"] = origin[:1], varies
			return nil
		}
	}
	return refuse(http.StatusForbidden, "origin", "pages of this origin may not send events here")
}

// preflight answers what a browser asks before it sends. Which headers libraries send differs;
// none of them matters here.
func (h *Handler) preflight(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Methods", "POST, OPTIONS")
	if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" && len(asked) <= 1024 {
		w.Header().Set("Access-Control-Allow-Headers", asked)
	}
	w.Header().Set("Access-Control-Max-Age", "7200")
	w.Header().Set("Allow", "POST, OPTIONS")
	w.WriteHeader(http.StatusNoContent)
}

var errUnauthorized = refuse(http.StatusUnauthorized, "write_key", "the write key is missing or not known; it is the user name of Basic authentication, or writeKey in the body")

// requestsKept are for reuse. What of a request is given away has memory of its own.
var requestsKept = sync.Pool{New: func() any { return new(request) }}

func (r *request) release() {
	clear(r.calls) // its texts hold the body
	if cap(r.calls) > 512 {
		r.calls = nil
	}
	*r = request{scanner: scanner{nest: r.nest[:0]}, calls: r.calls[:0]}
	requestsKept.Put(r)
}

// serve takes in one request. Kind is batch, or the path's.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, kind string, received time.Time) (answer, *refusal) {
	var key *Key
	user, _, basic := r.BasicAuth()
	query := url.Values{}
	if r.URL.RawQuery != "" {
		query = r.URL.Query()
	}
	if !basic && query.Has("writeKey") {
		user, basic = query.Get("writeKey"), true // a beacon has no headers
	}
	if basic {
		// Before anything is read: strangers cost nothing.
		if key = h.Keys.Find(user); key == nil {
			return answer{}, errUnauthorized
		}
		if no := key.tooFast(received); no != nil {
			return answer{}, no
		}
	}
	limit := int64(MaxEventBytes)
	if kind == batch {
		limit = MaxBatchBytes
	}
	// Reading ends at once when somebody needs the memory more.
	held := h.memory.Begin(func() { _ = http.NewResponseController(w).SetReadDeadline(time.Unix(1, 0)) })
	defer held.Release()
	body, no := h.readBody(w, r, limit, held)
	if held.End() {
		no = busy("this body came so slowly that others needed its place; send it again")
	}
	if no != nil {
		return answer{}, no
	}
	if !h.turn(r.Context()) {
		return answer{}, busy("too many requests at once; try again")
	}
	defer func() { <-h.slots }()

	req := requestsKept.Get().(*request)
	defer req.release()
	if kind == batch {
		req.readBatch(body)
	} else {
		req.readSingle(body)
	}
	if key == nil {
		if key = h.Keys.Find(req.writeKey); key == nil {
			return answer{}, errUnauthorized
		}
		if no := key.tooFast(received); no != nil {
			return answer{}, no
		}
	}
	switch {
	case req.problem != nil:
		return answer{}, &refusal{status: http.StatusBadRequest, Problem: *req.problem}
	case len(req.calls) == 0:
		return answer{}, refuseField("batch", "missing", "the batch has no events")
	}
	key.pace.pay(len(req.calls))

	entries, a := h.decide(req, kind, &receipt{at: received, source: key.source, scopes: key.Scopes, sentAt: req.sentAt, newID: newID})
	if a.Accepted == 0 || len(a.Errors) > 0 && query.Get("strict") == "1" {
		a.Accepted = 0
		return a, nil
	}
	// The client may hang up: what it gave is taken in all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.AckTimeout)
	defer cancel()
	crash.At(crash.IntakeDecided)
	if err := h.Write(ctx, entries...); err != nil {
		key.pace.pay(-len(req.calls)) // they will be sent again
		no := refuse(http.StatusServiceUnavailable, "unavailable", "the events could not be stored; send them again")
		no.after = 5 * time.Second
		return answer{}, no
	}
	crash.At(crash.IntakeAcknowledged)
	for i := 0; i < len(entries); {
		n, t := 0, entries[i].Topic
		for ; i < len(entries) && entries[i].Topic == t; i++ {
			n++
		}
		h.records[t].Add(float64(n))
	}
	a.Success = true
	return a, nil
}

// decide makes records of what can be used, and dead letters of what cannot.
func (h *Handler) decide(req *request, kind string, got *receipt) ([]output.Entry, answer) {
	var a answer
	entries := make([]output.Entry, 0, len(req.calls)+1)
	for i := range req.calls {
		c := &req.calls[i]
		var p *Problem
		if entries, p = decide(entries, c, kind, got); p == nil {
			a.Accepted++
			continue
		}
		p.Index = i
		a.Errors = append(a.Errors, p)
		if p.Code != "scope" { // what its key may not send is not kept by a side door
			entries = append(entries, parked(c, p, got))
		}
	}
	return entries, a
}

// parked is the dead letter of an event that cannot be used.
func parked(c *call, p *Problem, got *receipt) output.Entry {
	reason := p.Code + ": " + p.Reason
	if p.Field != "" {
		reason = p.Field + ": " + reason
	}
	userID := c.userID
	if userID == "" {
		userID = c.anonymousID
	}
	if len(userID) > maxUserIDBytes {
		userID = ""
	}
	return output.Unusable(got.source, userID, []byte(c.raw), reason, got.at)
}

// turn waits for a turn; false if none came. Give it back.
func (h *Handler) turn(ctx context.Context) bool {
	select {
	case h.slots <- struct{}{}:
		return true
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, h.AckTimeout/2)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

func refuseField(field, code, reason string) *refusal {
	no := refuse(http.StatusBadRequest, code, reason)
	no.Field = field
	return no
}

// tooFast refuses whoever has sent more than its key may.
func (k *Key) tooFast(now time.Time) *refusal {
	wait := k.pace.wait(now)
	if wait == 0 {
		return nil
	}
	no := refuse(http.StatusTooManyRequests, "rate", "this write key sends more than its rate; send these again later")
	no.after = wait
	return no
}

// newID makes the id of an event that has none. Nothing about such an event
// tells its repetition from another like it, so nothing could be derived.
func newID() string {
	var id identity.ID
	rand.Read(id[:]) // never fails
	return id.String()
}

// NotFound answers whatever is at none of the collector's paths.
func NotFound(mux *http.ServeMux) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		no := refuse(http.StatusNotFound, "path", "there is nothing here; there are "+Paths+", /c/, /o/ and /u/ for links, and /w/ for providers")
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			other := r.Clone(r.Context())
			other.Method = method
			if _, pattern := mux.Handler(other); pattern != "/" && method != r.Method {
				w.Header().Add("Allow", method)
				no = refuse(http.StatusMethodNotAllowed, "method", r.Method+" is not taken here; "+method+" is")
			}
		}
		w.Header()["Content-Type"], w.Header()["Cache-Control"] = isJSON, notKept
		w.WriteHeader(no.status)
		_ = json.NewEncoder(w).Encode(answer{Errors: []*Problem{&no.Problem}})
	}
}
