// Package webhook takes in what providers report about messages: delivered,
// bounced, complained of, unfollowed. A delivery is believed after its signature
// is; it becomes outcomes on the message that it names, and what it means for the
// person: consents and suppressed addresses.
//
// What is reported is repeated, reordered and forged. Every record has an id, or
// a time by which the later one wins, that is the provider's and not ours: a
// repetition is the same record once more, and the order of arrival decides
// nothing.
package webhook

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/token"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/bodies"
	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Options are what the handler needs.
type Options struct {
	// Keys check what we gave a provider to echo.
	Keys *token.Keys
	// Write returns when all entries are durable.
	Write func(context.Context, ...output.Entry) error
	// AckTimeout is how long a delivery waits for Write.
	AckTimeout time.Duration
	// Topics are the ARNs of the SNS topics that SES reports to.
	Topics []string
	// Queue is where SES reports to beside them; nil if there is none.
	Queue *Queue
	// Fetch gets from SNS; nil is over HTTPS.
	Fetch Fetch
	// LINE are the secrets that LINE may sign with.
	LINE [][]byte
	// Sources are those of signed generic webhooks.
	Sources  Sources
	Log      *slog.Logger
	Registry prometheus.Registerer
}

// Handler serves /w/ses, /w/line and /w/hooks/{source}, as far as they are
// configured, and reads the queue.
type Handler struct {
	Options
	now     func() time.Time
	slots   chan struct{}
	bodies  *bodies.Bound
	sns     *sns
	results *prometheus.CounterVec
	reports *prometheus.CounterVec
}

// concurrency is how many deliveries are worked on at once, when they have been read. Who
// they are is known only then: while they are read they hold the memory of so many of
// the largest, where whoever sends slowest gives way, and for no longer than readWithin.
const (
	concurrency = 128
	readWithin  = 5 * time.Second
)

// maxBytes is the largest body: SNS carries 256 KiB, which escaping may double.
const maxBytes = 512 << 10

// What became of a delivery.
const (
	resultTaken     = "taken"     // and something was written
	resultIgnored   = "ignored"   // authentic, and nothing to us
	resultParked    = "parked"    // authentic, and a dead letter
	resultForged    = "forged"    // not authentic
	resultInvalid   = "invalid"   // cannot be read
	resultAway      = "away"      // could not be stored or checked now
	resultConfirmed = "confirmed" // a subscription
)

// New returns a handler whose metrics are registered.
func New(o Options) *Handler {
	h := &Handler{Options: o, now: time.Now, slots: make(chan struct{}, concurrency), bodies: bodies.New(concurrency * maxBytes),
		results: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "webhook_deliveries_total", Help: "What providers delivered, by source and by what became of it."}, []string{"source", "result"}),
		reports: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "webhook_records_total", Help: "Records made of it that are durable, by source and kind."}, []string{"source", "kind"}),
	}
	h.sns = newSNS(o.Topics, o.Fetch)
	o.Registry.MustRegister(h.results, h.reports)
	return h
}

// Register adds the routes of what is configured.
func (h *Handler) Register(mux *http.ServeMux) {
	if len(h.Topics) > 0 {
		mux.HandleFunc("POST /w/ses", h.route(func(*http.Request) (string, decide) { return sourceSES, h.decideSNS }))
	}
	if len(h.LINE) > 0 {
		mux.HandleFunc("POST /w/line", h.route(func(*http.Request) (string, decide) { return sourceLINE, h.decideLINE }))
	}
	if len(h.Sources) > 0 {
		mux.HandleFunc("POST /w/hooks/{source}", h.route(func(r *http.Request) (string, decide) {
			name := r.PathValue("source")
			secrets, known := h.Sources[name]
			if !known {
				name = "" // anybody may call themselves anything: that is no label
			}
			return name, func(_ context.Context, header http.Header, body []byte, now time.Time) (verdict, error) {
				return h.decideSigned(name, secrets, header, body, now)
			}
		}))
	}
}

// decide is a provider's: what a delivery is worth, or a *refusal. It writes
// nothing.
type decide func(ctx context.Context, header http.Header, body []byte, now time.Time) (verdict, error)

// verdict is what a delivery is worth.
type verdict struct {
	entries []output.Entry
	result  string
	// note is what the provider's operator, or ours, should read.
	note string
	// then is done before the delivery is answered.
	then func(context.Context) error
}

// refusal is why a delivery is not taken.
type refusal struct {
	status int
	result string
	reason string
}

func (r *refusal) Error() string { return r.reason }

func forged(reason string) *refusal  { return &refusal{http.StatusUnauthorized, resultForged, reason} }
func invalid(reason string) *refusal { return &refusal{http.StatusBadRequest, resultInvalid, reason} }
func away(reason string) *refusal {
	return &refusal{http.StatusServiceUnavailable, resultAway, reason}
}

func (h *Handler) route(of func(*http.Request) (source string, _ decide)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		source, do := of(r)
		v, err := h.serve(w, r, source, do)
		status, text := http.StatusOK, "ok"
		var no *refusal
		if errors.As(err, &no) {
			status, text, v.result = no.status, no.reason, no.result
		}
		h.results.WithLabelValues(source, v.result).Inc()
		if v.note != "" {
			h.Log.Warn("what a provider delivered needs a look", "source", source, "result", v.result, "note", v.note)
		}
		if status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", "30")
		}
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text+"\n") // a client that is gone has no use for an answer
	}
}

// serve takes a delivery in. Its error is a *refusal.
func (h *Handler) serve(w http.ResponseWriter, r *http.Request, source string, do decide) (verdict, error) {
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(readWithin)) // without one it is the server's
	held := h.bodies.Begin(func() { _ = control.SetReadDeadline(time.Unix(1, 0)) })
	defer held.Release()
	body, err := io.ReadAll(reader{http.MaxBytesReader(w, r.Body, maxBytes), func(n int64) bool { return held.Take(r.Context(), n, h.AckTimeout/2) }})
	if held.End() || errors.Is(err, errCrowded) {
		return verdict{}, away("too much is being delivered at once, and this came slowly; deliver it again")
	}
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return verdict{}, &refusal{http.StatusRequestEntityTooLarge, resultInvalid, "the body is larger than " + strconv.Itoa(maxBytes) + " bytes"}
	}
	if err != nil {
		return verdict{}, invalid("the body ends early")
	}
	turn, cancel := context.WithTimeout(r.Context(), h.AckTimeout/2)
	defer cancel()
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	case <-turn.Done():
		return verdict{}, away("too many deliveries at once")
	}
	// The provider may hang up: what it said is taken in all the same.
	ctx, stop := context.WithTimeout(context.WithoutCancel(r.Context()), h.AckTimeout)
	defer stop()
	v, err := do(ctx, r.Header, body, h.now().UTC().Truncate(time.Microsecond))
	if err != nil {
		return verdict{}, err
	}
	return v, h.take(ctx, source, v)
}

var errCrowded = errors.New("there is no memory for more")

// reader reads what there is memory for.
type reader struct {
	io.Reader
	take func(bytes int64) bool
}

func (r reader) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if n > 0 && !r.take(int64(n)) {
		return 0, errCrowded
	}
	return n, err
}

// take makes a verdict durable. Only then is a delivery answered with 2xx: before
// that the provider must repeat it.
func (h *Handler) take(ctx context.Context, source string, v verdict) error {
	if len(v.entries) > 0 {
		if err := h.Write(ctx, v.entries...); err != nil {
			return away("it could not be stored; deliver it again")
		}
	}
	if v.then != nil {
		if err := v.then(ctx); err != nil {
			return err
		}
	}
	for i := range v.entries {
		h.reports.WithLabelValues(source, kindOf(&v.entries[i])).Inc()
	}
	return nil
}

func kindOf(e *output.Entry) string {
	if o, ok := e.Record.(*event.Outcome); ok {
		return o.Outcome
	}
	return string(e.Topic)
}

// park is what an authentic delivery becomes that nobody can use: its sender has
// done what it could, and repeating it would change nothing (I2).
func park(source, userID string, body []byte, now time.Time, reason string) verdict {
	return verdict{result: resultParked, note: reason, entries: []output.Entry{output.Unusable("webhook:"+source, userID, body, reason, now)}}
}
