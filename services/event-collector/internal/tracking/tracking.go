// Package tracking answers the links that mails carry: clicks, opens and
// unsubscribes. Whatever is recorded was signed by us; a link that was tampered
// with is refused, and nothing is recorded. Hits are raw: whether a person or a
// machine made them is judged later.
package tracking

import (
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hikyaku/hikyaku/schemas/event"
	"github.com/hikyaku/hikyaku/schemas/identity"
	"github.com/hikyaku/hikyaku/schemas/token"
	"github.com/hikyaku/hikyaku/schemas/topic"
	"github.com/hikyaku/hikyaku/services/internal/crash"

	"github.com/hikyaku/hikyaku/services/event-collector/internal/output"
)

// Options are what the handler needs.
type Options struct {
	Keys *token.Keys
	// Write returns when all entries are acknowledged.
	Write func(context.Context, ...output.Entry) error
	// HitTimeout is how long a person waits for their page while Kafka has not
	// acknowledged the hit.
	HitTimeout time.Duration
	// AckTimeout is how long an unsubscription waits for Kafka.
	AckTimeout time.Duration
	// Address is what is kept of a client's address: Truncated, Hashed or None.
	Address string
	// Proxies are believed when they say whom they ask for.
	Proxies  []netip.Prefix
	Log      *slog.Logger
	Registry prometheus.Registerer
}

// Handler serves /c/, /o/ and /u/.
type Handler struct {
	Options
	now    func() time.Time
	counts map[string]counts // by kind
	forged prometheus.Counter
}

// counts are a kind's counters, looked up once.
type counts struct{ hits, lost prometheus.Counter }

// The kinds of engagements.
const (
	opened       = "opened"
	clicked      = "clicked"
	unsubscribed = "unsubscribed"
)

// New returns a handler whose metrics are registered.
func New(o Options) *Handler {
	hits := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tracking_hits_total", Help: "Hits that Kafka or the spool has, by kind."}, []string{"kind"})
	lost := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tracking_hits_lost_total", Help: "Opens and clicks that were answered although Kafka had not acknowledged them; some may still arrive."}, []string{"kind"})
	h := &Handler{Options: o, now: time.Now,
		counts: map[string]counts{
			opened:       {hits.WithLabelValues(opened), lost.WithLabelValues(opened)},
			clicked:      {hits.WithLabelValues(clicked), lost.WithLabelValues(clicked)},
			unsubscribed: {hits: hits.WithLabelValues(unsubscribed)}, // one that is not stored is refused, never lost
		},
		forged: prometheus.NewCounter(prometheus.CounterOpts{Name: "tracking_invalid_total", Help: "Links that were not signed by us, or not for this."}),
	}
	o.Registry.MustRegister(hits, lost, h.forged)
	return h
}

// Register adds the routes. GET stands for HEAD too.
func (h *Handler) Register(mux *http.ServeMux) {
	mux.HandleFunc("GET /c/{token}", h.click)
	mux.HandleFunc("GET /o/{token}", h.open)
	mux.HandleFunc("GET /u/{token}", h.ask)
	mux.HandleFunc("POST /u/{token}", h.unsubscribe)
}

// What every answer says. A page about one person's mail is nobody else's to keep,
// find or learn of; and a hit that a cache answers is a hit that nobody sees, so
// caches of any age are told. Nothing has a validator (ETag, Last-Modified), so a
// conditional request gets the whole answer, as every other.
var (
	cacheControl = []string{"private, no-store, no-cache, must-revalidate, max-age=0"}
	pragma       = []string{"no-cache"} // HTTP/1.0
	expires      = []string{"0"}        // HTTP/1.0
	noReferrer   = []string{"no-referrer"}
	noRobots     = []string{"noindex, nofollow"}
	noSniff      = []string{"nosniff"}
	imageGIF     = []string{"image/gif"}
	pixelLength  = []string{"43"}
)

// parse returns the request's token, or answers 400.
func (h *Handler) parse(w http.ResponseWriter, purpose token.Purpose, text string) (*token.Token, bool) {
	header := w.Header()
	header["Cache-Control"], header["Pragma"], header["Expires"] = cacheControl, pragma, expires
	header["Referrer-Policy"], header["X-Robots-Tag"], header["X-Content-Type-Options"] = noReferrer, noRobots, noSniff
	t, err := h.Keys.Parse(purpose, text)
	if err != nil {
		h.refuse(w)
		return nil, false
	}
	return t, true
}

func (h *Handler) refuse(w http.ResponseWriter) {
	h.forged.Inc()
	http.Error(w, "This link is not valid.", http.StatusBadRequest)
}

func (h *Handler) click(w http.ResponseWriter, r *http.Request) {
	t, ok := h.parse(w, token.Click, r.PathValue("token"))
	if !ok {
		return
	}
	// Signed by us, so it is what the template said; but only web pages were ever
	// tracked, and nothing else must become a link through us.
	if scheme, _, ok := strings.Cut(t.Target, "://"); !ok || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		h.refuse(w)
		return
	}
	h.hit(r, t, clicked)
	// Everybody is led to the same place. No body: nobody reads one.
	w.Header()["Location"] = []string{location(t.Target)}
	w.WriteHeader(http.StatusFound)
}

// location is a target as a header can carry it.
func location(target string) string {
	plain := func(c byte) bool { return c > ' ' && c < 0x7f }
	for i := range len(target) {
		if plain(target[i]) {
			continue
		}
		b := append(make([]byte, 0, len(target)+16), target[:i]...)
		for ; i < len(target); i++ {
			if c := target[i]; plain(c) {
				b = append(b, c)
			} else {
				b = append(b, '%', "0123456789ABCDEF"[c>>4], "0123456789ABCDEF"[c&15])
			}
		}
		return string(b)
	}
	return target
}

// pixel is the smallest GIF there is: 1×1, transparent.
const pixel = "GIF89a\x01\x00\x01\x00\x80\x00\x00\x00\x00\x00\xff\xff\xff!\xf9\x04\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"

func (h *Handler) open(w http.ResponseWriter, r *http.Request) {
	t, ok := h.parse(w, token.Open, strings.TrimSuffix(r.PathValue("token"), ".gif"))
	if !ok {
		return
	}
	h.hit(r, t, opened)
	w.Header()["Content-Type"], w.Header()["Content-Length"] = imageGIF, pixelLength
	_, _ = io.WriteString(w, pixel)
}

// hit records an open or a click, by GET or, as those do who look before anything
// is opened, by HEAD. The person gets what they came for whether or not Kafka
// answers.
func (h *Handler) hit(r *http.Request, t *token.Token, kind string) {
	// A browser that goes on at once cancels the request: it was a click all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), h.HitTimeout)
	defer cancel()
	var id identity.ID
	rand.Read(id[:]) // never fails; each hit is one of its own
	e := h.engagement(r, t, kind, id)
	if err := h.Write(ctx, output.Entry{Topic: topic.Engagements, Key: t.UserID, Record: e}); err != nil {
		h.counts[kind].lost.Inc()
		return
	}
	crash.At(crash.TrackingAcknowledged)
	h.counts[kind].hits.Inc()
}

func (h *Handler) engagement(r *http.Request, t *token.Token, kind string, id identity.ID) *event.Engagement {
	now := h.now().UTC().Truncate(time.Microsecond)
	return &event.Engagement{EngagementID: id, MessageID: t.MessageID, RunID: t.RunID, CampaignID: t.CampaignID, UserID: t.UserID, Channel: t.Channel,
		Kind: kind, URL: t.Target, OccurredAt: now, Method: r.Method,
		UserAgent: cut(r.UserAgent()), Network: keep(h.Address, h.Keys, h.client(r), now), Referer: cut(r.Referer()),
		Purpose: purpose(r.Header), LatencyMs: latency(t.RequestedAt, now)}
}

// latency is the time from the admission of a message to a hit, in milliseconds,
// or -1. A hit before it was made by clocks that differ.
func latency(requested, now time.Time) int64 {
	if requested.IsZero() {
		return -1
	}
	return max(0, now.Sub(requested).Milliseconds())
}

// purpose is why a client says it asks, if it is not that a person wants to see
// the page: Sec-Purpose (Fetch Standard), Purpose (Chromium and WebKit before it),
// X-Purpose (Safari's previews) and X-Moz (Firefox before it).
func purpose(header http.Header) string {
	said := ""
	for _, name := range [...]string{"Sec-Purpose", "Purpose", "X-Purpose", "X-Moz"} {
		for _, value := range header[name] {
			value = strings.ToLower(value)
			switch {
			case strings.Contains(value, "prerender"):
				return "prerender" // Sec-Purpose: prefetch;prerender
			case strings.Contains(value, "prefetch"):
				said = "prefetch"
			case said == "" && strings.Contains(value, "preview"):
				said = "preview"
			}
		}
	}
	return said
}

// maxHeaderBytes is what is kept of a header that anybody may fill.
const maxHeaderBytes = 512

func cut(s string) string {
	return strings.ToValidUTF8(s[:min(len(s), maxHeaderBytes)], "")
}
